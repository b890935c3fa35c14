"""First stage, one thread: from a source into the raw ring.  Never waits for anybody."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import structlog

from quietbeam.core import place, records
from quietbeam.core.errors import QuietbeamError, SourceError
from quietbeam.core.events import Dropped, EndReason, Event, Frame, Rejected, RunEnd, RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.plugin import SourcePlugin
from quietbeam.core.ring import RingWriter
from quietbeam.pipeline.alarms import Alarms
from quietbeam.pipeline.watch import Watch

STAGE = "ingest"
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0)


class Ingest:
    """Reads one source until asked to stop or the source has come to its end.

    Args:
        source: Opened here, and opened again when it fails.
        ring: The raw ring; closed when nothing more will come.
        ledger: Frames in and out, messages rejected by reason.
        describe: Gives what is put into a ``RunStart`` under "quietbeam".
        alarms: Told what is wrong with the stream.
    """

    def __init__(
        self,
        source: SourcePlugin,
        ring: RingWriter,
        ledger: Ledger,
        describe: Callable[[RunStart], Mapping[str, Any]],
        alarms: Alarms,
    ) -> None:
        self._source, self._ring, self._ledger = source, ring, ledger
        self._describe = describe
        self._watch = Watch(alarms)
        self._stop = threading.Event()
        self._log = structlog.get_logger(stage=STAGE)
        self._run: RunStart | None = None
        self._announced = True
        self._warned: set[str] = set()
        self.state = "starting"
        self.run_frames = 0
        self.last_frame_ns = 0
        self.received_bytes = 0
        self.heartbeat_ns = time.monotonic_ns()
        self.observe: Callable[[float], None] = lambda _seconds: None

    @property
    def run(self) -> RunStart | None:
        """The run going on."""
        return self._run

    def stop(self) -> None:
        """Ask the thread to end; what was accepted is passed on."""
        self._stop.set()

    def body(self) -> None:
        """The thread."""
        try:
            failures = 0
            while not self._stop.is_set():
                try:
                    if self._play():
                        break
                    failures = 0
                except SourceError as error:
                    self._failed(error, failures)
                    failures += 1
        finally:
            self._close_run("lost")
            self._ring.close()
            self.state = "ended"

    def _play(self) -> bool:
        """Pass on events; True when the source has come to its end."""
        with place.lent_by(self._ring.lend), self._source.open() as events:
            self.state = "waiting"
            return self._pass_on(events)

    def _pass_on(self, events: Iterator[Event | None]) -> bool:
        for event in events:
            self.heartbeat_ns = time.monotonic_ns()
            if event is not None:
                self._take(event)
            del event  # gives its pixels back before the next ones need memory
            if self._stop.is_set():
                return True
        return True

    def _take(self, event: Event) -> None:
        match event:
            case Frame():
                self._frame(event)
            case RunStart():
                self._start(event)
            case RunEnd():
                self._close_run(event.reason, event.frames_sent)
            case Rejected():
                frame = event.index is not None
                self._ledger.refused(event.reason, run=event.run, frame=frame)
                self._watch.refused(event)
                self._warn(event.reason, event.detail)
            case Dropped():
                run = None if self._run is None else self._run.run
                self._ledger.received(STAGE, event.frames, run=run)
                self._ledger.dropped(STAGE, event.reason, event.frames, run=run)
                self._warn(event.reason, f"{event.frames} frames were given up by the source")

    def _start(self, run: RunStart) -> None:
        self._close_run("lost")
        ours = {"quietbeam": dict(self._describe(run))}
        self._run = dataclasses.replace(run, metadata={**run.metadata, **ours})
        self.run_frames = 0
        self._ledger.begin(run.run, expected=run.frames_expected, first=run.first_index)
        self._watch.start(run)
        short = dataclasses.replace(run, metadata={**ours, "left_out": "larger than the raw ring"})
        self._announced = self._announce(self._run) or self._announce(short)
        self.state = "running"
        self._log.info("run_started", run=run.run, shape=run.shape, dtype=str(run.dtype))

    def _announce(self, run: RunStart) -> bool:
        """Put a start into the ring; False if it is too large for it."""
        try:
            records.put(self._ring, run)
        except QuietbeamError as error:
            self._ledger.note("starts_oversized", "oversized")
            self._warn("start_oversized", str(error))
            return False
        return True

    def _frame(self, frame: Frame) -> None:
        began = time.perf_counter()
        self._ledger.came(frame.index)
        self._watch.frame(frame.index)
        self._ledger.received(STAGE, run=frame.run)
        if not self._passed_on(frame):
            self._ledger.dropped(STAGE, "oversized", run=frame.run)
            return
        self._ledger.sent(STAGE, run=frame.run)
        self.run_frames += 1
        self.last_frame_ns = frame.received_ns
        self.received_bytes += frame.pixels.nbytes
        self.observe(time.perf_counter() - began)

    def _passed_on(self, frame: Frame) -> bool:
        """Put a frame into the ring, unless it, or the start of its run, is too large for it."""
        if not self._announced:
            return False
        try:
            records.put(self._ring, frame)
        except QuietbeamError as error:
            self._warn("oversized", str(error))
            return False
        return True

    def _close_run(self, reason: EndReason, frames_sent: int | None = None) -> None:
        if self._run is None:
            return
        run, self._run = self._run, None
        account = self._ledger.end(reason, frames_sent=frames_sent)
        if account is not None and not self._stop.is_set():  # that we stop is no alarm
            self._watch.end(account)
        told = self._ledger.run(run.run, ranges=False) or {}
        end = RunEnd(run=run.run, reason=reason, frames_sent=frames_sent, account=told)
        if self._announced:
            records.put(self._ring, end)
        self.state = "waiting"
        self._log.info("run_ended", run=run.run, reason=reason, **told.get("source", {}))

    def _failed(self, error: SourceError, failures: int) -> None:
        self.state = f"failed: {error}"
        self._close_run("lost")
        self._ledger.note("source_failures", type(error).__name__)
        if failures == 0:
            self._log.error("source_failed", error=str(error))
        self._stop.wait(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])

    def _warn(self, reason: str, detail: str) -> None:
        """Log the first refusal of each kind; the others are only counted."""
        if reason not in self._warned:
            self._warned.add(reason)
            self._log.warning("message_rejected", reason=reason, detail=detail)
