"""Puts messages on a ZMQ socket the way a detector does: on time, and never for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import zmq

from quietbeam.core.errors import SinkError

Message = Sequence[bytes]
"""The parts of one ZMQ message."""

_LINGER_MS = 5000


class Sender:
    """An open sending socket.

    Attributes:
        address: Where it really listens, or connects to.
        sent: Messages the socket took.
        unsent: Messages given up because no reader took them in time.
    """

    def __init__(self, socket: zmq.Socket[bytes], address: str) -> None:
        self.address = address
        self.sent = 0
        self.unsent = 0
        self._socket = socket
        self._pending = False

    def send(self, message: Message, patience_s: float = 5.0) -> bool:
        """Send one message; False if no reader had room for it within ``patience_s``.

        A ``rep`` socket sends it to whoever asks next.
        """
        if self._socket.type == zmq.REP and not self._asked(patience_s):
            self.unsent += 1
            return False
        if not self._socket.poll(max(round(patience_s * 1000), 0), zmq.POLLOUT):
            self.unsent += 1
            return False
        try:
            self._socket.send_multipart(message, zmq.NOBLOCK)
        except zmq.Again:
            self.unsent += 1
            return False
        self.sent += 1
        self._pending = False
        return True

    def _asked(self, patience_s: float) -> bool:
        """Wait for a request, whatever it says."""
        if self._pending:
            return True
        if not self._socket.poll(max(round(patience_s * 1000), 0), zmq.POLLIN):
            return False
        self._socket.recv_multipart()
        self._pending = True
        return True

    def wait_for_reader(self, patience_s: float | None = None) -> bool:
        """Wait until somebody reads; False if nobody came within ``patience_s``."""
        if self._pending:
            return True
        event = zmq.POLLOUT if self._socket.type == zmq.PUSH else zmq.POLLIN
        timeout_ms = None if patience_s is None else round(patience_s * 1000)
        return bool(self._socket.poll(timeout_ms, event))


@contextmanager
def open_sender(
    address: str,
    *,
    kind: Literal["push", "pub", "rep"] = "push",
    bind: bool = True,
    waiting_messages: int = 200,
) -> Iterator[Sender]:
    """Open a socket; on exit what waits in it gets 5 s to leave.

    Args:
        address: ``tcp://host:port`` or ``ipc://path``; port 0 takes a free one.
        kind: ``push`` shares messages among readers and waits for them;
            ``pub`` gives all to every reader that keeps up; ``rep`` answers requests.
        bind: Listen; False connects to a reader that listens.
        waiting_messages: That may wait for a reader.

    Raises:
        SinkError: The address is wrong or taken.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    # XPUB is PUB that lets us see subscriptions: the same on the wire.
    socket = context.socket({"push": zmq.PUSH, "pub": zmq.XPUB, "rep": zmq.REP}[kind])
    socket.setsockopt(zmq.SNDHWM, waiting_messages)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    try:
        if bind:
            socket.bind(address[:-1] + "*" if address.endswith(":0") else address)
            address = str(socket.getsockopt_string(zmq.LAST_ENDPOINT))
        else:
            socket.connect(address)
    except zmq.ZMQError as error:
        context.destroy(linger=0)
        what = "listen on" if bind else "connect to"
        raise SinkError(f"cannot {what} {address}: {error}") from error
    try:
        yield Sender(socket, address)
    finally:
        socket.close(linger=_LINGER_MS)
        context.term()


def ticks(rate_hz: float, *, behind_s: float = 1.0) -> Iterator[float]:
    """Wait for each of evenly spaced moments; give how late it is (s).

    Whoever falls behind catches up, but by no more than ``behind_s``.
    """
    due_s = time.monotonic()
    while True:
        while (wait_s := due_s - time.monotonic()) > 0:
            time.sleep(wait_s)
        late_s = time.monotonic() - due_s
        yield late_s
        due_s = max(due_s, time.monotonic() - behind_s) + 1 / rate_hz
