"""What several denoisers share: filters without weights, blind judging, means, medians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from quietbeam import EngineError

UNKNOWN = 1e12
"""Variance of an estimate before the first frame: whatever comes is believed, at any level."""


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
    """Mean over a (2·radius + 1)² box; the edges are repeated.

    Args:
        image: (n, c, h, w).
        radius: In pixels.
    """
    size = 2 * radius + 1
    padded = F.pad(image, (radius, radius, radius, radius), mode="replicate")
    return _sliding_sum(_sliding_sum(padded, size, 3), size, 2) / size**2


def _sliding_sum(x: Tensor, size: int, axis: int) -> Tensor:
    """Sum of ``size`` neighbours along ``axis``, which becomes that much shorter.

    By doubling: sums of 1, 2, 4, ... neighbours, and from them ``size`` as a
    binary number.  Several times as fast as pooling, in torch and OpenVINO.
    """
    length = x.shape[axis] - size + 1
    total, start, width = None, 0, 1
    while width <= size:
        if size & width:
            part = x.narrow(axis, start, length)
            total = part if total is None else total + part
            start += width
        width *= 2
        half = width // 2
        if width <= size:
            rest = x.shape[axis] - half
            x = x.narrow(axis, 0, rest) + x.narrow(axis, half, rest)
    assert total is not None  # noqa: S101 - size is at least 1; for the type checker
    return total


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


def blind_windows(t: int, reach: int) -> list[list[int]]:
    """Give, for each of t frames, the 2·reach + 1 indices around it, mirrored at the ends.

    No frame stands in its own window but in the middle.  Plain mirroring would
    show frame 1 to itself, because -1 is 1 again.
    """
    windows = []
    for i in range(t):
        window = []
        for j in range(i - reach, i + reach + 1):
            k = abs(j) if j < t else 2 * (t - 1) - j
            k = min(max(k, 0), t - 1)
            if k == i and j != i:
                k = i + 1 if i + 1 < t else max(i - 1, 0)
            window.append(k)
        windows.append(window)
    return windows


def local_mean(frames: Tensor) -> Tensor:
    """Smooth low-resolution level of each frame: means of 16 x 16 blocks, interpolated.

    Args:
        frames: (n, 1, h, w); h and w at least 16.

    Returns:
        (n, 1, h, w).  One pixel weighs 1/256 at most, so it carries next to no noise.
    """
    h, w = frames.shape[-2:]
    blocks = F.avg_pool2d(frames, 16)
    return F.interpolate(blocks, size=(h, w), mode="bilinear", align_corners=False)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``values`` where ``valid``; 0 where nothing is."""
    use = valid.to(values.dtype)
    return (values * use).sum() / use.sum().clamp(min=1)


def is_impulsive(clip: Tensor) -> bool:
    """Tell whether single pixels stand out of all their neighbours: impulses, not edges.

    More than 0.5 % of the pixels of the middle frame lie beyond four robust
    standard deviations from the median of the eight pixels around them; for
    Gaussian noise it would be 0.006 %.

    Args:
        clip: (n, t, h, w).
    """
    with torch.no_grad():
        frame = clip[:, clip.shape[1] // 2]
        h, w = frame.shape[-2] - 2, frame.shape[-1] - 2
        around = [
            frame[:, dy : dy + h, dx : dx + w]
            for dy in range(3)
            for dx in range(3)
            if (dy, dx) != (1, 1)
        ]
        ordered = smallest_first(around)
        apart = (frame[:, 1:-1, 1:-1] - (ordered[3] + ordered[4]) / 2).abs()
        limit = 4 * apart.median() / 0.6745
        return bool((apart > limit).to(frame.dtype).mean() > 0.005)
