"""Third stage: results to the clean ring and to every light sink, each in its own thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from quietbeam.config import Named
from quietbeam.core import records
from quietbeam.core.channel import Outbox
from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.plugin import PacedSink, ServingSink, SinkPlugin
from quietbeam.core.result import Result
from quietbeam.core.ring import RingWriter
from quietbeam.pipeline.raw_outbox import RawOutbox
from quietbeam.pipeline.shed import Shed

Item = RunStart | Result | RunEnd

_BACKOFF_S = (0.5, 1.0, 2.0, 5.0)
_ROOM_S = 0.1
_LAST_WAIT_S = 1.0
"""For consumers that set the pace, all together, once the daemon stops."""
_SHED_VIEW_S = 1.0
"""While the display is given up, a view still gets a frame this often."""


class Waiting(Protocol):
    """The items that wait for one sink: an ``Outbox``, or a ``RawOutbox``."""

    lost: int

    @property
    def closed_for_s(self) -> float | None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102

    def __iter__(self) -> Iterator[RunStart | Frame | Result | RunEnd]: ...


class SinkThread:
    """One light sink, and the thread that brings it what waits.

    A stalled consumer fills its own queue only.  A sink that fails is opened
    again; the run it was in goes on with the next start.
    """

    def __init__(
        self, named: Named[SinkPlugin], waiting: Waiting, ledger: Ledger, label: str
    ) -> None:
        self.label = label
        self._plugin = named.plugin
        self._waiting = waiting
        self._ledger = ledger
        self._start: RunStart | None = None
        self._told_lost = 0
        self._sink: Any = None
        self._log = structlog.get_logger(sink=label)

    def close(self) -> None:
        """Nothing more will come; what is queued is still written."""
        self._waiting.close()

    def connections(self) -> dict[str, int]:
        """Say who is connected and who was refused, where the sink knows; from any thread."""
        sink = self._sink
        return dict(sink.connections()) if isinstance(sink, ServingSink) else {}

    def body(self) -> None:
        """The thread."""
        failures = 0
        while True:
            sent = self._sent()
            try:
                self._drain()
            except Exception as error:  # noqa: BLE001 - a sink's fault must not stop the beam
                self._ledger.note("sink_failures", self.label)
                failures = 1 if self._sent() > sent else failures + 1
                if failures == 1:
                    self._log.error("sink_failed", error=repr(error))
                if self._waiting.closed_for_s is not None:  # stopping: no second chance
                    self._give_up()
                    return
                time.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1])
            else:
                return

    def _give_up(self) -> None:
        for item in self._waiting:
            if isinstance(item, Result | Frame):
                self._ledger.dropped(self.label, "failed", run=item.run)

    def _sent(self) -> int:
        stage = self._ledger.stages().get(self.label)
        return 0 if stage is None else stage.sent

    def _drain(self) -> None:
        with self._plugin.open() as sink:
            self._sink = sink
            if self._start is not None:
                sink.start(self._start)
            for item in self._waiting:
                self._pass_on(sink, item)

    def _pass_on(self, sink: Any, item: RunStart | Frame | Result | RunEnd) -> None:
        match item:
            case RunStart():
                self._start = item
                sink.start(item)
            case RunEnd():
                self._start = None
                sink.stop(item)
            case _:
                self._write(sink, item)

    def _write(self, sink: Any, item: Frame | Result) -> None:
        try:
            self._pace(sink)
            reason = sink.raw(item) if isinstance(item, Frame) else sink.write(item)
        except Exception:
            self._ledger.dropped(self.label, "failed", run=item.run)
            raise
        if reason is None:
            self._ledger.sent(self.label, run=item.run)
        else:
            self._ledger.dropped(self.label, reason, run=item.run)

    def _pace(self, sink: Any) -> None:
        """Wait until there is room, but not for ever once the daemon stops; tell the losses."""
        if not isinstance(sink, PacedSink):
            return
        while not sink.ready(_ROOM_S) and (self._waiting.closed_for_s or 0.0) < _LAST_WAIT_S:
            continue
        lost = self._waiting.lost
        sink.lost(lost - self._told_lost)
        self._told_lost = lost


class Outlet:
    """The publishing side of one light sink that takes clean frames: never waits."""

    def __init__(
        self, plugin: SinkPlugin, outbox: Outbox[Item], shed: Shed, ledger: Ledger, label: str
    ) -> None:
        self._outbox, self._shed, self._ledger, self._label = outbox, shed, ledger, label
        self._is_view = plugin.delivery.policy != "lossless"
        self._next_view_s = 0.0

    def put(self, item: Item) -> None:
        """Hand over one item; a frame that is given up for want of room is counted."""
        if not isinstance(item, Result):
            self._outbox.put_mark(item)
            return
        self._ledger.received(self._label, run=item.run)
        is_shed = self._is_shed()
        self._outbox.lost += is_shed
        reason = "shed" if is_shed else self._outbox.put_frame(item)
        if reason is not None:
            self._ledger.dropped(self._label, reason, run=item.run)

    def _is_shed(self) -> bool:
        if not self._is_view or not self._shed.gives_up("display"):
            return False
        now = time.monotonic()
        if now < self._next_view_s:
            return True
        self._next_view_s = now + _SHED_VIEW_S
        return False


def light_sinks(
    sinks: Iterable[tuple[int, Named[SinkPlugin]]], raw_ring: Path, shed: Shed, ledger: Ledger
) -> tuple[list[SinkThread], list[Outlet]]:
    """Make the thread of every light sink, and the outlets of those that take clean frames."""
    threads: list[SinkThread] = []
    outlets: list[Outlet] = []
    for number, named in sinks:
        label, plugin = f"{named.name}.{number}", named.plugin
        if plugin.takes == "raw":
            waiting: Waiting = RawOutbox(raw_ring, label, plugin.delivery, ledger)
        else:
            waiting = outbox = Outbox[Item](plugin.delivery)
            outlets.append(Outlet(plugin, outbox, shed, ledger, label))
        threads.append(SinkThread(named, waiting, ledger, label))
    return threads, outlets


class Publish:
    """Takes every result once; nobody downstream can hold it up."""

    STAGE = "publish"

    def __init__(self, ring: RingWriter, outlets: Sequence[Outlet], ledger: Ledger) -> None:
        self._ring, self._outlets, self._ledger = ring, outlets, ledger

    def __call__(self, item: Item) -> None:
        """Publish a start, a result or an end; ends carry the account of their run."""
        if isinstance(item, Result):
            self._ledger.received(self.STAGE, run=item.run)
        elif isinstance(item, RunEnd):
            account = self._ledger.run(item.run, ranges=False)
            item = replace(item, account=account or item.account)
        records.put(self._ring, item)
        for outlet in self._outlets:
            outlet.put(item)
        if isinstance(item, Result):
            self._ledger.sent(self.STAGE, run=item.run)

    def close(self) -> None:
        """Nothing more will come."""
        self._ring.close()
