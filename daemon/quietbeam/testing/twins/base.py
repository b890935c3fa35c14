"""What all twins share."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.events import RunStart

Image = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Twin(ABC):
    """A simulated experiment: the same settings give the same frames.

    Attributes:
        size: Height and width in pixels.
        frames: How many there are.
        seed: Of everything random.
        frame_time_s: From one frame to the next.
    """

    size: int = 128
    frames: int = 120
    seed: int = 0
    frame_time_s: float = 1.0

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels; empty where there is one."""
        return ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a frame: (h, w) or (c, h, w)."""
        plane = (self.size, self.size)
        return (len(self.channels), *plane) if self.channels else plane

    @abstractmethod
    def expected(self, i: int) -> Image:
        """Noise-free counts of frame ``i``, float32, of ``shape``."""

    @abstractmethod
    def counts(self, i: int) -> NDArray[np.uint16]:
        """What the detector gives: ``expected`` with its noise."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Settings of the analysis of this modality that fit this twin."""

    def start(self, run: str = "twin") -> RunStart:
        """The start of a run of it."""
        return RunStart(
            run=run,
            shape=self.shape,
            dtype=np.dtype(np.uint16),
            channels=self.channels,
            frame_time_s=self.frame_time_s,
            frames_expected=self.frames,
            first_index=0,
        )

    def video(self) -> NDArray[np.uint16]:
        """All frames, (t, ...)."""
        return np.stack([self.counts(i) for i in range(self.frames)])

    def rng(self, *key: int) -> np.random.Generator:
        """Random numbers of their own for each ``key``."""
        return np.random.default_rng([self.seed, *key])

    def texture(self, number: int, scale_px: float) -> Image:
        """A smooth random field (h, w) of unit s.d. that stays the same in all frames."""
        return _texture(self.seed, number, self.size, scale_px)


@functools.lru_cache(maxsize=32)
def _texture(seed: int, number: int, size: int, scale_px: float) -> Image:
    from scipy.ndimage import gaussian_filter

    white = np.random.default_rng([seed, 7000 + number]).standard_normal((size, size))
    field = gaussian_filter(white, scale_px, mode="wrap")
    return (field / field.std()).astype(np.float32)


def noisy(
    rng: np.random.Generator, expected: Image, gain: float, read_sd: float
) -> NDArray[np.uint16]:
    """Photon noise of ``gain`` counts each and read noise, rounded and clipped to uint16."""
    quanta = rng.poisson(np.maximum(expected, 0) / gain) * gain
    noise = rng.normal(0, read_sd, expected.shape) if read_sd else 0.0
    return np.clip(np.rint(quanta + noise), 0, 65534).astype(np.uint16)
