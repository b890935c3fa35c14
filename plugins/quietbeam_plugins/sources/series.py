"""Turns headers, frames and ends of detector series into runs.

The one state machine behind every source.  Whatever order messages come in,
what it gives obeys ``(RunStart Frame* RunEnd)*``; what fits nowhere is
``Rejected``.  It never reads a clock: time comes in with every call.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from quietbeam.core.events import EndReason, Event, Frame, Rejected, RunEnd, RunStart

SeriesKey = tuple[str, int]
"""(unique id or "", number): what the detector calls a series; a later one is greater."""

_SECOND_NS = 1_000_000_000
_MINIMUM_TIMEOUT_S = 5.0
_ARMED_TIMEOUT_S = 600.0
_REMEMBERED_SERIES = 64
_REMEMBERED_GAPS = 1024


class SeenNumbers:
    """Which frame numbers of a run came already, in memory that does not grow with it."""

    def __init__(self) -> None:
        self.highest = -1
        self._gaps: deque[range] = deque(maxlen=_REMEMBERED_GAPS)

    def add(self, number: int) -> bool:
        """Note ``number``; False if it was seen (or is older than the oldest known gap)."""
        if number > self.highest:
            if number > self.highest + 1:
                self._gaps.append(range(self.highest + 1, number))
            self.highest = number
            return True
        gap = next((gap for gap in self._gaps if number in gap), None)
        if gap is None:
            return False
        self._gaps.remove(gap)
        rest = (range(gap.start, number), range(number + 1, gap.stop))
        self._gaps.extend(part for part in rest if part)
        return True


@dataclass(slots=True)
class _Run:
    """The run going on."""

    key: SeriesKey
    start: RunStart
    last_ns: int
    headed: bool
    seen: SeenNumbers = field(default_factory=SeenNumbers)
    frames: int = 0
    longest_gap_ns: int = 0
    ends_at_ns: int | None = None


class SeriesMachine:
    """Gives the events of a sequence of series.

    Args:
        run_timeout_s: A run without an end is lost after this long without a
            frame; None derives it from the frame time, or else from the
            longest pause so far: 20 frames, at least 5 s.
        grace_s: How long frames may still come after the end that overtook them.
        has_ends: The format tells when a series is over; else a pause completes it.
    """

    def __init__(
        self,
        run_timeout_s: float | None = None,
        grace_s: float = 0.25,
        *,
        has_ends: bool = True,
    ) -> None:
        self._has_ends = has_ends
        self._run_timeout_s = run_timeout_s
        self._grace_ns = round(grace_s * _SECOND_NS)
        self._run: _Run | None = None
        self._over: deque[SeriesKey] = deque(maxlen=_REMEMBERED_SERIES)
        self._lost: _Run | None = None
        self._announced: SeriesKey | None = None
        self._names: deque[str] = deque(maxlen=_REMEMBERED_SERIES)

    @property
    def running(self) -> RunStart | None:
        """The start of the run going on, if one is."""
        return None if self._run is None else self._run.start

    @property
    def highest(self) -> int:
        """Highest frame number of the run going on; -1 before the first frame."""
        return -1 if self._run is None else self._run.seen.highest

    def begin(self, key: SeriesKey, start: RunStart, now_ns: int) -> Iterator[Event]:
        """A header arrived: it always starts a run, unless it only repeats itself."""
        run = self._run
        if run is not None and run.key == key and run.frames == 0 and _alike(run.start, start):
            yield Rejected(reason="duplicate", detail=f"series {_text(key)}: second header")
            return
        if run is not None and self._is_late_header(run, key):
            yield Rejected(reason="duplicate", detail=f"series {_text(key)}: header after frames")
            return
        yield from self._settle_for_header()
        yield self._start(key, start, now_ns, headed=True)

    def announce(self, key: SeriesKey) -> Iterator[Event]:
        """A header arrived that leaves shape or dtype open: its first frame starts the run."""
        if self._run is not None and self._is_late_header(self._run, key):
            yield Rejected(reason="duplicate", detail=f"series {_text(key)}: header after frames")
            return
        yield from self._settle_for_header()
        if key in self._over:
            self._over.remove(key)
        self._announced = key

    def frame(
        self,
        key: SeriesKey,
        number: int,
        pixels: NDArray[Any],
        *,
        time_ns: int,
        received_ns: int,
        describe: Callable[[], RunStart],
    ) -> Iterator[Event]:
        """An image arrived.

        Args:
            key: Series it says it belongs to.
            number: The detector's number, 0 or more.
            pixels: (h, w), or (c, h, w) with several channels.
            time_ns: Detector clock.
            received_ns: Our monotonic clock.
            describe: Gives a start for a series whose header never came.
        """
        yield from self.tick(received_ns)
        if self._is_leftover(key):
            detail = f"frame {number} of series {_text(key)}, which is over"
            yield Rejected(reason="foreign", detail=detail)
            return
        if self._run is None or self._run.key != key:
            yield from self._join(key, describe, received_ns)
        run = self._run
        assert run is not None  # noqa: S101  for the type checker: _join has set it
        refused = _misfit(run.start, pixels, number)
        if refused is None and not run.seen.add(number):
            refused = Rejected(reason="duplicate", detail=f"frame {number} of {run.start.run}")
        if refused is not None:
            yield refused
            return
        if run.frames:
            run.longest_gap_ns = max(run.longest_gap_ns, received_ns - run.last_ns)
        run.frames += 1
        run.last_ns = received_ns
        yield Frame(
            run=run.start.run,
            index=number,
            time_ns=time_ns,
            received_ns=received_ns,
            pixels=pixels,
        )
        if run.ends_at_ns is not None and run.frames == run.start.frames_expected:
            yield from self._settle("completed")

    def end(self, key: SeriesKey, now_ns: int) -> Iterator[Event]:
        """An end arrived; unless all announced frames are here, stragglers get a short grace."""
        run = self._run
        if run is None and key == self._announced:
            self._announced = None  # a series without a single frame
        elif run is None:
            yield Rejected(reason="no_run", detail=f"end of series {_text(key)}: no run going on")
        elif run.key != key:
            detail = f"end of series {_text(key)} during series {_text(run.key)}"
            yield Rejected(reason="foreign", detail=detail)
        elif run.ends_at_ns is not None:
            yield Rejected(reason="duplicate", detail=f"second end of series {_text(key)}")
        elif run.frames == run.start.frames_expected or not self._grace_ns:
            yield from self._settle("completed")
        else:
            run.ends_at_ns = now_ns + self._grace_ns

    def restart(self) -> Iterator[Event]:
        """Settle the run going on: the next frame belongs to another (formats without headers)."""
        if self._run is not None:
            yield from self._settle("completed")
            self._over.clear()

    def tick(self, now_ns: int) -> Iterator[Event]:
        """Time has passed: settle what has waited long enough."""
        run = self._run
        if run is None:
            return
        if run.ends_at_ns is not None:
            if now_ns >= run.ends_at_ns:
                yield from self._settle("completed")
        elif now_ns - run.last_ns > self._timeout_s(run) * _SECOND_NS:
            yield from self._settle("lost") if self._has_ends else self.restart()

    def finish(self) -> Iterator[Event]:
        """Nothing will come any more."""
        if self._run is not None:
            over = self._run.ends_at_ns is not None or not self._has_ends
            yield from self._settle("completed" if over else "lost")

    def _timeout_s(self, run: _Run) -> float:
        if self._run_timeout_s is not None:
            return self._run_timeout_s
        if run.frames == 0:  # armed, and waiting for its trigger
            return _ARMED_TIMEOUT_S
        step_s = max(run.start.frame_time_s or 0.0, run.longest_gap_ns / _SECOND_NS)
        return max(_MINIMUM_TIMEOUT_S, 20 * step_s)

    def _is_late_header(self, run: _Run, key: SeriesKey) -> bool:
        """Frames overtook this header; a second header is a detector that was restarted."""
        late = run.key == key and not run.headed
        run.headed = run.headed or late
        return late

    def _settle_for_header(self) -> Iterator[Event]:
        if self._run is not None:
            yield from self._settle("completed" if self._run.ends_at_ns is not None else "aborted")
        self._lost = None

    def _is_leftover(self, key: SeriesKey) -> bool:
        run = self._run
        if run is None:
            announced = self._announced
            return key in self._over or (announced is not None and key < announced)
        return key != run.key and (key in self._over or key < run.key)

    def _join(
        self, key: SeriesKey, describe: Callable[[], RunStart], now_ns: int
    ) -> Iterator[Event]:
        """Start a run in its middle: its header was missed, or it was given up too early."""
        yield from self._settle("lost")
        lost, found = self._lost, describe()
        if lost is None or lost.key != key or not _alike(lost.start, found):
            yield self._start(key, found, now_ns, headed=key == self._announced)
            return
        yield self._start(key, lost.start, now_ns, headed=lost.headed)
        if self._run is not None:
            self._run.seen = lost.seen

    def _start(self, key: SeriesKey, start: RunStart, now_ns: int, *, headed: bool) -> RunStart:
        name, copy = start.run, 1
        while name in self._names:
            copy += 1
            name = f"{start.run}-{copy}"
        self._names.append(name)
        self._announced = None
        if key in self._over:
            self._over.remove(key)
        self._run = _Run(key, replace(start, run=name), now_ns, headed)
        return self._run.start

    def _settle(self, reason: EndReason) -> Iterator[Event]:
        run, self._run = self._run, None
        if run is None:
            return
        self._lost = run if reason == "lost" else None
        if reason != "lost":
            self._over.append(run.key)
        yield RunEnd(run=run.start.run, reason=reason)


def stamped(label: str) -> str:
    """Give a run name that no other day and no restart of the daemon gives."""
    return f"{label}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


def _alike(one: RunStart, other: RunStart) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _misfit(start: RunStart, pixels: NDArray[Any], number: int) -> Rejected | None:
    if pixels.shape != start.shape:
        detail = f"frame {number} is {pixels.shape}, the run is {start.shape}"
        return Rejected(reason="shape", detail=detail)
    if pixels.dtype != start.dtype:
        detail = f"frame {number} is {pixels.dtype}, the run is {start.dtype}"
        return Rejected(reason="dtype", detail=detail)
    return None


def _text(key: SeriesKey) -> str:
    unique, number = key
    return f"{number} ({unique})" if unique else str(number)
