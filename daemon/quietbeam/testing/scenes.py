"""Scenes with their truth, each hard in a way of its own: what ``quietbeam evaluate`` is run on.

All are deterministic by seed and free of noise: (t, h, w) float32, values 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from quietbeam.testing.cahn_hilliard import CahnHilliard

Video = NDArray[np.float32]

SLOW = 0.0017
"""Mean change of c from one frame to the next; a slow operando experiment."""
FAST = 0.006
FRONT_SPEED_PX = 0.35
FRONT_WIDTH_PX = 2.563
"""From 10 to 90 % of an edge blurred by one pixel (s.d.)."""
DIP = 0.3

_SEPARATED = 0.06  # time at which phases are distinct
_PIXEL = 0.04
"""Four times the paper's: domains fine enough that a Gaussian in space and time, tuned with the
truth, gains 14 dB on slow scenes with noise of 0.2, and not 20 dB."""
_PARTICLE_SPEED_PX = 0.4
_PARTICLE_SD_PX = 1.8


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A video without noise.

    Attributes:
        truth: (t, h, w) float32, 0..1.
        front_px: (t,) column of a straight vertical front in every frame; None
            where there is no such front.
    """

    truth: Video
    front_px: NDArray[np.floating] | None = None


def paper(size_px: int, frames: int, seed: int) -> Scene:
    """Phase separation from the first visible domains on: the paper's figure 2b."""
    model = CahnHilliard(size_px=size_px)
    return Scene(model.simulate(frames, since=0.05, until=0.1, seed=seed))


def slow(size_px: int, frames: int, seed: int) -> Scene:
    """Coarsening domains, next to static: a mean change of 0.0017 a frame."""
    return Scene(_coarsening(size_px, frames, seed, SLOW))


def fast(size_px: int, frames: int, seed: int) -> Scene:
    """Coarsening domains that move visibly: a mean change of 0.006 a frame."""
    return Scene(_coarsening(size_px, frames, seed, FAST))


def moving(size_px: int, frames: int, seed: int) -> Scene:
    """A textured body with a straight front that moves by a third of a pixel a frame.

    Analytic, so that fractions of a pixel are exact.  The texture has no mean
    along the front: the mean over rows is the bare edge.
    """
    speed = min(FRONT_SPEED_PX, 0.5 * size_px / frames)
    front = size_px / 4 + speed * np.arange(frames)
    y, x = np.mgrid[:size_px, :size_px].astype(np.float64)
    waves = _waves(size_px, np.random.default_rng([seed, 1]))
    truth = np.empty((frames, size_px, size_px), np.float32)
    for i, position in enumerate(front):
        texture = sum(np.cos(kx * (x - position) + ky * y + phase) for kx, ky, phase in waves)
        edge = erfc((x - position) / np.sqrt(2)) / 2
        truth[i] = 0.25 + edge * (0.45 + 0.25 / len(waves) * texture)
    return Scene(truth, front)


def particle(size_px: int, frames: int, seed: int) -> Scene:
    """A slow scene in the middle of which a small particle appears at once and moves on."""
    truth = 0.1 + 0.5 * _coarsening(size_px, frames, seed, SLOW)
    rng = np.random.default_rng([seed, 2])
    angle, start = 2 * np.pi * rng.random(), size_px * rng.uniform(0.4, 0.6, 2)
    y, x = np.mgrid[:size_px, :size_px]
    for i in range(frames // 2, frames):
        gone = _PARTICLE_SPEED_PX * (i - frames // 2)
        row, column = start + gone * np.array([np.sin(angle), np.cos(angle)])
        distance = (y - row) ** 2 + (x - column) ** 2
        truth[i] += 0.35 * np.exp(-distance / (2 * _PARTICLE_SD_PX**2))
    return Scene(truth.astype(np.float32))


def dip(size_px: int, frames: int, seed: int) -> Scene:
    """A slow scene whose beam loses 30 % and recovers; what the detector sees is the truth."""
    away = (np.arange(frames) - frames / 2) / (frames / 8)
    beam = (1 - DIP * np.exp(-(away**2))).astype(np.float32)
    return Scene(beam[:, None, None] * _coarsening(size_px, frames, seed, SLOW))


SCENES: Mapping[str, Callable[[int, int, int], Scene]] = {
    "paper": paper,
    "slow": slow,
    "fast": fast,
    "moving": moving,
    "particle": particle,
    "dip": dip,
}
"""By name; each takes the side in pixels, the number of frames and the seed."""


def _coarsening(size_px: int, frames: int, seed: int, change: float) -> Video:
    """Phase separation in frames that are equally far apart in c, not in time.

    Coarsening slows down; equal steps of time would make one video both fast and slow.
    """
    model = CahnHilliard(size_px=size_px, pixel=_PIXEL)
    c = model.simulate(1, since=_SEPARATED, until=_SEPARATED, seed=seed)[0].astype(np.float64)
    out = np.empty((frames, size_px, size_px), np.float32)
    interval = change / 4
    for i in range(frames):
        out[i] = c
        before, c = c, model.advance(c, interval)
        moved = float(np.abs(c - before).mean())
        interval *= float(np.clip(change / max(moved, 1e-9), 0.5, 2.0))
    return np.clip(out, 0, 1)


def _waves(size_px: int, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """(kx, ky, phase) of plane waves 5 to 16 pixels long; whole periods along the front."""
    waves = []
    for _ in range(16):
        length, angle = rng.uniform(5, 16), rng.uniform(0.2, np.pi - 0.2)
        k = 2 * np.pi / length
        periods = max(1, round(abs(k * np.sin(angle)) * size_px / (2 * np.pi)))
        waves.append((k * np.cos(angle), 2 * np.pi * periods / size_px, 2 * np.pi * rng.random()))
    return waves
