"""Measures regions of a frame at full resolution: rectangles and lines, raw and clean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from quietbeam_plugins.sinks.web.entries import Entry
from quietbeam_plugins.sinks.web.messages import Region

_MOST_SAMPLES = 4096


def measured(entry: Entry, region: Region, channel: str | None) -> dict[str, Any]:
    """Give what one region shows in one frame, as JSON (see ``regions`` of a frame)."""
    raw, clean, sd = _planes(entry, channel)
    if region.kind == "line":
        return _line(region, raw, clean, sd)
    part = _part(entry.shape, region)
    cut = [None if plane is None else plane[part] for plane in (raw, clean, sd)]
    height, width = (axis.stop - axis.start for axis in part)
    return {
        "pixels": height * width,
        "raw": _numbers(cut[0]),
        "clean": _numbers(cut[1]),
        "clean_sem": _error_of_mean(cut[2]),
    }


def _planes(entry: Entry, channel: str | None) -> list[NDArray[Any] | None]:
    """Give raw (NaN where bad), clean and sd, all float32."""
    raw, mask, start = entry.plane("raw", channel), entry.mask(channel), entry.start
    if raw is not None:
        bad = np.zeros(raw.shape, np.bool_) if mask is None else mask.copy()
        if start.nodata is not None:
            bad |= raw == start.nodata
        if start.saturation is not None:
            bad |= raw >= start.saturation
        raw = raw.astype(np.float32)
        raw[bad] = np.nan
    return [raw, entry.plane("clean", channel), entry.plane("sd", channel)]


def _part(shape: tuple[int, int], region: Region) -> tuple[slice, slice]:
    height, width = shape
    x0, x1 = sorted((region.x0, region.x1))
    y0, y1 = sorted((region.y0, region.y1))
    left, top = _cut(int(np.floor(x0)), width - 1), _cut(int(np.floor(y0)), height - 1)
    right, bottom = int(np.ceil(x1)), int(np.ceil(y1))
    return (
        slice(top, max(top + 1, min(bottom, height))),
        slice(left, max(left + 1, min(right, width))),
    )


def _cut(value: int, highest: int) -> int:
    return min(max(value, 0), highest)


def _numbers(pixels: NDArray[Any] | None) -> dict[str, float] | None:
    """Give mean, std, min, max and sum of the valid pixels; None where none is."""
    if pixels is None:
        return None
    valid = pixels[np.isfinite(pixels)]
    if not valid.size:
        return None
    return {
        "mean": float(valid.mean(dtype=np.float64)),
        "std": float(valid.std(dtype=np.float64)),
        "min": float(valid.min()),
        "max": float(valid.max()),
        "sum": float(valid.sum(dtype=np.float64)),
    }


def _error_of_mean(sd: NDArray[Any] | None) -> float | None:
    """Give the s.d. of the mean of pixels, were their errors independent."""
    if sd is None:
        return None
    valid = sd[np.isfinite(sd)].astype(np.float64)
    return float(np.sqrt((valid**2).sum()) / valid.size) if valid.size else None


def _line(region: Region, *planes: NDArray[Any] | None) -> dict[str, Any]:
    length = float(np.hypot(region.x1 - region.x0, region.y1 - region.y0))
    samples = min(max(2, round(length) + 1), _MOST_SAMPLES)
    values = [None if p is None else _along(region, p, samples) for p in planes]
    distance = np.linspace(0, length, samples)
    raw, clean, sd = values
    return {
        "pixels": samples,
        "raw": _numbers(raw),
        "clean": _numbers(clean),
        "clean_sem": _error_of_mean(sd),
        "profile": {
            "distance": distance.tolist(),
            **{
                name: [] if value is None else [_finite(v) for v in value.tolist()]
                for name, value in zip(("raw", "clean", "sd"), values, strict=True)
            },
        },
    }


def _along(region: Region, plane: NDArray[Any], samples: int) -> NDArray[np.float64]:
    """Give values on the line, (samples,), each the mean over the line's width."""
    x = np.linspace(region.x0, region.x1, samples) - 0.5  # (x, y) is a corner, indices are centres
    y = np.linspace(region.y0, region.y1, samples) - 0.5
    length = max(float(np.hypot(region.x1 - region.x0, region.y1 - region.y0)), 1e-9)
    across = (-(region.y1 - region.y0) / length, (region.x1 - region.x0) / length)
    offsets = np.arange(round(region.width)) - (round(region.width) - 1) / 2
    points = np.stack(
        [
            y[None, :] + offsets[:, None] * across[1],
            x[None, :] + offsets[:, None] * across[0],
        ]
    )
    found = map_coordinates(plane, np.rint(points), order=0, mode="constant", cval=np.nan)
    known = np.isfinite(found)
    sums = np.where(known, found, 0).sum(axis=0, dtype=np.float64)
    return np.where(known.any(axis=0), sums / np.maximum(known.sum(axis=0), 1), np.nan)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
