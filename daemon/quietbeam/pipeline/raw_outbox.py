"""The raw ring as the queue of one output: no copy waits anywhere else, ingest never waits."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from quietbeam.core import records
from quietbeam.core.channel import Delivery
from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.ring import Record, RingReader

_POLL_S = 0.05


class RawOutbox:
    """Gives starts, raw frames and ends; what is passed over is counted under ``label``.

    ``newest`` passes over the oldest frames beyond ``delivery.frames``;
    ``lossless`` loses only what the ring overwrites.

    Attributes:
        lost: Frames lost for want of room; those passed over on purpose are not.
    """

    def __init__(self, ring: Path, label: str, delivery: Delivery, ledger: Ledger) -> None:
        self.lost = 0
        self._reader = RingReader(ring, label)
        self._runs = records.RunReader(self._reader)
        self._label, self._delivery, self._ledger = label, delivery, ledger
        self._items: deque[RunStart | RunEnd | Record] = deque()
        self._overrun = self._orphans = self._seen = 0
        self._closed_s: float | None = None
        self._run: str | None = None  # which what is lost is counted for

    @property
    def closed_for_s(self) -> float | None:
        """Time since it was closed, or None while it is open."""
        return None if self._closed_s is None else time.monotonic() - self._closed_s

    def close(self) -> None:
        """The ring is, or is about to be, closed; what it holds can still be read."""
        if self._closed_s is None:
            self._closed_s = time.monotonic()

    def __iter__(self) -> Iterator[RunStart | Frame | RunEnd]:
        while self._items or not self._reader.finished:
            self._pass_over()
            if not self._items:
                self._items.extend(self._runs.poll(_POLL_S))
            self._count_lost()
            while self._items:
                item = self._items.popleft()
                if not isinstance(item, Record):
                    self._run = item.run
                    yield item
                elif self._is_wanted():
                    frame = records.frame(item)
                    self._ledger.received(self._label, run=frame.run)
                    yield frame
                else:
                    self._drop("every_nth")

    def _pass_over(self) -> None:
        """Leave out the oldest frames that are too many, without copying them."""
        if self._delivery.policy == "lossless":
            return
        while self._reader.backlog > self._delivery.frames and self._reader.skip_frame():
            wanted = self._is_wanted()
            self._drop("superseded" if wanted else "every_nth")
            self.lost += wanted

    def _is_wanted(self) -> bool:
        """Count one more frame; tell whether it is an n-th one."""
        self._seen += 1
        return (self._seen - 1) % self._delivery.every_nth == 0

    def _count_lost(self) -> None:
        """Account for what the ring overwrote, and for frames of a run nobody announced."""
        overrun, orphans = self._reader.lost, self._runs.orphans
        self.lost += overrun - self._overrun + orphans - self._orphans
        self._drop("overrun", overrun - self._overrun)
        self._drop("no_start", orphans - self._orphans)
        self._overrun, self._orphans = overrun, orphans

    def _drop(self, reason: str, frames: int = 1) -> None:
        self._ledger.received(self._label, frames, run=self._run)
        self._ledger.dropped(self._label, reason, frames, run=self._run)
