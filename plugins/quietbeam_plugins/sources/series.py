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

from quietbeam.core.events import EndReason, Event, Frame, Rejected, RejectReason, RunEnd, RunStart
from quietbeam.core.frame_numbers import FrameNumbers

SeriesKey = tuple[str, int]
"""(unique id or "", number): what the detector calls a series; a later one is greater."""

_SECOND_NS = 1_000_000_000
_MINIMUM_TIMEOUT_S = 5.0
_ARMED_TIMEOUT_S = 600.0
_REMEMBERED_SERIES = 64


@dataclass(slots=True)
class _Run:
    """The run going on."""

    key: SeriesKey
    start: RunStart
    last_ns: int
    headed: bool
    seen: FrameNumbers = field(default_factory=FrameNumbers)
    frames: int = 0
    longest_gap_ns: int = 0
    ends_at_ns: int | None = None
    frames_sent: int | None = None
    earlier: int = 0  # frames of its series that belong to the run that was lost before

    @property
    def is_whole(self) -> bool:
        """As many frames came as the producer says it sent, or announced."""
        told = self.start.frames_expected if self.frames_sent is None else self.frames_sent
        return self.frames == told


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
        self._patience_ns = round((run_timeout_s or _MINIMUM_TIMEOUT_S) * _SECOND_NS)
        self._run: _Run | None = None
        self._over: dict[SeriesKey, str] = {}  # to the names of their runs
        self._lost: _Run | None = None
        self._announced: SeriesKey | None = None
        self._doubted_ns: int | None = None
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
        self._over.pop(key, None)
        self._announced, self._doubted_ns = key, None

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
        self._doubt_announcement(key, received_ns)
        if self._is_leftover(key):
            detail = f"frame {number} of series {_text(key)}, which is over"
            yield Rejected(reason="foreign", detail=detail, run=self._over.get(key), index=number)
            return
        if self._run is None or self._run.key != key:
            yield from self._join(key, describe, received_ns)
        run = self._run
        assert run is not None  # noqa: S101  for the type checker: _join has set it
        refused = _misfit(run.start, pixels, number)
        if refused is None and not run.seen.add(number):
            refused = "duplicate", f"frame {number} of {run.start.run}"
        if refused is not None:
            reason, detail = refused
            yield Rejected(reason=reason, detail=detail, run=run.start.run, index=number)
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
        if run.ends_at_ns is not None and run.is_whole:
            yield from self._settle("completed")

    def end(self, key: SeriesKey, now_ns: int, frames_sent: int | None = None) -> Iterator[Event]:
        """An end arrived; unless all frames are here, stragglers get a short grace.

        Args:
            key: Series it says it belongs to.
            now_ns: Our monotonic clock.
            frames_sent: How many frames the producer says it sent, if it does.
        """
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
        else:
            run.ends_at_ns = now_ns + self._grace_ns
            run.frames_sent = _less(frames_sent, run.earlier)
            if run.is_whole or not self._grace_ns:
                yield from self._settle("completed")

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
        yield from self._settle("lost" if self._has_ends else "completed")

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
        yield from self._settle("aborted")
        self._lost = None

    def _is_leftover(self, key: SeriesKey) -> bool:
        run = self._run
        if run is None:
            announced = self._announced
            return key in self._over or (announced is not None and key < announced)
        return key != run.key and (key in self._over or key < run.key)

    def _doubt_announcement(self, key: SeriesKey, now_ns: int) -> None:
        """Frames of another series only, for long: what was announced will not come any more."""
        announced = self._announced
        if self._run is not None or announced is None or key >= announced:
            return
        if self._doubted_ns is None:
            self._doubted_ns = now_ns
        elif now_ns - self._doubted_ns > self._patience_ns:
            self._announced = None

    def _join(
        self, key: SeriesKey, describe: Callable[[], RunStart], now_ns: int
    ) -> Iterator[Event]:
        """Start a run in its middle: its header was missed, or it was given up too early."""
        yield from self._settle("lost")
        lost, found = self._lost, describe()
        if lost is None or lost.key != key or not _alike(lost.start, found):
            yield self._start(key, found, now_ns, headed=key == self._announced)
            return
        first = lost.seen.highest + 1
        gone = first - (lost.start.first_index or 0)
        expected = _less(lost.start.frames_expected, gone)
        rest = replace(lost.start, first_index=first, frames_expected=expected)
        yield self._start(key, rest, now_ns, headed=lost.headed)
        if self._run is not None:
            self._run.seen, self._run.earlier = lost.seen, lost.earlier + gone

    def _start(self, key: SeriesKey, start: RunStart, now_ns: int, *, headed: bool) -> RunStart:
        name, copy = start.run, 1
        while name in self._names:
            copy += 1
            name = f"{start.run}-{copy}"
        self._names.append(name)
        self._announced = None
        self._over.pop(key, None)
        self._run = _Run(key, replace(start, run=name), now_ns, headed)
        return self._run.start

    def _settle(self, reason: EndReason) -> Iterator[Event]:
        """End the run going on for ``reason``, unless its own end has come already."""
        run, self._run = self._run, None
        if run is None:
            return
        if run.ends_at_ns is not None:
            reason = "completed"
        self._lost = run if reason == "lost" else None
        if reason != "lost":
            self._over[run.key] = run.start.run
            while len(self._over) > _REMEMBERED_SERIES:
                del self._over[next(iter(self._over))]
        yield RunEnd(run=run.start.run, reason=reason, frames_sent=run.frames_sent)


def stamped(label: str) -> str:
    """Give a run name that no other day and no restart of the daemon gives."""
    return f"{label}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


def _less(told: int | None, gone: int) -> int | None:
    return None if told is None else max(told - gone, 0)


def _alike(one: RunStart, other: RunStart) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _misfit(start: RunStart, pixels: NDArray[Any], number: int) -> tuple[RejectReason, str] | None:
    if pixels.shape != start.shape:
        return "shape", f"frame {number} is {pixels.shape}, the run is {start.shape}"
    if pixels.dtype != start.dtype:
        return "dtype", f"frame {number} is {pixels.dtype}, the run is {start.dtype}"
    return None


def _text(key: SeriesKey) -> str:
    unique, number = key
    return f"{number} ({unique})" if unique else str(number)
