"""Publishes frames over ZMQ for viewers, other programs and a second quietbeam.

Writing never waits: what a consumer does not take in time is dropped.  No
subscriber can hurt another one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import structlog
import zmq
import zmq.utils.monitor
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, field_validator, model_validator

from quietbeam.core.channel import Delivery, Policy
from quietbeam.core.errors import ConfigError, SinkError
from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.plugin import SinkPlugin
from quietbeam.core.result import Result
from quietbeam.offline import curve
from quietbeam_plugins.sinks.formats import (
    Array1,
    Compression,
    Message,
    Stream2,
    What,
    facts,
    raw_facts,
)

_OWED = 16  # starts and ends that wait for a consumer
_HEARTBEAT_MS = 2000
_HANDSHAKE_MS = 5000
_LINGER_MS = 500
_EVERYWHERE = ("tcp://*:", "tcp://0.0.0.0:", "tcp://[::]:")


class Zmq(SinkPlugin):
    """Settings of one ZMQ output; there may be many, each with its own consumers."""

    address: str = "tcp://127.0.0.1:9898"
    """``tcp://host:port`` or ``ipc://path``; port * takes a free one."""
    bind: bool = True
    """Wait for consumers; False connects to one that waits itself."""
    socket: Literal["pub", "push"] = "pub"
    """``pub`` gives every consumer everything, ``push`` each frame to one of them."""
    format: Literal["array-1.0", "dectris-v2"] = "array-1.0"
    what: What = "clean"
    """Cleaned frames, the standard deviations of those, or every frame as measured.

    Raw frames are sent as they come, whatever becomes of the cleaned ones.
    """
    compression: Compression = "none"
    queue_messages: PositiveInt = Field(default=8, le=1000)
    """Messages that may wait for one consumer; more only makes what it sees older."""
    policy: Policy = "newest"
    """What is given up when this output cannot keep up; see the README of the sinks.

    ``newest`` gives up the oldest frame that waits.  ``every-nth`` sends one
    frame in ``every_nth``, and is else ``newest``.  ``lossless`` (push only)
    waits for its consumer, and only when ``buffer_frames`` wait (of raw ones:
    when the raw ring is full) gives up frames.
    """
    every_nth: PositiveInt = 1
    buffer_frames: PositiveInt = Field(default=32, le=4096)
    """Frames that may wait here before ``policy`` decides."""
    curve_secret_key: Path | None = None
    """Our own NAME.key_secret, mode 0600: the connection is encrypted and needs a known key."""
    curve_clients: Path | None = None
    """Directory with the public key (``*.key``) of every client that may connect."""

    @field_validator("address")
    @classmethod
    def _known_transport(cls, address: str) -> str:
        if not address.startswith(("tcp://", "ipc://")):
            raise ValueError(f"{address!r}: expected tcp://host:port or ipc://path")
        return address

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if self.policy == "lossless" and self.socket == "pub":
            raise ValueError(
                "policy = 'lossless' needs socket = 'push', one output for each consumer: "
                "with 'pub' one slow subscriber would hold up all others"
            )
        if (self.policy == "every-nth") != (self.every_nth > 1):
            raise ValueError("policy = 'every-nth' goes with every_nth = 2 or more")
        if (self.curve_secret_key is None) != (self.curve_clients is None):
            raise ValueError("curve_secret_key and curve_clients go together; set both or neither")
        if self.curve_secret_key is not None and not self.bind:
            raise ValueError("CURVE needs bind = true: whoever listens decides who may connect")
        return self

    @property
    def takes(self) -> Literal["clean", "raw"]:
        """Raw frames come straight from the raw ring."""
        return "raw" if self.what == "raw" else "clean"

    @property
    def delivery(self) -> Delivery:
        """What is done when the output cannot keep up."""
        return Delivery(self.policy, self.buffer_frames, self.every_nth)

    @contextmanager
    def open(self) -> Iterator[ZmqSink]:
        """Give the sink.

        Raises:
            SinkError: The address, or a key, cannot be used.
        """
        with zmq.Context() as context, self._doorkeeper(context) as keeper:
            sink = ZmqSink(self, context, keeper)
            try:
                yield sink
            finally:
                sink.close()

    @contextmanager
    def _doorkeeper(self, context: zmq.Context[Any]) -> Iterator[curve.Doorkeeper | None]:
        if self.curve_clients is None:
            yield None
            return
        try:
            with curve.doorkeeper(context, self.curve_clients) as keeper:
                yield keeper
        except ConfigError as error:
            raise SinkError(f"zmq output {self.address}: {error}") from error


class ZmqSink:
    """Sends frames.  Used by one thread.

    Attributes:
        address: Where it is bound, with the real port, or what it connects to.
        seq: Number of the newest image: those sent and those given up, here or
            before, for want of room.
        sent: Images handed to ZMQ.  A subscriber that is too slow still loses
            some of them; it sees that from the gaps in ``seq``.
        dropped: Images given up here, by reason: ``no_consumer``, ``slow``
            (the queue of a ``push`` socket is full).
        subscribers: Subscriptions of a ``pub`` socket, at the last write.
    """

    def __init__(
        self,
        settings: Zmq,
        context: zmq.Context[zmq.Socket[bytes]],
        keeper: curve.Doorkeeper | None = None,
    ) -> None:
        self._settings, self._keeper = settings, keeper
        kinds = {"array-1.0": Array1, "dectris-v2": Stream2}
        self._format = kinds[settings.format](settings.what, settings.compression)
        self._owed: deque[Message] = deque(maxlen=_OWED)
        self._header: Message | None = None
        self._run: RunStart | None = None
        self.seq = self.sent = self.subscribers = self._pullers_met = 0
        self.dropped: Counter[str] = Counter()
        self._socket = context.socket(zmq.XPUB if settings.socket == "pub" else zmq.PUSH)
        self._monitor = self._configure()
        self.address = self._attach(settings)
        self._log = structlog.get_logger().bind(sink="zmq", address=self.address)
        if settings.address.startswith(_EVERYWHERE) and settings.curve_secret_key is None:
            self._log.warning("open_to_all", hint="name an interface, or set curve_secret_key")

    def start(self, run: RunStart) -> None:
        """Announce the run, if the format can."""
        self._welcome()
        self._run = run
        dtype = run.dtype if self._settings.what == "raw" else np.dtype(np.float32)
        self._header = self._format.start(run, dtype)
        self._owe(self._header)
        self._pay()

    def write(self, result: Result) -> str | None:
        """Send one cleaned image or its s.d., or give the reason why it was dropped."""
        pixels = result.sd if self._settings.what == "sd" else result.clean
        told = facts(result, self._settings.what, self.seq + 1)
        return self._image(result.index, result.time_ns, pixels, told)

    def raw(self, frame: Frame) -> str | None:
        """Send one raw image, or give the reason why it was dropped."""
        told = raw_facts(frame, self.seq + 1)
        return self._image(frame.index, frame.time_ns, frame.pixels, told)

    def stop(self, end: RunEnd) -> None:
        """Say that the run is over, if the format can."""
        self._welcome()
        self._owe(self._format.end(end))
        self._pay()
        self._run = self._header = None
        self._log.info("run_published", run=end.run, sent=self.sent, dropped=dict(self.dropped))

    def ready(self, timeout_s: float) -> bool:
        """Wait for room; an output that may lose frames does not wait for its first consumer."""
        if not self.sent and self._settings.policy != "lossless":
            return True
        return bool(self._socket.poll(round(timeout_s * 1000), zmq.POLLOUT))

    def lost(self, frames: int) -> None:
        """Leave a gap in ``seq``: so many images did not come here."""
        self.seq += frames

    def connections(self) -> dict[str, int]:
        """Give ``subscribers`` of a ``pub`` socket, and how many clients CURVE has ``refused``."""
        found = {"subscribers": self.subscribers} if self._settings.socket == "pub" else {}
        return found if self._keeper is None else found | {"refused": self._keeper.refused}

    def close(self) -> None:
        """Let go of the address; what is queued has a moment to leave."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        self._socket.close(linger=_LINGER_MS)

    def _image(
        self, index: int, time_ns: int, pixels: NDArray[Any], told: dict[str, Any]
    ) -> str | None:
        self.seq += 1
        self._welcome()
        reason = None
        if self._settings.socket == "pub" and not self.subscribers:
            reason = "no_consumer"
        elif not self._pay() or not self._send(self._format.image(index, time_ns, pixels, told)):
            reason = "slow" if self.sent else "no_consumer"
        if reason is None:
            self.sent += 1
        else:
            self.dropped[reason] += 1
        return reason

    def _configure(self) -> zmq.Socket[bytes] | None:
        """Set the options; give the monitor of a push socket."""
        socket = self._socket
        socket.set(zmq.SNDHWM, self._settings.queue_messages)
        socket.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)  # also while there is nothing to send
        socket.set(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
        socket.set(zmq.HEARTBEAT_TTL, 3 * _HEARTBEAT_MS)
        socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        if self._settings.curve_secret_key is not None:
            try:
                curve.become_server(socket, self._settings.curve_secret_key)
            except ConfigError as error:
                socket.close(linger=0)
                raise SinkError(f"zmq output {self._settings.address}: {error}") from error
        if self._settings.socket == "push":
            socket.set(zmq.IMMEDIATE, 1)  # queue for consumers that are there only
            return socket.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED)
        socket.set(zmq.XPUB_MANUAL, 1)  # we say what each subscriber gets
        socket.set(zmq.XPUB_VERBOSER, 1)  # tell of every subscriber, not of the first only
        return None

    def _attach(self, settings: Zmq) -> str:
        try:
            if not settings.bind:
                self._socket.connect(settings.address)
                return settings.address
            self._socket.bind(settings.address)
        except zmq.ZMQError as error:
            self.close()
            raise SinkError(
                f"zmq output: {settings.address}: {error}; is the address already in use?"
            ) from error
        return bytes(self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    # consumers that come and go

    def _welcome(self) -> None:
        """Take note of who came and went; whoever came late gets the header of the run."""
        if self._monitor is not None:
            self._welcome_pullers(self._monitor)
            return
        with suppress(zmq.Again):
            while True:
                event = bytes(self._socket.recv(zmq.NOBLOCK))
                topic = self._format.topic(event[1:])
                if event[:1] == b"\1":
                    self.subscribers += 1
                    self._socket.set(zmq.SUBSCRIBE, topic)
                    self._repeat_header()
                elif event[:1] == b"\0":
                    self.subscribers = max(0, self.subscribers - 1)
                    self._socket.set(zmq.UNSUBSCRIBE, topic)

    def _repeat_header(self) -> None:
        """Give the header to the subscriber that has just come, and to nobody else.

        Options of a manual XPUB act on the subscriber whose message was read
        last: for a moment it alone has subscribed to what the repeated header
        begins with, which is not what all other messages begin with.
        """
        if self._header is None or self._header in self._owed:
            return
        repeated = self._format.repeated(self._header)
        only = bytes(repeated[0][:1])
        self._socket.set(zmq.SUBSCRIBE, only)
        self._send(repeated)
        self._socket.set(zmq.UNSUBSCRIBE, only)

    def _welcome_pullers(self, monitor: zmq.Socket[bytes]) -> None:
        """Owe the header to a consumer that was started again; the first one got it in its turn."""
        while monitor.poll(0):
            zmq.utils.monitor.recv_monitor_message(monitor)
            self._pullers_met += 1
            header = self._header
            if self._pullers_met > 1 and header is not None and header not in self._owed:
                self._owed.appendleft(header)

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
