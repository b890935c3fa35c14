"""The trainer at work: reads, trains, judges, and says what it decided."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from quietbeam import __version__
from quietbeam.config import Config
from quietbeam.core.engine import Weights
from quietbeam.core.errors import EngineError, QuietbeamError
from quietbeam.core.events import RunStart
from quietbeam.model import checkpoint
from quietbeam.model.export import export
from quietbeam.model.stabilise import NoiseModel, Stabiliser
from quietbeam.trainer.contest import Contest
from quietbeam.trainer.gate import Decision, Rules, choose_fallback
from quietbeam.trainer.guard import GuardFrame
from quietbeam.trainer.intake import Intake, stored_dtype
from quietbeam.trainer.loop import Training
from quietbeam.trainer.memory import Memory
from quietbeam.trainer.scores import Scores
from quietbeam.trainer.versions import Saved, Versions

log = structlog.get_logger()

INTAKE_SHARE = 0.25
"""Part of the time that may go into reading frames."""
IDLE_S = 30.0
"""Without a new frame for so long, training pauses: it would only learn the same by heart."""
PROGRESS_S = 1.0
MIN_STEPS = 50
"""Before these a candidate is not worth judging."""
_WAIT_S = 0.05
_MAX_RUNS = 256

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the daemon keeps what the trainer needs."""

    raw_ring: Path
    checkpoints: Path
    cache: Path


class Session:
    """Everything of one trainer process, driven by ``tick``.  Used by one thread."""

    def __init__(self, config: Config, places: Places, emit: Emit) -> None:
        """Build the denoisers, take up where training stood, and say "ready".

        Raises:
            QuietbeamError: The configured denoiser cannot be trained at all.
        """
        self._config, self._emit = config, emit
        torch.manual_seed(config.trainer.seed)
        module = config.denoiser.plugin.build()
        classical = {named.name: named.plugin.build() for named in config.classical}
        self._contest = Contest(module, classical, config.fallback.name)
        self._training = Training(module, config.trainer) if module.trainable else None
        self._versions = Versions(places.checkpoints, config.denoiser.name)
        self._data: Memory | None = None
        self._stabilisers: dict[str, tuple[Stabiliser, ...]] = {}
        self._impulsive = False
        self._run = ""
        self._frozen = False
        self._prior = bool(getattr(module, "pretrained", False))
        self._ready_made = self._resume() or self._prior
        self._judged = 0  # serial of the newest guard frame that was decided on
        self._compared = 0  # and of the newest that classical denoisers were compared on
        self._round_s = -math.inf  # the first round as soon as there is something to judge
        self._loss = self._validation_loss = math.nan
        self._progress = _Pace()
        onnx = _exported(module, places.cache)
        # attached last: nothing piles up in the ring during the seconds an export takes
        self._intake = Intake(places.raw_ring, [c.plugin for c in config.corrections], self)
        emit({"type": "ready", "onnx": onnx})

    # commands

    def calibrate(self, run: str, *noise: NoiseModel) -> None:
        """The noise of every channel of a run is known: it may be trained on."""
        self._stabilisers[run] = tuple(map(Stabiliser, noise))
        for old in list(self._stabilisers)[:-_MAX_RUNS]:
            del self._stabilisers[old]  # clips of that run are used no more
        self._impulsive = any(one.impulsive for one in noise)

    def set_live(self, version: int, fallback: str | None = None) -> None:
        """What runs now; 0 is the classical denoiser.

        Args:
            version: Of the network in use.
            fallback: The classical denoiser in use; None if that has not changed.
        """
        if fallback is not None and fallback in self._contest.classical:
            self._contest.fallback = fallback
        self._versions.seen(version)
        self._contest.live_version = 0
        if version == 0:
            return
        try:
            self._contest.set_live(version, self._versions.load(version))
        except QuietbeamError as error:
            log.warning("live_version_unreadable", version=version, reason=str(error))

    def freeze(self, *, frozen: bool) -> None:
        """Stop training (what runs is still watched), or go on."""
        self._frozen = frozen
        self._round_s = time.monotonic()

    def reset(self) -> None:
        """Train again from the first weights; what runs is left alone."""
        if self._training is not None:
            self._training.reset()
            self._versions.drop_training()
        self._ready_made = self._prior

    def save(self) -> None:
        """Write where training stands."""
        training = self._training
        if training is None or training.steps == 0:
            return
        saved = Saved(training.weights(), training.mean_weights(), training.steps)
        try:
            path = self._versions.keep_training(saved, self._provenance())
        except EngineError as error:  # a full disk must not end training
            log.warning("training_not_saved", reason=str(error))
            return
        self._emit({"type": "saved", "checkpoint": str(path), "steps": training.steps})

    def close(self) -> None:
        """Save and let go."""
        self.save()
        self._intake.close()

    # listener of the intake

    def start(self, run: RunStart) -> None:
        """A run begins: memory is kept if the frame shape is the same."""
        self._run = run.run
        if self._data is None or self._data.shape != run.shape:
            self._data = Memory(
                run.shape,
                self._config.trainer,
                self._contest.candidate,
                max(denoiser.lag for denoiser in self._contest.classical.values()),
                self._stabilisers,
            )
        self._data.history.start(stored_dtype(run, self._config.corrections))

    def frame(
        self, run: str, index: int, pixels: NDArray[np.float32], valid: NDArray[np.bool_]
    ) -> None:
        """One corrected frame."""
        if self._data is not None:
            self._data.append(run, index, pixels, valid)

    # work

    def tick(self) -> None:
        """Do a little of everything: at most one training step or one round of the gate."""
        ready = self._ready()
        self._intake.pump(INTAKE_SHARE * self._progress.step_s, 0.0 if ready else _WAIT_S)
        if ready:
            self._step()
        now = time.monotonic()
        if now - self._round_s >= self._config.trainer.candidate_every_s:
            self._round()
        if self._progress.due(now, PROGRESS_S):
            self._report(now)

    @property
    def finished(self) -> bool:
        """The daemon has closed the ring: nothing more will come."""
        return self._intake.finished

    def _ready(self) -> bool:
        if self._frozen or self._training is None or self._data is None:
            return False
        return time.monotonic() - self._intake.last_s < IDLE_S

    def _step(self) -> None:
        assert self._data is not None and self._training is not None  # noqa: S101, PT018
        batch = self._data.sampler.draw()
        if batch is None:
            self._intake.pump(0.0, _WAIT_S)
            return
        started = time.monotonic()
        loss = self._training.step(*batch)
        self._progress.stepped(time.monotonic() - started)
        if loss is not None:
            self._loss = loss if math.isnan(self._loss) else 0.98 * self._loss + 0.02 * loss

    def _round(self) -> None:
        """Judge the candidate, unless there is nothing new to judge it on."""
        data, training = self._data, self._training
        if data is None or training is None:
            return
        frames = self._calibrated(list(data.guards.recent))
        if len(frames) < Rules().min_frames:
            return
        early = training.steps < MIN_STEPS and not self._ready_made
        nothing_to_judge = early and not self._contest.live_version
        done = self._compared if nothing_to_judge else self._judged
        if frames[-1].serial == done:
            return
        classical = self._compare_classical(data, frames)
        self._round_s = time.monotonic()
        if nothing_to_judge:
            return
        idle = self._frozen or early
        contest = self._contest
        weights = None if idle else contest.with_variances(data, training.mean_weights())
        older = self._calibrated(data.guards.older)
        decision = contest.decide(
            data, frames, older, classical, weights, impulsive=self._impulsive
        )
        if decision is None:
            return
        self._judged = frames[-1].serial
        self._validation_loss = decision.loss_candidate
        self._announce(decision, weights)
        if not self._frozen:
            self.save()

    def _compare_classical(self, data: Memory, frames: list[GuardFrame]) -> dict[str, Scores]:
        """Score every classical denoiser; say so where another one should run."""
        classical = self._contest.score_classical(data, frames)
        if frames[-1].serial != self._compared:
            self._compared = frames[-1].serial
            fallback = self._contest.fallback
            choice = choose_fallback(classical, fallback, impulsive=self._impulsive)
            if choice is not None:
                self._tell(choice, self._contest.live_version)
        return classical

    def _announce(self, decision: Decision, weights: Weights | None) -> None:
        """Keep the weights of a promotion, and tell the daemon."""
        version, path, digest = self._versions.next, None, None
        if decision.action == "promote" and weights is not None:
            gate = {f"gate.{key}": str(value) for key, value in _numbers(decision).items()}
            try:
                path = self._versions.promote(
                    weights, self._provenance() | gate, in_use=self._contest.live_version
                )
                digest = checkpoint.sha256(path)
            except EngineError as error:
                decision = replace(decision, action="reject", reason=str(error))
        elif decision.action == "demote":
            version = 0
        self._tell(decision, version, path, digest)

    def _tell(
        self,
        decision: Decision,
        version: int,
        path: Path | None = None,
        digest: str | None = None,
    ) -> None:
        """Send one decision to the daemon, which acts on it."""
        network = self._config.denoiser.name
        event = _numbers(decision) | {
            "type": "decision",
            "version": version,
            "checkpoint": None if path is None else str(path),
            "sha256": digest,
            "denoiser": decision.classical if decision.action == "fallback" else network,
            "live": self._contest.live_version,
            "fallback": self._contest.fallback,
        }
        log.info("gate_decision", **{key: value for key, value in event.items() if key != "type"})
        self._emit(event)
        if decision.action in {"fallback", "demote"}:
            self._contest.fallback = decision.classical  # unless the daemon says otherwise

    def _calibrated(self, frames: list[GuardFrame]) -> list[GuardFrame]:
        return [frame for frame in frames if frame.run in self._stabilisers]

    def _provenance(self) -> dict[str, str]:
        return {
            "denoiser": self._config.denoiser.name,
            "quietbeam": __version__,
            "config_sha256": self._config.sha256,
            "run": self._run,
            "steps": str(0 if self._training is None else self._training.steps),
            "frames_seen": str(self._intake.seen),
            "parent_version": str(self._contest.live_version),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _resume(self) -> bool:
        """Go on from the newest checkpoint that is whole and fits; the gate decides on its use."""
        if self._training is None:
            return False
        for saved in self._versions.resume():
            try:
                self._training.restore(saved.weights, saved.mean, saved.steps)
            except EngineError as error:
                log.warning("checkpoint_does_not_fit", reason=str(error))
                continue
            log.info("training_resumed", steps=saved.steps)
            return True
        return False

    def _report(self, now: float) -> None:
        training = self._training
        self._emit(
            {
                "type": "progress",
                "steps": 0 if training is None else training.steps,
                "steps_per_s": round(self._progress.rate(now), 2),
                "learning_rate": None if training is None else training.learning_rate,
                "loss": _number(self._loss),
                "validation_loss": _number(self._validation_loss),
                "frames_seen": self._intake.seen,
                "frames_skipped": self._intake.skipped,
                "bad_steps": 0 if training is None else training.bad_steps,
                "frozen": self._frozen,
            }
        )


class _Pace:
    """How long a step takes, and how many are done in a second."""

    def __init__(self) -> None:
        self.step_s = 0.02
        self._count = 0
        self._since = time.monotonic()

    def stepped(self, duration_s: float) -> None:
        self._count += 1
        self.step_s += 0.1 * (duration_s - self.step_s)

    def due(self, now: float, every_s: float) -> bool:
        return now - self._since >= every_s

    def rate(self, now: float) -> float:
        """Steps per second since the last call."""
        rate = self._count / max(now - self._since, 1e-9)
        self._count, self._since = 0, now
        return rate


def _exported(module: Any, cache: Path) -> str | None:
    try:
        return str(export(module, cache))
    except EngineError as error:
        log.warning("denoiser_not_exported", reason=str(error))
        return None


def _numbers(decision: Decision) -> dict[str, Any]:
    """All that a decision says, as JSON has it."""
    return {
        key: value if isinstance(value, str) else _number(value)
        for key, value in asdict(decision).items()
    }


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None
