"""From counts to corrected float32 pixels and a map of those that mean something."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from quietbeam.core.events import RunStart
from quietbeam.core.planes import planes, stacked
from quietbeam.core.plugin import CorrectionPlugin

Float = NDArray[np.float32]
Valid = NDArray[np.bool_]

_LARGEST = 1e15
"""Counts: beyond, no detector counts, and squares leave the range of float32."""


class Corrections:
    """All corrections of one run, in the order of the configuration.

    First, always: pixels of the run's mask, NODATA, saturated and non-finite
    pixels are marked invalid.  Then each plugin, which sees every channel as a
    run of its own.  A context manager.
    """

    def __init__(self, run: RunStart, plugins: Sequence[CorrectionPlugin]) -> None:
        self._stack = ExitStack()
        self._planes = [_PlaneCorrections(one, plugins, self._stack) for one in run.planes()]

    def __enter__(self) -> Corrections:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __call__(self, pixels: NDArray[Any]) -> tuple[Float, Valid]:
        """Give (corrected float32, valid), shaped as ``pixels``, which is left as it is."""
        parts = [
            correct(plane) for correct, plane in zip(self._planes, planes(pixels), strict=True)
        ]
        return stacked([part[0] for part in parts]), stacked([part[1] for part in parts])


class _PlaneCorrections:
    """The corrections of one channel."""

    def __init__(
        self, run: RunStart, plugins: Sequence[CorrectionPlugin], stack: ExitStack
    ) -> None:
        self._run = run
        self._steps = [stack.enter_context(plugin.open(run)) for plugin in plugins]

    def __call__(self, pixels: NDArray[Any]) -> tuple[Float, Valid]:
        valid = self._valid(pixels)
        corrected = pixels.astype(np.float32)
        corrected[~valid] = 0
        for step in self._steps:
            corrected, valid = step(corrected, valid)
        measured = np.abs(corrected) < _LARGEST  # neither NaN
        if not measured.all():
            valid &= measured
            corrected[~measured] = 0
        return corrected, valid

    def _valid(self, pixels: NDArray[Any]) -> Valid:
        run = self._run
        valid = np.ones(pixels.shape, np.bool_) if run.mask is None else ~run.mask
        if pixels.dtype.kind == "f":
            valid &= np.isfinite(pixels)
        if run.nodata is not None:
            valid &= pixels != run.nodata
        if run.saturation is not None:
            valid &= pixels < run.saturation
        return valid


def fill_invalid(pixels: Float, valid: Valid, size: int = 9) -> Float:
    """Replace invalid pixels by the mean of valid neighbours, so that a model sees no holes.

    Args:
        pixels: (h, w) or (c, h, w).
        valid: Of the same shape.
        size: Side of the neighbourhood in pixels; where it holds no valid
            pixel, the mean of all valid ones is taken (0 if there are none).

    Returns:
        Float32 of the same shape, finite; ``pixels`` itself where nothing is invalid.
    """
    if valid.all():
        return pixels
    if pixels.ndim == 3:
        return np.stack([fill_invalid(*plane, size) for plane in zip(pixels, valid, strict=True)])
    if not valid.any():
        return np.zeros_like(pixels)
    weight = uniform_filter(valid.astype(np.float32), size, mode="nearest")
    total = uniform_filter(np.where(valid, pixels, 0).astype(np.float32), size, mode="nearest")
    near = weight > 0.5 / size**2
    fallback = np.float32(pixels[valid].mean())
    local = np.where(near, total / np.where(near, weight, 1), fallback)
    return np.where(valid, pixels, local).astype(np.float32)
