"""Lithium iron phosphate particles at two X-ray energies, with scan lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.testing.twins.base import Image, Twin, noisy

ENERGIES_EV = (706.0, 711.0)
ABSORBANCE = {"LiFePO4": (1.00, 0.45), "FePO4": (0.38, 1.05)}
"""Of a full particle at each energy; the shape of the Fe L3 edge, not a measurement of it."""
_OD = 0.9
_BOUNDARY_PX = 2.0


@dataclass(frozen=True, kw_only=True)
class StxmTwin(Twin):
    """Each frame is one scan at both energies; phase boundaries move from scan to scan.

    Attributes:
        frames: Number of scans.
        quanta: Per pixel without a sample.
        lines: Relative s.d. of the beam from scan line to scan line.
        shift_px: Of the second energy against the first, down and right.
    """

    frames: int = 18
    frame_time_s: float = 60.0
    quanta: float = 400.0
    lines: float = 0.02
    shift_px: tuple[float, float] = (0.7, -1.2)

    @property
    def channels(self) -> tuple[str, ...]:
        """See ``Twin``."""
        return tuple(f"{energy:g} eV" for energy in ENERGIES_EV)

    @property
    def empty(self) -> tuple[int, int, int, int]:
        """Where no sample is, [top, left, bottom, right]."""
        return (0, 0, self.size, max(8, self.size // 10))

    def thickness(self) -> Image:
        """Relative thickness (h, w): 0 without a particle, about 1 in it."""
        return self._fields(0)[0]

    def composition(self, i: int) -> Image:
        """True share of LiFePO4, (h, w); NaN where there is no particle."""
        thickness, share = self._fields(i)
        return np.where(thickness > 0.5, share, np.nan).astype(np.float32)

    def _fields(self, i: int) -> tuple[Image, Image]:
        size = self.size
        y, x = np.mgrid[:size, :size].astype(np.float64)
        thickness, share = np.zeros((2, size, size))
        time = i / max(1, self.frames - 1)
        for number in range(5):
            rng = self.rng(50 + number)
            cy = size * (0.22 + 0.56 * ((number * 2) % 5) / 4)
            cx = size * (0.28 + 0.56 * number / 4)
            a, b = size * rng.uniform(0.09, 0.13), size * rng.uniform(0.06, 0.09)
            angle = rng.uniform(0, np.pi)
            u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
            v = -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)
            away = (np.hypot(u / a, v / b) - 1) * min(a, b)
            inside = 1 / (1 + np.exp(np.clip(away / 0.7, -50, 50)))
            front = a * (-0.9 + 1.8 * np.clip(time * rng.uniform(0.8, 1.2) + 0.05, 0, 1))
            bend = 0.15 * a * np.sin(3 * v / b + number)
            here = 1 / (1 + np.exp(np.clip((u - front - bend) / _BOUNDARY_PX * 2, -50, 50)))
            share = np.where(inside > thickness, here, share)
            thickness = np.maximum(thickness, inside * (1 + 0.1 * np.cos(u / a)))
        return thickness.astype(np.float32), share.astype(np.float32)

    def density(self, i: int) -> Image:
        """True optical density at both energies without their shift, (2, h, w)."""
        thickness, share = self._fields(i)
        pure = np.array([ABSORBANCE["LiFePO4"], ABSORBANCE["FePO4"]], np.float32)
        mix = share[None] * pure[0][:, None, None] + (1 - share)[None] * pure[1][:, None, None]
        return (_OD * thickness * mix).astype(np.float32)

    def reference(self, i: int) -> Image:
        """As ptychography sees the composition: finer, shifted, hardly noisy; NaN outside.

        (2h, 2w); moved by 3 and -2 fine pixels.
        """
        from scipy.ndimage import shift, zoom

        fine = np.asarray(zoom(self._fields(i)[1], 2, order=1))
        inside = np.asarray(zoom(self._fields(i)[0], 2, order=1)) > 0.5
        fine = fine + self.rng(i, 3).normal(0, 0.01, fine.shape)
        image = np.where(inside, fine, 0)
        moved = np.asarray(shift(image, (3, -2), order=1))
        there = np.asarray(shift(inside.astype(float), (3, -2), order=0)) > 0.5
        return np.where(there, moved, np.nan).astype(np.float32)

    def expected(self, i: int) -> Image:
        """See ``Twin``; without scan lines."""
        from scipy.ndimage import shift

        low, high = self.density(i)
        high = shift(high, self.shift_px, order=3, mode="nearest")
        return (self.quanta * np.exp(-np.stack([low, high]))).astype(np.float32)

    def counts(self, i: int) -> NDArray[np.uint16]:
        """See ``Twin``; every scan line has a beam of its own."""
        rng = self.rng(i, 2)
        beam = 1 + self.lines * rng.standard_normal((2, self.size, 1))
        return noisy(rng, (self.expected(i) * beam).astype(np.float32), 1.0, 0.0)

    def settings(self) -> dict[str, Any]:
        """Of ``stxm``."""
        return {
            "energies_ev": ENERGIES_EV,
            "components": {
                name: tuple(_OD * value for value in values) for name, values in ABSORBANCE.items()
            },
            "i0": self.empty,
        }
