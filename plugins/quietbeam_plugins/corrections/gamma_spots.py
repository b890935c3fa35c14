"""Spots of gamma rays and stray particles: single frames, few pixels, far too bright."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat
from scipy import ndimage

from quietbeam import CorrectionPlugin, RunStart

Pixels = NDArray[np.float32]
Valid = NDArray[np.bool_]

_CELL = 16  # pixels of a block over which the noise is told


class GammaSpots(CorrectionPlugin):
    """Mark pixels that stand out of the median of their 5 x 5 neighbours as invalid.

    What is marked is neither denoised nor learned from; the denoiser fills it in.
    """

    threshold: PositiveFloat = 6.0
    """Above that median, in standard deviations of the pixels around."""
    grow: bool = True
    """Mark the four neighbours of a spot, too: scintillators spread the light."""

    @contextmanager
    def open(
        self,
        run: RunStart,  # noqa: ARG002
    ) -> Generator[Callable[[Pixels, Valid], tuple[Pixels, Valid]], None, None]:
        """Give the correction; it keeps nothing from frame to frame."""

        def correct(pixels: Pixels, valid: Valid) -> tuple[Pixels, Valid]:
            spots = find_spots(pixels, valid, self.threshold)
            if not spots.any():
                return pixels, valid
            if self.grow:
                spots = np.asarray(ndimage.binary_dilation(spots), np.bool_)
            return pixels, valid & ~spots

        yield correct


def find_spots(pixels: Pixels, valid: Valid, threshold: float) -> Valid:
    """Give where a spot is, bool (h, w).

    A coarse look over differences of neighbours finds the candidates; only around these is the
    median taken, so that a frame without spots costs little.
    """
    known = np.where(valid, pixels, np.float32(np.median(pixels[::_CELL, ::_CELL])))
    step = np.abs(known[:, 1:] - known[:, :-1])
    noise = float(np.median(step[::4, ::4])) / 0.954 or 1.0  # of |a - b| for two normal numbers
    out = np.zeros(pixels.shape, np.bool_)
    local = known - ndimage.uniform_filter(known, 5)
    for y, x in zip(*np.nonzero(local > 0.8 * threshold * noise), strict=True):
        around = known[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        middle = float(np.median(around))
        spread = 1.4826 * float(np.median(np.abs(around - middle)))
        out[y, x] = known[y, x] - middle > threshold * max(spread, 0.5 * noise)
    return out
