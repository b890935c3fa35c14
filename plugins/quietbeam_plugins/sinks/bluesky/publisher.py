"""Sends documents over 0MQ as bluesky's own ``Publisher`` frames them, and keeps every one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import structlog
import zmq

from quietbeam.core.errors import ConfigError, DataError, SinkError
from quietbeam.offline import curve
from quietbeam.offline.plain_objects import encode

Encoding = Literal["pickle", "json"]

ENCODINGS: Mapping[Encoding, Callable[[Any], bytes]] = {
    "pickle": encode,
    "json": lambda document: json.dumps(document).encode(),
}
_LINGER_MS = 1000
_WAIT_QUEUE = 20_000


class Publisher:
    """One socket to a ``bluesky-0MQ-proxy``, or one that dispatchers connect to.

    Sending never waits: what a consumer does not take is lost to it, and is in
    the sidecar file.

    Attributes:
        address: With the real port.
        sent: Documents sent, by name.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        prefix: str,
        encoding: Encoding,
        *,
        bind: bool,
        secure: Callable[[zmq.Socket[bytes]], None],
    ) -> None:
        self.sent: Counter[str] = Counter()
        self._prefix, self._encode = prefix.encode(), ENCODINGS[encoding]
        self._socket = context.socket(zmq.XPUB)
        self._socket.set(zmq.SNDHWM, _WAIT_QUEUE)
        try:
            secure(self._socket)
            (self._socket.bind if bind else self._socket.connect)(address)
        except (zmq.ZMQError, ConfigError) as error:
            self._socket.close(linger=0)
            raise SinkError(f"bluesky output {address}: {error}") from error
        endpoint = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        self.address = bytes(endpoint).rstrip(b"\0").decode() if bind else address

    def wait_for_consumer(self, timeout_s: float) -> bool:
        """Wait until somebody listens: what is sent before that is heard by nobody."""
        return bool(self._socket.poll(round(timeout_s * 1000), zmq.POLLIN))

    def send(self, name: str, document: Mapping[str, Any]) -> None:
        """Send one document."""
        self._socket.send(b" ".join([self._prefix, name.encode(), self._encode(document)]))
        self.sent[name] += 1

    def close(self) -> None:
        """Let what is queued leave for a moment."""
        self._socket.close(linger=_LINGER_MS)


@contextmanager
def publishing(
    address: str,
    prefix: str,
    encoding: Encoding,
    *,
    bind: bool,
    secret_key: Path | None = None,
    server_key: Path | None = None,
    clients: Path | None = None,
) -> Iterator[Publisher]:
    """Give a publisher; encrypted where keys are given.

    Raises:
        SinkError: The address, or a key, cannot be used.
    """

    def secure(socket: zmq.Socket[bytes]) -> None:
        if secret_key is not None and bind:
            curve.become_server(socket, secret_key)
        elif secret_key is not None and server_key is not None:
            curve.become_client(socket, secret_key, server_key)

    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        if clients is not None:
            try:
                stack.enter_context(curve.doorkeeper(context, clients))
            except ConfigError as error:
                raise SinkError(f"bluesky output {address}: {error}") from error
        publisher = Publisher(context, address, prefix, encoding, bind=bind, secure=secure)
        stack.callback(publisher.close)
        if address.startswith("tcp://*") and secret_key is None:
            structlog.get_logger().warning("open_to_all", hint="set curve_secret_key")
        yield publisher


class Sidecar:
    """All documents of one run in a file, one a line: ``["name", {document}]``."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep one document; it survives the death of this process at once."""
        self._file.write(json.dumps([name, document]) + "\n")
        self._file.flush()

    def close(self) -> None:
        """The run is over."""
        self._file.close()


def replay(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give every (name, document) of a sidecar file, in order, for any callback of bluesky.

    A last line that was cut off is left out.

    Raises:
        DataError: It is no such file.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                name, document = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}: line {number} is no document: {error}") from error
            yield str(name), document
