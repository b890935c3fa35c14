"""Which frame numbers of a run came, in memory that does not grow with the run."""

from __future__ import annotations

from bisect import bisect_right

REMEMBERED_GAPS = 1000
"""Ranges of missing numbers that are kept, the newest; all of them are counted."""


class FrameNumbers:
    """Numbers seen, and the gaps between them.

    Args:
        first: The number a run begins with, where it is known: numbers below
            are taken as they come.  Else whatever comes first is the
            beginning, and numbers below move it.

    Attributes:
        highest: The highest number seen; -1 before any.
        lowest: The lowest number seen; None before any.
        came: How many different numbers were seen.
        late: How many of them came after a higher one.
    """

    def __init__(self, first: int | None = None) -> None:
        self.highest = -1
        self.lowest: int | None = None
        self.came = 0
        self.late = 0
        self._begin, self._fixed = first, first is not None
        self._below = 0
        self._gaps: list[range] = []  # sorted, apart, none empty

    @property
    def begin(self) -> int | None:
        """The number from which on missing ones are counted; None before any came."""
        return self._begin if self.came else None

    @property
    def missing(self) -> int:
        """How many numbers between the first and the highest never came."""
        if self.begin is None:
            return 0
        return max(self.highest - self.begin + 1 - (self.came - self._below), 0)

    @property
    def gaps(self) -> list[range]:
        """The numbers that never came, in order: the newest ``REMEMBERED_GAPS`` ranges."""
        return list(self._gaps)

    def add(self, number: int) -> bool:
        """Note ``number``; False if it was seen (or its gap is remembered no more)."""
        if self._begin is None:
            self._begin = number
        new = self._fill(number)
        self.came += new
        self.late += new and number < self.highest
        self.highest = max(self.highest, number)
        self.lowest = number if self.lowest is None else min(self.lowest, number)
        del self._gaps[:-REMEMBERED_GAPS]
        return new

    def _fill(self, number: int) -> bool:
        begin = self._begin or 0
        if number < begin and self._fixed:
            self._below += 1
            return True
        if number < begin:
            self._open(number + 1, begin)
            self._begin = number
            return True
        if number > self.highest:
            self._open(max(self.highest + 1, begin), number)
            return True
        at = bisect_right(self._gaps, number, key=lambda gap: gap.start) - 1
        if at < 0 or number not in self._gaps[at]:
            return False
        gap = self._gaps[at]
        rest = (range(gap.start, number), range(number + 1, gap.stop))
        self._gaps[at : at + 1] = [part for part in rest if part]
        return True

    def _open(self, start: int, stop: int) -> None:
        if start < stop:
            at = bisect_right(self._gaps, start, key=lambda gap: gap.start)
            self._gaps.insert(at, range(start, stop))
