"""Publishes results over ZMQ for viewers, other programs and a second quietbeam.

Nothing here ever waits: what a consumer does not take in time is dropped.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import structlog
import zmq
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, field_validator

from quietbeam.core.errors import SinkError
from quietbeam.core.events import RunEnd, RunStart
from quietbeam.core.plugin import SinkPlugin
from quietbeam.core.result import Result
from quietbeam_plugins.sinks.formats import Array1, Compression, Message, Stream2, What

_OWED = 16  # starts and ends that wait for a consumer
_HEARTBEAT_MS = 2000
_LINGER_MS = 500


class Zmq(SinkPlugin):
    """Settings of one ZMQ output."""

    address: str = "tcp://127.0.0.1:9898"
    """``tcp://host:port`` or ``ipc://path``; port * takes a free one."""
    bind: bool = True
    """Wait for consumers; False connects to one that waits itself."""
    socket: Literal["pub", "push"] = "pub"
    """``pub`` gives every consumer everything, ``push`` each frame to one of them."""
    format: Literal["array-1.0", "dectris-v2"] = "array-1.0"
    what: What = "clean"
    """Which image: cleaned, as measured, or the standard deviation of the cleaned one."""
    compression: Compression = "none"
    queue_messages: PositiveInt = Field(default=8, le=1000)
    """Messages that may wait for one consumer; more only makes what it sees older."""

    @field_validator("address")
    @classmethod
    def _known_transport(cls, address: str) -> str:
        if not address.startswith(("tcp://", "ipc://")):
            raise ValueError(f"{address!r}: expected tcp://host:port or ipc://path")
        return address

    @contextmanager
    def open(self) -> Iterator[ZmqSink]:
        """Give the sink.

        Raises:
            SinkError: The address cannot be used.
        """
        with zmq.Context() as context:
            sink = ZmqSink(self, context)
            try:
                yield sink
            finally:
                sink.close()


class ZmqSink:
    """Sends results.  Used by one thread.

    Attributes:
        address: Where it is bound, with the real port, or what it connects to.
        seq: Images so far, sent or not.
        sent: Images handed to ZMQ.  A subscriber that is too slow still loses
            some of them; it sees that from the gaps in ``seq``.
        dropped: Images given up here, by reason: ``no_consumer``, ``slow``
            (the queue of a ``push`` socket is full), ``no_raw``.
        subscribers: Of a ``pub`` socket, at the last write.
    """

    def __init__(self, settings: Zmq, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._settings = settings
        kinds = {"array-1.0": Array1, "dectris-v2": Stream2}
        self._format = kinds[settings.format](settings.what, settings.compression)
        self._owed: deque[Message] = deque(maxlen=_OWED)
        self._run: RunStart | None = None
        self.seq = self.sent = self.subscribers = 0
        self.dropped: Counter[str] = Counter()
        self._socket = context.socket(zmq.XPUB if settings.socket == "pub" else zmq.PUSH)
        self._configure()
        self.address = self._attach(settings)
        self._log = structlog.get_logger().bind(sink="zmq", address=self.address)

    def start(self, run: RunStart) -> None:
        """Announce the run, if the format can."""
        self._run = run
        dtype = run.dtype if self._settings.what == "raw" else np.dtype(np.float32)
        self._owe(self._format.start(run, dtype))
        self._pay()

    def write(self, result: Result) -> str | None:
        """Send one image, or give the reason why it was dropped."""
        self.seq += 1
        reason = self._try(result)
        if reason is None:
            self.sent += 1
        else:
            self.dropped[reason] += 1
        return reason

    def _try(self, result: Result) -> str | None:
        pixels = self._pixels(result)
        if pixels is None:
            return "no_raw"
        if not self._is_heard():
            return "no_consumer"
        if self._pay() and self._send(self._format.image(result, pixels, self.seq)):
            return None
        return "slow" if self.sent else "no_consumer"

    def stop(self, end: RunEnd) -> None:
        """Say that the run is over, if the format can."""
        self._owe(self._format.end(end))
        self._pay()
        self._run = None
        self._log.info("run_published", run=end.run, sent=self.sent, dropped=dict(self.dropped))

    def close(self) -> None:
        """Let go of the address; what is queued has a moment to leave."""
        self._socket.close(linger=_LINGER_MS)

    def _configure(self) -> None:
        socket = self._socket
        socket.set(zmq.SNDHWM, self._settings.queue_messages)
        socket.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        socket.set(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
        socket.set(zmq.HEARTBEAT_TTL, 3 * _HEARTBEAT_MS)
        if self._settings.socket == "push":
            socket.set(zmq.IMMEDIATE, 1)  # queue for consumers that are there only
        else:
            socket.set(zmq.XPUB_VERBOSER, 1)  # tell of every subscriber, not of the first only

    def _attach(self, settings: Zmq) -> str:
        try:
            if not settings.bind:
                self._socket.connect(settings.address)
                return settings.address
            self._socket.bind(settings.address)
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            raise SinkError(
                f"zmq output: {settings.address}: {error}; is the address already in use?"
            ) from error
        return bytes(self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    def _pixels(self, result: Result) -> NDArray[Any] | None:
        images = {"clean": result.clean, "sd": result.sd, "raw": result.raw}
        return images[self._settings.what]

    def _is_heard(self) -> bool:
        if self._settings.socket == "push":
            return True
        while True:
            try:
                event = bytes(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return self.subscribers > 0
            if event[:1] in {b"\0", b"\1"}:
                self.subscribers = max(0, self.subscribers + (1 if event[:1] == b"\1" else -1))

    def _owe(self, message: Message | None) -> None:
        if message is not None:
            self._owed.append(message)

    def _pay(self) -> bool:
        """Send the starts and ends that no consumer has taken yet; True if none is left."""
        while self._owed:
            if not self._send(self._owed[0]):
                return False
            self._owed.popleft()
        return True

    def _send(self, message: Message) -> bool:
        try:
            self._socket.send_multipart(message, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True
