"""A cell under neutrons: lithium fills an anode evenly and leaves it by a moving front."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.testing.twins.base import Image, Twin, noisy

_LITHIUM = 0.30  # attenuation that a full anode adds
_DARK = 100.0
_REACH = (0.0, 0.55, 0.55, 0.35)  # how deep each half-cycle goes, of the anode's thickness
_SPOTS = 1e-4  # share of pixels hit by gamma rays
_EDGE = 0.06  # width of the front, of the anode's thickness


@dataclass(frozen=True, kw_only=True)
class NeutronTwin(Twin):
    """Rows are depth; the separator lies between the anode (above) and the cathode.

    The first half-cycle fills the whole anode.  Each discharge empties it from the separator
    to a depth that varies along the rows; what lies deeper stays: sequestered.

    Attributes:
        neutrons: Per pixel and frame in the open beam.
        gain: Counts per neutron.
    """

    neutrons: float = 2000.0
    gain: float = 2.0
    spots: float = _SPOTS

    @property
    def half_cycles(self) -> tuple[int, ...]:
        """First frame of each of the four half-cycles."""
        return tuple(round(k * self.frames / 4) for k in range(4))

    @property
    def rest(self) -> int:
        """Frames without current at the beginning of each half-cycle."""
        return max(4, self.frames // 20)

    @property
    def anode(self) -> tuple[int, int, int, int]:
        """[top, left, bottom, right], the end excluded."""
        return self._rows(0.14, 0.44)

    @property
    def cathode(self) -> tuple[int, int, int, int]:
        """As for the anode."""
        return self._rows(0.54, 0.84)

    @property
    def beam(self) -> tuple[int, int, int, int]:
        """Where nothing is but the beam."""
        return (0, 0, self.size, max(4, self.size // 16))

    def _rows(self, top: float, bottom: float) -> tuple[int, int, int, int]:
        side = max(8, self.size // 8)
        return (round(top * self.size), side, round(bottom * self.size), self.size - side)

    def lithium(self, i: int) -> Image:
        """Attenuation (h, w) that lithium has added since the first frame."""
        out = np.zeros((self.size, self.size), np.float32)
        top, left, bottom, right = self.anode
        filled = self._anode(i)
        out[top:bottom, left:right] = _LITHIUM * filled
        top, left, bottom, right = self.cathode
        out[top:bottom, left:right] = -_LITHIUM * filled.mean()
        return out

    def _anode(self, i: int) -> NDArray[np.float64]:
        """Filling of 0 to 1; depth 0 at the separator (the lower edge)."""
        top, left, bottom, right = self.anode
        depth = 1 - (np.arange(bottom - top)[:, None] + 0.5) / (bottom - top)
        along = np.arange(right - left)[None] / (right - left)
        starts = (*self.half_cycles, self.frames)
        k = int(np.searchsorted(starts[1:4], i, side="right"))
        # no current flows at first: there is something to compare with
        length = starts[k + 1] - 1 - starts[k] - self.rest
        progress = max(0.0, (i - starts[k] - self.rest) / max(1, length))
        if k == 0:
            return np.full((bottom - top, right - left), progress)
        uneven = 1 + 0.15 * np.sin(2 * np.pi * 1.5 * along)
        reach = _REACH[k] * (1 - progress if k == 2 else progress) * uneven
        emptied = 1 / (1 + np.exp((depth - reach) / _EDGE * 4))
        return 1 - emptied * np.clip(reach / 0.03, 0, 1)

    def change(self, i: int, reference: int = 0) -> Image:
        """True change of attenuation (h, w) from frame ``reference`` to frame ``i``."""
        return self.lithium(i) - self.lithium(reference)

    def active(self, half_cycle: int, threshold: float) -> float:
        """True share of the anode whose attenuation changes by more than ``threshold``."""
        ends = (*self.half_cycles[1:], self.frames)
        first, last = self.half_cycles[half_cycle], ends[half_cycle] - 1
        top, left, bottom, right = self.anode
        change = self.change(last, first)[top:bottom, left:right]
        return float((np.abs(change) > threshold).mean())

    def intensity(self, i: int) -> float:
        """Of the beam in frame ``i``, relative."""
        return float(1 + 0.01 * self.rng(i, 1).standard_normal())

    def open_beam(self) -> Image:
        """Noise-free counts without a cell, dark included."""
        y, x = np.mgrid[: self.size, : self.size] / self.size - 0.5
        return (_DARK + self.neutrons * self.gain * np.exp(-0.4 * (x**2 + y**2))).astype(np.float32)

    def dark(self) -> Image:
        """Counts without beam."""
        return np.full((self.size, self.size), _DARK, np.float32)

    def structure(self) -> Image:
        """Attenuation of the cell itself, (h, w)."""
        cell = np.zeros((self.size, self.size), np.float32)
        cell[:, self.beam[3] :] = 0.15
        for (top, left, bottom, right), level in ((self.anode, 0.35), (self.cathode, 0.45)):
            cell[top:bottom, left:right] += level
        rough = 1 + 0.06 * self.texture(1, 1.5)
        return (cell * np.clip(rough, 0.7, 1.3)).astype(np.float32)

    def expected(self, i: int) -> Image:
        """See ``Twin``."""
        beam = (self.open_beam() - _DARK) * self.intensity(i)
        return (_DARK + beam * np.exp(-self.structure() - self.lithium(i))).astype(np.float32)

    def counts(self, i: int) -> NDArray[np.uint16]:
        """See ``Twin``; gamma rays leave bright spots."""
        rng = self.rng(i, 2)
        counts = noisy(rng, self.expected(i) - _DARK, self.gain, 5.0).astype(np.float64) + _DARK
        hit = rng.random(counts.shape) < self.spots
        counts[hit] += rng.uniform(2000, 20000, int(hit.sum()))
        return np.clip(counts, 0, 65534).astype(np.uint16)

    def settings(self) -> dict[str, Any]:
        """Of ``radiography``; open beam and dark are images: ``open_beam``, ``dark``."""
        return {
            "beam": self.beam,
            "electrodes": {"anode": self.anode, "cathode": self.cathode},
            "depth": "up",
            "half_cycles": self.half_cycles,
            "reference_frames": self.rest,
        }
