"""First stage, one thread: from a source into the raw ring.  Never waits for anybody."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import structlog

from quietbeam.core import records
from quietbeam.core.errors import QuietbeamError, SourceError
from quietbeam.core.events import Event, Frame, Rejected, RunEnd, RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.plugin import SourcePlugin
from quietbeam.core.ring import RingWriter

STAGE = "ingest"
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0)


class Ingest:
    """Reads one source until asked to stop or the source has come to its end.

    Args:
        source: Opened here, and opened again when it fails.
        ring: The raw ring; closed when nothing more will come.
        ledger: Frames in and out, messages rejected by reason.
        metadata: Put into every ``RunStart`` under "quietbeam".
    """

    def __init__(
        self,
        source: SourcePlugin,
        ring: RingWriter,
        ledger: Ledger,
        metadata: Mapping[str, Any],
    ) -> None:
        self._source, self._ring, self._ledger = source, ring, ledger
        self._metadata = dict(metadata)
        self._stop = threading.Event()
        self._log = structlog.get_logger(stage=STAGE)
        self._run: RunStart | None = None
        self._indices: set[int] = set()
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
        with self._source.open() as events:
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
                self._close_run(event.reason)
            case Rejected():
                self._ledger.note("rejected", event.reason)
                self._warn(event.reason, event.detail)

    def _start(self, run: RunStart) -> None:
        self._close_run("lost")
        metadata = {**run.metadata, "quietbeam": self._metadata}
        self._run = dataclasses.replace(run, metadata=metadata)
        self._indices, self.run_frames = set(), 0
        records.put(self._ring, self._run)
        self.state = "running"
        self._log.info("run_started", run=run.run, shape=run.shape, dtype=str(run.dtype))

    def _frame(self, frame: Frame) -> None:
        began = time.perf_counter()
        self._ledger.received(STAGE)
        try:
            records.put(self._ring, frame)
        except QuietbeamError as error:
            self._ledger.dropped(STAGE, "oversized")
            self._warn("oversized", str(error))
            return
        self._ledger.sent(STAGE)
        self._indices.add(frame.index)
        self.run_frames += 1
        self.last_frame_ns = frame.received_ns
        self.received_bytes += frame.pixels.nbytes
        self.observe(time.perf_counter() - began)

    def _close_run(self, reason: Any) -> None:
        if self._run is None:
            return
        run, self._run = self._run, None
        missing = self._missing()
        self._ledger.note("missing", "gap", missing)
        records.put(self._ring, RunEnd(run=run.run, reason=reason))
        self.state = "waiting"
        self._log.info(
            "run_ended", run=run.run, reason=reason, frames=self.run_frames, missing=missing
        )

    def _missing(self) -> int:
        """Frames between the first and the last number seen that never came."""
        if not self._indices:
            return 0
        return max(self._indices) - min(self._indices) + 1 - len(self._indices)

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
