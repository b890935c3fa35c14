"""Trains what was asked for and decides, on guards, what a recording is cleaned with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.errors import DataError, EngineError
from quietbeam.core.plugin import DenoiserPlugin
from quietbeam.model.torch_engine import as_module, weights_of
from quietbeam.offline.calibrated import CalibratedSeries
from quietbeam.offline.judge import Judge, Verdict, judge_frames
from quietbeam.offline.patches import TrainingSet
from quietbeam.offline.train import Recipe, Training, train
from quietbeam.offline.two_way import both_ways, can_go_both_ways, middle
from quietbeam.registry import find

log = structlog.get_logger()

Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is done, 0..1."""

_SMALL_NETWORK = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """What a recording is cleaned with, and why.

    Attributes:
        module: None gives the corrected frames as they are.
        version: 0 for a classical denoiser or none, 1 for a trained network.
        reason: For people.
        verdict: Of what was chosen; None where nothing could be judged.
        gain: How much smaller its estimated error is than that of the best
            other one, in units of the noise variance, with standard error.
        training: None where nothing was trained.
        weights_sha256: Over names, shapes and values; "" without a network.
        two_way: Time runs backwards as well, and all is put together (``two_way``).
        one_way: The verdict without that, as a stream would have it; ``gain`` refers to it.
    """

    name: str
    module: StreamingDenoiser | None
    version: int
    reason: str
    verdict: Verdict | None = None
    gain: float = float("nan")
    gain_error: float = float("nan")
    training: Training | None = None
    weights_sha256: str = ""
    two_way: bool = False
    one_way: Verdict | None = None

    @property
    def unknown_variance(self) -> float:
        """Variance, stabilised units, where the denoiser does not tell its own."""
        if self.verdict is None or not np.isfinite(self.verdict.blind_mse).any():
            return 0.0
        return max(float(np.nanmean(self.verdict.blind_mse)), 1e-4)


def build(denoiser: str | DenoiserPlugin) -> tuple[str, StreamingDenoiser]:
    """Give (name, fresh module) of a denoiser named or given with its settings.

    Raises:
        ConfigError: There is none of that name.
    """
    if isinstance(denoiser, DenoiserPlugin):
        return type(denoiser).__name__.lower(), denoiser.build()
    plugin: type[Any] = find("denoisers", denoiser, DenoiserPlugin)
    return denoiser, plugin().build()


def choose(
    recording: CalibratedSeries,
    denoiser: str | DenoiserPlugin,
    recipe: Recipe,
    fallback: Sequence[str],
    progress: Progress,
) -> Choice:
    """Train ``denoiser`` on ``recording`` and keep it only if it is better than ``fallback``.

    Args:
        recording: Calibrated.
        denoiser: Name of a plugin, or a plugin with its settings.
        recipe: Of the training.
        fallback: Names of classical denoisers; the best of them is used where
            the network is not better.  None: the network is always used.
        progress: Told how far it is.

    Raises:
        ConfigError: There is no such denoiser.
        DataError: The denoiser cannot work on such a recording at all.
        EngineError: Training diverged and there is no fallback.
    """
    import torch

    torch.manual_seed(recipe.seed)  # fresh weights are drawn from the global generator
    name, module = build(denoiser)
    if recording.noiseless:
        return Choice(name="none", module=None, version=0, reason="no noise was found")
    _check(recording, name, module)
    return _Chooser(recording, name, module, recipe, fallback, progress).choose()


def _check(recording: CalibratedSeries, name: str, module: StreamingDenoiser) -> None:
    if recording.images and (module.lag or module.window > 1 or module.blind):
        raise DataError(
            f"{recording.run.run}: {name} needs a video, and these are single images; "
            "use the denoiser n2v"
        )


class _Chooser:
    def __init__(
        self,
        recording: CalibratedSeries,
        name: str,
        module: StreamingDenoiser,
        recipe: Recipe,
        fallback: Sequence[str],
        progress: Progress,
    ) -> None:
        self.recording, self.name, self.module = recording, name, module
        self.recipe, self.progress = recipe, progress
        self.data = TrainingSet(recording, recipe.memory_bytes, recipe.seed)
        small = sum(p.numel() for p in as_module(module).parameters()) < _SMALL_NETWORK
        self.judge = Judge(
            self.data,
            recording.stabiliser,
            count=24 if small else 8,
            side=96 if small else 64,
            seed=recipe.seed,
        )
        self.fallback = [] if recording.images else [n for n in fallback if n != name]

    def choose(self) -> Choice:
        """Train, judge, decide."""
        if not self.module.trainable:
            return self._classical(self.name, self.module, "asked for")
        need = self.module.lag * 2 + 1
        if self.fallback and len(self.recording) < need:
            return self._best_classical(
                f"{len(self.recording)} frames are fewer than the {need} that {self.name} looks at"
            )
        try:
            training = train(
                self.module,
                self.data,
                self.recipe,
                lambda share: self.progress(f"training {self.name}", share),
            )
        except EngineError as error:
            if not self.fallback:
                raise
            return self._best_classical(str(error))
        return self._decide(training)

    def _decide(self, training: Training) -> Choice:
        verdict = self.judge(self.module)
        other = self._best_classical("") if self.fallback else None
        gain, gain_error = float("nan"), float("nan")
        reason = "nothing to compare with"
        if other is not None and other.verdict is not None:
            gain, gain_error = verdict.gain_over(other.verdict)
            reason = f"better than {other.name} on frames it never learned from"
        elif self.recording.images:
            gain, gain_error = verdict.gain_over(None)
            reason = "better than the raw images on tiles it never learned from"
        if gain <= 0:
            return self._refuse(training, other, gain, gain_error)
        weights = weights_of(self.module)
        digest = hashlib.sha256()
        for key, array in sorted(weights.items()):
            digest.update(f"{key}{array.shape}".encode() + array.tobytes())
        two_way = can_go_both_ways(self.module, self.recording)
        return Choice(
            name=self.name,
            module=self.module,
            version=1,
            reason=reason,
            verdict=self._judge_both_ways() if two_way else verdict,
            gain=gain,
            gain_error=gain_error,
            training=training,
            weights_sha256=digest.hexdigest(),
            two_way=two_way,
            one_way=verdict,
        )

    def _judge_both_ways(self) -> Verdict:
        """Judge the frames around the middle; patches have too short a past and future."""
        frames = middle(self.recording)
        answers = both_ways(self.module, self.recording, frames)
        return judge_frames(answers, self.recording.stabiliser)

    def _refuse(
        self, training: Training, other: Choice | None, gain: float, gain_error: float
    ) -> Choice:
        log.warning("network_not_better", denoiser=self.name, gain=round(gain, 4))
        reason = f"{self.name} was not better on guards after {training.steps} steps"
        return Choice(
            name=other.name if other else "none",
            module=other.module if other else None,
            version=0,
            reason=reason,
            verdict=other.verdict if other else None,
            gain=-gain,
            gain_error=gain_error,
            training=training,
        )

    def _best_classical(self, reason: str) -> Choice:
        choices = [self._classical(*build(name), reason) for name in self.fallback]
        return min(choices, key=_risk)

    def _classical(self, name: str, module: StreamingDenoiser, reason: str) -> Choice:
        as_module(module).eval()
        verdict = self.judge(module) if self.judge.places else None
        return Choice(name=name, module=module, version=0, reason=reason, verdict=verdict)


def _risk(choice: Choice) -> float:
    if choice.verdict is None or not np.isfinite(choice.verdict.risk).any():
        return float("inf")
    return float(np.nanmean(choice.verdict.risk))
