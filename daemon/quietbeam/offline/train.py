"""Trains one network on one recording: what is learned is only ever measured data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quietbeam.core.denoiser import SelfCalibrating, StreamingDenoiser
from quietbeam.core.errors import EngineError
from quietbeam.model.torch_engine import as_module, weights_of
from quietbeam.offline.patches import TrainingSet

Float = NDArray[np.float32]

_LARGE = 1_000_000  # weights; from here on one patch a step and a smaller rate, as in the paper
_VALIDATIONS = 12
_MAX_BAD_STEPS = 10
_CALIBRATION_BATCHES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How long and how to train; None takes what suits the network's size.

    Attributes:
        minutes: Of wall time, without reading and judging.
        steps: Train exactly so long instead: the same seed gives the same weights.
        batch: Patches in a step.
        memory_bytes: For the frames learned from; a larger recording is sampled.
    """

    minutes: float = 2.0
    steps: int | None = None
    batch: int | None = None
    patch_px: int = 64
    learning_rate: float | None = None
    ema_decay: float = 0.995
    memory_bytes: int = 1 << 30
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What training came to.

    Attributes:
        best_step: The step whose mean weights were kept.
        losses: Loss on guard frames, one for each validation.
    """

    steps: int
    best_step: int
    seconds: float
    losses: tuple[float, ...]


def train(
    module: StreamingDenoiser,
    data: TrainingSet,
    recipe: Recipe,
    progress: Callable[[float], None] = lambda _share: None,
) -> Training:
    """Train ``module``; it is left with the best of its mean weights, in eval mode.

    Args:
        module: With fresh weights, or others to start from.
        data: What to learn from, and guards.
        recipe: How.
        progress: Told the share that is done, 0..1, after each step.

    Raises:
        EngineError: Training diverged: more steps without a finite loss than with one.
    """
    return _Trainer(module, data, recipe).run(progress)


class _Trainer:
    def __init__(self, module: StreamingDenoiser, data: TrainingSet, recipe: Recipe) -> None:
        self.module, self.network = module, as_module(module)
        self.data, self.recipe = data, recipe
        large = sum(p.numel() for p in self.network.parameters()) > _LARGE
        self.batch = recipe.batch or (1 if large else 8)
        self.rate = recipe.learning_rate or (5e-4 if large else 2e-3)
        self.past = max(0, module.window - 1 - module.lag)
        self.rng = np.random.default_rng([recipe.seed, 6])
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.optimizer = torch.optim.Adam(self.network.parameters(), betas=(0.9, 0.99))
        self.mean = {n: p.detach().clone() for n, p in self.network.named_parameters()}
        judged = 4 if large else 32
        draw = np.random.default_rng([recipe.seed, 7])
        self.guards = data.batch(judged, recipe.patch_px, self.past, module.lag, draw, guards=True)
        self.losses: list[float] = []
        self.best: tuple[float, int, dict[str, Float]] | None = None
        self.steps = self.bad = 0

    def run(self, progress: Callable[[float], None]) -> Training:
        began, judging = time.monotonic(), 0.0
        share = 0.0
        while share < 1:
            self._step(share)
            share = self._share(time.monotonic() - began - judging)
            if share >= (len(self.losses) + 1) / _VALIDATIONS:
                paused = time.monotonic()
                self._validate()
                judging += time.monotonic() - paused
            progress(min(share, 1.0))
        if self.best is None:
            self._validate()
        seconds = time.monotonic() - began
        _, best_step, weights = self.best or (0.0, self.steps, self._mean_weights())
        _load(self.network, weights)
        self.network.eval()
        if isinstance(self.module, SelfCalibrating):
            self.module.calibrate(self._batches(_CALIBRATION_BATCHES))
        return Training(
            steps=self.steps, best_step=best_step, seconds=seconds, losses=tuple(self.losses)
        )

    def _batches(self, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(count):
            clips = self.data.batch(
                self.batch, self.recipe.patch_px, self.past, self.module.lag, self.rng, guards=False
            )
            yield torch.from_numpy(clips[0]), torch.from_numpy(clips[1])

    def _share(self, seconds: float) -> float:
        if self.recipe.steps is not None:
            return (self.steps + self.bad) / max(1, self.recipe.steps)
        return seconds / max(1e-9, 60 * self.recipe.minutes)

    def _step(self, share: float) -> None:
        self.network.train()
        warm = min(1.0, (self.steps + 1) / 50)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
        ((clip, valid),) = self._batches(1)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.module.training_loss(clip, valid, self.generator)
        if torch.isfinite(loss):
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            if torch.isfinite(norm):
                self.optimizer.step()
                self._follow()
                return
        self.bad += 1
        if self.bad >= _MAX_BAD_STEPS + self.steps:
            raise EngineError(f"training diverged: {self.bad} steps without a finite loss")

    def _follow(self) -> None:
        decay = min(self.recipe.ema_decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                self.mean[name].lerp_(parameter, 1 - decay)
        self.steps += 1

    def _validate(self) -> None:
        """Judge the mean weights by the network's own loss on guards; keep them if best."""
        if not len(self.guards[0]):
            return
        current, candidate = weights_of(self.module), self._mean_weights()
        _load(self.network, candidate)
        self.network.eval()
        generator = torch.Generator().manual_seed(self.recipe.seed)
        with torch.no_grad():
            values, valid = map(torch.from_numpy, self.guards)
            parts = [
                float(self.module.training_loss(values[n : n + 8], valid[n : n + 8], generator))
                for n in range(0, len(values), 8)
            ]
        loss = float(np.mean(parts))
        self.losses.append(loss)
        if math.isfinite(loss) and (self.best is None or loss < self.best[0]):
            self.best = (loss, self.steps, candidate)
        _load(self.network, current)

    def _mean_weights(self) -> dict[str, Float]:
        return weights_of(self.module) | {n: p.numpy().copy() for n, p in self.mean.items()}


def _load(network: torch.nn.Module, weights: dict[str, Float]) -> None:
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(torch.from_numpy(weights[name]))


def use_threads(count: int) -> None:
    """Let this process compute with ``count`` threads."""
    torch.set_num_threads(count)
