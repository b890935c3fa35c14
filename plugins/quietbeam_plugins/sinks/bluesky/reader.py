"""Reads documents off a 0MQ proxy: whatever comes is data, and nothing of it is run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import zmq

from quietbeam.core.errors import ConfigError, DataError, SinkError
from quietbeam.offline.plain_objects import decode
from quietbeam_plugins.sinks.bluesky.publisher import Encoding

WANTED = frozenset({"start", "stop", "resource", "stream_resource"})
"""Documents that say which run it is; others are not even decoded."""

_LINKS = 20_000  # documents that may wait
_BATCH = 1000
_LONGEST = 1 << 20


class Reader:
    """Attributes: ``heard``, messages so far; ``refused``, those that were not taken, by reason."""

    def __init__(self, socket: zmq.Socket[bytes], encoding: Encoding) -> None:
        self.heard = 0
        self.refused: Counter[str] = Counter()
        self._socket = socket
        self._decode: Callable[[bytes], Any] = decode if encoding == "pickle" else json.loads

    def documents(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Give what waits, (name, document), without waiting for more."""
        for _ in range(_BATCH):
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.heard += 1
            found = self._read(message)
            if found is not None:
                yield found

    def refuse(self, reason: str) -> None:
        """Count a document that was readable and made no sense."""
        self.refused[reason] += 1

    def _read(self, message: bytes) -> tuple[str, Mapping[str, Any]] | None:
        parts = message.split(b" ", 2)
        if len(parts) < 3:
            self.refuse("framing")
            return None
        name = parts[1].decode("ascii", "replace")
        if name not in WANTED:
            return None
        if len(message) > _LONGEST:
            self.refuse("too_long")
            return None
        try:
            document = self._decode(parts[2])
        except (DataError, ValueError, RecursionError):
            self.refuse("not_plain_data")
            return None
        if not isinstance(document, Mapping):
            self.refuse("not_a_document")
            return None
        return name, document


@contextmanager
def reading(
    address: str, prefix: str, encoding: Encoding, secure: Callable[[zmq.Socket[bytes]], None]
) -> Iterator[Reader]:
    """Give a reader connected to a proxy's ``--out-address``.

    Raises:
        SinkError: The address, or a key, cannot be used.
    """
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        try:
            socket.set(zmq.RCVHWM, _LINKS)
            socket.set(zmq.LINGER, 0)
            socket.subscribe(prefix.encode() + b" ")
            secure(socket)
            socket.connect(address)
        except (zmq.ZMQError, ConfigError) as error:
            raise SinkError(f"bluesky_runs {address}: {error}") from error
        yield Reader(socket, encoding)
