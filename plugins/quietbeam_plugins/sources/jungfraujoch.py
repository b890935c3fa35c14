"""Jungfraujoch (PSI): DECTRIS Stream V2 with messages and keys of its own.

Between the frames of its preview stream it sends dummy images of 2 x 2 pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import structlog
from cbor2 import CBORTag

from quietbeam.core.events import Event, RunStart
from quietbeam_plugins.sources.cbor import plain, read_map
from quietbeam_plugins.sources.payload import Bytes, RefusedError
from quietbeam_plugins.sources.series import SeriesMachine
from quietbeam_plugins.sources.stream2 import Stream2
from quietbeam_plugins.sources.zmq_parts import ChannelSource

_log = structlog.get_logger()
_DUMMY_SHAPE = [2, 2]
_BY_DECTRIS = {
    *("type", "series_id", "series_unique_id", "series_date", "image_id", "data"),
    *("real_time", "start_time", "stop_time"),
}


class Jungfraujoch(ChannelSource):
    """A detector behind Jungfraujoch: its image stream (pull) or its preview (sub)."""

    def decoder(self) -> JungfraujochDecoder:
        """Give a fresh decoder."""
        return JungfraujochDecoder(self)


class JungfraujochDecoder:
    """Parts to events; see ``payload.Decoder``."""

    def __init__(self, settings: Jungfraujoch) -> None:
        self._machine = SeriesMachine(settings.run_timeout_s, settings.grace_s)
        self._stream2 = Stream2(self._machine, settings.max_frame_bytes, settings.channels)
        self._noted: dict[str, Any] = {}

    def feed(
        self,
        part: Bytes,
        received_ns: int,
        *,
        starts_message: bool = True,  # noqa: ARG002  every message has one part
    ) -> Iterator[Event]:
        """Take one message."""
        yield from self._machine.tick(received_ns)
        try:
            yield from self._message(read_map(part), received_ns)
        except RefusedError as refused:
            yield refused.event

    def idle(self, now_ns: int) -> Iterator[Event]:
        """Settle what has waited long enough."""
        return self._machine.tick(now_ns)

    def finish(self) -> Iterator[Event]:
        """Settle everything."""
        return self._machine.finish()

    def _message(self, message: Mapping[str, Any], received_ns: int) -> Iterator[Event]:
        kind = message.get("type")
        if kind in ("calibration", "metadata"):
            self._note(str(kind), message)
            return
        if kind == "image" and _is_dummy(message.get("data")):
            number = message.get("image_id")
            raise RefusedError("preview", f"image {number!r:.20} is a dummy of {_DUMMY_SHAPE}")
        if kind == "start":
            self._noted = {}
        for event in self._stream2.read(message, received_ns):
            yield self._told(event, message) if isinstance(event, RunStart) else event

    def _note(self, kind: str, message: Mapping[str, Any]) -> None:
        """Keep what is told besides images; only what came before the first frame is recorded."""
        if kind not in self._noted:
            _log.info("jungfraujoch_message", type=kind, keys=[str(key) for key in message][:32])
        self._noted[kind] = plain(message)

    def _told(self, start: RunStart, message: Mapping[str, Any]) -> RunStart:
        """Add what a Stream V2 detector would not have said."""
        more = dict(self._noted)
        if message.get("type") == "image":
            more["image"] = plain({k: v for k, v in message.items() if k not in _BY_DECTRIS})
        return dataclasses.replace(
            start, metadata={**start.metadata, "format": "jungfraujoch", **more}
        )


def _is_dummy(channels: Any) -> bool:
    arrays = channels.values() if isinstance(channels, Mapping) else []
    shapes = [
        list(array.value[0])
        for array in arrays
        if isinstance(array, CBORTag)
        and isinstance(array.value, list | tuple)
        and array.value
        and isinstance(array.value[0], list | tuple)
    ]
    return bool(shapes) and all(shape == _DUMMY_SHAPE for shape in shapes)
