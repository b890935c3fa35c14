"""DECTRIS Stream V2: one CBOR map per message, of type start, image or end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cbor2
import numpy as np
import structlog
from numpy.typing import NDArray

from quietbeam.core.events import Event, RunStart
from quietbeam.core.planes import stacked
from quietbeam_plugins.sources.cbor import COLUMN_MAJOR, COMPRESSED, ROW_MAJOR, plain, read_map
from quietbeam_plugins.sources.channels import Wanted, channel_names, chosen, together
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
    channels: tuple[str, ...]


class Stream2:
    """Messages to events.

    Args:
        machine: Keeps the runs; shared with Stream V1 where both may come.
        max_frame_bytes: Larger images are refused.
        channels: Which channels (thresholds) to take.
    """

    def __init__(self, machine: SeriesMachine, max_frame_bytes: int, channels: Wanted) -> None:
        self._machine = machine
        self._max_frame_bytes = max_frame_bytes
        self._wanted: Wanted = channels
        self._header: _Header | None = None

    def message(self, part: Bytes, received_ns: int) -> Iterator[Event]:
        """Take one message.

        Raises:
            RefusedError: It cannot be accepted.
        """
        yield from self.read(read_map(part), received_ns)

    def read(self, message: Mapping[str, Any], received_ns: int) -> Iterator[Event]:
        """Take one message that was decoded already.

        Raises:
            RefusedError: It cannot be accepted.
        """
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
        told = message.get("channels")
        channels = chosen(channel_names(told), self._wanted) if told else ()
        self._header = _Header(key, message, shape, channels)
        name = message.get("image_dtype")  # only newer firmware tells it before the first image
        if name is None or shape is None or not channels:
            yield from self._machine.announce(key)
        else:
            dtype = image_dtype(name).newbyteorder("=")
            start = self._describe(self._header, shape, dtype)
            yield from self._machine.begin(key, start, received_ns)

    def _image(self, message: Mapping[str, Any], received_ns: int) -> Iterator[Event]:
        key = _key(message)
        number = whole(message.get("image_id"), "image_id")
        header = self._header if self._header is not None and self._header.key == key else None
        data = message.get("data")
        if not isinstance(data, Mapping) or not data:
            raise RefusedError("malformed", f"image {number} has no data")
        names = (header and header.channels) or chosen(channel_names(list(data)), self._wanted)
        pixels = self._read(data, names)
        expected = None if header is None else header.shape
        size = pixels.shape[-2:]
        if size == _PREVIEW_SHAPE != expected:  # also when the header was missed
            raise RefusedError("preview", f"image {number} is {pixels.shape}: a dummy")
        if expected is not None and size != expected:
            raise RefusedError("shape", f"image {number} is {pixels.shape}, header says {expected}")
        known = header or _Header(key, {}, None, names)
        yield from self._machine.frame(
            key,
            number,
            pixels,
            time_ns=_nanoseconds(message.get("start_time"), received_ns),
            received_ns=received_ns,
            describe=lambda: self._describe(
                replace(known, channels=names), pixels.shape[-2:], pixels.dtype
            ),
        )

    def _read(self, data: Mapping[str, Any], names: tuple[str, ...]) -> NDArray[Any]:
        """Read the channels; together they may have ``max_frame_bytes``."""
        chosen(list(data), names)
        images: list[NDArray[Any]] = []
        left = self._max_frame_bytes
        for name in names:
            images.append(read_array(data[name], left))
            left -= images[-1].nbytes
        return together(images)

    def _describe(self, header: _Header, size: tuple[int, ...], dtype: np.dtype[Any]) -> RunStart:
        message, several = header.message, len(header.channels) > 1
        unique, number = header.key
        energy_ev = positive(message, "incident_energy")
        distance = message.get("detector_translation")
        is_count = np.issubdtype(dtype, np.integer)
        return RunStart(
            run=unique or stamped(f"series-{number}"),
            shape=(len(header.channels), *size) if several else size,
            channels=header.channels if several else (),
            dtype=dtype,
            frame_time_s=positive(message, "frame_time"),
            exposure_s=positive(message, "count_time"),
            frames_expected=_count(message.get("number_of_images")),
            first_index=0,
            pixel_size_m=positive(message, "pixel_size_x"),
            energy_kev=None if energy_ev is None else energy_ev / 1000,
            distance_m=_distance(distance),
            mask=self._mask(header, size),
            nodata=float(np.iinfo(dtype).max) if is_count else None,
            saturation=positive(message, "saturation_value"),
            metadata={
                "format": "dectris-v2",
                **({} if several else {"channel": header.channels[0]}),
                "header": plain({k: v for k, v in message.items() if k not in _LARGE}),
            },
        )

    def _mask(self, header: _Header, size: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """Read the mask of every channel taken."""
        masks = header.message.get("pixel_mask")
        if not isinstance(masks, Mapping) or not masks:
            return None
        first = next(iter(masks.values()))
        coded = [masks.get(name, first) for name in header.channels]
        read = [_read_mask(one, size, header.key[1]) for one in coded]
        if all(mask is None for mask in read):
            return None
        return stacked([np.zeros(size, np.bool_) if mask is None else mask for mask in read])


def _read_mask(coded: Any, size: tuple[int, ...], series: int) -> NDArray[np.bool_] | None:
    """Read one mask; a broken one is told about, and done without."""
    try:
        mask = read_array(coded, 8 * math.prod(size))
    except RefusedError as error:
        _log.warning("pixel_mask_unreadable", series=series, error=str(error))
        return None
    if mask.shape != size:
        _log.warning("pixel_mask_unreadable", series=series, shape=mask.shape)
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
    if not isinstance(blob, bytes | memoryview):
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
    if algorithm not in ("bslz4", "bszstd", "lz4"):  # no set: a list has no hash
        detail = f"algorithm {algorithm!r:.60}; expected 'bslz4', 'bszstd' or 'lz4'"
        raise RefusedError("compression", detail)
    if algorithm != "lz4" and modifier != itemsize:
        raise RefusedError(
            "compression", f"{algorithm} of {modifier!r:.20}-byte elements, not {itemsize}"
        )
    if isinstance(blob, bytes | memoryview):
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
