"""Counts what came in, went out and was dropped: per stage, per run; it must balance."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from quietbeam.core.frame_numbers import FrameNumbers

RUNS_KEPT = 20
"""Runs that are over and whose accounts are kept."""


@dataclass(slots=True)
class StageCount:
    """The account of one stage at one moment, in frames.

    ``received == sent + sum(dropped.values()) + in_flight`` holds by
    construction: ``in_flight`` is what is left, and must be 0 at rest.
    """

    received: int = 0
    sent: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def in_flight(self) -> int:
        """Frames taken in and not yet accounted for."""
        return self.received - self.sent - sum(self.dropped.values())

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        return {
            "received": self.received,
            "sent": self.sent,
            "dropped": dict(self.dropped),
            "in_flight": self.in_flight,
        }


@dataclass(slots=True)
class SourceCount:
    """What the source gave, in one run or ever.

    ``received`` are frames passed on; everything else that came stands in
    ``rejected`` (messages by reason), of which ``duplicate`` and ``foreign``
    were whole frames.  ``late`` frames are received ones that came after a
    higher number; those ``after_end`` are foreign ones of a run already over.
    """

    received: int = 0
    late: int = 0
    missing: int = 0
    duplicate: int = 0
    foreign: int = 0
    after_end: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def refuse(self, reason: str, *, frame: bool) -> None:
        """Count one refused message."""
        self.rejected[reason] += 1
        self.duplicate += frame and reason == "duplicate"
        self.foreign += frame and reason == "foreign"

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        names = ("received", "late", "missing", "duplicate", "foreign", "after_end")
        return {name: getattr(self, name) for name in names} | {"rejected": dict(self.rejected)}


@dataclass(slots=True)
class RunAccount:
    """What became of the frames of one run.

    Attributes:
        reason: Why it ended; None while it goes on.
        frames_expected: Announced at its start, or None.
        frames_sent: Told by the producer at its end, or None.
    """

    run: str
    numbers: FrameNumbers
    frames_expected: int | None = None
    frames_sent: int | None = None
    reason: str | None = None
    source: SourceCount = field(default_factory=SourceCount)
    stages: dict[str, StageCount] = field(default_factory=dict)

    @property
    def in_flight(self) -> int:
        """Frames that some stage has not accounted for yet."""
        return sum(stage.in_flight for stage in self.stages.values())

    def as_dict(self, *, ranges: bool = True) -> dict[str, Any]:
        """As JSON; ``ranges`` adds the missing numbers, [first, last] each."""
        told = {
            "run": self.run,
            "reason": self.reason,
            "first": self.numbers.lowest,
            "last": self.numbers.highest if self.numbers.came else None,
            "frames_expected": self.frames_expected,
            "frames_sent": self.frames_sent,
            "source": self.source.as_dict(),
            "stages": {name: stage.as_dict() for name, stage in sorted(self.stages.items())},
        }
        if ranges:
            gaps = self.numbers.gaps
            told["missing_ranges"] = [[gap.start, gap.stop - 1] for gap in gaps]
        return told


class Ledger:
    """All accounts of one process.  Any thread may write; counting never fails.

    A stage names the run of the frames it counts, so that the account of a
    run is right also where stages are in different runs at one time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: dict[str, StageCount] = {}
        self._source = SourceCount()
        self._runs: dict[str, RunAccount] = {}  # in order; the newest last
        self._now: RunAccount | None = None
        self._notes: Counter[tuple[str, str]] = Counter()

    # stages and outputs

    def received(self, stage: str, frames: int = 1, *, run: str | None = None) -> None:
        """``frames`` came into ``stage``."""
        with self._lock:
            for count in self._counts(stage, run):
                count.received += frames

    def sent(self, stage: str, frames: int = 1, *, run: str | None = None) -> None:
        """``frames`` left ``stage`` as they should."""
        with self._lock:
            for count in self._counts(stage, run):
                count.sent += frames

    def dropped(self, stage: str, reason: str, frames: int = 1, *, run: str | None = None) -> None:
        """``frames`` were given up by ``stage``."""
        if frames:
            with self._lock:
                for count in self._counts(stage, run):
                    count.dropped[reason] += frames

    def stages(self) -> dict[str, StageCount]:
        """Every stage's account, consistent at one moment."""
        with self._lock:
            return {name: _copy(count) for name, count in sorted(self._stages.items())}

    # the source

    def begin(self, run: str, *, expected: int | None = None, first: int | None = None) -> None:
        """A run starts; ``first`` is the number of its first frame, where that is known."""
        with self._lock:
            self._now = RunAccount(run, FrameNumbers(first), frames_expected=expected)
            self._runs.pop(run, None)
            self._runs[run] = self._now
            while len(self._runs) > RUNS_KEPT + 1:
                del self._runs[next(iter(self._runs))]

    def came(self, number: int) -> None:
        """A frame of the run going on came."""
        with self._lock:
            now = self._now
            self._source.received += 1
            if now is None:
                return
            late_before = now.numbers.late
            now.numbers.add(number)
            now.source.received += 1
            now.source.late = now.numbers.late
            now.source.missing = now.numbers.missing
            self._source.late += now.numbers.late - late_before

    def refused(self, reason: str, *, run: str | None = None, frame: bool = False) -> None:
        """A message was refused; ``run`` is what it belongs to, ``frame`` that it was one."""
        with self._lock:
            over = self._runs.get(run or "") if self._now is None or run != self._now.run else None
            after_end = frame and reason == "foreign" and run is not None
            for source in (self._source, *((self._now.source,) if self._now else ())):
                source.refuse(reason, frame=frame)
            self._source.after_end += after_end
            if over is not None and after_end:
                over.source.after_end += 1

    def end(self, reason: str, *, frames_sent: int | None = None) -> RunAccount | None:
        """The run going on is over; give its account."""
        with self._lock:
            now, self._now = self._now, None
            if now is not None:
                now.reason, now.frames_sent = reason, frames_sent
                self._source.missing += now.numbers.missing
            return now

    def source(self) -> SourceCount:
        """What the source ever gave; ``missing`` counts runs that are over."""
        with self._lock:
            return _copy_source(self._source)

    def run(self, name: str | None = None, *, ranges: bool = True) -> dict[str, Any] | None:
        """The account of one run, of the one going on by default; None if there is none."""
        with self._lock:
            found = self._now if name is None else self._runs.get(name)
            return None if found is None else found.as_dict(ranges=ranges)

    def runs_over(self, *, ranges: bool = True) -> list[dict[str, Any]]:
        """The accounts of the last runs that are over, the newest first."""
        with self._lock:
            over = [run for run in reversed(self._runs.values()) if run is not self._now]
            return [run.as_dict(ranges=ranges) for run in over[:RUNS_KEPT]]

    # other things

    def note(self, what: str, reason: str, count: int = 1) -> None:
        """Count something that is not a frame in the flow, e.g. a sink that failed."""
        if count:
            with self._lock:
                self._notes[what, reason] += count

    def notes(self, what: str) -> dict[str, int]:
        """Counts by reason of one kind of note."""
        with self._lock:
            return {reason: n for (kind, reason), n in self._notes.items() if kind == what}

    def _counts(self, stage: str, run: str | None) -> Iterator[StageCount]:
        """Give the account of ``stage`` ever, and in ``run`` if that is known."""
        yield _of(self._stages, stage)
        of_run = self._runs.get(run or "")
        if of_run is not None:
            yield _of(of_run.stages, stage)


def _of(stages: dict[str, StageCount], stage: str) -> StageCount:
    """Give the account of a stage; no ``setdefault``, which would make a new one every time."""
    count = stages.get(stage)
    if count is None:
        count = stages[stage] = StageCount()
    return count


def _copy(count: StageCount) -> StageCount:
    return StageCount(count.received, count.sent, Counter(count.dropped))


def _copy_source(count: SourceCount) -> SourceCount:
    return replace(count, rejected=Counter(count.rejected))
