"""The slsDetector receivers (PSI's Eiger, Jungfrau, Mythen, ...): one stream for every module.

Each message is a JSON header and the pixels of one module; the modules of a
frame are put together by its number.  The end of an acquisition is a header
without pixels, sent by every receiver.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from quietbeam.core.events import Event, Rejected, RunStart
from quietbeam_plugins.sources.json_pairs import JsonPairs
from quietbeam_plugins.sources.modules import Assembler, Module, Mosaic
from quietbeam_plugins.sources.payload import (
    Bytes,
    RefusedError,
    image,
    image_shape,
    parse_json,
    positive,
    whole,
)
from quietbeam_plugins.sources.series import SeriesKey, SeriesMachine, stamped
from quietbeam_plugins.sources.zmq_parts import StreamSource

_DTYPES = {4: "u1", 8: "u1", 16: "u2", 32: "u4", 64: "u8"}
_EIGER = 1
_TICK_NS = 100  # the detectors' clock runs at 10 MHz
_REORDERED_FRAMES = 64
_LATE_NS = 1_000_000_000  # after the end of an acquisition, for modules that it overtook
_MOST_MISSING = 4096
_SILENCE_NS = 5_000_000_000  # before a counter that starts again is that of a new acquisition


class SlsDetector(StreamSource):
    """A detector of PSI's slsDetectorPackage, through the ZMQ streams of its receivers."""

    socket: Literal["pull", "sub"] = "sub"
    """``sub``: receivers publish."""
    receivers: PositiveInt = 1
    """How many publish, on consecutive ports from that of ``address`` on."""
    incomplete: Literal["fill", "drop"] = "fill"
    """A frame that lacks modules: fill them with the dtype's maximum (no data), or drop it."""
    module_timeout_s: PositiveFloat = 1.0
    """How long a frame waits for its last module."""

    def endpoints(self) -> list[str]:
        """Give the addresses of all receivers."""
        port = urlsplit(self.address).port if self.address.startswith("tcp://") else None
        if port is None or self.receivers == 1:
            return [self.address]
        host = self.address.rpartition(":")[0]
        return [f"{host}:{port + n}" for n in range(self.receivers)]

    def decoder(self) -> SlsDecoder:
        """Give a fresh decoder."""
        return SlsDecoder(self)


@dataclass(frozen=True, slots=True)
class _Header:
    module: Module
    shape: tuple[int, int]
    bits: int
    flipped: bool
    about: dict[str, Any]


class SlsDecoder(JsonPairs[_Header]):
    """Parts to events; see ``payload.Decoder``."""

    header_keys = (b"jsonversion", b"bitmode", b"frameNumber")

    def __init__(self, settings: SlsDetector) -> None:
        super().__init__(SeriesMachine(settings.run_timeout_s, grace_s=0))
        self._settings = settings
        self._modules = self._assembler()
        self._grace_ns = round(max(settings.grace_s, settings.module_timeout_s) * 1e9)
        self._series = 0
        self._ends = 0
        self._ends_at_ns: int | None = None
        self._about: dict[str, Any] = {}
        self._last_ns = 0
        self._missing: dict[tuple[int, int, int], None] = {}  # number, row, column; oldest first
        self._closed_ns: int | None = None

    @property
    def _key(self) -> SeriesKey:
        return "", self._series

    def header(self, part: Bytes, received_ns: int) -> Generator[Event, None, _Header | None]:
        """Take the header of a module, or an end."""
        message = parse_json(part)
        if message.get("data", 1) == 0:
            yield from self._end(received_ns)
            return None
        return _read(message)

    def data(self, waiting: _Header, part: Bytes, received_ns: int) -> Generator[Event, None, None]:
        """Put a module into its frame; give the frames that are complete by that."""
        pixels = _pixels(waiting, part, self._settings.max_frame_bytes)
        self._refuse_leftover(waiting.module, received_ns)
        if self._is_another_run(waiting.module.number, received_ns):
            yield from self._renew()
        else:
            self._check(waiting.module, pixels)
        self._about, self._last_ns = waiting.about, received_ns
        yield from self._give(self._modules.add(waiting.module, pixels, received_ns))

    def without_data(self, waiting: _Header) -> Iterator[Event]:
        """Say that they are missing."""
        detail = f"frame {waiting.module.number}: the pixels of a module never came"
        yield Rejected(reason="truncated", detail=detail)

    def idle(self, now_ns: int) -> Iterator[Event]:
        """Give frames that waited too long for a module; settle what has waited long enough."""
        yield from self._give(self._modules.overdue(now_ns))
        if self._ends_at_ns is not None and now_ns >= self._ends_at_ns:
            yield from self._close(now_ns)
        yield from self._machine.tick(now_ns)

    def finish(self) -> Iterator[Event]:
        """Settle everything."""
        yield from self._forget_waiting()
        yield from self._give(self._modules.flush())
        if self._ends:
            yield from self._close(0)
        yield from self._machine.finish()

    def _is_another_run(self, number: int, now_ns: int) -> bool:
        """Tell by a counter that started again: the end of the run before was missed."""
        given = self._modules.given
        again = number < given - _REORDERED_FRAMES
        return again or (number <= given and now_ns - self._last_ns > _SILENCE_NS)

    def _refuse_leftover(self, module: Module, now_ns: int) -> None:
        """Refuse what one receiver still sends of an acquisition whose end another one told."""
        if self._closed_ns is None:
            return
        place = module.number, module.row, module.column
        if now_ns - self._closed_ns <= _LATE_NS and place in self._missing:
            del self._missing[place]
            detail = f"row {module.row} column {module.column} of frame {module.number}"
            raise RefusedError("foreign", f"{detail}, of an acquisition that is over")
        self._closed_ns = None
        self._missing.clear()

    def _check(self, module: Module, pixels: NDArray[Any]) -> None:
        """Refuse a module that does not fit the run before it spoils a frame."""
        run = self._machine.running
        shape = module.grid[0] * pixels.shape[0], module.grid[1] * pixels.shape[1]
        if run is not None and run.shape != shape:
            detail = f"a module of a frame {shape}, the run is {run.shape}"
            raise RefusedError("shape", detail)
        if run is not None and run.dtype != pixels.dtype:
            raise RefusedError("dtype", f"a module of {pixels.dtype}, the run is {run.dtype}")

    def _end(self, now_ns: int) -> Iterator[Event]:
        if self._machine.running is None and not self._modules.waiting:
            detail = "the end of an acquisition: none is going on"
            raise RefusedError("no_run", detail)
        self._ends += 1
        self._ends_at_ns = now_ns + self._grace_ns
        if self._ends >= self._settings.receivers:
            yield from self._close(now_ns)

    def _close(self, now_ns: int) -> Iterator[Event]:
        """Settle the run: its end came."""
        yield from self._give(self._modules.flush())
        if self._machine.running is not None:
            yield from self._machine.end(self._key, now_ns)
        self._closed_ns = now_ns
        yield from self._renew()

    def _renew(self) -> Iterator[Event]:
        """What comes next is of another acquisition."""
        yield from self._give(self._modules.flush())
        self._modules = self._assembler()
        self._series += 1
        self._ends, self._ends_at_ns = 0, None

    def _assembler(self) -> Assembler:
        return Assembler(self._settings.module_timeout_s, self._settings.max_frame_bytes)

    def _give(self, mosaics: Iterator[Mosaic]) -> Iterator[Event]:
        for mosaic in mosaics:
            if mosaic.missing:
                self._note_missing(mosaic)
                done = "filled" if self._settings.incomplete == "fill" else "dropped"
                shown = ", ".join(
                    f"row {row} column {column}" for row, column in mosaic.missing[:4]
                )
                detail = f"frame {mosaic.number}, {done}: {len(mosaic.missing)} modules never came"
                yield Rejected(reason="truncated", detail=f"{detail} ({shown})")
                if self._settings.incomplete == "drop":
                    continue
            yield from self._machine.frame(
                self._key,
                mosaic.number,
                mosaic.pixels,
                time_ns=mosaic.time_ns,
                received_ns=mosaic.received_ns,
                describe=lambda mosaic=mosaic: self._describe(mosaic.pixels),
            )

    def _note_missing(self, mosaic: Mosaic) -> None:
        self._missing |= {(mosaic.number, *place): None for place in mosaic.missing}
        while len(self._missing) > _MOST_MISSING:
            del self._missing[next(iter(self._missing))]

    def _describe(self, pixels: NDArray[Any]) -> RunStart:
        about = self._about
        exposure_ticks = None if about.get("detType") == _EIGER else positive(about, "expLength")
        varies = {"frameNumber", "frameIndex", "acqIndex", "timestamp", "row", "column", "modId"}
        return RunStart(
            run=stamped("sls"),
            shape=(pixels.shape[0], pixels.shape[1]),
            dtype=pixels.dtype,
            exposure_s=exposure_ticks and exposure_ticks * _TICK_NS * 1e-9,
            nodata=float(np.iinfo(pixels.dtype).max),
            metadata={
                "format": "sls-detector",
                "header": {key: value for key, value in about.items() if key not in varies},
            },
        )


def _read(message: dict[str, Any]) -> _Header:
    bits = whole(message.get("bitmode"), "bitmode")
    if bits not in _DTYPES:
        raise RefusedError("dtype", f"bitmode {bits}; expected one of {list(_DTYPES)}")
    sizes, grid = (message.get(key) for key in ("shape", "detshape"))
    shape, modules = (
        image_shape(found[::-1] if isinstance(found, list) else found) for found in (sizes, grid)
    )
    row, column = (whole(message.get(axis), axis) for axis in ("row", "column"))
    if row >= modules[0] or column >= modules[1]:
        detail = f"a module in row {row} column {column} of {modules[0]} x {modules[1]} modules"
        raise RefusedError("shape", detail)
    number = whole(message.get("frameNumber"), "frameNumber")
    time_ns = whole(message.get("timestamp", 0), "timestamp") * _TICK_NS
    flipped = message.get("detType") == _EIGER and bool(message.get("flipRows"))
    return _Header(Module(number, row, column, modules, time_ns), shape, bits, flipped, message)


def _pixels(header: _Header, part: Bytes, max_bytes: int) -> NDArray[Any]:
    h, w = header.shape
    dtype = np.dtype(_DTYPES[header.bits])
    if header.bits == 4:
        if w % 2:
            raise RefusedError("shape", f"rows of {w} pixels of 4 bits")
        packed = image(part, (h, w // 2), dtype, "", max_bytes)
        pixels = np.stack((packed >> 4, packed & 15), axis=2).reshape(h, w)  # high bits first
    else:
        pixels = image(part, header.shape, dtype.newbyteorder("<"), "", max_bytes)
    return pixels[::-1] if header.flipped else pixels
