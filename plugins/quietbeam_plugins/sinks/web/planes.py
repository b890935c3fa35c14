"""Turns a frame into what a screen shows: binned, quantised, with its limits.  Pure functions."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]
Transfer = Literal["linear", "log", "sqrt"]
Box = tuple[int, int, int, int]

NODATA, SATURATED = 65535, 65534
"""Codes that are no values."""
_LEVELS = 65533
_SAMPLE = 65536
_BINS = 128
PERCENTILES = (0.1, 1.0, 5.0, 50.0, 95.0, 99.0, 99.9)
_LOG_STRENGTH = 1000.0


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """One kind of pixels of a frame, at the screen's resolution.

    Attributes:
        values: (h, w) float32; anything where not ``valid``.
        valid: (h, w), or None where all are.
        saturated: (h, w), or None where none is; these are not ``valid``.
        exact: ``values`` are whole counts as they were measured.
    """

    values: Float
    valid: Flags | None
    saturated: Flags | None = None
    exact: bool = False


def fitting_box(
    shape: tuple[int, int], region: Box | None, size: tuple[int, int]
) -> tuple[Box, int]:
    """Give the part of the image to send, and by how much it is binned.

    Args:
        shape: (h, w) of the image.
        region: Wanted (x0, y0, x1, y1), or None for all; cut to the image.
        size: (width, height) that it may fill at most.
    """
    height, width = shape
    x0, y0, x1, y1 = region or (0, 0, width, height)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    x1, y1 = min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)
    factor = max(1, -(-(x1 - x0) // max(1, size[0])), -(-(y1 - y0) // max(1, size[1])))
    x0, y0 = x0 - x0 % factor, y0 - y0 % factor
    return (x0, y0, min(width, x1 + -x1 % factor), min(height, y1 + -y1 % factor)), factor


def raw_plane(
    counts: NDArray[Any],
    mask: Flags | None,
    nodata: float | None,
    saturation: float | None,
    factor: int,
) -> Plane:
    """Give detector counts, (h, w), binned by ``factor``: the mean of valid, unsaturated pixels."""
    valid = None if mask is None else ~mask
    if nodata is not None and (counts == nodata).any():
        known = counts != nodata
        valid = known if valid is None else valid & known
    saturated = None
    if saturation is not None:
        high = counts >= saturation if valid is None else (counts >= saturation) & valid
        if high.any():
            saturated, valid = high, ~high if valid is None else valid & ~high
    whole = counts.dtype.kind in "ui" and factor == 1
    values, kept = binned(counts.astype(np.float32), valid, factor)
    if saturated is not None:
        saturated = any_binned(saturated, factor)
        kept = ~saturated if kept is None else kept & ~saturated
    return Plane(values, kept, saturated, exact=whole)


def float_plane(values: Float, factor: int, *, squares: bool = False) -> Plane:
    """Give (h, w) float32 with NaN for bad pixels, binned; ``squares``: the root mean square."""
    finite = np.isfinite(values)
    valid = None if finite.all() else finite
    taken = values * values if squares and factor > 1 else values
    means, kept = binned(taken, valid, factor)
    return Plane(np.sqrt(means) if squares and factor > 1 else means, kept)


def binned(values: Float, valid: Flags | None, factor: int) -> tuple[Float, Flags | None]:
    """Give means over blocks of valid pixels, and which blocks hold any (None: all).

    The last row and column of blocks may cover less than the others.
    """
    if factor == 1:
        return values, valid
    if valid is None:
        rows, columns = (_covered(length, factor) for length in values.shape)
        counts = rows[:, None] * columns[None, :]
        return _block_sums(values, factor) / counts, None
    counts = _block_sums(valid.astype(np.float32), factor)
    sums = _block_sums(np.where(valid, values, np.float32(0)), factor)
    return sums / np.maximum(counts, 1), counts > 0


def any_binned(flags: Flags, factor: int) -> Flags:
    """Tell which blocks hold a True."""
    return flags if factor == 1 else _block_sums(flags.astype(np.float32), factor) > 0


def nearest_binned(labels: NDArray[Any], factor: int) -> NDArray[Any]:
    """Give the middle pixel of every block: labels cannot be averaged."""
    height, width = labels.shape
    rows = np.minimum(np.arange(0, height, factor) + factor // 2, height - 1)
    columns = np.minimum(np.arange(0, width, factor) + factor // 2, width - 1)
    return labels[rows[:, None], columns[None, :]]


def _covered(length: int, factor: int) -> Float:
    covered = np.full(-(-length // factor), factor, np.float32)
    covered[-1] = length - (len(covered) - 1) * factor
    return covered


def _block_sums(values: Float, factor: int) -> Float:
    short = [(0, -length % factor) for length in values.shape]
    if any(after for _, after in short):
        values = np.pad(values, short)
    height, width = values.shape
    # First along contiguous rows: many times faster than a mean over two axes.
    rows = values.reshape(height // factor, factor, width).sum(axis=1, dtype=np.float32)
    if factor <= 8:
        sums = rows[:, ::factor].copy()
        for column in range(1, factor):
            sums += rows[:, column::factor]
        return sums
    return rows.reshape(len(rows), width // factor, factor).sum(axis=2, dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One plane as bytes, and what a reader must know of them."""

    data: bytes
    header: dict[str, Any]


def encode_u16(plane: Plane) -> Encoded:
    """Give codes: value = offset + scale × code; whole counts stay exact where they fit."""
    sample = _valid(plane, plane.values)
    low = float(sample.min()) if sample.size else 0.0
    high = float(sample.max()) if sample.size else 0.0
    exact = plane.exact and high - low < _LEVELS
    if exact:
        offset, scale = (0.0 if low >= 0 and high < _LEVELS else low), 1.0
    else:
        offset, scale = low, (high - low) / _LEVELS or 1.0
    with np.errstate(invalid="ignore"):
        scaled = plane.values if offset == 0 and scale == 1 else (plane.values - offset) / scale
        codes = np.clip(np.rint(scaled), 0, _LEVELS)
        codes = np.nan_to_num(codes, copy=False).astype("<u2")
    if plane.valid is not None:
        codes[~plane.valid] = NODATA
    if plane.saturated is not None:
        codes[plane.saturated] = SATURATED
    header = {"encoding": "u16", "offset": offset, "scale": scale, "exact": exact}
    return Encoded(codes.tobytes(), header | {"nodata": NODATA, "saturated": SATURATED})


def encode_jpeg(
    plane: Plane, limits: tuple[float, float], transfer: Transfer, quality: int
) -> Encoded:
    """Give a grey JPEG of the values between ``limits``, after ``transfer``."""
    from PIL import Image

    low, high = limits
    span = (high - low) or 1.0
    values = plane.values if plane.valid is None else np.where(plane.valid, plane.values, low)
    if plane.saturated is not None:
        values = np.where(plane.saturated, high, values)
    t = np.clip((np.nan_to_num(values, nan=low) - low) / span, 0, 1)
    grey = np.rint(255 * transferred(t, transfer)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "JPEG", quality=quality)
    header = {"encoding": "jpeg", "low": low, "high": high, "transfer": transfer}
    return Encoded(stream.getvalue(), header)


def transferred(t: Float, transfer: Transfer) -> Float:
    """Give ``t`` (0 to 1) on the scale of the screen (0 to 1)."""
    if transfer == "sqrt":
        return np.sqrt(t)
    if transfer == "log":
        return np.log1p(np.float32(_LOG_STRENGTH) * t) / np.float32(np.log1p(_LOG_STRENGTH))
    return t


def stats(plane: Plane) -> dict[str, Any]:
    """Give limits, percentiles and a histogram of valid pixels, from a sample where many."""
    stride = max(1, int(np.ceil(np.sqrt(plane.values.size / _SAMPLE))))
    thin = (slice(None, None, stride), slice(None, None, stride))
    valid = None if plane.valid is None else plane.valid[thin]
    sample = np.sort(_valid(Plane(plane.values[thin], valid), plane.values[thin]), axis=None)
    everything = _valid(plane, plane.values)
    if not sample.size:
        return {"min": None, "max": None, "mean": None, "std": None, "p": {}, "histogram": None}
    low, high = float(everything.min()), float(everything.max())
    places = np.rint(np.array(PERCENTILES) / 100 * (sample.size - 1)).astype(int)
    span = (high - low) or 1.0
    bins = np.minimum((sample - low) * (_BINS / span), _BINS - 1).astype(np.int64)
    return {
        "min": low,
        "max": high,
        "mean": float(sample.mean(dtype=np.float64)),
        "std": float(sample.std(dtype=np.float64)),
        "p": {f"{p:g}": float(sample[i]) for p, i in zip(PERCENTILES, places, strict=True)},
        "histogram": {
            "low": low,
            "high": high,
            "counts": np.bincount(bins, minlength=_BINS).tolist(),
        },
    }


def _valid(plane: Plane, values: Float) -> Float:
    return values if plane.valid is None else values[plane.valid]
