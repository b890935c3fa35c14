"""Regions that operators move while they look: rectangles of the cleaned image, by PVs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.floating]

_MEASURES: Mapping[str, Callable[[Pixels], Any]] = {
    "mean": lambda known: known.mean(dtype=np.float64),
    "sd": lambda known: known.std(dtype=np.float64),
    "least": np.min,
    "most": np.max,
    "total": lambda known: known.sum(dtype=np.float64),
    "pixels": np.size,
}


_NAMES = ("Use", "MinX", "MinY", "SizeX", "SizeY")


def region_value(what: str, settings: Mapping[str, Any], image: Pixels | None) -> float:
    """Measure one region.

    Args:
        what: ``2.mean``: number of the region, and what of it.
        settings: By name of PV: ``ROIStat1:2:MinX`` and the like, in pixels.
        image: (h, w), or (c, h, w) whose first plane counts; None before the first.

    Returns:
        In counts; not-a-number for a region that is not used or has no pixel in the image.
    """
    number, _, measure = what.partition(".")
    own = {name: int(settings.get(f"ROIStat1:{number}:{name}", 0)) for name in _NAMES}
    if image is None or not own["Use"]:
        return math.nan
    plane = image if image.ndim == 2 else image[0]
    known = _cut(plane, own)
    known = known[np.isfinite(known)]
    return float(_MEASURES[measure](known)) if known.size else math.nan


def _cut(plane: Pixels, own: Mapping[str, int]) -> Pixels:
    top, left = own["MinY"], own["MinX"]
    bottom = top + own["SizeY"] if own["SizeY"] else plane.shape[0]
    right = left + own["SizeX"] if own["SizeX"] else plane.shape[1]
    return plane[top:bottom, left:right]
