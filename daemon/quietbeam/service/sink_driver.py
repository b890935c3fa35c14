"""Reads both rings and hands runs, one at a time, to a recording sink.

The rings advance independently: the raw one may be in the next run while
cleaned frames of this one still come.  Each ring is a *lane*; a lane that is
ahead waits at its next item, unread items stay in the ring.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from quietbeam.core import records
from quietbeam.core.events import RunEnd, RunStart
from quietbeam.core.plugin import RecordingSink
from quietbeam.core.recording import Recorder, SinkStatus
from quietbeam.core.ring import Record, RingReader

REASONS = ("disk_full", "recording_off", "mismatch", "no_start", "late", "other")
"""Why a frame that was read was not written; kept in the ring, so that it outlives us."""

_BATCH = 32  # records of one lane before the other has its turn
_PRESSURE = 0.5  # of the ring: then no waiting for cleaned frames any more
_WARN_EVERY_S = 10.0
_LAST_WAIT_S = 0.5

Item = RunStart | RunEnd | Record


class Lane:
    """One ring as this sink sees it, and the account of its frames.

    ``received = written + dropped + unflushed`` and
    ``written to the ring = received + overrun + skipped + still in the ring``.

    Attributes:
        run: The run whose frames are passed on, or None between runs.
        unwanted: Frames are passed over without a look.
    """

    def __init__(self, ring: Path, name: str, *, unwanted: bool = False) -> None:
        self.reader = RingReader(ring, name, resume=True, from_first=True)
        self.run: str | None = None
        self.unwanted = unwanted
        self.moved_s = time.monotonic()
        self.refused: Counter[str] = Counter()
        self.delivered = 0
        self._runs = records.RunReader(self.reader)
        self._pending: deque[Item] = deque()
        self._base = self.reader.kept  # what earlier processes of this sink had safe

    def peek(self) -> Item | None:
        """Give the next item without taking it."""
        while self.unwanted and not self._pending and self.reader.skip_frame():
            pass
        if not self._pending:
            self._pending.extend(self._runs.poll(0.0))
            self.refused["no_start"] = self._runs.orphans
        return self._pending[0] if self._pending else None

    def pop(self) -> None:
        """Take the item ``peek`` gave."""
        self._pending.popleft()
        self.moved_s = time.monotonic()

    @property
    def waiting(self) -> Item | None:
        """The item peeked at and not yet taken."""
        return self._pending[0] if self._pending else None

    @property
    def ended(self) -> bool:
        """Nothing is left to read, nor will there be more."""
        return not self._pending and self.reader.finished

    def quiet_s(self, now_s: float) -> float:
        """Give for how long nothing has come, 0 while there is something to read."""
        idle = not self._pending and self.reader.backlog == 0
        return now_s - self.moved_s if idle else 0.0

    def is_past(self, run: str) -> bool:
        """The lane has come to the end of ``run``, or beyond."""
        item = self.waiting
        if isinstance(item, RunEnd):
            return item.run == run and self.run == run
        return isinstance(item, RunStart) or self.ended

    def counts(self, written: int, dropped: Mapping[str, int]) -> dict[str, int]:
        """Give the totals over all lives of this sink: written, and dropped by reason."""
        here = Counter(dict(dropped)) + self.refused
        extra = sum(n for reason, n in here.items() if reason not in REASONS)
        now = [written, *(here[reason] for reason in REASONS)]
        now[-1] += extra
        names = ("written", *REASONS)
        return {name: base + n for name, base, n in zip(names, self._base, now, strict=False)}

    def ack(self, counts: Mapping[str, int]) -> None:
        """Everything taken so far is safe, and ``counts`` with it."""
        kept = [counts[name] for name in ("written", *REASONS)]
        self.reader.ack(kept, without_last=bool(self._pending))


class Driver:
    """Moves items from the two lanes into the sink, flushes, and acknowledges.

    Args:
        sink: What is driven.
        raw: Lane of the raw ring.
        clean: Lane of the clean ring.
        session: Names this daemon; goes into every run's metadata.
        flush_interval_s: Longest time before what was written is flushed.
        flush_frames: Most frames before that.
        settle_s: How long a run waits for the other ring's end.
        finished: Called with every file that is complete.
    """

    def __init__(
        self,
        sink: RecordingSink,
        raw: Lane,
        clean: Lane,
        *,
        session: str,
        flush_interval_s: float = 0.5,
        flush_frames: int = 100,
        settle_s: float = 30.0,
        finished: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.sink, self.raw, self.clean = sink, raw, clean
        self._session, self._settle_s, self._finished = session, settle_s, finished
        self._flush_interval_s, self._flush_frames = flush_interval_s, flush_frames
        self._on, self._open = True, False
        self._stop_s: float | None = None
        self._run: RunStart | None = None
        self._unflushed = 0
        self._unacked = False
        self._flushed_s = time.monotonic()
        self._warned_s, self._lost_seen = -_WARN_EVERY_S, raw.reader.lost
        self._flushed_delivered = (0, 0)
        self._log = structlog.get_logger()

    @property
    def done(self) -> bool:
        """Told to stop, and nothing is left."""
        lanes = (self.raw, self.clean)
        return self._run is None and all(self._gives_no_more(lane) for lane in lanes)

    def stop(self) -> None:
        """Finish with what the rings hold."""
        self._stop_s = time.monotonic()

    def _gives_no_more(self, lane: Lane) -> bool:
        """When told to stop: the ring is closed, or nothing has come for a while."""
        if self._stop_s is None:
            return False
        now = time.monotonic()
        return lane.ended or min(lane.quiet_s(now), now - self._stop_s) > _LAST_WAIT_S

    def step(self) -> bool:
        """Move what can be moved; whether anything was."""
        moved = False
        for lane in (self.raw, self.clean):
            for _ in range(_BATCH):
                item = lane.peek()
                if item is None or not self._take(lane, item):
                    break
                lane.pop()
                moved = self._unacked = True
                self._flush_if_due()
        self._flush_if_due()
        self._tell_losses()
        if self._run is not None and self._is_over(self._run.run):
            self._close(self._run.run)
            moved = True
        return moved

    def record(self, *, on: bool) -> None:
        """Switch recording; in the middle of a run it begins, or ends, there."""
        self._on = on
        if self._run is None or on == self._open:
            return
        if on:
            self.sink.start(self._run)
        else:
            self.flush()
            self.sink.stop(RunEnd(run=self._run.run, reason="aborted"))
            self._tell_finished()
        self._open = on

    def note(self, text: str) -> None:
        """Pass a note to a sink that takes them."""
        if isinstance(self.sink, Recorder):
            self.sink.note(text)
            self._unacked = True

    def flush(self) -> None:
        """Make everything safe, then acknowledge it."""
        self.sink.flush()
        self._unflushed = 0
        self._flushed_delivered = (self.raw.delivered, self.clean.delivered)
        self._flushed_s = time.monotonic()
        self._ack()
        self._tell_finished()

    def status(self) -> dict[str, Any]:
        """Give the event that tells the daemon how things are."""
        own = self._sink_status()
        raw, clean = self._counts()
        dropped = {reason: raw[reason] for reason in REASONS}
        dropped |= {f"clean_{reason}": clean[reason] for reason in REASONS}
        dropped |= {"overrun": self.raw.reader.lost, "clean_overrun": self.clean.reader.lost}
        return {
            "type": "status",
            "state": own.state if self._on else "off",
            "file": own.file,
            "raw_written": raw["written"],
            "clean_written": clean["written"],
            "synced": own.synced,
            "bytes": own.bytes,
            "free_bytes": own.free_bytes,
            "dropped": {reason: n for reason, n in dropped.items() if n},
            "unflushed": self._unflushed,
        }

    # items

    def _take(self, lane: Lane, item: Item) -> bool:
        match item:
            case RunStart():
                return self._take_start(lane, item)
            case RunEnd():
                if lane.run is not None:
                    return False  # until the other lane is there, too
            case Record():
                self._take_frame(lane, item)
        return True

    def _take_start(self, lane: Lane, start: RunStart) -> bool:
        if self._run is None:
            self._begin(start)
        elif start.run != self._run.run or lane.run is not None:
            return False
        lane.run = start.run
        return True

    def _take_frame(self, lane: Lane, record: Record) -> None:
        if lane.run is None:
            lane.refused["late"] += 1
        elif not self._open:
            lane.refused["recording_off"] += 1
        else:
            if lane is self.raw:
                self.sink.raw(records.frame(record))
            else:
                self.sink.write(records.result(record))
            lane.delivered += 1
            self._unflushed += 1

    # runs

    def _begin(self, start: RunStart) -> None:
        ours = {**start.metadata.get("quietbeam", {}), "session": self._session}
        self._run = replace(start, metadata={**start.metadata, "quietbeam": ours})
        if self._on:
            self.sink.start(self._run)
            self._open = True

    def _is_over(self, run: str) -> bool:
        """Both lanes are past the run, or one is and the other will not get there."""
        lanes = (self.raw, self.clean)
        past = [lane.is_past(run) for lane in lanes]
        if all(there or self._gives_no_more(lane) for there, lane in zip(past, lanes, strict=True)):
            return True
        if not any(past):
            return False
        other = lanes[past.index(False)]
        if other is self.clean and self.raw.reader.pressure > _PRESSURE:
            return True  # raw frames wait for cleaned ones, and are about to be lost
        return time.monotonic() - other.moved_s > self._settle_s

    def _close(self, run: str) -> None:
        self.flush()
        ends = [lane.waiting for lane in (self.raw, self.clean) if lane.run == run]
        told = [end for end in ends if isinstance(end, RunEnd)]
        end = told[0] if told else RunEnd(run=run, reason="lost")
        if self._open:  # the clean lane's account is the later one: it knows more stages
            account = {key: value for one in told for key, value in one.account.items()}
            self.sink.stop(replace(end, account=account))
        self._run, self._open = None, False
        for lane in (self.raw, self.clean):
            if lane.run == run and isinstance(lane.waiting, RunEnd):
                lane.pop()
            lane.run = None
        self._ack()
        self._tell_finished()

    # accounts

    def _flush_if_due(self) -> None:
        late = time.monotonic() - self._flushed_s >= self._flush_interval_s
        if self._unflushed >= self._flush_frames or (late and self._unacked):
            self.flush()

    def _ack(self) -> None:
        raw, clean = self._counts()
        self.raw.ack(raw)
        self.clean.ack(clean)
        self._unacked = False

    def _sink_status(self) -> SinkStatus:
        if isinstance(self.sink, Recorder):
            return self.sink.status()
        raw, clean = self._flushed_delivered
        return SinkStatus(
            state="recording" if self._open else "idle", raw_written=raw, clean_written=clean
        )

    def _counts(self) -> tuple[dict[str, int], dict[str, int]]:
        own = self._sink_status()
        return (
            self.raw.counts(own.raw_written, own.raw_dropped),
            self.clean.counts(own.clean_written, own.clean_dropped),
        )

    def _tell_finished(self) -> None:
        if isinstance(self.sink, Recorder):
            for done in self.sink.take_finished():
                told = {"file": done.file, "raw": done.raw, "clean": done.clean}
                self._finished(told | {"missing": done.missing, "reason": done.reason})

    def _tell_losses(self) -> None:
        lost = self.raw.reader.lost
        now = time.monotonic()
        if lost == self._lost_seen:
            return
        if isinstance(self.sink, Recorder):
            self.sink.lost(lost - self._lost_seen)
        if now - self._warned_s >= _WARN_EVERY_S:
            self._log.error(
                "ring_overrun", frames_lost=lost - self._lost_seen, frames_lost_ever=lost
            )
            self._warned_s = now
        self._lost_seen = lost
