"""Bluesky's own ends of a document stream: its proxy, its dispatcher, a Tiled server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress

from helpers.daemons import free_port
from helpers.waiting import until


@contextmanager
def document_proxy(*arguments):
    """Run ``bluesky-0MQ-proxy``; give the addresses (in, out)."""
    inward, outward = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    command = [sys.executable, "-c", "from bluesky.commandline.zmq_proxy import main; main()"]
    process = subprocess.Popen(
        [*command, "--in-address", inward, "--out-address", outward, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield inward, outward
    finally:
        process.kill()
        process.wait(10)


class Received:
    """A ``RemoteDispatcher`` in a thread of its own, and what it has heard."""

    def __init__(self, address: str, *callbacks: Callable, **options) -> None:
        from bluesky.callbacks.zmq import RemoteDispatcher

        self.documents: list[tuple[str, dict]] = []
        self._ready = threading.Event()
        self._address, self._callbacks, self._options = address, callbacks, options
        self._kind = RemoteDispatcher
        self._thread = threading.Thread(target=self._run, name="dispatcher")
        self._thread.start()
        self._ready.wait(10)

    def _run(self) -> None:
        loop = asyncio.new_event_loop()
        self.dispatcher = self._kind(self._address, loop=loop, **self._options)
        self.dispatcher.subscribe(lambda name, doc: self.documents.append((name, doc)))
        for callback in self._callbacks:
            self.dispatcher.subscribe(callback)
        loop.call_soon(self._ready.set)
        with suppress(asyncio.CancelledError):
            self.dispatcher.start()

    def named(self, name: str) -> list[dict]:
        return [doc for kind, doc in list(self.documents) if kind == name]

    def wait_for(self, name: str, count: int = 1, timeout_s: float = 20.0) -> list[dict]:
        until(lambda: len(self.named(name)) >= count, timeout_s, f"{count} {name} documents")
        return self.named(name)

    def close(self) -> None:
        loop = self.dispatcher.loop
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        self._thread.join(10)
        assert not self._thread.is_alive()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@contextmanager
def tiled_server(directory, readable):
    """Run a real Tiled server; give a client of it."""
    from tiled.client import from_uri
    from tiled.server import SimpleTiledServer

    directory.mkdir()
    with SimpleTiledServer(directory, readable_storage=[readable]) as server:
        client = from_uri(server.uri)
        try:
            yield client
        finally:
            client.context.close()
