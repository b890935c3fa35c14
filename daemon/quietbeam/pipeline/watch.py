"""Watches the numbers of frames and the ends of runs for what should alarm an operator."""

from __future__ import annotations

from collections import Counter, deque

from quietbeam.core.events import Rejected, RunStart
from quietbeam.core.ledger import RunAccount
from quietbeam.pipeline.alarms import Alarms

_STEPS = 16
_ALIKE = 15
"""Of the last steps from number to number: so many alike are a pattern.

A stream that loses every second frame at random shows it once in 10^8 frames.
"""
_WHOLE = 12
"""So many steps of one mean that nothing is taken any more."""
_REFUSED = 16
"""So many refusals, and no frame between them, are no accident."""
_ORDINARY = ("preview", "foreign")
"""Refusals that come in numbers where all is well: dummies, and leftovers of an older series."""


class Watch:
    """Used by the one thread that takes the source's events."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._start: RunStart | None = None
        self._highest: int | None = None
        self._steps: deque[int] = deque(maxlen=_STEPS)
        self._refused = 0

    def start(self, run: RunStart) -> None:
        """A run begins."""
        self._start, self._highest = run, None
        self._steps.clear()

    def frame(self, number: int) -> None:
        """A frame came."""
        self._refused = 0
        self._alarms.clear("all_refused")
        if self._start is None:
            return
        highest, first = self._highest, self._start.first_index
        if highest is None:
            self._highest = number
            if first is not None and number > first:
                self._joined_late(self._start.run, number, first)
        elif number > highest:
            self._highest = number
            self._step(self._start.run, number, number - highest)
        if number == first:
            self._alarms.clear("joined_late")

    def refused(self, message: Rejected) -> None:
        """A message was refused."""
        self._refused += message.reason not in _ORDINARY
        if self._refused == _REFUSED:
            run = "" if self._start is None else self._start.run
            text = (
                f"{_REFUSED} messages were refused and no frame came between them, the last one "
                f"as {message.reason}: {message.detail}; if the parts of messages are sent one by "
                "one, another client may be taking every other part"
            )
            self._alarms.report("all_refused", run, text)

    def end(self, account: RunAccount) -> None:
        """The run is over; ``account`` says how."""
        self._start = None
        self._alarms.clear("joined_late")
        if account.reason == "lost":
            self._end_missing(account)
            return
        self._alarms.clear("end_missing")
        if account.reason == "completed":
            self._compare(account)

    def _joined_late(self, run: str, number: int, first: int) -> None:
        message = (
            f"the first frame that came is {number}, the run begins with {first}: quietbeam was "
            "connected too late, or another client took the first ones"
        )
        self._alarms.report("joined_late", run, message)

    def _step(self, run: str, number: int, step: int) -> None:
        self._steps.append(step)
        if step == 1 and not self._alarms.is_active("regular_gaps"):
            return
        counts = Counter(self._steps)
        [(stride, times)] = counts.most_common(1)
        if stride > 1 and times >= _ALIKE:
            self._regular_gaps(run, number, stride)
        elif counts[1] >= _WHOLE:
            self._alarms.clear("regular_gaps")

    def _regular_gaps(self, run: str, number: int, stride: int) -> None:
        if self._alarms.is_active("regular_gaps"):
            return
        message = (
            f"since about frame {number - _STEPS * stride} only one frame of {stride} comes: "
            f"probably {stride - 1} other client(s) pull from the detector's socket and take the "
            "rest; disconnect them, or let quietbeam read first and publish to them"
        )
        self._alarms.report("regular_gaps", run, message)

    def _end_missing(self, account: RunAccount) -> None:
        message = (
            f"the end of the run never came; its last frame was {account.numbers.highest}"
            if account.numbers.came
            else "the end of the run never came, nor did a frame of it"
        )
        self._alarms.report("end_missing", account.run, message)

    def _compare(self, account: RunAccount) -> None:
        sent, came = account.frames_sent, account.numbers.came
        told = account.frames_expected if sent is None else sent
        if told is None or told == came:
            self._alarms.clear("count_differs")
            return
        how = "announced" if sent is None else "says it sent"
        message = (
            f"the producer {how} {told} frames, {came} came; {account.numbers.missing} are "
            f"missing up to the last one, {account.numbers.highest}"
        )
        self._alarms.report("count_differs", account.run, message)
