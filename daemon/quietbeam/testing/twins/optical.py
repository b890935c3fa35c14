"""A graphite electrode under a colour microscope: particles stage by stage, haze and flicker."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.testing.twins.base import Image, Twin, noisy

COLOURS = {"III": (60, 82, 150), "II": (168, 66, 62), "I": (208, 170, 78)}
"""Of the stages, red, green, blue, in an 8-bit scale."""
CHARGE = {"III": 0.22, "II": 0.5, "I": 1.0}
"""x in Li_x C6."""
_BACKGROUND = (36, 36, 40)
_PSF_PX = 0.8


@dataclass(frozen=True, kw_only=True)
class OpticalTwin(Twin):
    """Particles lithiate from their rims inwards, small ones first.

    Attributes:
        gain: Counts per quantum: sets the noise.
        haze: Counts of the cloud that drifts over the picture.
        flicker: Relative s.d. of the lamp from frame to frame.
    """

    size: int = 256
    frames: int = 60
    gain: float = 4.0
    haze: float = 14.0
    flicker: float = 0.02

    @property
    def channels(self) -> tuple[str, ...]:
        """See ``Twin``."""
        return ("red", "green", "blue")

    def labels(self) -> NDArray[np.int32]:
        """True particles (h, w), numbered from 1; 0 is background."""
        return _particles(self.seed, self.size)[0]

    def phases(self, i: int) -> NDArray[np.uint8]:
        """True stage of every pixel (h, w): 0 none, 1 III, 2 II, 3 I."""
        labels, depth, progress = self._state(i)
        stage = 1 + (progress[labels] > depth) + (progress[labels] - 1 > depth)
        return np.where(labels > 0, stage, 0).astype(np.uint8)

    def charge(self, i: int) -> NDArray[np.float64]:
        """True state of charge of every particle, (n,)."""
        labels, phases = self.labels(), self.phases(i)
        value = np.array([0.0, *CHARGE.values()])[phases]
        count = np.maximum(np.bincount(labels.ravel()), 1)
        return (np.bincount(labels.ravel(), value.ravel()) / count)[1:]

    def volume_to_area(self) -> NDArray[np.float64]:
        """Of every particle taken as a sphere of the same section: a third of its radius, px."""
        area = np.bincount(self.labels().ravel())[1:]
        return np.sqrt(area / np.pi) / 3

    def _state(self, i: int) -> tuple[NDArray[np.int32], Image, NDArray[np.float64]]:
        labels, depth, radius = _particles(self.seed, self.size)
        rng = self.rng(1)
        late = 0.25 * rng.random(radius.size) + 0.5 * (radius - radius.min()) / np.ptp(radius)
        time = i / max(1, self.frames - 1)
        progress = 2.1 * np.clip((time - 0.5 * late) / (1 - 0.3 * late), 0, 1)
        return labels, depth, np.r_[0.0, progress]

    def lamp(self, i: int) -> float:
        """Brightness of frame ``i``, relative."""
        return float(1 + self.flicker * self.rng(i, 1).standard_normal())

    def veil(self, i: int) -> Image:
        """The cloud over frame ``i``, counts (h, w)."""
        drift = np.roll(self.texture(2, self.size / 6), round(1.3 * i), axis=1)
        return (self.haze * (1 + 0.5 * drift + 0.2 * np.sin(i / 3))).astype(np.float32)

    def picture(self, i: int) -> Image:
        """What a perfect camera would see without haze and flicker, (3, h, w)."""
        from scipy.ndimage import gaussian_filter

        palette = np.array([_BACKGROUND, *COLOURS.values()], np.float32)
        rough = 1 + 0.05 * self.texture(3, 1.2) * (self.labels() > 0)
        image = palette[self.phases(i)].transpose(2, 0, 1) * rough
        return np.asarray(gaussian_filter(image, (0, _PSF_PX, _PSF_PX)), np.float32)

    def expected(self, i: int) -> Image:
        """See ``Twin``."""
        y, x = np.mgrid[: self.size, : self.size] / self.size - 0.5
        light = (1 + 0.1 * x - 0.06 * y).astype(np.float32)
        image = self.picture(i) * light * self.lamp(i) + self.veil(i)
        return image.astype(np.float32)

    def counts(self, i: int) -> NDArray[np.uint16]:
        """See ``Twin``."""
        return noisy(self.rng(i, 2), self.expected(i), self.gain, 2.0)

    def settings(self) -> dict[str, Any]:
        """Of ``optical``."""
        return {
            "full_scale": 255.0,
            "phases": [
                {"name": name, "colour": colour, "charge": CHARGE[name]}
                for name, colour in COLOURS.items()
            ],
            "background": _BACKGROUND,
        }


@functools.lru_cache(maxsize=8)
def _particles(seed: int, size: int) -> tuple[NDArray[np.int32], Image, NDArray[np.float64]]:
    """Give labels (h, w), relative depth below the rim (h, w; 0 to 1), and radii (n,)."""
    from scipy.ndimage import distance_transform_edt

    rng = np.random.default_rng([seed, 42])
    centres, radii = _packed(rng, size)
    y, x = np.mgrid[:size, :size].astype(np.float64)
    best = np.full((size, size), np.inf)
    second = np.full((size, size), np.inf)
    labels = np.zeros((size, size), np.int32)
    for number, ((cy, cx), radius) in enumerate(zip(centres, radii, strict=True), 1):
        angle = np.arctan2(y - cy, x - cx)
        wave = 1 + 0.1 * np.cos(3 * angle + number) + 0.05 * np.cos(5 * angle - number)
        away = np.hypot(y - cy, x - cx) - radius * wave
        nearer = away < best
        second = np.where(nearer, best, np.minimum(second, away))
        labels[nearer] = number
        best = np.minimum(best, away)
    labels[(best > 0) | (second - best < 2.0)] = 0  # dark seams where particles touch
    depth = np.asarray(distance_transform_edt(labels > 0))
    deepest = np.zeros(len(radii) + 1)
    np.maximum.at(deepest, labels, depth)
    relative = np.where(labels > 0, depth / np.maximum(deepest[labels], 1), 0)
    return labels, relative.astype(np.float32), np.array(radii)


def _packed(rng: np.random.Generator, size: int) -> tuple[list[tuple[float, float]], list[float]]:
    """Give centres and radii of discs that touch but hardly overlap."""
    centres: list[tuple[float, float]] = []
    radii: list[float] = []
    for radius in np.sort(rng.uniform(8, 22, 40 * (size // 64) ** 2))[::-1]:
        y, x = rng.uniform(radius + 2, size - radius - 2, 2)
        gaps = [
            np.hypot(y - cy, x - cx) - radius - r
            for (cy, cx), r in zip(centres, radii, strict=True)
        ]
        if not gaps or min(gaps) > -1.5:
            centres.append((float(y), float(x)))
            radii.append(float(radius))
    return centres, radii
