"""The noise power of a run to a part in a thousand, also where the scene moves."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from quietbeam.model.correlation import NoiseCorrelation

Float = NDArray[np.float32]

_BAND_PX = 65_536  # looked at for motion, of each frame: a band of rows, the next one in turn
_SECOND, _THIRD = 6.0, 20.0  # power of white noise after a temporal difference of that order
_SURE = 3.0  # standard errors
_ALWAYS, _PERIOD, _BURST = 256, 64, 16  # frames: after the first only a burst of each period
# Variances of relative differences for white noise, times the number of pixels, from the
# autocorrelations of these differences (all are binomial coefficients).
_OF_ORDERS, _OF_SHARPNESS = 0.11, 10.7


class NoiseScale:
    """Measured over modelled noise power, over the whole run.

    After 256 frames it looks at 16 of each 64 only.

    The fitted model tells how the noise follows the signal; how large it is,
    second temporal differences tell, which cancel any even change.  What moves
    as fast as its own size in a few frames does not cancel.  It shows: third
    differences are smaller then, whatever the noise is like in space.  The
    power is then taken from the finest structure of the differences, second
    differences in both directions of space, where optics leave little scene.
    """

    def __init__(self) -> None:
        self._measured = self._modelled = 0.0
        self._last: deque[tuple[int, Float, NDArray[np.bool_]]] = deque(maxlen=4)
        self._band = self._given = 0
        self._squares = np.zeros(3)  # second, third, finest second differences
        self._pixels = 0

    def add(self, position: int, pixels: Float, valid: NDArray[np.bool_], model: Float) -> None:
        """Take a frame; all (h, w), ``model`` the noise variance by the fitted model."""
        self._given += 1
        if self._given > _ALWAYS and self._given % _PERIOD >= _BURST:
            return
        if self._last and position != self._last[-1][0] + 1:
            self._last.clear()
        self._last.append((position, pixels, valid))
        if len(self._last) < 3:
            return
        a, b, c = (frame for _, frame, _ in list(self._last)[-3:])
        use = np.all([ok for _, _, ok in list(self._last)[-3:]], axis=0)
        second = a - 2 * b + c
        if not use.all():
            second, model = second[use], model[use]
        if second.size:
            self._measured += float((second**2).mean()) / _SECOND
            self._modelled += float(model.mean())
        if len(self._last) == self._last.maxlen:
            self._look_for_motion()

    def scale(self, found: NoiseCorrelation) -> float | None:
        """Give it, free of what correlation in time and a moving scene make of differences."""
        if not self._modelled:
            return None
        excess = self.motion(found)[0]
        return self._measured / self._modelled / found.second_difference / (1 + excess)

    def motion(self, found: NoiseCorrelation) -> tuple[float, float]:
        """Give (share of the noise power that is scene, not noise; its error).

        Both are 0 where nothing moves.  Where noise is correlated in time
        differences cannot tell; where it is blurred in space there may be no
        fine structure to look at, and the share is given as 0 with an error.
        """
        second, third, sharp = self._squares
        if found.in_time or not (self._pixels and third > 0 and sharp > 0):
            return 0.0, 0.0
        smooth = second / third - 1
        alike = found.alike
        if smooth < _SURE * np.sqrt(_OF_ORDERS * alike / self._pixels):
            return 0.0, 0.0
        share, share_error = found.share_of_finest
        if share < 0.1:
            return 0.0, float(2 * smooth)
        error = np.hypot(np.sqrt(_OF_SHARPNESS * alike / self._pixels), share_error / share)
        return max(float(second * share / sharp - 1), 0.0), float(error)

    def _look_for_motion(self) -> None:
        h, w = self._last[0][1].shape
        bands = min(max(1, h * w // _BAND_PX), max(1, h // 8))
        self._band = (self._band + 1) % bands
        part = slice(self._band * h // bands, (self._band + 1) * h // bands)
        frames = [frame[part] for _, frame, _ in self._last]
        known = np.all([ok[part] for _, _, ok in self._last], axis=0)
        before, second = (x - 2 * y + z for x, y, z in (frames[:3], frames[1:]))
        if not known.all():
            second = np.where(known, second, np.float32(np.nan))
        sharp = np.diff(np.diff(second, 2, axis=0), 2, axis=1)
        inner = np.s_[1:-1, 1:-1]
        rows = (second[inner] ** 2 / _SECOND, (second - before)[inner] ** 2 / _THIRD)
        squares = np.stack([*rows, sharp**2 / _SECOND**3])
        if not known.all():
            squares = squares[:, np.isfinite(squares).all(0)]
        count = squares[0].size
        self._squares += squares.reshape(3, -1).sum(1, dtype=np.float64)
        self._pixels += count
