"""DECTRIS Stream V1 and V2: one source that reads whichever the detector speaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from quietbeam.core.events import Event
from quietbeam_plugins.sources.cbor import is_cbor_map
from quietbeam_plugins.sources.payload import Bytes, RefusedError
from quietbeam_plugins.sources.series import SeriesMachine
from quietbeam_plugins.sources.stream1 import Stream1
from quietbeam_plugins.sources.stream2 import Stream2
from quietbeam_plugins.sources.zmq_parts import ChannelSource


class Dectris(ChannelSource):
    """A DECTRIS detector, or anything that speaks its stream (Stream V1 and V2)."""

    format: Literal["auto", "v1", "v2"] = "auto"
    """``auto`` tells by every message."""

    def decoder(self) -> DectrisDecoder:
        """Give a fresh decoder."""
        return DectrisDecoder(self)


class DectrisDecoder:
    """Parts to events; see ``payload.Decoder``."""

    def __init__(self, settings: Dectris) -> None:
        self._format = settings.format
        self._machine = SeriesMachine(settings.run_timeout_s, settings.grace_s)
        self._v1 = Stream1(self._machine, settings.max_frame_bytes)
        self._v2 = Stream2(self._machine, settings.max_frame_bytes, settings.channels)

    def feed(
        self, part: Bytes, received_ns: int, *, starts_message: bool = True
    ) -> Iterator[Event]:
        """Take one part of either format."""
        yield from self._machine.tick(received_ns)
        try:
            if self._is_v2(part):
                yield from self._v1.settle()
                yield from self._v2.message(part, received_ns)
            else:
                yield from self._v1.part(part, received_ns, starts_message=starts_message)
        except RefusedError as refused:
            yield refused.event

    def idle(self, now_ns: int) -> Iterator[Event]:
        """Settle what has waited long enough."""
        yield from self._v1.idle(now_ns)
        yield from self._machine.tick(now_ns)

    def finish(self) -> Iterator[Event]:
        """Settle everything."""
        yield from self._v1.settle()
        yield from self._machine.finish()

    def _is_v2(self, part: Bytes) -> bool:
        if self._format != "auto":
            return self._format == "v2"
        return not self._v1.expects_data and is_cbor_map(part)
