"""Trains the prior weights of a network on imagined scenes, where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.errors import EngineError
from quietbeam.model.torch_engine import as_module, weights_of

Float = NDArray[np.float32]

_SCENE_PX = 96
_PATCH_PX = 64
_LIBRARY = 240
"""Scenes; every step cuts, turns and exposes eight of them anew."""
_BATCH = 8
_RATE = 2e-3
_DECAY = 0.999

Imagine = Callable[[np.random.Generator, int, int], Float]
Expose = Callable[[np.random.Generator, Float], tuple[Float, Float]]


@runtime_checkable
class Pretrainable(StreamingDenoiser, Protocol):
    """A denoiser that can learn from a truth."""

    def supervised_loss(self, clip: Tensor, truth: Tensor, generator: Generator) -> Tensor:
        """Loss of the estimate of frame -1 - lag of (n, t, h, w) against truth (n, h, w)."""
        ...


def pretrain(
    build: Callable[[], StreamingDenoiser],
    imagine: Imagine,
    expose: Expose,
    *,
    steps: int,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[str, float], None] = lambda _what, _share: None,
) -> dict[str, Float]:
    """Train a new network; the same seed gives the same weights.

    Args:
        build: Gives the network, with fresh weights.
        imagine: Gives a scene (t, h, w) with values 0..1.
        expose: Gives (noisy, truth) of a scene, stabilised units.
        steps: Of eight patches each.
        seed: Of first weights, scenes, noise and order.
        threads: To compute with.
        progress: Told what is done and the share of it.

    Returns:
        The exponential mean of the weights, float32 by name.

    Raises:
        EngineError: Training diverged.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    module = build()
    if not isinstance(module, Pretrainable):
        raise EngineError(f"{type(module).__name__} has no supervised loss to pretrain it with")
    rng, generator = np.random.default_rng([seed, 8]), Generator().manual_seed(seed)
    library = []
    for number in range(_LIBRARY):
        library.append(imagine(rng, module.window, _SCENE_PX).astype(np.float16))
        progress("imagining scenes", (number + 1) / _LIBRARY)
    network = as_module(module)
    mean = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), _RATE, betas=(0.9, 0.99))
    network.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps)
        clip, truth = _batch(rng, library, module.lag, expose)
        optimizer.zero_grad(set_to_none=True)
        loss = module.supervised_loss(clip, truth, generator)
        if not torch.isfinite(loss):
            raise EngineError(f"pretraining diverged at step {step}")
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            share = 1 - min(_DECAY, (1 + step) / (10 + step))
            for name, parameter in network.named_parameters():
                mean[name].lerp_(parameter, share)
        progress("training", (step + 1) / steps)
    network.eval()
    return {**weights_of(module), **{name: tensor.numpy().copy() for name, tensor in mean.items()}}


def _batch(
    rng: np.random.Generator, library: list[NDArray[np.float16]], lag: int, expose: Expose
) -> tuple[Tensor, Tensor]:
    clips, truths = [], []
    for _ in range(_BATCH):
        noisy, truth = expose(rng, _patch(rng, library[int(rng.integers(len(library)))]))
        clips.append(noisy)
        truths.append(truth[-1 - lag])
    return torch.from_numpy(np.stack(clips)), torch.from_numpy(np.stack(truths))


def _patch(rng: np.random.Generator, scene: NDArray[np.float16]) -> Float:
    """A random part, turned, mirrored, and forwards or backwards in time."""
    top, left = rng.integers(0, _SCENE_PX - _PATCH_PX + 1, 2)
    patch = scene[:, top : top + _PATCH_PX, left : left + _PATCH_PX]
    rows, columns, turn, back, negative = rng.integers(0, 2, 5)
    patch = patch[:, :: 1 - 2 * rows, :: 1 - 2 * columns][:: 1 - 2 * back]
    patch = patch.transpose(0, 2, 1) if turn else patch
    patch = patch.astype(np.float32)
    return 1 - patch if negative else patch


def _learning_rate(step: int, steps: int) -> float:
    """A short warm-up, then half a cosine down to nothing."""
    return _RATE * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * step / steps)) / 2
