"""Third stage: results to the clean ring and to every light sink, each in its own thread."""

from __future__ import annotations

import time
from dataclasses import replace

import structlog

from quietbeam.config import Named
from quietbeam.core import records
from quietbeam.core.channel import Channel
from quietbeam.core.events import RunEnd, RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.plugin import Sink, SinkPlugin
from quietbeam.core.result import Result
from quietbeam.core.ring import RingWriter

Item = RunStart | Result | RunEnd

CAPACITY = 64
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0)


class SinkThread:
    """One light sink: a bounded channel that drops the oldest, and the thread that empties it.

    A stalled consumer fills its own channel only.  A sink that fails is opened
    again; the run it was in goes on with the next start.
    """

    def __init__(self, named: Named[SinkPlugin], ledger: Ledger, label: str) -> None:
        self.label = label
        self._plugin = named.plugin
        self._ledger = ledger
        self._channel: Channel[Item] = Channel(2 * CAPACITY, "wait")
        self._start: RunStart | None = None
        self._log = structlog.get_logger(sink=label)

    def put(self, item: Item) -> None:
        """Hand over one item; a full channel drops the frame and counts it."""
        waiting = len(self._channel)
        if isinstance(item, Result):
            self._ledger.received(self.label, run=item.run)
            if waiting >= CAPACITY:
                self._ledger.dropped(self.label, "full", run=item.run)
                return
        if waiting < self._channel.capacity:  # starts and ends have room of their own
            self._channel.put(item)

    def close(self) -> None:
        """Nothing more will come; what is queued is still written."""
        self._channel.close()

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
                if self._channel.closed:  # the daemon is stopping: no second chance
                    self._give_up()
                    return
                time.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1])
            else:
                return

    def _give_up(self) -> None:
        for item in self._channel:
            if isinstance(item, Result):
                self._ledger.dropped(self.label, "failed", run=item.run)

    def _sent(self) -> int:
        stage = self._ledger.stages().get(self.label)
        return 0 if stage is None else stage.sent

    def _drain(self) -> None:
        with self._plugin.open() as sink:
            if self._start is not None:
                sink.start(self._start)
            for item in self._channel:
                self._pass_on(sink, item)

    def _pass_on(self, sink: Sink, item: Item) -> None:
        match item:
            case RunStart():
                self._start = item
                sink.start(item)
            case RunEnd():
                self._start = None
                sink.stop(item)
            case Result():
                self._write(sink, item)

    def _write(self, sink: Sink, result: Result) -> None:
        try:
            reason = sink.write(result)
        except Exception:
            self._ledger.dropped(self.label, "failed", run=result.run)
            raise
        if reason is None:
            self._ledger.sent(self.label, run=result.run)
        else:
            self._ledger.dropped(self.label, reason, run=result.run)


class Publish:
    """Takes every result once; nobody downstream can hold it up."""

    STAGE = "publish"

    def __init__(self, ring: RingWriter, sinks: list[SinkThread], ledger: Ledger) -> None:
        self._ring, self._sinks, self._ledger = ring, sinks, ledger

    def __call__(self, item: Item) -> None:
        """Publish a start, a result or an end; ends carry the account of their run."""
        if isinstance(item, Result):
            self._ledger.received(self.STAGE, run=item.run)
        elif isinstance(item, RunEnd):
            account = self._ledger.run(item.run, ranges=False)
            item = replace(item, account=account or item.account)
        records.put(self._ring, item)
        for sink in self._sinks:
            sink.put(item)
        if isinstance(item, Result):
            self._ledger.sent(self.STAGE, run=item.run)

    def close(self) -> None:
        """Nothing more will come."""
        self._ring.close()
        for sink in self._sinks:
            sink.close()
