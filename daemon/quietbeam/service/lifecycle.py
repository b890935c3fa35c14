"""Threads as structured tasks, and signals that only set flags.

Stopping flows the same way as data: the first body is asked to return, the
others end in order of flow.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Turns signals into flags while the block runs; the old handlers come back after it.

    Attributes:
        stop: SIGTERM or SIGINT came.
        force: It came a second time: do not wait any longer.
        reload: SIGHUP came; whoever acts on it clears it.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.force = asyncio.Event()
        self.reload = asyncio.Event()

    def __enter__(self) -> Signals:
        self._loop = asyncio.get_running_loop()
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop)
        self._loop.add_signal_handler(signal.SIGHUP, self.reload.set)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            self._loop.remove_signal_handler(number)
            signal.signal(number, handler)  # under nohup, for one, SIGHUP was ignored

    def _stop(self) -> None:
        (self.force if self.stop.is_set() else self.stop).set()


class Threads:
    """Named threads; the first failure is kept, and one event tells of every end.

    The threads are daemonic: a body that hangs can be left behind, and is named.

    Args:
        bodies: By name, in order of data flow.
    """

    def __init__(self, bodies: Mapping[str, Callable[[], None]]) -> None:
        self._bodies = dict(bodies)
        self._threads: dict[str, threading.Thread] = {}
        self._ended: dict[str, BaseException | None] = {}
        self._changed = asyncio.Event()

    def start(self) -> None:
        """Start them all."""
        loop = asyncio.get_running_loop()
        for name, body in self._bodies.items():
            thread = threading.Thread(
                target=self._run, args=(name, body, loop), name=name, daemon=True
            )
            self._threads[name] = thread
            thread.start()

    @property
    def started(self) -> list[str]:
        """Names of all bodies that were started, in order of data flow."""
        return list(self._threads)

    @property
    def left(self) -> list[str]:
        """Names of the bodies that have not returned, in order of data flow."""
        return [name for name in self._threads if name not in self._ended]

    @property
    def failures(self) -> dict[str, BaseException]:
        """What the bodies raised, in order of time."""
        return {name: error for name, error in self._ended.items() if error is not None}

    async def failed_or_done(self) -> None:
        """Wait until one body has raised or all have returned."""
        while self.left and not self.failures:
            await self._next_end()

    async def done(self) -> None:
        """Wait until all bodies have returned or raised."""
        while self.left:
            await self._next_end()

    async def _next_end(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def _run(self, name: str, body: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        error: BaseException | None = None
        try:
            body()
        except BaseException as caught:  # noqa: BLE001 - the thread boundary: handed to the loop
            error = caught
        try:
            loop.call_soon_threadsafe(self._note, name, error)
        except RuntimeError:  # the loop is closed: this body was left behind
            return

    def _note(self, name: str, error: BaseException | None) -> None:
        self._ended[name] = error
        self._changed.set()
