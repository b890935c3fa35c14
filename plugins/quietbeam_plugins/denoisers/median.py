"""The temporal median of the frames before: crude, and proof against impulses."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from quietbeam import DenoiserPlugin
from quietbeam_plugins.denoisers._shared import UNKNOWN, Untrained, box_mean, smallest_first

_ABSENT = 1e30
"""Stands for frames not yet seen: sorts behind all others, and times 0 it is 0."""


class Median(DenoiserPlugin):
    """Causal, blind, no training."""

    frames: int = Field(default=7, ge=3, le=31)
    """How many earlier frames are looked at."""

    def build(self) -> MedianFilter:
        """Give the filter."""
        return MedianFilter(self.frames)


class MedianFilter(Untrained):
    """A ``StreamingDenoiser`` without weights."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.window = frames + 1

    def initial_state(self, n: int, h: int, w: int) -> tuple[Tensor, ...]:
        """Give the last k frames, oldest first, and how many there were (n, 1, 1, 1)."""
        past = (torch.full((n, 1, h, w), _ABSENT) for _ in range(self.frames))
        return *past, torch.zeros(n, 1, 1, 1)

    def forward(
        self, frame: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Predict frame i (n, 1, h, w) as the median of those before it."""
        *past, seen = state
        middle = _middle(past, seen)
        # |absent - middle| is again larger than any real deviation.
        spread = 1.4826 * _middle([(plane - middle).abs() for plane in past], seen)
        count = seen.clamp(min=1)
        # Seven values say little about a spread; a neighbourhood of them says enough.
        noise = box_mean(spread.clamp(max=1e4) ** 2, 2).clamp(min=1)
        variance = noise * (math.pi / 2) / count
        empty = seen < 0.5
        following = (*past[1:], frame, (seen + 1).clamp(max=self.frames))
        return (
            torch.where(empty, 0.0, middle),
            torch.where(empty, UNKNOWN, variance),
            following,
        )


def _middle(planes: list[Tensor], seen: Tensor) -> Tensor:
    """Median over the first ``seen`` (n, 1, 1, 1) smallest of ``planes``."""
    ordered = smallest_first(planes)
    position = (seen - 1) / 2
    below, above = torch.floor(position), torch.ceil(position)
    middle = torch.zeros_like(planes[0])
    for i, plane in enumerate(ordered):
        weight = 0.5 * ((below == i).to(plane.dtype) + (above == i).to(plane.dtype))
        middle = middle + torch.where(weight > 0, weight * plane, 0.0)
    return middle
