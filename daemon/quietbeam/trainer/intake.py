"""Reads the raw ring for the trainer, which may be slower than the detector.

When it falls behind it does not read ever older frames but passes over all
that waits, and then takes a stretch without a gap: training clips and guard
frames need neighbours in time more than they need every frame.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from quietbeam.core import records
from quietbeam.core.errors import QuietbeamError
from quietbeam.core.events import RunStart
from quietbeam.core.plugin import CorrectionPlugin
from quietbeam.core.ring import Record, RingReader
from quietbeam.model.correct import Corrections, fill_invalid
from quietbeam.trainer.history import GUARD_PERIOD

log = structlog.get_logger()

STRETCH = 3 * GUARD_PERIOD
"""Frames taken without a gap after some were passed over: at least two guard frames."""
_MAX_BACKLOG = 256


class Listener(Protocol):
    """What is done with what was read."""

    def start(self, run: RunStart) -> None:
        """A run begins."""
        ...

    def frame(
        self, run: str, index: int, pixels: NDArray[np.float32], valid: NDArray[np.bool_]
    ) -> None:
        """One corrected frame, (h, w) or (c, h, w) each, holes filled."""
        ...


class Intake:
    """The trainer's reader of the raw ring.

    Attributes:
        seen: Frames read.
        last_s: ``time.monotonic()`` of the last frame read.
    """

    def __init__(
        self, ring: Path, corrections: Sequence[CorrectionPlugin], listener: Listener
    ) -> None:
        self._runs = records.RunReader(RingReader(ring, "trainer"))
        self._ring_bytes = ring.stat().st_size
        self._plugins = corrections
        self._listener = listener
        self._stack = ExitStack()
        self._corrections: Corrections | None = None
        self._max_backlog = _MAX_BACKLOG
        self._owed = 0  # frames still to be read without a gap
        self.seen = 0
        self.skipped = 0
        """Frames passed over because training could not keep up."""
        self.last_s = time.monotonic()

    @property
    def finished(self) -> bool:
        """The daemon has closed the ring."""
        return self._runs.ring.finished

    def pump(self, budget_s: float, wait_s: float = 0.0) -> None:
        """Read what waits, for about ``budget_s``; wait up to ``wait_s`` for the first."""
        ring = self._runs.ring
        if self._owed <= 0 and ring.backlog > self._max_backlog:
            self._catch_up()
        deadline = time.monotonic() + budget_s
        timeout = wait_s
        while True:
            for item in self._runs.poll(timeout):
                if isinstance(item, Record):
                    self._take(item)
                elif isinstance(item, RunStart):
                    self._begin(item)
            timeout = 0.0
            if ring.backlog == 0 or (self._owed <= 0 and time.monotonic() > deadline):
                return

    def close(self) -> None:
        """Let go of the corrections."""
        self._stack.close()

    def _catch_up(self) -> None:
        ring = self._runs.ring
        before = self.skipped
        while ring.backlog > 0:
            if ring.skip_frame():
                self.skipped += 1
                continue
            for item in self._runs.poll(0.0):  # a start or an end, or something overwritten
                if isinstance(item, RunStart):
                    self._begin(item)
                elif isinstance(item, Record):
                    self._take(item)
        self._owed = STRETCH
        if before == 0 and self.skipped:
            log.info("trainer_skips_frames", reason="the detector is faster than training")

    def _begin(self, run: RunStart) -> None:
        self._stack.close()
        self._corrections = None
        frame_bytes = math.prod(run.shape) * run.dtype.itemsize
        self._max_backlog = max(4, min(_MAX_BACKLOG, self._ring_bytes // (2 * frame_bytes)))
        try:
            self._corrections = self._stack.enter_context(Corrections(run, self._plugins))
        except QuietbeamError as error:
            log.warning("run_not_trained_on", run=run.run, reason=str(error))
            return
        self._listener.start(run)

    def _take(self, record: Record) -> None:
        self.seen += 1
        self._owed -= 1
        self.last_s = time.monotonic()
        if self._corrections is None:
            return
        frame = records.frame(record)
        pixels, valid = self._corrections(frame.pixels)
        self._listener.frame(frame.run, frame.index, fill_invalid(pixels, valid), valid)


def stored_dtype(run: RunStart, corrections: Sequence[Any]) -> np.dtype[Any]:
    """What corrected frames are kept as: the detector's dtype where nothing changes them."""
    small = run.dtype.kind in "ui" and run.dtype.itemsize <= 2
    return run.dtype if small and not corrections else np.dtype(np.float32)
