"""``umvd``: the unsupervised video denoiser of Aiyetigbo et al. (2024), from its description.

A frame is predicted from the k frames before and the k after it.  Three small
convolutions make 21 feature maps of every frame; a fixed temporal filter gives
the frame itself the weight zero; all 7 x 21 maps go, at full resolution,
through a U-Net.  No layer has a bias, so a scaled input gives a scaled output.

Two things here are not in the paper.  Features of a frame are computed once
and kept, so that frames can stream.  And every frame has its own local mean
taken off and the neighbours' local mean put back, because a network without
biases has no way to carry a level of hundreds of noise units to the precision
of one.  Neither lets a pixel of a frame near the estimate of that frame.

Shapes: n streams, t frames of a clip, h height, w width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn

from quietbeam import DenoiserPlugin
from quietbeam_plugins.denoisers._shared import (
    blind_windows,
    is_impulsive,
    local_mean,
    masked_mean,
)

Loss = Literal["auto", "l2", "l1"]


class UMVD(DenoiserPlugin):
    """Settings of the paper's video denoiser; the defaults are the paper's."""

    lag: PositiveInt = 3
    """k: frames before and after the one predicted."""
    level: PositiveFloat = 64.0
    """Of the temporal filter: 1 weighs far frames more, 64 is a plain mask of the centre."""
    loss: Loss = "auto"
    """``auto`` takes l1 for clips with impulses, l2 for all others."""

    def build(self) -> UMVDNet:
        """Give the network with fresh weights."""
        return UMVDNet(self.lag, self.level, self.loss)


class UMVDNet(nn.Module):
    """A ``StreamingDenoiser``; its variance is not known: 0."""

    blind = True
    trainable = True
    features = 21

    def __init__(self, lag: int = 3, level: float = 64.0, loss: Loss = "auto") -> None:
        super().__init__()
        self.lag = lag
        self.window = 2 * lag + 1
        self.loss: Loss = loss
        self.gamma = temporal_filter(self.window, level)
        self.feature1 = conv(1, self.features)
        self.feature2 = conv(self.features, self.features)
        self.feature3 = conv(self.features, self.features)
        self.unet = UNet(self.window * self.features)
        self.head1 = nn.Conv2d(96, 384, 1, bias=False)
        self.head2 = nn.Conv2d(384, 96, 1, bias=False)
        self.head3 = nn.Conv2d(96, 1, 1, bias=False)
        for head in (self.head1, self.head2):
            nn.init.kaiming_normal_(head.weight, nonlinearity="relu")
        # The first guess is the neighbours' local mean, not noise of the size of the signal.
        nn.init.normal_(self.head3.weight, std=1e-3)

    def initial_state(self, n: int, h: int, w: int) -> tuple[Tensor, ...]:
        """Give the features (n, 21, h, w) and local means (n, 1, h, w) of 2 lag frames, 0."""
        past = 2 * self.lag
        maps = (torch.zeros(n, self.features, h, w) for _ in range(past))
        means = (torch.zeros(n, 1, h, w) for _ in range(past))
        return (*maps, *means)

    def forward(
        self, frame: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Take frame i (n, 1, h, w), give the mean of frame i - lag; see ``StreamingDenoiser``."""
        past = 2 * self.lag
        base = local_mean(frame)
        maps = (*state[:past], self.encode(frame - base))
        means = (*state[past:], base)
        mean = self.predict(list(maps), list(means))
        return mean, torch.zeros_like(mean), (*maps[1:], *means[1:])

    def encode(self, frame: Tensor) -> Tensor:
        """Give the features of frames: (n, 1, h, w) -> (n, 21, h, w)."""
        x = F.relu(self.feature1(frame))
        return F.relu(self.feature3(F.relu(self.feature2(x))))

    def predict(self, maps: list[Tensor], means: list[Tensor]) -> Tensor:
        """Predict the middle frame (n, 1, h, w) from features and local means of the window."""
        weighed = [m * gamma for m, gamma in zip(maps, self.gamma, strict=True)]
        x = self.unet(torch.cat(weighed, 1))
        residual = self.head3(F.relu(self.head2(F.relu(self.head1(x)))))
        others = means[: self.lag] + means[self.lag + 1 :]
        base = others[0]
        for mean in others[1:]:
            base = base + mean
        return base / len(others) + residual

    def training_loss(self, clip: Tensor, valid: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        """Difference to the measured middle frame; see ``StreamingDenoiser``."""
        n, t, h, w = clip.shape
        flat = clip.reshape(n * t, 1, h, w)
        base = local_mean(flat)
        maps = self.encode(flat - base).reshape(n, t, self.features, h, w).unbind(1)
        means = base.reshape(n, t, 1, h, w).unbind(1)
        middle = slice(self.lag, self.lag + 1)
        error = clip[:, middle] - self.predict(list(maps), list(means))
        robust = self.loss == "l1" or (self.loss == "auto" and is_impulsive(clip))
        return masked_mean(error.abs() if robust else error**2, valid[:, middle])

    @torch.no_grad()
    def blind_estimate(self, frames: Tensor) -> Tensor:
        """Predict each frame of (t, h, w) from its neighbours, mirrored at the ends."""
        base = local_mean(frames[:, None])
        estimates = []
        cache: dict[int, Tensor] = {}
        for window in blind_windows(len(frames), self.lag):
            cache = {j: m for j, m in cache.items() if j in window}
            for j in window:
                if j not in cache:
                    cache[j] = self.encode(frames[j][None, None] - base[j][None])
            mean = self.predict([cache[j] for j in window], [base[j][None] for j in window])
            estimates.append(mean[0, 0])
        return torch.stack(estimates)


class UNet(nn.Module):
    """Two halvings, 48 channels down and 96 up; skips are concatenated; (n, c, h, w) -> 96."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down1 = stack(channels, 48, 48)
        self.down2 = stack(48, 48, 48)
        self.bottom = stack(48, 96, 48)
        self.up2 = stack(48 + 48, 96, 96, layers=6)
        self.up1 = stack(96 + channels, 96, 96, layers=6)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network; h and w may be odd."""
        half = F.max_pool2d(self.down1(x), 2, ceil_mode=True)
        quarter = F.max_pool2d(self.down2(half), 2, ceil_mode=True)
        y = self.up2(torch.cat((doubled(self.bottom(quarter), half), half), 1))
        return self.up1(torch.cat((doubled(y, x), x), 1))


def stack(inputs: int, middle: int, outputs: int, layers: int = 5) -> nn.Sequential:
    """Convolutions with ReLU: ``inputs`` -> ``middle`` -> ... -> ``outputs`` channels."""
    widths = [inputs, *[middle] * (layers - 1), outputs]
    parts: list[nn.Module] = []
    for a, b in pairwise(widths):
        parts += [conv(a, b), nn.ReLU()]
    return nn.Sequential(*parts)


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the size and repeats the edge."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate", bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def doubled(x: Tensor, like: Tensor) -> Tensor:
    """Double the size by repetition and cut to that of ``like``."""
    h, w = like.shape[-2:]
    return F.interpolate(x, scale_factor=2.0, mode="nearest")[..., :h, :w]


def temporal_filter(window: int, level: float) -> tuple[float, ...]:
    """Weights of the frames of a window: 1 - (1 - |i - k| / k)^level, 0 in the middle."""
    k = window // 2
    return tuple(1 - (1 - abs(i - k) / k) ** level for i in range(window))
