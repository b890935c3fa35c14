"""EPICS PV Access: the NTNDArray of areaDetector's NDPluginPva, PvaPy and others.

There is neither start nor end: a run begins with its first frame, and is over
when frames stop, when their uniqueId starts again, or when they change.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from queue import Empty, Full, Queue
from typing import Any

import numpy as np
import structlog
from pydantic import PositiveFloat, PositiveInt

from quietbeam.core.errors import SourceError
from quietbeam.core.events import Dropped, Event
from quietbeam.core.plugin import SourcePlugin
from quietbeam_plugins.sources.array import ArrayDecoder, ArrayHeader
from quietbeam_plugins.sources.channels import Wanted, layout_of
from quietbeam_plugins.sources.payload import (
    Codec,
    RefusedError,
    codec_of,
    image_dtype,
    whole,
)

_log = structlog.get_logger()
_POLL_S = 0.1
_MOST_ATTRIBUTES = 256
_SCALARS = {  # numbers of pvData's scalar types
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "uint8",
    6: "uint16",
    7: "uint32",
    8: "uint64",
    9: "float32",
    10: "float64",
}


class Pva(SourcePlugin):
    """Images of an EPICS PV Access channel (NTNDArray; needs the extra ``epics``)."""

    channel: str
    """Name of the channel, such as ``13SIM1:Pva1:Image``."""
    servers: str = ""
    """Where to look for it: addresses separated by spaces; empty: as EPICS_PVA_ADDR_LIST says."""
    max_frame_bytes: PositiveInt = 256 << 20
    """Larger images are refused before anything is allocated."""
    receive_frames: PositiveInt = 64
    """Frames that may wait for us; then the newest are lost: counted as ``queue_full``."""
    run_timeout_s: PositiveFloat | None = None
    """A run is over after this pause; None derives it from the pauses so far."""
    channels: Wanted = "all"
    """Which channels of a colour image to take, by name; see ``array``."""
    nodata_at_maximum: bool = False
    """Pixels at the dtype's maximum hold no data (as DECTRIS detectors do it)."""

    def decoder(self) -> PvaDecoder:
        """Give a fresh decoder."""
        return PvaDecoder(self)

    def open(self) -> AbstractContextManager[Iterator[Event | None]]:
        """Give the events; see ``SourcePlugin.open``."""
        return self._open()

    @contextmanager
    def _open(self) -> Iterator[Iterator[Event | None]]:
        try:
            from p4p.client.thread import Context
        except ImportError:
            raise SourceError("pva needs p4p: pip install 'quietbeam[epics]'") from None
        updates = _Updates(self.receive_frames)
        where = {"EPICS_PVA_ADDR_LIST": self.servers, "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
        request = f"record[queueSize={self.receive_frames}]field()"
        with (
            Context("pva", conf=where if self.servers else None, nt=False) as context,
            context.monitor(self.channel, updates.put, request=request, notify_disconnect=True),
        ):
            yield self._events(updates)

    def _events(self, updates: _Updates) -> Iterator[Event | None]:
        decoder = self.decoder()
        while True:
            if frames := updates.newly_lost():
                yield Dropped(frames=frames, reason="queue_full")
            found = updates.get()
            if found is None:
                yield from decoder.idle(time.monotonic_ns())
                yield None
                continue
            update, received_ns = found
            if isinstance(update, Exception):
                _log.info("pva_channel", channel=self.channel, state=type(update).__name__)
                continue
            yield from decoder.update(update, received_ns)


class _Updates:
    """What p4p's thread hands to ours; it never waits for room."""

    def __init__(self, size: int) -> None:
        self._queue: Queue[tuple[Any, int]] = Queue(size)
        self._lost = self._told = 0  # each written by one thread only

    def put(self, update: Any) -> None:
        """Take an update, or what became of the connection."""
        try:
            self._queue.put_nowait((update, time.monotonic_ns()))
        except Full:
            self._lost += not isinstance(update, Exception)

    def get(self) -> tuple[Any, int] | None:
        """Give the oldest and when it came; None if none came in time."""
        try:
            return self._queue.get(timeout=_POLL_S)
        except Empty:
            return None

    def newly_lost(self) -> int:
        """Tell how many found no room since this was last asked."""
        before, self._told = self._told, self._lost
        return self._told - before


class PvaDecoder(ArrayDecoder):
    """NTNDArrays to events."""

    label = "pva"

    def update(self, update: Any, received_ns: int) -> Iterator[Event]:
        """Take a ``p4p.Value``; one without an image, as the first often is, gives nothing."""
        yield from self.idle(received_ns)
        try:
            if _is_empty(update):
                return
            header = _header(update, self._settings.channels)
            data = np.ascontiguousarray(update["value"])
            yield from self.frame(header, data.view("u1").data, received_ns)
        except RefusedError as refused:
            yield refused.event


def _is_empty(update: Any) -> bool:
    try:
        return not update["dimension"] and update["value"] is None
    except KeyError:
        raise RefusedError("unknown_type", "the channel is no NTNDArray") from None


def _header(update: Any, wanted: Wanted) -> ArrayHeader:
    value = update["value"]
    if not isinstance(value, np.ndarray):
        raise RefusedError("dtype", f"value is {type(value).__name__}, expected an array")
    try:
        sizes = [int(dimension["size"]) for dimension in update["dimension"]]
        codec, dtype = _coding(update, value)
        number, metadata = whole(update["uniqueId"], "uniqueId"), _attributes(update)
    except KeyError as error:
        raise RefusedError("malformed", f"an NTNDArray without {error}") from None
    return ArrayHeader(
        layout=layout_of(sizes[::-1], None, metadata.get("ColorMode"), wanted),  # x comes first
        dtype=dtype,
        codec=codec,
        number=number,
        time_ns=_time_ns(update),
        metadata={"format": "pva", "attributes": metadata},
    )


def _coding(update: Any, value: np.ndarray[Any, Any]) -> tuple[Codec, np.dtype[Any]]:
    """Read codec and dtype; equal sizes mean raw data whatever the codec is called."""
    name = update["codec"]["name"]
    if not name or update["compressedSize"] == update["uncompressedSize"] == value.nbytes:
        return "", image_dtype(value.dtype.name)
    kind = update["codec"]["parameters"]
    if isinstance(kind, bool) or not isinstance(kind, int) or kind not in _SCALARS:
        raise RefusedError("dtype", f"codec.parameters {kind!r:.60}; expected a pvData scalar type")
    return codec_of(name), image_dtype(_SCALARS[kind])


def _time_ns(update: Any) -> int:
    """Read the time since 1970; 0 without one."""
    stamp = update["timeStamp"]
    return int(stamp["secondsPastEpoch"]) * 1_000_000_000 + int(stamp["nanoseconds"])


def _attributes(update: Any) -> dict[str, Any]:
    """Keep what JSON can hold."""
    told = [(one["name"], one["value"]) for one in update["attribute"][:_MOST_ATTRIBUTES]]
    return {name: value for name, value in told if isinstance(value, str | int | float)}
