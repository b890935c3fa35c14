"""The rolling buffer of the stream: raw and clean joined, newest last, bounded in bytes."""

from __future__ import annotations

import bisect
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.recording import declared_maps, declared_metrics
from quietbeam.core.result import Result
from quietbeam_plugins.sinks.web.entries import (
    Entry,
    maps_described,
    run_described,
    specs_described,
)

_UNCLEANED_S = 2.0
"""A raw frame that waited so long for its clean one is shown alone."""
_FIRST_S = 0.5
"""The same before the first of a run is cleaned: while noise is measured there is raw to see."""


_ALONE = 1024

Key = tuple[str, int]
"""Run and number of a frame."""


class Buffer:
    """Joins what both rings give.  Written by one thread, read by any.

    Args:
        capacity_bytes: For the pixels kept; the oldest frames go first.
    """

    name = "live"
    live = True

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._waiting: OrderedDict[Key, Frame] = OrderedDict()
        self._waiting_bytes = 0
        self._alone: OrderedDict[Key, int] = OrderedDict()  # raw without clean
        self._early: OrderedDict[Key, int] = OrderedDict()  # clean without raw
        self._cleaned_ns = 0
        self._starts: OrderedDict[str, RunStart] = OrderedDict()
        self._first_ns: dict[str, int] = {}
        self._next_id = 1
        self.run: RunStart | None = None
        self.started_unix_s: float | None = None
        self.end: RunEnd | None = None
        self.ended_unix_s: float | None = None

    # written

    def start(self, run: RunStart) -> None:
        """A run begins; the second ring tells of it too."""
        if run.run in self._starts:
            return
        with self._lock:
            self._starts[run.run] = run
            while len(self._starts) > 8:
                forgotten, _ = self._starts.popitem(last=False)
                self._first_ns.pop(forgotten, None)
            self.run, self.end, self._cleaned_ns = run, None, 0
            self.started_unix_s, self.ended_unix_s = time.time(), None

    def stop(self, end: RunEnd) -> bool:
        """The run is over; False where that was known."""
        if self.run is None or self.run.run != end.run or self.end is not None:
            return False
        self.end, self.ended_unix_s = end, time.time()
        return True

    def raw(self, frame: Frame) -> None:
        """Take a raw frame; it waits for its clean one, or joins one that overtook it."""
        key = (frame.run, frame.index)
        self._first_ns.setdefault(frame.run, frame.time_ns)
        early = self._early.pop(key, None)
        if early is not None and self._complete(early, {"raw": frame.pixels}):
            return
        self._waiting[key] = frame
        self._waiting_bytes += frame.pixels.nbytes
        while self._waiting_bytes > self._capacity // 4 and len(self._waiting) > 1:
            self._forget_oldest()

    def clean(self, result: Result) -> Entry | None:
        """Take a cleaned frame; gives what can be shown now."""
        self._cleaned_ns = time.monotonic_ns()
        frame = self._waiting.pop((result.run, result.index), None)
        if frame is not None:
            self._waiting_bytes -= frame.pixels.nbytes
        start = self._starts.get(result.run)
        if start is None:
            return None
        self._first_ns.setdefault(result.run, result.time_ns)
        cleaned = {
            "clean": result.clean,
            "sd": result.sd,
            "maps": dict(result.maps),
            "metrics": dict(result.metrics),
            "denoiser": result.denoiser,
            "model_version": result.model_version,
            "latency_s": result.latency_s,
        }
        alone = self._alone.pop((result.run, result.index), None)
        if alone is not None and self._complete(alone, cleaned):
            return self.get(alone)
        raw = result.raw if frame is None else frame.pixels
        entry = self._keep(self._entry(start, result, raw, **cleaned))
        if raw is None:
            _remember(self._early, (result.run, result.index), entry.id)
        return entry

    def uncleaned(self) -> Entry | None:
        """Give the newest raw frame that has waited too long for its clean one, if any.

        While cleaned frames come, however late, all wait for theirs: pictures
        would else jump between what is newest and what is cleaned.
        """
        patience_s = _UNCLEANED_S if self._cleaned_ns else _FIRST_S
        limit = time.monotonic_ns() - int(patience_s * 1e9)
        shown: Entry | None = None
        while self._waiting and self._cleaned_ns < limit:
            frame = next(iter(self._waiting.values()))
            if frame.received_ns > limit:
                break
            self._forget_oldest()
            start = self._starts.get(frame.run)
            if start is not None:
                shown = self._keep(self._entry(start, frame, frame.pixels))
                _remember(self._alone, (frame.run, frame.index), shown.id)
        return shown

    def _complete(self, number: int, rest: dict[str, Any]) -> bool:
        """Give a frame that was shown in part the rest of it; False where it is kept no more."""
        with self._lock:
            place = number - self._entries[0].id if self._entries else -1
            if place < 0:
                return False
            entry = replace(self._entries[place], **rest)
            self._bytes += entry.nbytes - self._entries[place].nbytes
            self._entries[place] = entry
        return True

    def _forget_oldest(self) -> None:
        _, frame = self._waiting.popitem(last=False)
        self._waiting_bytes -= frame.pixels.nbytes

    def _entry(self, start: RunStart, item: Frame | Result, raw: Any, **more: Any) -> Entry:
        age_s = (time.monotonic_ns() - item.received_ns) / 1e9
        return Entry(
            id=0,
            run=item.run,
            index=item.index,
            start=start,
            time_s=(item.time_ns - self._first_ns.get(item.run, item.time_ns)) / 1e9,
            unix_s=time.time() - age_s,
            raw=raw,
            **more,
        )

    def _keep(self, entry: Entry) -> Entry:
        with self._lock:
            entry = replace(entry, id=self._next_id)
            self._next_id += 1
            self._entries.append(entry)
            self._bytes += entry.nbytes
            while self._bytes > self._capacity and len(self._entries) > 1:
                self._bytes -= self._entries.popleft().nbytes
        return entry

    # read

    @property
    def received(self) -> int:
        """Frames shown so far."""
        return self._next_id - 1

    def newest(self) -> Entry | None:
        """Give the newest frame."""
        with self._lock:
            return self._entries[-1] if self._entries else None

    def get(self, number: int) -> Entry | None:
        """Give the kept frame whose id is nearest to ``number``."""
        with self._lock:
            if not self._entries:
                return None
            first = self._entries[0].id  # ids follow each other without gaps
            return self._entries[min(max(number - first, 0), len(self._entries) - 1)]

    def ids(self, after: int = -1) -> Sequence[int]:
        """Give what is kept with an id beyond ``after``, oldest first."""
        with self._lock:
            if not self._entries:
                return ()
            span = range(self._entries[0].id, self._entries[-1].id + 1)
            return span[bisect.bisect_right(span, after) :]

    def span(self) -> dict[str, Any]:
        """Describe what is kept."""
        with self._lock:
            if not self._entries:
                return {"first": None, "last": None, "frames": 0, "seconds": 0, "times_s": None}
            first, last = self._entries[0], self._entries[-1]
            return {
                "first": first.id,
                "last": last.id,
                "frames": len(self._entries),
                "seconds": max(0.0, last.unix_s - first.unix_s),
                "times_s": [first.time_s, last.time_s],
            }

    def described(self) -> dict[str, Any]:
        """Describe the run and what is measured in it."""
        run = self.run
        return {
            "run": run_described(
                run,
                started_unix_s=self.started_unix_s,
                ended_unix_s=self.ended_unix_s,
                end_reason=None if self.end is None else self.end.reason,
            ),
            "metrics": {} if run is None else specs_described(declared_metrics(run)),
            "maps": {} if run is None else maps_described(declared_maps(run)),
        }


def _remember(where: OrderedDict[Key, int], key: Key, number: int) -> None:
    where[key] = number
    while len(where) > _ALONE:
        where.popitem(last=False)
