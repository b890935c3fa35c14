"""Rectangles in a frame."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from quietbeam import ConfigError

Region = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt]
"""[top, left, bottom, right] in pixels, the end excluded."""


def cut(region: Region) -> tuple[slice, slice]:
    """Give the index of a region in (h, w)."""
    top, left, bottom, right = region
    return slice(top, bottom), slice(left, right)


def check_regions(regions: Mapping[str, Region], shape: tuple[int, ...]) -> None:
    """Check that every region has pixels inside ``shape`` (h, w).

    Raises:
        ConfigError: One is empty or lies outside the frame.
    """
    h, w = shape
    for name, (top, left, bottom, right) in regions.items():
        if not (top < bottom <= h and left < right <= w):
            raise ConfigError(
                f"region {name} = {[top, left, bottom, right]} is not inside {h} x {w} pixels"
            )


def known_mean(values: NDArray[np.floating]) -> float:
    """Give the mean of the finite values, not-a-number where there is none."""
    known = np.isfinite(values)
    if known.all():
        return float(values.mean(dtype=np.float64)) if values.size else float("nan")
    return float(values[known].mean(dtype=np.float64)) if known.any() else float("nan")
