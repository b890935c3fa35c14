"""The classical fallback: one Kalman filter per pixel that learns how fast its pixel changes.

The model of a pixel is a random walk seen through unit noise, the noise of
stabilised units.  Kalman (1960) gives the update; the process noise is not
known beforehand and is steered until successive innovations are uncorrelated,
which is the mark of the right gain whatever the scene does (Mehra 1970).
"""

from __future__ import annotations

import math

import torch
from pydantic import PositiveFloat
from torch import Tensor

from quietbeam import DenoiserPlugin
from quietbeam_plugins.denoisers._shared import UNKNOWN, Untrained, box_mean

_LEAST = math.log(1e-6)
"""Process noise never sleeps so deeply that a change would not wake it."""

_FIRST = math.log(3e-3)


class Kalman(DenoiserPlugin):
    """Causal, blind, no training: what runs until a network is proven better."""

    gate: PositiveFloat = 4.0
    """Innovations beyond this many standard deviations are outliers unless they persist."""
    adaptation: PositiveFloat = 0.6
    """How fast the process noise follows; above 1 it overshoots and averages less."""

    def build(self) -> KalmanFilter:
        """Give the filter."""
        return KalmanFilter(self.gate, self.adaptation)


class KalmanFilter(Untrained):
    """A ``StreamingDenoiser`` without weights."""

    window = 2

    def __init__(self, gate: float, adaptation: float) -> None:
        super().__init__()
        self.gate = gate
        self.adaptation = adaptation

    def initial_state(self, n: int, h: int, w: int) -> tuple[Tensor, ...]:
        """Give seven tensors, all (n, 1, h, w) but the last, (n, 1, 1, 1).

        Estimate, its variance, log of the process noise, last innovation,
        run length of outliers (signed), noise factor, fraction of outliers.
        """
        zero = torch.zeros(n, 1, h, w)
        return (
            zero,
            torch.full_like(zero, UNKNOWN),
            torch.full_like(zero, _FIRST),
            zero.clone(),
            zero.clone(),
            torch.ones_like(zero),
            torch.zeros(n, 1, 1, 1),
        )

    def forward(
        self, frame: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Predict frame i (n, 1, h, w) from the frames before it, then learn from it."""
        estimate, after, log_process, last, run, noise, outliers = state
        variance = after + torch.exp(log_process)
        innovation = frame - estimate
        scaled = innovation / torch.sqrt(variance + 1)

        outlying = scaled.abs() > self.gate * torch.sqrt(noise)
        bounded = scaled.clamp(-3, 3)
        impulsive = outliers > 0.02
        changed = _together(bounded, scaled, torch.where(impulsive, 2.0, 1.3))
        run = torch.where(outlying, torch.where(run * scaled > 0, run, 0.0) + scaled.sign(), 0.0)
        # Among many impulses two of the same sign in a row are chance, five are a change.
        patience = torch.where(impulsive, 5.0, 2.0)
        ignored = outlying & ~changed & (run.abs() < patience)
        followed = changed | (outlying & ~ignored)

        # The first innovation is the level of the detector and says nothing about the scene.
        deaf = ignored | (variance > UNKNOWN / 2)
        # A change is as large as the innovation says, and so is our error.
        wide = torch.where(followed, torch.maximum(variance, innovation**2 - 1), variance)
        gain = torch.where(ignored, 0.0, wide / (wide + 1))
        heard = torch.where(deaf, 0.0, bounded)
        correlation = box_mean(heard * last, 3)
        square = box_mean(torch.where(deaf, noise, bounded**2), 3)
        alone = (outlying & ~changed).to(frame.dtype).mean((1, 2, 3), keepdim=True)
        following = (
            estimate + gain * innovation,
            torch.where(ignored, variance, gain).clamp(max=UNKNOWN),  # wide / (wide + 1) again
            (log_process + self.adaptation * correlation).clamp(_LEAST, 0.0),
            heard,
            run,
            noise + 0.03 * (square - noise),
            outliers + 0.05 * (alone - outliers),
        )
        return estimate, variance, following


def _together(bounded: Tensor, scaled: Tensor, least: Tensor) -> Tensor:
    """Tell where a whole neighbourhood moves the same way: a change, not impulses."""
    drift = box_mean(bounded, 2)
    return (drift.abs() > least) & (drift * scaled > 0)
