"""Marks pixels that are known to be bad, or that are found to be dead or hot."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from quietbeam import ConfigError, CorrectionPlugin, RunStart
from quietbeam.offline.series import open_series

Pixels = NDArray[np.float32]
Valid = NDArray[np.bool_]


class BadPixels(CorrectionPlugin):
    """A mask from a file, dilated, and limits on the counts.

    A file of several channels has a mask for each; one of one is for all.
    """

    mask: str | None = None
    """File as ``replay`` reads it; non-zero is bad."""
    grow_px: NonNegativeInt = 0
    """Widen the mask by this many pixels."""
    below: float | None = None
    """Corrected counts below this are invalid in that frame."""
    above: float | None = None
    """Corrected counts above this are invalid in that frame: saturation, zingers."""

    @contextmanager
    def open(
        self, run: RunStart
    ) -> Generator[Callable[[Pixels, Valid], tuple[Pixels, Valid]], None, None]:
        """Read the mask.

        Raises:
            ConfigError: It has another shape than the run.
        """
        good = np.ones(run.shape, np.bool_) if self.mask is None else ~self._read(run)

        def correct(pixels: Pixels, valid: Valid) -> tuple[Pixels, Valid]:
            valid = valid & good
            if self.below is not None:
                valid &= pixels >= self.below
            if self.above is not None:
                valid &= pixels <= self.above
            return pixels, valid

        yield correct

    def _read(self, run: RunStart) -> Valid:
        with open_series(self.mask or "") as series:
            bad = np.asarray(series.channel(run.metadata.get("channel"))[0]) != 0
        if bad.shape != run.shape:
            raise ConfigError(
                f"mask {self.mask!r} has shape {bad.shape}; the detector sends {run.shape}"
            )
        for _ in range(self.grow_px):
            grown = bad.copy()
            for axis in (0, 1):
                grown |= np.roll(bad, 1, axis) | np.roll(bad, -1, axis)
            bad = grown
        return bad
