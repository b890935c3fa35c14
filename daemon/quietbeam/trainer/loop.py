"""The training loop: one step, a mean of the weights, and what to do when it goes wrong."""

from __future__ import annotations

import math

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import nn

from quietbeam.config import TrainerConfig
from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.engine import Weights
from quietbeam.model.torch_engine import as_module, check_weights, load_weights, weights_of

log = structlog.get_logger()

WARM_UP_STEPS = 50
DECAY_STEPS = 2000
FLOOR = 0.15  # of the first learning rate; kept for good, because the stream goes on changing
CLIP_NORM = 1.0
MAX_BAD_STEPS = 10


def learning_rate(step: int, first: float) -> float:
    """Linear warm-up, a half cosine down, then constant."""
    if step < WARM_UP_STEPS:
        return first * (step + 1) / WARM_UP_STEPS
    progress = min(1.0, (step - WARM_UP_STEPS) / DECAY_STEPS)
    return first * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)


def ema_decay(step: int, decay: float) -> float:
    """Short memory at first, so that the mean is not held back by the initial weights."""
    return min(decay, (1 + step) / (10 + step))


class Training:
    """One network being trained, and the exponential mean of its weights."""

    def __init__(self, module: StreamingDenoiser, config: TrainerConfig) -> None:
        self.module = module
        self.network = as_module(module)
        self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.steps = 0
        self.bad_steps = 0
        """Steps given up because loss or gradient was not finite."""
        self._config = config
        self._initial = self.weights()
        self._generator = torch.Generator().manual_seed(config.seed)
        self._bad_in_a_row = 0
        self._begin(self._initial)

    def step(self, clip: NDArray[np.float32], valid: NDArray[np.bool_]) -> float | None:
        """Learn from one batch, (n, t, h, w) each; give the loss, None if the step was skipped."""
        self.network.train()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.steps, self._config.learning_rate)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.module.training_loss(
            torch.from_numpy(clip), torch.from_numpy(valid), self._generator
        )
        value = float(loss.detach())
        if math.isfinite(value):
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
            if math.isfinite(float(norm)):
                self._optimizer.step()
                self._follow()
                return value
        self._skip()
        return None

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Copy of the weights as they are now."""
        return weights_of(self.module)

    def mean_weights(self) -> dict[str, NDArray[np.float32]]:
        """Copy of the exponential mean: the candidate."""
        return self.weights() | {name: t.numpy().copy() for name, t in self._mean.items()}

    def restore(self, weights: Weights, mean: Weights, steps: int) -> None:
        """Go on from a checkpoint; the optimizer's moments start afresh.

        Raises:
            EngineError: The weights do not fit, or are not finite; nothing is changed.
        """
        check_weights(mean, self._initial)
        self._begin(weights)
        self.steps = steps
        for name, tensor in self._mean.items():
            tensor.copy_(torch.from_numpy(mean[name]))

    @property
    def learning_rate(self) -> float:
        """Of the next step; it falls by a plan of its own as steps are done."""
        return learning_rate(self.steps, self._config.learning_rate)

    def reset(self) -> None:
        """Forget all that was learned."""
        self.steps = 0
        self._begin(self._initial)

    def _begin(self, weights: Weights) -> None:
        load_weights(self.module, weights)
        self._parameters = dict(self.network.named_parameters())
        self._mean = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._optimizer = torch.optim.Adam(
            self.network.parameters(), self._config.learning_rate, betas=(0.9, 0.99)
        )
        self._bad_in_a_row = 0

    def _follow(self) -> None:
        """The step was good: count it and move the mean."""
        share = 1 - ema_decay(self.steps, self._config.ema_decay)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._mean[name].lerp_(parameter, share)
        self.steps += 1
        self._bad_in_a_row = 0

    def _skip(self) -> None:
        self.bad_steps += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= MAX_BAD_STEPS:
            log.warning("training_restored", after_bad_steps=self._bad_in_a_row, steps=self.steps)
            self._begin(self.mean_weights())
