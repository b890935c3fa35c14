"""Reads array-1.0 (PSI) and areaDetector's ADZMQ: a JSON header, then the bytes of an array.

An array of three axes is one image of several channels: [c, h, w], or [h, w, 3]
from a colour camera.  There is no start or end message: a run begins with its first frame, and is
over when frames stop, when their counter starts again, or when their shape or
dtype changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from quietbeam.core.events import Event, Rejected, RunStart
from quietbeam_plugins.sources.channels import Layout, Wanted, layout_of
from quietbeam_plugins.sources.payload import (
    Bytes,
    Codec,
    RefusedError,
    codec_of,
    image,
    image_dtype,
    parse_json,
    whole,
)
from quietbeam_plugins.sources.series import SeriesKey, SeriesMachine, stamped
from quietbeam_plugins.sources.zmq_parts import StreamSource

_KEY: SeriesKey = ("", 0)
_KINDS = ("array-1.0", "chunk-1.0")
_REORDERED_FRAMES = 64
_EPICS_EPOCH_S = 631_152_000  # 1990-01-01 in Unix time


class Array(StreamSource):
    """``array-1.0`` and areaDetector ADZMQ, published or pushed."""

    nodata_at_maximum: bool = False
    """Pixels at the dtype's maximum hold no data (as DECTRIS detectors do it)."""

    def decoder(self) -> ArrayDecoder:
        """Give a fresh decoder."""
        return ArrayDecoder(self)


@dataclass(frozen=True, slots=True)
class _Header:
    layout: Layout
    dtype: np.dtype[Any]
    codec: Codec
    number: int
    time_ns: int
    metadata: dict[str, Any]


class ArrayDecoder:
    """Parts to events; see ``payload.Decoder``."""

    def __init__(self, settings: Array) -> None:
        self._settings = settings
        self._machine = SeriesMachine(settings.run_timeout_s, has_ends=False)
        self._header: _Header | None = None
        self._skip_payload = False
        self._multipart = False
        self._message_refused = False

    def feed(
        self, part: Bytes, received_ns: int, *, starts_message: bool = True
    ) -> Iterator[Event]:
        """Take a header or the bytes of an array."""
        yield from self._machine.tick(received_ns)
        header, self._header = self._header, None
        skip, self._skip_payload = self._skip_payload, False
        self._multipart = self._multipart or not starts_message
        self._message_refused = self._message_refused and not starts_message
        skip = skip and not (starts_message and self._multipart)
        try:
            if _is_header(part):
                self._skip_payload = True  # if the header is refused, so is what it describes
                if header is not None:
                    yield _without_data(header)
                self._header = _read_header(parse_json(part), self._settings.channels)
                self._skip_payload = False
            elif header is not None:
                yield from self._frame(header, part, received_ns)
            elif not (skip or self._message_refused or (not starts_message and not len(part))):
                self._skip_payload = starts_message
                parse_json(part)  # says best what is wrong with it
                raise RefusedError("malformed", "neither a header nor the data of one")
        except RefusedError as refused:
            self._message_refused = True
            yield refused.event

    def idle(self, now_ns: int) -> Iterator[Event]:
        """Settle a run whose frames stopped."""
        return self._machine.tick(now_ns)

    def finish(self) -> Iterator[Event]:
        """Settle everything."""
        if self._header is not None:
            yield _without_data(self._header)
            self._header = None
        yield from self._machine.finish()

    def _frame(self, header: _Header, part: Bytes, received_ns: int) -> Iterator[Event]:
        sizes, most = header.layout.sizes, self._settings.max_frame_bytes
        array = image(part, sizes, header.dtype, header.codec, most)
        pixels = header.layout.frame(array)
        if self._is_another_run(header, pixels.dtype):
            yield from self._machine.restart()
        yield from self._machine.frame(
            _KEY,
            header.number,
            pixels,
            time_ns=header.time_ns or received_ns,
            received_ns=received_ns,
            describe=lambda: self._describe(header, pixels.dtype),
        )

    def _is_another_run(self, header: _Header, dtype: np.dtype[Any]) -> bool:
        run = self._machine.running
        if run is None:
            return False
        highest = self._machine.highest
        counts_again = header.number <= 1 < highest or header.number < highest - _REORDERED_FRAMES
        layout = header.layout
        other = (run.shape, run.channels, run.dtype) != (layout.shape, layout.channels, dtype)
        return other or counts_again

    def _describe(self, header: _Header, dtype: np.dtype[Any]) -> RunStart:
        integer = np.issubdtype(dtype, np.integer)
        nodata = integer and self._settings.nodata_at_maximum
        return RunStart(
            run=stamped("array"),
            shape=header.layout.shape,
            channels=header.layout.channels,
            dtype=dtype,
            nodata=float(np.iinfo(dtype).max) if nodata else None,
            metadata=header.metadata,
        )


def _is_header(part: Bytes) -> bool:
    """Tell a JSON header from the bytes of an image, which may be anything."""
    if bytes(part[:1]) != b"{":
        return False
    start = bytes(part[:4096])
    return re.match(rb'\{\s*"', start) is not None and (b'"shape"' in start or b'"htype"' in start)


def _read_header(header: dict[str, Any], wanted: Wanted) -> _Header:
    htype = header.get("htype", "array-1.0")  # JUNGFRAU's dialect has none
    if isinstance(htype, list) and htype:  # ADZMQ before 1.4: in a list, and x before y
        kind, x_first = htype[0], True
    else:
        kind, x_first = htype, htype == "chunk-1.0"
    if kind not in _KINDS:
        raise RefusedError("unknown_type", f"htype {htype!r:.60}; expected {_KINDS[0]!r}")
    shape = header.get("shape")
    if x_first and isinstance(shape, list):
        shape = shape[::-1]
    order = header.get("endianness", header.get("endianess", "little"))
    if order not in ("little", "big"):  # no set: a list has no hash
        raise RefusedError("dtype", f"endianness {order!r:.60}; expected 'little' or 'big'")
    dtype = image_dtype(header.get("type"), big_endian=order == "big")
    known = {"htype", "shape", "type", "frame", "encoding", "endianness", "endianess", "channels"}
    attributes = header.get("ndattr")
    mode = attributes.get("ColorMode") if isinstance(attributes, dict) else None
    return _Header(
        layout=layout_of(shape, header.get("channels"), mode, wanted),
        dtype=dtype,
        codec=codec_of(header.get("encoding") or header.get("cmpr") or ""),
        number=whole(header.get("frame"), "frame"),
        time_ns=_time_ns(header),
        metadata={key: value for key, value in header.items() if key not in known},
    )


def _time_ns(header: dict[str, Any]) -> int:
    """Read areaDetector's time, which counts from 1990, as Unix time in ns; 0 without one."""
    seconds = header.get("timeStamp")
    if isinstance(seconds, int | float) and 0 < seconds < 2**33:
        return round((seconds + _EPICS_EPOCH_S) * 1e9)
    return 0


def _without_data(header: _Header) -> Rejected:
    return Rejected(reason="truncated", detail=f"frame {header.number}: its data never came")
