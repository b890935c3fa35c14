"""Dark current and flat field: ``(counts - dark) / flat``."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat

from quietbeam import CorrectionPlugin, RunStart
from quietbeam.offline.images import mean_image

Pixels = NDArray[np.float32]
Valid = NDArray[np.bool_]


class DarkFlat(CorrectionPlugin):
    """Subtract a dark image, divide by a flat one.

    Each is a file as ``replay`` reads it (``FILE.h5:/dataset``, TIFF, .npy);
    of a series the mean is taken.  The flat is dark-corrected and divided by
    its own median, so that counts stay counts.  A file of several channels has
    an image for each, by name; one of one is for all.
    """

    dark: str | None = None
    flat: str | None = None
    min_response: PositiveFloat = 0.1
    """Pixels whose flat is below this share of the median are marked invalid."""

    @contextmanager
    def open(
        self, run: RunStart
    ) -> Generator[Callable[[Pixels, Valid], tuple[Pixels, Valid]], None, None]:
        """Read the images; they must have the run's shape.

        Raises:
            ConfigError: An image cannot be read or has another shape.
        """
        dark = np.zeros(run.shape, np.float32)
        if self.dark is not None:
            dark = mean_image("dark", self.dark, run)
        gain, alive = np.float32(1), np.ones(run.shape, np.bool_)
        if self.flat is not None:
            response = mean_image("flat", self.flat, run) - dark
            response /= np.median(response)
            alive = response >= self.min_response
            gain = np.where(alive, 1 / np.where(alive, response, 1), 0).astype(np.float32)

        def correct(pixels: Pixels, valid: Valid) -> tuple[Pixels, Valid]:
            pixels -= dark
            pixels *= gain
            return pixels, valid & alive

        yield correct
