"""Dynamic variability: the local spatio-temporal standard deviation (3 x 3 x 3), while frames come.

The source paper's figure 5b.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam_plugins.analyses.regions import known_mean

Pixels = NDArray[np.float32]


class Variability:
    """Keeps three frames and gives the s.d. of the 27 values around every pixel.

    Args:
        every: Frames from one result to the next, at least 3.
    """

    def __init__(self, every: int = 3) -> None:
        self._every = max(3, every)
        self._frames: deque[Pixels] = deque(maxlen=3)
        self._seen = 0

    def add(self, frame: Pixels, valid: NDArray[np.bool_] | None = None) -> Pixels | None:
        """Take a frame (h, w); now and then give (h, w), NaN at the border and around bad pixels.

        The result belongs to the frame before.
        """
        place = self._seen % self._every
        self._seen += 1
        if place < self._every - 3:
            return None
        known = frame if valid is None or valid.all() else np.where(valid, frame, np.nan)
        self._frames.append(np.array(known, np.float32))
        return local_sd(self._frames) if place == self._every - 1 else None


def local_sd(frames: deque[Pixels] | list[Pixels]) -> Pixels:
    """Give the s.d. in the 3 x 3 neighbourhood over all ``frames``, (h, w) float32."""
    level = np.float32(np.nan_to_num(known_mean(frames[0])))
    total = np.zeros_like(frames[0])
    squares = np.zeros_like(frames[0])
    for frame in frames:  # squares of large offsets would eat the digits
        away = frame - level
        total += away
        away *= away
        squares += away
    count = np.float32(9 * len(frames))
    mean, square = _box_sum(total) / count, _box_sum(squares) / count
    square -= mean * mean
    out = np.full(frames[0].shape, np.nan, np.float32)
    out[1:-1, 1:-1] = np.sqrt(np.maximum(square, 0))
    return out


def _box_sum(image: Any) -> Any:
    """Sum 3 x 3 neighbourhoods, (h - 2, w - 2)."""
    rows = image[:-2] + image[1:-1]
    rows += image[2:]
    out = rows[:, :-2] + rows[:, 1:-1]
    out += rows[:, 2:]
    return out
