"""The live view on a free port, its daemon faked, and real clients of it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from helpers.waiting import until
from quietbeam import Frame, QuietbeamError, Result, RunEnd, RunStart
from quietbeam.core.plugin import SinkPlugin
from quietbeam.registry import find

TOKEN = "let-me-in"
# A server that hangs up while its client still sends is answered by a reset of TCP, and that may
# overtake the code: the connection is over all the same.
CUT_OFF = frozenset({1006})
Web = find("sinks", "web", SinkPlugin)

METRICS = {"quality.psnr_estimated_db": {"unit": "dB", "description": "estimated", "shape": []}}
MAPS = {
    "segmentation.labels": {"dtype": "int32", "description": "particles"},
    "phase.classes": {
        "dtype": "uint8",
        "classes": [
            {"name": "rich", "colour": [255, 0, 0]},
            {"name": "poor", "colour": [0, 0, 255]},
        ],
    },
}
STATUS: dict[str, Any] = {
    "name": "fake",
    "state": "running",
    "pipeline": {"denoiser": "kalman", "model_version": 0, "received_hz": 20.0, "trusted": 1.0},
    "ledger": {"denoise": {"received": 0, "sent": 0, "dropped": {}, "in_flight": 0}},
}


class FakeLink:
    """A daemon that says what the test puts into its queue."""

    def __init__(self) -> None:
        self.stopping = False
        self.connected = True
        self.items: queue.SimpleQueue = queue.SimpleQueue()
        self.given = 0
        self.now: dict[str, Any] = json.loads(json.dumps(STATUS))
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.refusal: str | None = None
        self.counts: Counter[str] = Counter()

    def poll(self, timeout_s: float) -> list[Any]:
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self.items.get(timeout=timeout_s))
            while True:
                found.append(self.items.get_nowait())
        return found

    def status(self):
        return self.now

    def command(self, name, arguments):
        self.commands.append((name, dict(arguments)))
        if self.refusal is not None:
            raise QuietbeamError(self.refusal)
        return {"done": name}

    def account(self, **counts):
        self.counts.update(counts)

    def tell(self, **facts):
        self.facts = facts

    def verify(self, token):
        return token == TOKEN


def started(run="r1", shape=(48, 64), dtype="u2", **more):
    metadata = {"quietbeam": {"metrics": METRICS, "maps": MAPS}}
    return RunStart(run=run, shape=shape, dtype=np.dtype(dtype), metadata=metadata, **more)


def counts(index, shape=(48, 64)):
    """Give an image that tells its number: a slope, and the number in one corner."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = (10 * y + x).astype(np.uint16)
    image[0, 0] = index
    return image


def pair(index, run="r1", shape=(48, 64), raw=None, **more):
    """Give a raw frame and its cleaned one."""
    now = time.monotonic_ns()
    raw = counts(index, shape) if raw is None else raw
    common = {"run": run, "index": index, "time_ns": index * 50_000_000, "received_ns": now}
    clean = more.pop("clean", raw.astype(np.float32) + np.float32(0.25))
    given = {
        "clean": clean,
        "sd": np.full(clean.shape, 2.0, np.float32),
        "raw": None,
        "metrics": {"quality.psnr_estimated_db": 20.0 + index},
        "denoiser": "kalman",
        "model_version": 0,
        "latency_s": 0.01,
    }
    return [Frame(pixels=raw, **common), Result(**(common | given | more))]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A live view and its fake daemon."""

    link: FakeLink
    port: int
    thread: threading.Thread
    path: str = "/"
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def put(self, *items) -> None:
        for item in items:
            self.link.items.put(item)

    def play(self, frames, run="r1", shape=(48, 64), **more) -> None:
        """Begin a run and send so many frames of it."""
        self.put(started(run, shape, **more))
        for index in range(frames):
            self.put(*pair(index, run, shape))

    def ask(self, method, path, body=None, **headers) -> Answer:
        """Make one HTTP request, the path exactly as given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = json.dumps(body) if isinstance(body, dict) else body
        try:
            connection.putrequest(method, path, skip_host="Host" in headers)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if content is not None:
                connection.putheader("Content-Length", str(len(content)))
            connection.endheaders(None if content is None else content.encode())
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())
        finally:
            connection.close()

    def get(self, path, **headers) -> Answer:
        return self.ask("GET", path, **headers)

    @contextlib.contextmanager
    def viewer(self, path="/ws/live", **options):
        with connect(f"ws://127.0.0.1:{self.port}{path}", max_size=None, **options) as socket:
            yield Client(socket)


class Client:
    """Speaks the protocol; keeps texts until they are asked for."""

    def __init__(self, socket) -> None:
        self.socket = socket
        self.texts: list[dict[str, Any]] = []
        self.frames: list[bytes] = []

    def say(self, **message) -> None:
        self.socket.send(json.dumps(message))

    def text(self, kind, seconds=60.0, where=lambda _: True) -> dict[str, Any]:
        return self._next(lambda: self._found(kind, where), seconds, f"a text {kind!r}")

    def frame(self, seconds=60.0, *, ack=True):
        from quietbeam_plugins.sinks.web.render import opened

        data = self._next(lambda: self.frames.pop(0) if self.frames else None, seconds, "a frame")
        header, pieces = opened(data)
        if ack:
            self.say(type="ack", seq=header["seq"])
        return header, pieces

    def shout(self, message, times) -> int:
        """Send until the server hangs up; gives the code of the end, of CUT_OFF if it was lost."""
        with contextlib.suppress(ConnectionClosed):
            for _ in range(times):
                self.socket.send(message)
        return self.closed()

    def closed(self, seconds=60.0) -> int:
        """Read on until the server hangs up; gives the code it closes with."""
        end_s = time.monotonic() + seconds
        with contextlib.suppress(ConnectionClosed):
            while (left_s := end_s - time.monotonic()) > 0:
                self.socket.recv(timeout=left_s)
        return self.socket.close_code

    def quiet(self, seconds) -> bool:
        """Tell whether no frame comes for so long."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0 and not self.frames:
            self._hear(left_s)
        return not self.frames

    def _found(self, kind, where):
        for place, text in enumerate(self.texts):
            if text["type"] == kind and where(text):
                return self.texts.pop(place)
        return None

    def _next(self, look, seconds, what):
        end_s = time.monotonic() + seconds
        while (found := look()) is None:
            left_s = end_s - time.monotonic()
            assert left_s > 0, f"{what} did not come"
            self._hear(left_s)
        return found

    def _hear(self, seconds) -> None:
        with contextlib.suppress(TimeoutError):
            data = self.socket.recv(timeout=seconds)
            if isinstance(data, bytes):
                self.frames.append(data)
            else:
                self.texts.append(json.loads(data))


def handshake(port):
    """Give the bytes that ask for a WebSocket, for clients that then do as they like."""
    lines = [
        "GET /ws/live HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def values(header, pieces, name):
    """Decode a u16 plane to (h, w) values, NaN where none is."""
    plane = next(p for p in header["planes"] if p["name"] == name)
    codes = np.frombuffer(pieces[name], "<u2").reshape(header["size"])
    found = plane["offset"] + plane["scale"] * codes.astype(float)
    found[codes >= plane["saturated"]] = np.nan
    return found


@contextlib.contextmanager
def serving(directory, link=None, **settings):
    """Run a live view in a thread; gone afterwards."""
    link = FakeLink() if link is None else link
    address = directory / "web-address"
    plugin = Web(**({"address": "127.0.0.1:0", "address_file": address} | settings))
    failed: list[BaseException] = []

    def run():
        try:
            plugin.serve(link)
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(lambda: failed or (address.exists() and address.read_text().endswith("\n")))
    assert not failed, failed
    url = urlsplit(address.read_text().strip())
    try:
        yield Served(link, url.port, thread, url.path)
    finally:
        link.stopping = True
        thread.join(60)
        assert not thread.is_alive()


__all__ = ["RunEnd", "serving", "started"]
