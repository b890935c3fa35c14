"""Second stage, one thread: raw ring -> correct -> stabilise -> denoise -> estimates."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import structlog

from quietbeam.config import CalibrationConfig
from quietbeam.core import records
from quietbeam.core.engine import Engine
from quietbeam.core.errors import QuietbeamError
from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.planes import planes
from quietbeam.core.plugin import CorrectionPlugin
from quietbeam.core.ring import RingReader
from quietbeam.model.clean import Estimate, Preparation
from quietbeam.model.correct import Corrections, Float, Valid
from quietbeam.model.stabilise import NoiseModel, PhotonTransfer, Stabiliser
from quietbeam.pipeline.finish import Estimated, Finish
from quietbeam.pipeline.live import Model, Switch
from quietbeam.pipeline.shed import Shed

STAGE = "denoise"


class RunCleaner:
    """Everything that lives as long as one run.

    Args:
        run: What is cleaned.
        corrections: Settings of the corrections.
        calibration: Known noise, or how long to look.
        classical: The fallback's engine at this shape, and its name.
        calibrated: Told the noise model of every channel once they are known.
    """

    def __init__(
        self,
        run: RunStart,
        corrections: Sequence[CorrectionPlugin],
        calibration: CalibrationConfig,
        classical: tuple[Engine, str],
        calibrated: Callable[[RunStart, tuple[NoiseModel, ...]], None],
    ) -> None:
        self.run = run
        self._corrections = Corrections(run, corrections)
        self._calibration = calibration
        self._calibrated = calibrated
        self._transfers = [PhotonTransfer() for _ in run.planes()]
        self._held: list[tuple[Frame, Float, Valid]] = []  # until the noise is known
        self._prepare: Preparation | None = None
        self.switch = Switch(*classical)

    def close(self) -> None:
        """Give back what the corrections hold."""
        self._corrections.__exit__(None, None, None)

    def push(self, frame: Frame) -> list[tuple[Estimate, Model]]:
        """Take one raw frame; give the estimates now ready."""
        pixels, valid = self._corrections(frame.pixels)
        if self._prepare is None:
            self._held.append((frame, pixels, valid))
            for transfer, *plane in zip(
                self._transfers, planes(pixels), planes(valid), strict=True
            ):
                transfer.add(*plane)
            known = self._calibration.gain is not None
            return self._release() if known or self._enough() else []
        return self.switch.push(self._prepare.stabilise(frame, pixels, valid))

    def flush(self) -> list[tuple[Estimate, Model]]:
        """The run is over: give what is owed."""
        out = self._release() if self._prepare is None and self._held else []
        return out + self.switch.flush()

    @property
    def stabilisers(self) -> tuple[Stabiliser, ...]:
        """One for each channel of this run; known once there is an estimate."""
        assert self._prepare is not None  # noqa: S101
        return self._prepare.stabilisers

    def _enough(self) -> bool:
        return len(self._transfers[0]) >= self._calibration.frames

    def _release(self) -> list[tuple[Estimate, Model]]:
        """The noise is known: prepare what was held back."""
        known = self._known_noise()
        noise = tuple(known or transfer.fit() for transfer in self._transfers)
        self._prepare = Preparation(*map(Stabiliser, noise))
        self._calibrated(self.run, noise)
        held, self._held = self._held, []
        out = []
        for item in held:
            out += self.switch.push(self._prepare.stabilise(*item))
        return out

    def _known_noise(self) -> NoiseModel | None:
        known = self._calibration
        if known.gain is None:
            return None
        return NoiseModel(known.gain, known.offset_variance or 0.0)


_FRESH_STARTS = 3
"""In one run; cleaning that fails again after so many is left alone until the next one."""
_RECORDER_CALM = 0.5
"""Denoising that was given up for the recorder is taken up below this."""


class Denoise:
    """The thread.  It alone touches engines' live state; others leave it commands.

    Args:
        reader: Of the raw ring.
        ledger: Frames in, out and given up.
        start_run: Gives a ``RunCleaner`` for a run.
        finish: Takes the run's start and end, and every estimate.
        max_backlog: Frames that may wait before the oldest are given up.
        shed: Told how full that is.
        recorder_fill: Gives how far the slowest recorder of raw frames is behind;
            beyond 1 all waiting frames are given up, so that it can catch up.
    """

    def __init__(
        self,
        reader: RingReader,
        ledger: Ledger,
        start_run: Callable[[RunStart], RunCleaner],
        finish: Finish,
        max_backlog: int,
        shed: Shed,
        recorder_fill: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._recorder_fill, self._for_recorder = recorder_fill, False
        self._reader, self._runs = reader, records.RunReader(reader)
        self._ledger, self._start_run = ledger, start_run
        self._finish = finish
        self._max_backlog = max_backlog
        self._overload = shed
        self._commands: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._log = structlog.get_logger(stage=STAGE)
        self.cleaner: RunCleaner | None = None
        self.message: str | None = None
        self.paused = False
        """Frames are given up, and counted, without being cleaned."""
        self.heartbeat_ns = time.monotonic_ns()
        self.observe: Callable[[float], None] = lambda _seconds: None
        self._lost_seen = 0
        self._inside = 0  # frames of this run that the cleaner holds
        self._failures = 0

    def at_next_frame(self, action: Callable[[], None]) -> Future[None]:
        """Run ``action`` in this thread between two frames."""
        done: Future[None] = Future()
        self._commands.append((action, done))
        return done

    @property
    def backlog(self) -> int:
        """Records that wait."""
        return self._reader.backlog

    def restart(self) -> None:
        """Give out what is owed and start afresh on the same run; from this thread only."""
        if self.cleaner is None:
            return
        self._drain(self.cleaner)
        self.cleaner.close()
        self.cleaner = self._start_run(self.cleaner.run)

    def body(self) -> None:
        """The thread: until the ring is closed and read to its end."""
        try:
            while not self._reader.finished:
                self.heartbeat_ns = time.monotonic_ns()
                self._obey()
                self._shed()
                for item in self._runs.poll(0.05):
                    self._take(item)
        finally:
            if self.cleaner is not None:
                self._end(RunEnd(run=self.cleaner.run.run, reason="lost"))
            self._refuse_commands()
            self._finish.close()

    def _obey(self) -> None:
        while self._commands:
            action, done = self._commands.popleft()
            try:
                action()
            except Exception as error:  # noqa: BLE001 - belongs to who asked
                done.set_exception(error)
            else:
                done.set_result(None)

    def _refuse_commands(self) -> None:
        while self._commands:
            self._commands.popleft()[1].cancel()

    def _shed(self) -> None:
        """Give up waiting frames if there are too many, or the recorder needs the machine."""
        behind, backlog = self._recorder_fill(), self._reader.backlog
        self._overload.update(max(behind, backlog / self._max_backlog), time.monotonic())
        self._for_recorder = behind > (_RECORDER_CALM if self._for_recorder else 1.0)
        if self._for_recorder:
            self._pass_over("recorder_behind", 0)
        elif backlog > self._max_backlog:  # latency stays bounded
            self._pass_over("overload", self._max_backlog // 2)

    def _pass_over(self, reason: str, left: int) -> None:
        """Give up the oldest frames until so many records wait."""
        run = None if self.cleaner is None else self.cleaner.run.run
        while self._reader.backlog > left and self._reader.skip_frame():
            self._ledger.received(STAGE, run=run)
            self._ledger.dropped(STAGE, reason, run=run)

    def _take(self, item: Any) -> None:
        match item:
            case RunStart():
                self._begin(item)
            case RunEnd():
                self._end(item)
            case _:
                self._frame(records.frame(item))

    def _begin(self, run: RunStart) -> None:
        self._failures = self._inside = 0
        if self._fresh(run):
            self.message = None
            self._finish.put(run)

    def _fresh(self, run: RunStart) -> bool:
        """Make a cleaner; without one raw recording goes on."""
        try:
            self.cleaner = self._start_run(run)
        except Exception as error:  # noqa: BLE001 - plugins and engines are the code of others
            self.message = str(error) if isinstance(error, QuietbeamError) else repr(error)
            self._log.error("run_not_denoised", run=run.run, error=self.message)
            return False
        return True

    def _end(self, end: RunEnd) -> None:
        if self.cleaner is None:
            return
        try:
            self._drain(self.cleaner)
        except Exception as error:  # noqa: BLE001 - as above: what it held is counted
            self._give_up(error)
        self.cleaner.close()
        self.cleaner = None
        self._finish.put(end)

    def _failed(self, error: Exception) -> None:
        """Cleaning failed: what is inside is given up, and the run goes on with a fresh cleaner."""
        cleaner = self.cleaner
        assert cleaner is not None  # noqa: S101 - only a cleaner can fail
        self._give_up(error)
        self._failures += 1
        cleaner.close()
        self.cleaner = None
        if self._failures > _FRESH_STARTS or not self._fresh(cleaner.run):
            self._finish.put(RunEnd(run=cleaner.run.run, reason="lost"))

    def _give_up(self, error: Exception) -> None:
        assert self.cleaner is not None  # noqa: S101
        run, self.message = self.cleaner.run.run, repr(error)
        self._log.error("denoising_failed", run=run, frames=self._inside, error=self.message)
        self._ledger.dropped(STAGE, "failed", self._inside, run=run)
        self._inside = 0

    def _drain(self, cleaner: RunCleaner) -> None:
        self._hand_on(cleaner, cleaner.flush())

    def _hand_on(self, cleaner: RunCleaner, answers: list[tuple[Estimate, Model]]) -> None:
        self._inside -= len(answers)
        for estimate, model in answers:
            self._finish.put(Estimated(estimate, model, cleaner.stabilisers))

    def _frame(self, frame: Frame) -> None:
        self._count_overrun(frame.run)
        self._ledger.received(STAGE, run=frame.run)
        reason = self._why_not(frame)
        if self.cleaner is None or reason:
            self._ledger.dropped(STAGE, reason, run=frame.run)
            return
        began = time.perf_counter()
        self._inside += 1
        try:
            answers = self.cleaner.push(frame)
        except Exception as error:  # noqa: BLE001 - others' code; raw frames are recorded whatever it does
            self._failed(error)
            return
        self._hand_on(self.cleaner, answers)
        self.observe(time.perf_counter() - began)

    def _why_not(self, frame: Frame) -> str:
        """Give why a frame is not cleaned, or nothing."""
        if self.cleaner is None:
            return "no_run"
        if frame.pixels.shape != self.cleaner.run.shape:
            return "shape"
        return "paused" if self.paused else ""

    def _count_overrun(self, run: str) -> None:
        """Frames that were overwritten count for ``run``, in which it is noticed."""
        lost = self._reader.lost - self._lost_seen
        if lost:
            self._lost_seen += lost
            self._ledger.received(STAGE, lost, run=run)
            self._ledger.dropped(STAGE, "ring_overrun", lost, run=run)
