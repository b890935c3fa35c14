"""DECTRIS Stream V2: one CBOR map per message, of type start, image or end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cbor2
import numpy as np
import structlog
from numpy.typing import NDArray

from quietbeam.core.events import Event, RunStart
from quietbeam_plugins.sources.cbor import COLUMN_MAJOR, COMPRESSED, ROW_MAJOR, plain, read_map
from quietbeam_plugins.sources.payload import (
    Bytes,
    RefusedError,
    codec_of,
    image,
    image_dtype,
    image_shape,
    positive,
    whole,
)
from quietbeam_plugins.sources.series import SeriesKey, SeriesMachine, stamped

_log = structlog.get_logger()
_TYPED_ARRAYS = {
    64: "|u1",
    65: ">u2",
    66: ">u4",
    67: ">u8",
    68: "|u1",
    69: "<u2",
    70: "<u4",
    71: "<u8",
    72: "|i1",
    73: ">i2",
    74: ">i4",
    75: ">i8",
    77: "<i2",
    78: "<i4",
    79: "<i8",
    80: ">f2",
    81: ">f4",
    82: ">f8",
    84: "<f2",
    85: "<f4",
    86: "<f8",
}
_PREVIEW_SHAPE = (2, 2)
_LARGE = ("flatfield", "pixel_mask", "countrate_correction_lookup_table")


@dataclass(frozen=True, slots=True)
class _Header:
    key: SeriesKey
    message: Mapping[str, Any]
    shape: tuple[int, int] | None
    channel: str | None


class Stream2:
    """Messages to events.

    Args:
        machine: Keeps the runs; shared with Stream V1 where both may come.
        max_frame_bytes: Larger images are refused.
        channel: Which channel of several to read; None takes the first.
    """

    def __init__(self, machine: SeriesMachine, max_frame_bytes: int, channel: str | None) -> None:
        self._machine = machine
        self._max_frame_bytes = max_frame_bytes
        self._channel = channel
        self._header: _Header | None = None

    def message(self, part: Bytes, received_ns: int) -> Iterator[Event]:
        """Take one message.

        Raises:
            RefusedError: It cannot be accepted.
        """
        message = read_map(part)
        match message.get("type"):
            case "start":
                yield from self._start(message, received_ns)
            case "image":
                yield from self._image(message, received_ns)
            case "end":
                yield from self._machine.end(_key(message), received_ns)
            case other:
                raise RefusedError("unknown_type", f"message of type {other!r:.60}")

    def _start(self, message: Mapping[str, Any], received_ns: int) -> Iterator[Event]:
        key = _key(message)
        sizes = message.get("image_size_y"), message.get("image_size_x")
        shape = None if None in sizes else image_shape(sizes)
        channels = message.get("channels")
        first = channels[0] if isinstance(channels, list | tuple) and channels else None
        if first is not None and not isinstance(first, str):
            raise RefusedError("malformed", f"channel {first!r:.60}, expected a text")
        self._header = _Header(key, message, shape, self._channel or first)
        name = message.get("image_dtype")  # only newer firmware tells it before the first image
        if name is None or shape is None:
            yield from self._machine.announce(key)
        else:
            dtype = image_dtype(name).newbyteorder("=")
            start = self._describe(self._header, shape, dtype)
            yield from self._machine.begin(key, start, received_ns)

    def _image(self, message: Mapping[str, Any], received_ns: int) -> Iterator[Event]:
        key = _key(message)
        number = whole(message.get("image_id"), "image_id")
        header = self._header if self._header is not None and self._header.key == key else None
        channels = message.get("data")
        if not isinstance(channels, Mapping) or not channels:
            raise RefusedError("malformed", f"image {number} has no data")
        name = self._channel or (header and header.channel) or next(iter(channels))
        if name not in channels:
            raise RefusedError(
                "malformed", f"image {number}: no channel {name!r} in {_names(channels)}"
            )
        pixels = read_array(channels[name], self._max_frame_bytes)
        expected = None if header is None else header.shape
        if expected is not None and pixels.shape != expected:
            reason = "preview" if pixels.shape == _PREVIEW_SHAPE else "shape"
            raise RefusedError(reason, f"image {number} is {pixels.shape}, header says {expected}")
        yield from self._machine.frame(
            key,
            number,
            pixels,
            time_ns=_nanoseconds(message.get("start_time"), received_ns),
            received_ns=received_ns,
            describe=lambda: self._describe_late(key, header, channels, name, pixels),
        )

    def _describe_late(
        self,
        key: SeriesKey,
        header: _Header | None,
        channels: Mapping[str, Any],
        name: str,
        pixels: NDArray[Any],
    ) -> RunStart:
        if len(channels) > 1:
            ignored = [other for other in _names(channels) if other != name]
            _log.warning("channels_ignored", read=name, ignored=ignored, setting="channel")
        known = header or _Header(key, {}, None, name)
        return self._describe(known, (pixels.shape[0], pixels.shape[1]), pixels.dtype)

    def _describe(self, header: _Header, shape: tuple[int, int], dtype: np.dtype[Any]) -> RunStart:
        message = header.message
        unique, number = header.key
        energy_ev = positive(message, "incident_energy")
        distance = message.get("detector_translation")
        is_count = np.issubdtype(dtype, np.integer)
        return RunStart(
            run=unique or stamped(f"series-{number}"),
            shape=shape,
            dtype=dtype,
            frame_time_s=positive(message, "frame_time"),
            exposure_s=positive(message, "count_time"),
            frames_expected=_count(message.get("number_of_images")),
            pixel_size_m=positive(message, "pixel_size_x"),
            energy_kev=None if energy_ev is None else energy_ev / 1000,
            distance_m=_distance(distance),
            mask=self._mask(header, shape),
            nodata=float(np.iinfo(dtype).max) if is_count else None,
            saturation=positive(message, "saturation_value"),
            metadata={
                "format": "dectris-v2",
                "channel": header.channel,
                "header": plain({k: v for k, v in message.items() if k not in _LARGE}),
            },
        )

    def _mask(self, header: _Header, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Read the mask of the channel; a broken one is told about, and done without."""
        masks = header.message.get("pixel_mask")
        if not isinstance(masks, Mapping) or not masks:
            return None
        coded = masks.get(header.channel, next(iter(masks.values())))
        try:
            mask = read_array(coded, 8 * shape[0] * shape[1])
        except RefusedError as error:
            _log.warning("pixel_mask_unreadable", series=header.key[1], error=str(error))
            return None
        if mask.shape != shape:
            _log.warning("pixel_mask_unreadable", series=header.key[1], shape=mask.shape)
            return None
        return mask != 0


def read_array(coded: Any, max_bytes: int) -> NDArray[Any]:
    """Read a multi-dimensional typed array (RFC 8746), compressed or not, as (h, w).

    Raises:
        RefusedError: It is none, or its sizes do not agree.
    """
    if not isinstance(coded, cbor2.CBORTag) or coded.tag not in {ROW_MAJOR, COLUMN_MAJOR}:
        raise RefusedError("malformed", "image data is not a multi-dimensional array (tag 40)")
    pair = coded.value
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise RefusedError("malformed", "tag 40 is not [shape, array]")
    shape = image_shape(pair[0])
    array = pair[1]
    if not isinstance(array, cbor2.CBORTag) or array.tag not in _TYPED_ARRAYS:
        found = array.tag if isinstance(array, cbor2.CBORTag) else type(array).__name__
        raise RefusedError("dtype", f"tag {found} is not a typed array of numbers")
    dtype = np.dtype(_TYPED_ARRAYS[array.tag])
    size = shape[0] * shape[1] * dtype.itemsize
    if size > max_bytes:
        raise RefusedError("oversized", f"image {shape} {dtype.name}: more than {max_bytes} bytes")
    blob, codec = array.value, ""
    if isinstance(blob, cbor2.CBORTag) and blob.tag == COMPRESSED:
        blob, codec = _compressed(blob.value, dtype.itemsize, size)
    if not isinstance(blob, bytes):
        raise RefusedError("malformed", f"array data is {type(blob).__name__}, expected bytes")
    if coded.tag == ROW_MAJOR:
        return image(blob, shape, dtype, codec_of(codec), max_bytes)
    turned = image(blob, (shape[1], shape[0]), dtype, codec_of(codec), max_bytes)
    return np.ascontiguousarray(turned.T)


def _compressed(value: Any, itemsize: int, size: int) -> tuple[Any, str]:
    """Check [algorithm, modifier, bytes] of tag 56500 before a byte is decompressed."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise RefusedError("malformed", "tag 56500 is not [algorithm, element size, bytes]")
    algorithm, modifier, blob = value
    if algorithm not in ("bslz4", "lz4"):  # no set: a list has no hash
        detail = f"algorithm {algorithm!r:.60}; expected 'bslz4' or 'lz4'"
        raise RefusedError("compression", detail)
    if algorithm == "bslz4" and modifier != itemsize:
        raise RefusedError(
            "compression", f"bslz4 of {modifier!r:.20}-byte elements, not {itemsize}"
        )
    if isinstance(blob, bytes):
        declared = int.from_bytes(blob[:8], "big")
        if declared != size:
            reason = "truncated" if declared < size else "oversized"
            raise RefusedError(reason, f"blob declares {declared} bytes, the shape needs {size}")
    return blob, algorithm


def _key(message: Mapping[str, Any]) -> SeriesKey:
    unique = message.get("series_unique_id", "")
    if not isinstance(unique, str) or len(unique) > 64:
        raise RefusedError("malformed", f"series_unique_id {unique!r:.60}")
    return unique, whole(message.get("series_id"), "series_id")


def _nanoseconds(value: Any, otherwise: int) -> int:
    """Read a rational time [numerator, denominator] in seconds."""
    if value is None:
        return otherwise
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise RefusedError("malformed", f"start_time {value!r:.60}, expected two whole numbers")
    numerator = whole(value[0], "start_time")
    time_ns = numerator * 1_000_000_000 // whole(value[1], "start_time", least=1)
    return whole(time_ns, "start_time in ns")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 2**63 else None


def _distance(translation: Any) -> float | None:
    """Take the z component of the detector's translation."""
    if not isinstance(translation, list | tuple) or len(translation) != 3:
        return None
    z = translation[2]
    return abs(float(z)) if isinstance(z, int | float) and z else None


def _names(channels: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in channels][:16]
