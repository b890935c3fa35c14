"""One frame through correction, stabilisation, an engine, fusion and back to counts.

Shared by the live pipeline and by offline denoising: the same numbers either way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.engine import Engine
from quietbeam.core.events import Frame
from quietbeam.core.planes import planes, stacked
from quietbeam.model.correct import Float, Valid, fill_invalid
from quietbeam.model.fuse import fuse
from quietbeam.model.stabilise import Stabiliser
from quietbeam.model.stream import Streamer


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A frame as the models see it; arrays are (h, w), or (c, h, w) with several channels.

    Attributes:
        position: Number of the frame within what was prepared of this run, from 0.
        frame: As it came.
        pixels: Corrected counts.
        valid: Where they mean something.
        z: Stabilised units, holes filled.
    """

    position: int
    frame: Frame
    pixels: Float
    valid: Valid
    z: Float

    def planes(self) -> list[Prepared]:
        """Give each channel, arrays (h, w); views."""
        if self.z.ndim == 2:
            return [self]
        images = zip(self.pixels, self.valid, self.z, strict=True)
        return [Prepared(self.position, self.frame, *plane) for plane in images]


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """What one engine says of one frame, in stabilised units; shapes are those of the frame.

    Attributes:
        prepared: The frame it is about.
        blind: Predicted without the frame itself.
        blind_variance: Of ``blind``; 0 where unknown.
        z: After fusion with the measured frame.
        variance: Of ``z``; 0 where unknown.
        weight: Share of the measured pixel in ``z``.
    """

    prepared: Prepared
    blind: Float
    blind_variance: Float
    z: Float
    variance: Float
    weight: Float

    def planes(self) -> list[Estimate]:
        """Give the estimate of each channel, arrays (h, w); views."""
        if self.z.ndim == 2:
            return [self]
        images = (self.blind, self.blind_variance, self.z, self.variance, self.weight)
        return [
            Estimate(prepared, *plane)
            for prepared, *plane in zip(self.prepared.planes(), *images, strict=True)
        ]


class Preparation:
    """Makes ``Prepared`` frames of one run from corrected ones; a stabiliser for each channel."""

    def __init__(self, *stabilisers: Stabiliser) -> None:
        self.stabilisers = stabilisers
        self._position = 0

    def stabilise(self, frame: Frame, pixels: Float, valid: Valid) -> Prepared:
        """Fill the holes and stabilise; ``pixels`` and ``valid`` have the shape of the frame."""
        filled = planes(fill_invalid(pixels, valid))
        z = stacked([s.forward(plane) for s, plane in zip(self.stabilisers, filled, strict=True)])
        prepared = Prepared(self._position, frame, pixels, valid, z)
        self._position += 1
        return prepared


class EngineStream:
    """One engine over one run: prepared frames in, estimates out, in order, none missing."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._streamer = Streamer(engine)
        self._waiting: deque[Prepared] = deque()

    def push(self, prepared: Prepared) -> list[Estimate]:
        """Take the next frame; give the estimates now ready."""
        self._waiting.append(prepared)
        return [self._estimate(*answer) for answer in self._streamer.push(prepared.z)]

    def flush(self) -> list[Estimate]:
        """The run is over: give the estimates still owed."""
        return [self._estimate(*answer) for answer in self._streamer.flush()]

    def _estimate(self, mean: Float, variance: Float) -> Estimate:
        prepared = self._waiting.popleft()
        z, posterior, weight = fuse(mean, variance, prepared.z, prepared.valid)
        return Estimate(prepared, mean, variance, z, posterior, weight)


_BELIEF = 0.5  # how far the logarithm of a predicted variance may be off by itself


def overstated(error: float, deviation: float, told: float) -> float:
    """Give how many times larger a predicted s.d. is than the error that was measured.

    Args:
        error: Mean squared error, measured without the truth; may be below 0 by chance.
        deviation: Its standard error: what is large is believed in part only.
        told: Mean squared error as predicted; 0 if it was not.

    Returns:
        1 where nothing is known.
    """
    if not (told > 0 and np.isfinite([error, deviation]).all()):
        return 1.0
    ratio = min(max(error / told, 0.1), 10.0)
    doubt = deviation / told / ratio
    believed = _BELIEF**2 / (_BELIEF**2 + doubt**2)
    return float(ratio ** (-believed / 2))


def to_counts(
    estimate: Estimate, stabiliser: Stabiliser, unknown_variance: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give (clean, sd) in corrected counts, (h, w) float32 each.

    Args:
        estimate: From an ``EngineStream``.
        stabiliser: The one its frames were prepared with.
        unknown_variance: Taken where the denoiser does not know its variance.
    """
    clean, sd = stabiliser.inverse_and_slope(estimate.z)
    variance = np.where(estimate.variance > 0, estimate.variance, np.float32(unknown_variance))
    sd *= np.sqrt(variance)
    return clean, sd
