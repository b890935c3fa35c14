"""Reads array-1.0 (PSI) and areaDetector's ADZMQ: a JSON header, then the bytes of an array.

An array of three axes is one image of several channels: [c, h, w], or [h, w, 3]
from a colour camera.  There is no start or end message: a run begins with its first frame, and is
over when frames stop, when their counter starts again, or when their shape or
dtype changes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from quietbeam.core.events import Event, Rejected, RunStart
from quietbeam_plugins.sources.channels import Layout, Wanted, layout_of
from quietbeam_plugins.sources.json_pairs import JsonPairs
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
from quietbeam_plugins.sources.zmq_parts import ChannelSource

_KEY: SeriesKey = ("", 0)
_KINDS = ("array-1.0", "chunk-1.0")
_REORDERED_FRAMES = 64
_EPICS_EPOCH_S = 631_152_000  # 1990-01-01 in Unix time


class Array(ChannelSource):
    """``array-1.0`` and areaDetector ADZMQ, published or pushed."""

    nodata_at_maximum: bool = False
    """Pixels at the dtype's maximum hold no data (as DECTRIS detectors do it)."""

    def decoder(self) -> ArrayDecoder:
        """Give a fresh decoder."""
        return ArrayDecoder(self)


class ArraySettings(Protocol):
    """What a decoder of arrays needs to know."""

    @property
    def run_timeout_s(self) -> float | None:
        """As ``ChannelSource`` has it."""

    @property
    def max_frame_bytes(self) -> int:
        """As ``ChannelSource`` has it."""
        ...

    @property
    def channels(self) -> Wanted:
        """Which channels to take."""
        ...

    @property
    def nodata_at_maximum(self) -> bool:
        """Pixels at the dtype's maximum hold no data."""
        ...


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What a header says about the bytes after it."""

    layout: Layout
    dtype: np.dtype[Any]
    codec: Codec
    number: int
    time_ns: int
    metadata: dict[str, Any]


class ArrayDecoder(JsonPairs[ArrayHeader]):
    """Parts to events; see ``payload.Decoder``."""

    header_keys = (b"shape", b"htype")
    label: ClassVar[str] = "array"
    """Begins the names of runs."""

    def __init__(self, settings: ArraySettings) -> None:
        super().__init__(SeriesMachine(settings.run_timeout_s, has_ends=False))
        self._settings = settings

    def header(self, part: Bytes, received_ns: int) -> Generator[Event, None, ArrayHeader]:  # noqa: ARG002
        """Read a header."""
        yield from ()
        return _read_header(parse_json(part), self._settings.channels)

    def data(
        self, waiting: ArrayHeader, part: Bytes, received_ns: int
    ) -> Generator[Event, None, None]:
        """Give the frame."""
        yield from self.frame(waiting, part, received_ns)

    def without_data(self, waiting: ArrayHeader) -> Iterator[Event]:
        """Say that they are missing."""
        yield Rejected(reason="truncated", detail=f"frame {waiting.number}: its data never came")

    def frame(self, header: ArrayHeader, part: Bytes, received_ns: int) -> Iterator[Event]:
        """Give the frame of a header and its data, in its run."""
        sizes, most = header.layout.sizes, self._settings.max_frame_bytes
        array = image(part, sizes, header.dtype, header.codec, most)
        pixels = header.layout.frame(array)
        if self.is_another_run(header, pixels.dtype):
            yield from self._machine.restart()
        yield from self._machine.frame(
            _KEY,
            header.number,
            pixels,
            time_ns=header.time_ns or received_ns,
            received_ns=received_ns,
            describe=lambda: self._describe(header, pixels.dtype),
        )

    def is_another_run(self, header: ArrayHeader, dtype: np.dtype[Any]) -> bool:
        """Tell whether a frame begins a new run: the format has no start."""
        run = self._machine.running
        if run is None:
            return False
        highest = self._machine.highest
        counts_again = header.number <= 1 < highest or header.number < highest - _REORDERED_FRAMES
        layout = header.layout
        other = (run.shape, run.channels, run.dtype) != (layout.shape, layout.channels, dtype)
        return other or counts_again

    def _describe(self, header: ArrayHeader, dtype: np.dtype[Any]) -> RunStart:
        integer = np.issubdtype(dtype, np.integer)
        nodata = integer and self._settings.nodata_at_maximum
        return RunStart(
            run=stamped(self.label),
            shape=header.layout.shape,
            channels=header.layout.channels,
            dtype=dtype,
            nodata=float(np.iinfo(dtype).max) if nodata else None,
            metadata=header.metadata,
        )


def _read_header(header: dict[str, Any], wanted: Wanted) -> ArrayHeader:
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
    return ArrayHeader(
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
