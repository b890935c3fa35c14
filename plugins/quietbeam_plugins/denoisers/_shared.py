"""What several denoisers share: filters without weights, blind judging, means, medians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from quietbeam import EngineError


class Untrained(nn.Module):
    """The half of a ``StreamingDenoiser`` that all filters without weights have in common.

    They are causal, of lag 0 and blind: frame i is predicted from those before it.
    """

    lag = 0
    blind = True
    trainable = False

    def training_loss(self, clip: Tensor, valid: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        """Raise EngineError: there is nothing to train."""
        raise EngineError(f"{type(self).__name__} has no weights to train; it works as it is")

    def blind_estimate(self, frames: Tensor) -> Tensor:
        """Predict each frame of (t, h, w) from those before it; the first from those after."""
        return predict_causally(self, frames)


def box_mean(image: Tensor, radius: int) -> Tensor:
    """Mean over a (2·radius + 1)² box, over the pixels inside only at the edges.

    Args:
        image: (n, c, h, w).
        radius: In pixels.
    """
    size = 2 * radius + 1
    rows = F.avg_pool2d(image, (1, size), 1, (0, radius), count_include_pad=False)
    return F.avg_pool2d(rows, (size, 1), 1, (radius, 0), count_include_pad=False)


def smallest_first(planes: Sequence[Tensor]) -> list[Tensor]:
    """Sort tensors of one shape element by element.

    A network of min and max: every engine runs it fast, which is not so of sort.
    """
    ordered = list(planes)
    for turn in range(len(ordered)):  # odd-even transposition sort
        for i in range(turn % 2, len(ordered) - 1, 2):
            low, high = ordered[i], ordered[i + 1]
            ordered[i], ordered[i + 1] = torch.minimum(low, high), torch.maximum(low, high)
    return ordered


@torch.no_grad()
def predict_causally(denoiser: Any, frames: Tensor) -> Tensor:
    """Blind estimates by a denoiser of lag 0 whose estimate uses earlier frames only.

    The first frame has none before it: it is predicted from those after it,
    in reverse.

    Args:
        denoiser: Blind, lag 0.
        frames: (t, h, w).

    Returns:
        (t, h, w).
    """
    estimates = torch.empty_like(frames)
    t, h, w = frames.shape
    state = denoiser.initial_state(1, h, w)
    for i in range(t):
        mean, _, state = denoiser(frames[i][None, None], state)
        estimates[i] = mean[0, 0]
    state = denoiser.initial_state(1, h, w)
    for i in range(min(t - 1, 32), 0, -1):
        _, _, state = denoiser(frames[i][None, None], state)
    estimates[0] = denoiser(frames[0][None, None], state)[0][0, 0]
    return estimates


def neighbours(i: int, t: int, reach: int) -> list[int]:
    """Indices of the window around frame i of t, mirrored at the ends, never i but in the centre.

    Plain mirroring would show frame 1 to itself (index -1 is 1 again).
    """
    indices = []
    for j in range(i - reach, i + reach + 1):
        k = j if 0 <= j < t else (-j if j < 0 else 2 * (t - 1) - j)
        k = min(max(k, 0), t - 1)
        if k == i and j != i and t > 1:
            k = i - 1 if j > i else i + 1
            k = k if 0 <= k < t else (i + 1 if k < 0 else i - 1)
        indices.append(k)
    return indices
