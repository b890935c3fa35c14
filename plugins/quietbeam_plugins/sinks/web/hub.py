"""What all viewers share: the buffer, the history, the standing, regions, annotations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog

from quietbeam import __version__
from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.plugin import Link
from quietbeam.core.result import Result
from quietbeam_plugins.sinks.web.buffer import Buffer
from quietbeam_plugins.sinks.web.entries import Pictures
from quietbeam_plugins.sinks.web.history import History
from quietbeam_plugins.sinks.web.messages import Region
from quietbeam_plugins.sinks.web.render import Shared
from quietbeam_plugins.sinks.web.standing import Standing

PROTOCOL = 1
_ANNOTATIONS = 500

log = structlog.get_logger()


class Told(Protocol):
    """A viewer, as far as the hub knows it."""

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a text message soon; one that does not listen is closed."""
        ...


class Pulse:
    """Wakes everybody who waits.  Belongs to the event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        """Wake all who wait now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Wait for the next ``fire``, at most so long."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except TimeoutError:
            return


class Hub:
    """One per process.  ``take`` belongs to the reading thread, the rest to the event loop.

    Args:
        link: To the daemon.
        buffer: Filled by ``take``.
        loop: Where viewers live.
    """

    def __init__(self, link: Link, buffer: Buffer, loop: asyncio.AbstractEventLoop) -> None:
        self.link, self.buffer = link, buffer
        self.history = History()
        self.shared = Shared()
        self.pulse = Pulse()
        self.viewers: set[Told] = set()
        self.regions: tuple[Region, ...] = ()
        self.annotations: list[dict[str, Any]] = []
        self.status: dict[str, Any] = {"type": "status", "connected": False, "banners": []}
        self._standing = Standing()
        self._loop = loop
        self._version: tuple[Any, Any] | None = None

    # -- the reading thread ---------------------------------------------------------------

    def take(self, item: RunStart | RunEnd | Frame | Result) -> None:
        """Take what came from the rings."""
        match item:
            case RunStart():
                self.buffer.start(item)
                self.history.mark("run_start", item.run)
                self._announce_run()
            case RunEnd():
                if self.buffer.stop(item):
                    self.history.flush()
                    self.history.mark("run_end", f"{item.run}: {item.reason}")
                    self._announce_run()
            case Frame():
                self.buffer.raw(item)
            case Result():
                entry = self.buffer.clean(item)
                if entry is not None:
                    self.history.add(entry.metrics, entry.unix_s)
                    self._mark_model(item)

    def wake(self) -> None:
        """Tell viewers that there is something new."""
        self._soon(self.pulse.fire)

    def _mark_model(self, result: Result) -> None:
        now = (result.denoiser, result.model_version)
        before, self._version = self._version, now
        if before is None or before == now:
            return
        kind = "promote" if result.model_version else "demote"
        name = f"{result.denoiser} v{result.model_version}" if kind == "promote" else now[0]
        self.history.mark(kind, name)

    def _announce_run(self) -> None:
        message = {"type": "run", **self.buffer.described()}
        self._soon(lambda: self.tell_all(message))

    def _soon(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop has ended
            return

    # -- the event loop ---------------------------------------------------------------------

    def look(self) -> None:
        """Read the daemon's status anew."""
        self.status = self._standing.message(
            self.link.status(),
            self.buffer,
            connected=self.link.connected,
            viewers=len(self.viewers),
        )

    def tell_all(self, message: Mapping[str, Any]) -> None:
        """Send a text message to every viewer."""
        for viewer in list(self.viewers):
            viewer.tell(message)

    def hello(self, pictures: Pictures) -> dict[str, Any]:
        """Give the first message of a connection."""
        live = pictures.live
        return {
            "type": "hello",
            "protocol": PROTOCOL,
            "version": __version__,
            "name": (self.link.status() or {}).get("name", ""),
            "source": pictures.name,
            **pictures.described(),
            "buffer": pictures.span(),
            "shared_regions": [r.model_dump() for r in self.regions] if live else [],
            "annotations": self.annotations if live else [],
        }

    def share_regions(self, regions: tuple[Region, ...]) -> None:
        """Replace the regions that all viewers see."""
        self.regions = regions
        content = [region.model_dump() for region in regions]
        self.tell_all({"type": "shared_regions", "regions": content})

    def annotate(self, text: str, index: int | None) -> dict[str, Any]:
        """Keep a remark on the run; gives it."""
        newest = self.buffer.newest()
        run = self.buffer.run
        note = {
            "unix_time_s": time.time(),
            "run": None if run is None else run.run,
            "index": index if index is not None or newest is None else newest.index,
            "text": text,
        }
        self.annotations = [*self.annotations[1 - _ANNOTATIONS :], note]
        self.history.mark("annotation", text)
        self.tell_all({"type": "annotation", "annotation": note})
        return note
