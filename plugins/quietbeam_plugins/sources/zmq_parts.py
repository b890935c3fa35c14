"""The one receive loop of all ZMQ sources: parts in, events out; also from a capture file."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self
from urllib.parse import unquote, urlsplit

import structlog
import zmq
import zmq.utils.monitor
from pydantic import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from quietbeam.core.errors import ConfigError, SourceError
from quietbeam.core.events import Event, Frame, Rejected
from quietbeam.core.plugin import SourcePlugin
from quietbeam.offline import curve
from quietbeam.offline.capture import (
    DECODING,
    Capture,
    CapturedPart,
    CaptureFullError,
    CaptureWriter,
    read_capture,
)
from quietbeam_plugins.sources.channels import Wanted
from quietbeam_plugins.sources.payload import Bytes, Decoder

_log = structlog.get_logger()
_POLL_MS = 100
_MAX_PARTS = 4096
_RECONNECT_MS = (100, 1000)

_REVIVE_AFTER_S = 0.5
_SOCKETS = {"pull": zmq.PULL, "sub": zmq.SUB, "req": zmq.REQ}

_LONGEST_PAUSE_S = 60.0
_GIB = 1 << 30


class Part(NamedTuple):
    """One part of a ZMQ message.

    Attributes:
        content: Its bytes.
        clock_ns: The monotonic clock of the stream, by which runs time out.
        starts_message: It is the first of its message.
        more: It is not the last of its message.
        arrived_ns: Our monotonic clock, where it differs: a capture is played faster or slower.
    """

    content: Bytes
    clock_ns: int
    starts_message: bool
    more: bool = False
    arrived_ns: int | None = None


Item = Part | Rejected | int | None
"""None: nothing came; a number: nothing came, and it is so late by the stream's clock."""


class StreamSource(SourcePlugin):
    """Settings that every ZMQ source has."""

    request: ClassVar[bytes] = b""
    """What a server that wants to be asked for every message is asked with."""

    address: str
    """``tcp://host:port`` or ``ipc://path``; ``file:///x.qbcap`` plays a capture."""
    bind: bool = False
    """Wait for the detector to connect to us instead."""
    socket: Literal["pull", "sub"] = "pull"
    """``pull`` for a detector that pushes (nothing lost, one reader), ``sub`` if it publishes."""
    max_frame_bytes: PositiveInt = 256 << 20
    """Larger images are refused before anything is allocated."""
    receive_messages: PositiveInt = 64
    """Messages that may wait in the socket; then a pusher waits, a publisher drops."""
    run_timeout_s: PositiveFloat | None = None
    """A run without an end is lost after this pause; None derives it from the frame time."""
    grace_s: NonNegativeFloat = 0.25
    """How long frames may come after the end of their series that overtook them."""
    heartbeat_s: PositiveFloat = 2.0
    """A connection silent for three of these is opened again."""
    curve_secret_key: Path | None = None
    """Our own NAME.key_secret, mode 0600: connect encrypted, and only to ``curve_server_key``."""
    curve_server_key: Path | None = None
    """The public key (NAME.key) of whoever sends."""
    tap: Path | None = None
    """Also write every raw part to this file (``quietbeam capture``)."""
    tap_required: bool = False
    """A tap that cannot be written any more ends the source, not only the tap."""
    tap_max_bytes: PositiveInt = 16 * _GIB
    """The tap ends before its file would be larger."""
    pace: Literal["recorded", "fast"] = "recorded"
    """How a capture is played back; a pause of more than a minute lasts a minute."""
    speed: PositiveFloat = 1.0
    """How many times as fast as recorded."""
    from_s: NonNegativeFloat = 0.0
    """Play a capture from here on, in seconds since its first message."""
    to_s: PositiveFloat | None = None
    """Play it up to here."""
    loop: bool = False
    """Play a capture again and again."""

    @field_validator("address")
    @classmethod
    def _known_transport(cls, address: str) -> str:
        if not address.startswith(("tcp://", "ipc://", "inproc://", "file://")):
            raise ValueError("expected tcp://host:port, ipc://path or file:///path/to/x.qbcap")
        port = address.rpartition(":")[2]
        if address.startswith("tcp://") and not (port.isdecimal() or port == "*"):
            raise ValueError(f"{address!r} names no port; expected tcp://host:port")
        return address

    @model_validator(mode="after")
    def _keys_go_together(self) -> Self:
        if (self.curve_secret_key is None) != (self.curve_server_key is None):
            raise ValueError(
                "curve_secret_key and curve_server_key go together; set both or neither"
            )
        if self.curve_secret_key is not None and self.bind:
            raise ValueError("CURVE needs bind = false: whoever sends decides who may connect")
        return self

    def endpoints(self) -> list[str]:
        """Give the addresses to connect to, or the one to listen on."""
        return [self.address]

    @abstractmethod
    def decoder(self) -> Decoder:
        """Give a fresh decoder of this format."""

    def open(self) -> AbstractContextManager[Iterator[Event | None]]:
        """Give the events; see ``SourcePlugin.open``."""
        return self._open()

    @contextmanager
    def _open(self) -> Iterator[Iterator[Event | None]]:
        with ExitStack() as stack:
            if self.address.startswith("file://"):
                parts = self._played(stack)
            else:
                socket = stack.enter_context(self._connected())
                link = None if self.bind else _Link(socket, self.endpoints())
                parts = _received(socket, link, self.request)
            if self.tap is not None:
                writer = stack.enter_context(_tap_file(self.tap, self._about(), self.tap_max_bytes))
                parts = _tapped(parts, writer, required=self.tap_required)
            yield _events(parts, self.decoder())

    def _about(self) -> dict[str, Any]:
        """What a capture tells of its source: how to decode it, not how to reach it."""
        own = set(type(self).model_fields) - set(StreamSource.model_fields)
        settings = self.model_dump(mode="json", include=own | DECODING)
        kind = type(self).__name__.lower()
        return {"kind": kind, "address": self.address, "socket": self.socket, "settings": settings}

    @contextmanager
    def _connected(self) -> Iterator[zmq.Socket[bytes]]:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            socket = context.socket(_SOCKETS[self.socket])
            self._set_options(socket)
            for address in self.endpoints():
                (socket.bind if self.bind else socket.connect)(address)
        except ConfigError as error:
            context.destroy(linger=0)
            raise SourceError(f"{self.address}: {error}") from error
        except zmq.ZMQError as error:
            context.destroy(linger=0)
            what = "listen on" if self.bind else "connect to"
            raise SourceError(f"cannot {what} {self.address}: {error}") from error
        try:
            yield socket
        finally:
            context.destroy(linger=0)

    def _set_options(self, socket: zmq.Socket[bytes]) -> None:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, self.receive_messages)
        # A header with flat field and mask is larger than a frame.  This bounds
        # a part, not a multipart message: libzmq has no option for that.
        socket.setsockopt(zmq.MAXMSGSIZE, 2 * self.max_frame_bytes + (1 << 20))
        # Not ZMQ's heartbeats: one that meets a sender which has finished and left
        # makes libzmq throw away what of its data is still unread.
        every_s = math.ceil(self.heartbeat_s)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, every_s)
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, every_s)
        socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS[0])
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS[1])
        if self.socket == "sub":
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        if self.socket == "req":
            socket.setsockopt(zmq.REQ_RELAXED, 1)  # ask again where a server was restarted
        if self.curve_secret_key is not None and self.curve_server_key is not None:
            curve.become_client(socket, self.curve_secret_key, self.curve_server_key)

    def _played(self, stack: ExitStack) -> Iterator[Item]:
        address = urlsplit(self.address)
        path = Path(unquote(address.netloc + address.path))
        return self._play(stack.enter_context(read_capture(path)))

    def _play(self, capture: Capture) -> Iterator[Item]:
        while True:
            began_ns, due_ns, before_ns = time.monotonic_ns(), time.monotonic_ns(), None
            for record in capture.between(self.from_s, self.to_s):
                pause_ns = record.time_ns - (record.time_ns if before_ns is None else before_ns)
                due_ns += min(round(pause_ns / self.speed), round(_LONGEST_PAUSE_S * 1e9))
                clock_ns, before_ns = began_ns + record.time_ns, record.time_ns
                if self.pace == "recorded":
                    yield from _wait_until(due_ns, clock_ns, self.speed)
                yield self._played_part(record, clock_ns, due_ns)
            if not self.loop:
                return

    def _played_part(self, record: CapturedPart, clock_ns: int, due_ns: int) -> Part:
        arrived_ns = due_ns if self.pace == "recorded" else time.monotonic_ns()
        return Part(record.part, clock_ns, record.starts_message, record.more, arrived_ns)


class ChannelSource(StreamSource):
    """Settings of a ZMQ source whose frames may have several channels."""

    channels: Wanted = "all"
    """Names of the channels of a frame to take (thresholds, colours), in this order; or ``all``."""


def _wait_until(due_ns: int, clock_ns: int, speed: float) -> Iterator[int]:
    """Wait until ``due_ns``; tell the stream's clock, which then stands at ``clock_ns``."""
    while (wait_ns := due_ns - time.monotonic_ns()) > 0:
        yield clock_ns - round(wait_ns * speed)
        time.sleep(min(wait_ns * 1e-9, _POLL_MS * 1e-3))


class _Link:
    """Watches the connection of a socket that connects.

    libzmq opens a connection again that broke, but not one that it closed
    itself because of a message beyond ``MAXMSGSIZE`` or a failed handshake.
    """

    def __init__(self, socket: zmq.Socket[bytes], addresses: list[str]) -> None:
        self._socket = socket
        self._addresses = addresses
        self._monitor = socket.get_monitor_socket()
        self._lost_s: dict[str, float] = {}
        self._spoke: set[str] = set()
        self._new = self._told_refused = False

    def is_new(self) -> bool:
        """Tell, once for each, whether a connection was made since it was last asked."""
        self._look()
        new, self._new = self._new, False
        return new

    def revive(self) -> Rejected | None:
        """Connect again if libzmq does not; tell so if a message was the cause."""
        self._look()
        before_s = time.monotonic() - _REVIVE_AFTER_S
        lost = next((one for one, lost_s in self._lost_s.items() if lost_s < before_s), None)
        if lost is None:
            return None
        spoke = lost in self._spoke
        self._spoke.discard(lost)
        del self._lost_s[lost]
        with suppress(zmq.ZMQError):  # it may have forgotten the address by itself
            self._socket.disconnect(lost)
        self._socket.connect(lost)
        if not spoke:
            return None
        detail = "a message beyond max_frame_bytes, or no ZMQ at all: the connection was closed"
        return Rejected(reason="oversized", detail=detail)

    def _look(self) -> None:
        while self._monitor.poll(0):
            message = zmq.utils.monitor.recv_monitor_message(self._monitor)
            event, address = message["event"], message["endpoint"].decode(errors="replace")
            if address not in self._addresses:  # libzmq may write it in another way
                address = self._addresses[0]
            if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                self._spoke.add(address)
                self._new = True
            elif event in _REFUSED and not self._told_refused:
                self._told_refused = True
                _log.warning("connection_refused", address=address, hint=_REFUSED_HINT)
            if event in {zmq.Event.CONNECTED, zmq.Event.CONNECT_RETRIED}:
                self._lost_s.pop(address, None)
            elif event in _LOST:
                self._lost_s[address] = time.monotonic()


_REFUSED = {zmq.Event.HANDSHAKE_FAILED_PROTOCOL, zmq.Event.HANDSHAKE_FAILED_AUTH}
_REFUSED_HINT = "the other side does not know our CURVE key, or one side does without CURVE"
_LOST = {zmq.Event.DISCONNECTED, zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, *_REFUSED}


def _received(socket: zmq.Socket[bytes], link: _Link | None, request: bytes) -> Iterator[Item]:
    number = 0  # of the next part in its message
    asks = socket.type == zmq.REQ
    while True:
        if asks and link is not None and link.is_new():
            with suppress(zmq.Again):
                socket.send(request, zmq.NOBLOCK)
        if not socket.poll(_POLL_MS):
            yield link and link.revive()
            continue
        # Not copied: pixels of an uncompressed frame are a view of the message.
        part = socket.recv(copy=False)
        if number < _MAX_PARTS:
            more = part.more and number + 1 < _MAX_PARTS
            yield Part(part.buffer, time.monotonic_ns(), number == 0, more)
        elif number == _MAX_PARTS:
            yield Rejected(reason="oversized", detail=f"a message of more than {number} parts")
        number = number + 1 if part.more else 0
        if asks and not number:
            with suppress(zmq.Again):  # it is asked again once it is back
                socket.send(request, zmq.NOBLOCK)


def _events(parts: Iterator[Item], decoder: Decoder) -> Iterator[Event | None]:
    for item in parts:
        if isinstance(item, Part):
            events = decoder.feed(item.content, item.clock_ns, starts_message=item.starts_message)
            yield from events if item.arrived_ns is None else _arriving(events, item.arrived_ns)
        elif isinstance(item, int):
            yield from decoder.idle(item)
            yield None
        else:
            yield from decoder.idle(time.monotonic_ns())
            yield item
    yield from decoder.finish()


def _arriving(events: Iterable[Event], arrived_ns: int) -> Iterator[Event]:
    for event in events:
        yield replace(event, received_ns=arrived_ns) if isinstance(event, Frame) else event


@contextmanager
def _tap_file(path: Path, about: dict[str, Any], max_bytes: int) -> Iterator[CaptureWriter]:
    try:
        writer = CaptureWriter(path, about, max_bytes)
    except OSError as error:
        raise SourceError(f"tap {path}: cannot be written: {error.strerror}") from error
    try:
        yield writer
    finally:
        with suppress(OSError):  # of a full disk, told already
            writer.close()


def _tapped(parts: Iterator[Item], writer: CaptureWriter, *, required: bool) -> Iterator[Item]:
    """Write every part; a full disk ends the tap, and the stream only if it is required."""
    broken = False
    for item in parts:
        if isinstance(item, Part) and not broken:
            try:
                writer.write(
                    item.content,
                    item.clock_ns,
                    starts_message=item.starts_message,
                    more=item.more,
                )
            except OSError as error:
                broken = True
                _log.error("tap_stopped", path=str(writer.path), error=str(error))
                if required and isinstance(error, CaptureFullError):
                    return
                if required:
                    raise SourceError(f"tap {writer.path}: {error.strerror}") from error
        yield item
