"""Offline a frame has a future: a recording is estimated forwards and backwards in time.

A live estimate waits a few frames and remembers all that came before.  Of a
recording the network's estimate is also made with time running backwards, where
its memories hold what comes after, and means over earlier and later frames are
kept at several rates.  All of them are blind, so that the best weighted sum of
them, each in several blurs, follows from their residuals in closed form: their
errors share the noise of the measured frame and nothing else (Batson & Royer,
Noise2Self, ICML 2019, prop. 1; the way of Wolpert's stacking, Neural Networks
5, 241 (1992)).  The weights may be negative and add up to one.

Frames are worked on in blocks, so that memory does not grow with a recording.
Each block has weights of its own.  Shapes: h, w image; n estimates; b blurs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median_filter

from quietbeam.core.denoiser import StreamingDenoiser, TwoWay
from quietbeam.core.engine import Engine
from quietbeam.model.clean import Prepared
from quietbeam.offline.calibrated import CalibratedSeries
from quietbeam.offline.passes import Blind, Stretch, blind_estimates, engine_for

Float = NDArray[np.float32]

RATES = (0.6, 0.3, 0.12, 0.04)
"""Of the exponential means on both sides: of two frames to fifty."""

BLURS_PX = (0.0, 0.5, 1.0, 1.6)
"""Gaussian, s.d."""

_AHEAD = 48  # later frames that fill what remembers the future before a block
_BLOCK_BYTES = 512 << 20
_BLOCK_FRAMES = (8, 96)  # at least, at most
_FITTED_PIXELS, _FITTED_FRAMES = 1_000_000, 12  # of a block, evenly spread, at least
_JUDGED_FRAMES = 64
_RIDGE = 2e-3  # of the noise variance: no term may grow large to undo another
_SPIKE = 6.0


def block_frames(shape: tuple[int, int]) -> int:
    """How many frames of (h, w) are worked on together."""
    least, most = _BLOCK_FRAMES
    images = 4 + len(RATES)  # two estimates, their variance, the frame
    return min(most, max(least, _BLOCK_BYTES // (4 * images * shape[0] * shape[1])))


def can_go_both_ways(module: StreamingDenoiser, recording: CalibratedSeries) -> bool:
    """Tell whether ``module`` asks for it and the residuals of ``recording`` can be trusted."""
    asked = isinstance(module, TwoWay) and module.two_way and module.blind
    enough = len(recording) > 4 * module.lag and not recording.images
    return asked and enough and not recording.correlation.in_time


def both_ways(
    module: StreamingDenoiser, recording: CalibratedSeries, within: range | None = None
) -> Iterator[Blind]:
    """Estimate frames of ``recording``: one answer for each, in order.

    Args:
        module: One that ``can_go_both_ways``.
        recording: Calibrated.
        within: Consecutive frames; None for all.
    """
    within = within or range(len(recording))
    begin = max(0, within.start - _AHEAD)
    end = min(len(recording), within.stop + module.lag)
    forward, backward = engine_for(module, recording), engine_for(module, recording)
    answers = blind_estimates(forward, Stretch(recording, range(begin, end)))
    past = Remembered(recording.shape)
    for index in range(begin, within.start):
        past.take(calm(recording, index))
        next(answers)
    for frames in _blocks(within, block_frames(recording.shape)):
        block = _Block(recording, frames)
        block.go_forward(islice(answers, len(block.frames)), past)
        block.go_backward(backward)
        yield from block.answers()


def middle(recording: CalibratedSeries) -> range:
    """Frames around the middle, few enough for one block: what is judged."""
    count = min(len(recording), block_frames(recording.shape), _JUDGED_FRAMES)
    first = (len(recording) - count) // 2
    return range(first, first + count)


def _blocks(frames: range, size: int) -> list[range]:
    """Parts of nearly the same length, at most ``size``."""
    count = -(-len(frames) // size)
    ends = [frames.start + len(frames) * i // count for i in range(count + 1)]
    return [range(first, stop) for first, stop in pairwise(ends)]


class Remembered:
    """Exponential sums of all frames taken, one for each of ``RATES``."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.keep = np.float32(1) - np.array(RATES, np.float32)[:, None, None]
        self.sums = np.zeros((len(RATES), *shape), np.float32)
        self.counts = np.zeros((len(RATES), 1, 1), np.float32)

    def take(self, image: Float) -> None:
        """Take the next frame (h, w)."""
        self.sums *= self.keep
        self.sums += image
        self.counts = self.counts * self.keep + 1


def calm(recording: CalibratedSeries, index: int) -> Float:
    """Give frame ``index`` with what is invalid or a spike replaced by the median around it.

    A spike stands out from its surroundings and from the frames before and after.
    """
    here = recording.prepared(index)
    others = [i for i in (index - 1, index + 1) if 0 <= i < len(recording)]
    odd = np.ones(here.z.shape, np.bool_)
    for other in others:
        odd &= np.abs(here.z - recording.prepared(other).z) > _SPIKE
    odd |= ~here.valid
    if not odd.any():
        return here.z
    around = np.asarray(median_filter(here.z, 3), np.float32)
    odd &= (np.abs(here.z - around) > _SPIKE) | ~here.valid
    return np.where(odd, around, here.z)


class _Block:
    """Some consecutive frames with all that is known of them."""

    def __init__(self, recording: CalibratedSeries, frames: range) -> None:
        self.recording, self.frames = recording, frames
        count = 2 + len(RATES)
        self.prepared: list[Prepared] = []
        self.images = np.empty((len(frames), count, *recording.shape), np.float32)
        self.variances = np.empty((len(frames), *recording.shape), np.float32)
        self.counts = np.empty((len(frames), len(RATES), 1, 1), np.float32)

    def go_forward(self, answers: Iterator[Blind], past: Remembered) -> None:
        """Take the estimates of time running forwards, and what is remembered before each."""
        for place, (prepared, mean, variance) in enumerate(answers):
            self.prepared.append(prepared)
            self.images[place, 0], self.variances[place] = mean, variance
            self.images[place, 2:], self.counts[place] = past.sums, past.counts
            past.take(calm(self.recording, self.frames[place]))

    def go_backward(self, engine: Engine) -> None:
        """Take those of time running backwards, and what is remembered after each."""
        stop = min(len(self.recording), self.frames.stop + _AHEAD)
        later = range(stop - 1, max(0, self.frames.start - engine.lag) - 1, -1)
        for prepared, mean, variance in blind_estimates(engine, Stretch(self.recording, later)):
            if prepared.position in self.frames:
                place = prepared.position - self.frames.start
                self.images[place, 1] = mean
                np.sqrt(self.variances[place] * variance, out=self.variances[place])
        future = Remembered(self.recording.shape)
        for index in range(stop - 1, self.frames.start - 1, -1):
            if index in self.frames:
                place = index - self.frames.start
                self.images[place, 2:] += future.sums
                self.images[place, 2:] /= np.maximum(self.counts[place] + future.counts, 1e-6)
            future.take(calm(self.recording, index))

    def answers(self) -> Iterator[Blind]:
        """Give the weighted sums, each with a variance that has the right mean."""
        weights, ratio = self._fit()
        for prepared, images, variance in zip(
            self.prepared, self.images, self.variances, strict=True
        ):
            mixed = np.tensordot(weights, images, 1)
            mean = sum(map(blurred, mixed, BLURS_PX), np.zeros_like(variance))
            yield prepared, np.asarray(mean, np.float32), np.float32(ratio) * variance

    def _fit(self) -> tuple[Float, float]:
        """(weights (b, n) of least squares, factor on the variances that suits them)."""
        count = len(BLURS_PX) * self.images.shape[1]
        products, told, noise, pixels = np.zeros((count, count)), 0.0, 0.0, 0
        for place in self._fitted():
            y = self.prepared[place].z
            terms = np.stack([blurred(i, px) for px in BLURS_PX for i in self.images[place]])
            errors = terms - y
            second = self.prepared[place - 1].z - 2 * y + self.prepared[place + 1].z
            use = np.abs(second) < 6 * _SPIKE
            for near in self.prepared[place - 1 : place + 2]:
                use &= near.valid
            use &= (np.abs(errors[0]) < _SPIKE) & (np.abs(errors[1]) < _SPIKE)
            errors = errors[:, use]
            products += errors @ errors.T
            told += float(self.variances[place][use].sum(dtype=np.float64))
            noise += float((second[use] ** 2).sum(dtype=np.float64)) / 6
            pixels += errors.shape[1]
        if not pixels:
            return _even(count), 1.0
        weights = _least_squares(products / pixels)
        left = float(weights @ products @ weights) - noise
        ratio = min(max(left / told, 0.1), 2.0) if told > 0 else 1.0
        return weights.reshape(len(BLURS_PX), -1).astype(np.float32), ratio

    def _fitted(self) -> range:
        """Frames that the weights are fitted to: all of them if they are small."""
        count, (h, w) = len(self.frames), self.recording.shape
        step = min(max(1, count * h * w // _FITTED_PIXELS), max(1, count // _FITTED_FRAMES))
        return range(1, count - 1, step)


def _even(count: int) -> Float:
    """Weights where nothing could be measured: the mean of both directions."""
    weights = np.zeros((len(BLURS_PX), count // len(BLURS_PX)), np.float32)
    weights[0, :2] = 0.5
    return weights


def _least_squares(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights that add up to one and make ``weights @ moments @ weights`` smallest."""
    count = len(moments)
    weights = np.linalg.solve(moments + _RIDGE * np.eye(count), np.ones(count))
    return weights / weights.sum()


def blurred(image: Float, px: float) -> Float:
    """Gaussian blur of s.d. ``px`` pixels; edges are repeated."""
    return np.asarray(gaussian_filter(image, px, mode="nearest"), np.float32) if px else image
