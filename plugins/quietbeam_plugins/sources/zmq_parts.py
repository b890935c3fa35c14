"""The one receive loop of all ZMQ sources: parts in, events out; also from a capture file."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

import structlog
import zmq
import zmq.utils.monitor
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from quietbeam.core.errors import SourceError
from quietbeam.core.events import Event, Rejected
from quietbeam.core.plugin import SourcePlugin
from quietbeam.offline.capture import CaptureWriter, read_capture
from quietbeam_plugins.sources.channels import Wanted
from quietbeam_plugins.sources.payload import Bytes, Decoder

_log = structlog.get_logger()
_POLL_MS = 100
_RECONNECT_MS = (100, 1000)

_REVIVE_AFTER_S = 0.5
_SOCKETS = {"pull": zmq.PULL, "sub": zmq.SUB, "req": zmq.REQ}

Part = tuple[Bytes, int, bool]
"""(bytes, our monotonic clock in ns, whether it starts a ZMQ message)."""

Item = Part | Rejected | None
"""None: nothing came."""


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
    channels: Wanted = "all"
    """Names of the channels of a frame to take (thresholds, colours), in this order; or ``all``."""
    receive_messages: PositiveInt = 64
    """Messages that may wait in the socket; then a pusher waits, a publisher drops."""
    run_timeout_s: PositiveFloat | None = None
    """A run without an end is lost after this pause; None derives it from the frame time."""
    grace_s: NonNegativeFloat = 0.25
    """How long frames may come after the end of their series that overtook them."""
    heartbeat_s: PositiveFloat = 2.0
    """A connection silent for three of these is opened again."""
    tap: Path | None = None
    """Also write every raw part to this file (``quietbeam capture``)."""
    tap_required: bool = False
    """A tap that cannot be written any more ends the source, not only the tap."""
    pace: Literal["recorded", "fast"] = "recorded"
    """How a capture is played back."""
    loop: bool = False
    """Play a capture again and again."""

    @field_validator("address")
    @classmethod
    def _known_transport(cls, address: str) -> str:
        if not address.startswith(("tcp://", "ipc://", "inproc://", "file://")):
            raise ValueError("expected tcp://host:port, ipc://path or file:///path/to/x.qbcap")
        return address

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
                about = {"kind": type(self).__name__.lower(), "address": self.address}
                writer = stack.enter_context(_tap_file(self.tap, about))
                parts = _tapped(parts, writer, required=self.tap_required)
            yield _events(parts, self.decoder())

    @contextmanager
    def _connected(self) -> Iterator[zmq.Socket[bytes]]:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            socket = context.socket(_SOCKETS[self.socket])
            self._set_options(socket)
            for address in self.endpoints():
                (socket.bind if self.bind else socket.connect)(address)
        except zmq.ZMQError as error:
            context.destroy(linger=0)
            what = "listen on" if self.bind else "connect to"
            raise SourceError(f"cannot {what} {self.address}: {error}") from error
        try:
            yield socket
        finally:
            context.destroy(linger=0)

    def _set_options(self, socket: zmq.Socket[bytes]) -> None:
        heartbeat_ms = round(self.heartbeat_s * 1000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, self.receive_messages)
        # A header with flat field and mask is larger than a frame.  This bounds
        # a part, not a multipart message: libzmq has no option for that.
        socket.setsockopt(zmq.MAXMSGSIZE, 2 * self.max_frame_bytes + (1 << 20))
        socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * heartbeat_ms)
        socket.setsockopt(zmq.HEARTBEAT_TTL, 3 * heartbeat_ms)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS[0])
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS[1])
        if self.socket == "sub":
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        if self.socket == "req":
            socket.setsockopt(zmq.REQ_RELAXED, 1)  # ask again where a server was restarted

    def _played(self, stack: ExitStack) -> Iterator[Item]:
        address = urlsplit(self.address)
        path = Path(unquote(address.netloc + address.path))
        capture = stack.enter_context(read_capture(path))

        def play() -> Iterator[Item]:
            while True:
                began_ns = time.monotonic_ns()
                for record in capture:
                    due_ns = began_ns + record.time_ns
                    while self.pace == "recorded" and (wait := due_ns - time.monotonic_ns()) > 0:
                        yield None
                        time.sleep(min(wait * 1e-9, _POLL_MS * 1e-3))
                    yield record.part, due_ns, record.starts_message
                if not self.loop:
                    return

        return play()


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
        self._new = False

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
            if event in {zmq.Event.CONNECTED, zmq.Event.CONNECT_RETRIED}:
                self._lost_s.pop(address, None)
            elif event in _LOST:
                self._lost_s[address] = time.monotonic()


_LOST = {
    zmq.Event.DISCONNECTED,
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL,
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL,
    zmq.Event.HANDSHAKE_FAILED_AUTH,
}


def _received(socket: zmq.Socket[bytes], link: _Link | None, request: bytes) -> Iterator[Item]:
    starts_message = True
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
        yield part.buffer, time.monotonic_ns(), starts_message
        starts_message = not part.more
        if asks and starts_message:
            with suppress(zmq.Again):  # it is asked again once it is back
                socket.send(request, zmq.NOBLOCK)


def _events(parts: Iterator[Item], decoder: Decoder) -> Iterator[Event | None]:
    for item in parts:
        if isinstance(item, tuple):
            part, received_ns, starts_message = item
            yield from decoder.feed(part, received_ns, starts_message=starts_message)
        else:
            yield from decoder.idle(time.monotonic_ns())
            yield item
    yield from decoder.finish()


@contextmanager
def _tap_file(path: Path, about: dict[str, Any]) -> Iterator[CaptureWriter]:
    try:
        writer = CaptureWriter(path, about)
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
        if isinstance(item, tuple) and not broken:
            part, received_ns, starts_message = item
            try:
                writer.write(part, received_ns, starts_message=starts_message)
            except OSError as error:
                broken = True
                if required:
                    raise SourceError(f"tap {writer.path}: {error.strerror}") from error
                _log.error("tap_stopped", path=str(writer.path), error=str(error))
        yield item
