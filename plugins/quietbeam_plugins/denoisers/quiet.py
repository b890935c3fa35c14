"""``quiet``: our own streaming network, and the default.

The features of a frame are computed once, when it comes, and kept in the
state.  The estimate of frame i is made ``lag`` frames later from the features
of its ``2 * lag`` neighbours, never from its own, so it stays *blind*: its
error can be measured against the frame itself, and the frame can be fused with
it afterwards.  A small three-scale U-Net of dense 3x3 convolutions at half
resolution chooses, pixel by pixel, between simple means (of the neighbours and
of two older memories, sharp and smoothed), adds a correction, and tells the
variance of the result.  Before any training all means weigh the same: the
network starts as a fair filter, not as noise.

Shapes: n streams, c channels, h height, w width, t frames of a clip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from quietbeam import DenoiserPlugin

if TYPE_CHECKING:
    from quietbeam.core.denoiser import State


HISTORY = 32
"""Frames older than the window that a training clip brings along to fill the memories."""


class Quiet(DenoiserPlugin):
    """Settings of the network; the defaults are the CPU size (about 50,000 weights)."""

    lag: PositiveInt = 3
    """Frames before and after the one estimated."""
    features: PositiveInt = 8
    """Channels kept of every frame, at half resolution."""
    widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (16, 24, 32)
    """Channels of the three scales."""
    memory_rates: tuple[PositiveFloat, ...] = (0.2, 0.05)
    """Rates of the exponential means of the frames older than the window."""

    def build(self) -> QuietNet:
        """Give the network with fresh weights."""
        return QuietNet(self.lag, self.features, self.widths, self.memory_rates)


class QuietNet(nn.Module):
    """A ``StreamingDenoiser``; units are stabilised: noise of unit variance."""

    blind = True
    trainable = True

    def __init__(
        self, lag: int, features: int, widths: tuple[int, int, int], rates: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.lag = lag
        self.rates = rates
        self.window = 2 * lag + 1 + HISTORY
        self.features = features
        self.encode1 = conv(4, features)
        self.encode2 = conv(features, features)
        self.remember = conv(4 * (1 + len(rates)), 2 * features)
        self.gather = nn.Conv2d(2 * (lag + 1) * features, widths[0], 1)
        self.unet = UNet(widths)
        self.head = conv(widths[0], 4 * (2 + 2 * (1 + len(rates))))
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            nn_bias(self.head)[4:8] = -2.0  # log variance: start near that of a mean of neighbours

    def initial_state(self, n: int, h: int, w: int) -> State:
        """Give (level and scale, features and pixels of 2 lag frames, memories, their ages)."""
        half_h, half_w = -(-h // 8) * 4, -(-w // 8) * 4
        levels = torch.zeros(n, 2, 1, 1)
        maps = [torch.zeros(n, self.features, half_h, half_w) for _ in range(2 * self.lag)]
        frames = [torch.zeros(n, 1, h, w) for _ in range(2 * self.lag)]
        memory = torch.zeros(n, len(self.rates), h, w)
        return (levels, *maps, *frames, memory, torch.zeros(n, 1 + len(self.rates), 1, 1))

    def forward(self, frame: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Take frame i, give mean and variance of frame i - lag; see ``StreamingDenoiser``."""
        k = 2 * self.lag
        levels, maps, frames = state[0], list(state[1 : 1 + k]), list(state[1 + k : 1 + 2 * k])
        memory, ages = state[-2:]
        levels = torch.where(levels[:, 1:] > 0, levels, level_and_scale(frame))
        maps = [*maps, self.encode(frame, levels)]
        frames = [*frames, frame]
        mean, variance = self.estimate(maps, frames, memory, ages[:, 1:], levels)
        # The frame that now leaves the window may enter the memories, if it was a real one.
        full = (ages[:, :1] >= k).to(frame.dtype)
        memory, weights = self.blend(memory, ages[:, 1:], frames[0], full)
        ages = torch.cat([ages[:, :1] + 1, weights], 1)
        return mean, variance, (levels, *maps[1:], *frames[1:], memory, ages)

    def encode(self, frame: Tensor, levels: Tensor) -> Tensor:
        """Give the features of a frame: (n, 1, h, w) -> (n, features, h / 2, w / 2)."""
        x = half((frame - levels[:, :1]) / levels[:, 1:])
        return F.relu(self.encode2(F.relu(self.encode1(x))))

    def blend(
        self, memory: Tensor, weights: Tensor, frame: Tensor, use: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Let a frame into the exponential means; ``weights`` tell how full each is (0 to 1)."""
        rates = frame.new_tensor(self.rates).reshape(1, -1, 1, 1) * use
        return memory + rates * (frame - memory), weights + rates * (1 - weights)

    def estimate(
        self,
        maps: list[Tensor],
        frames: list[Tensor],
        memory: Tensor,
        weights: Tensor,
        levels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Estimate the middle of 2 lag + 1 frames from all others and from older memories."""
        others = [*range(self.lag), *range(self.lag + 1, 2 * self.lag + 1)]
        base = torch.stack([frames[i] for i in others]).mean(0)
        # an empty memory is replaced by the base; a young one is brought to full weight
        old = torch.where(weights > 0.01, memory / weights.clamp(min=0.01), base)
        seen = torch.cat([(base - levels[:, :1]), old - base], 1) / levels[:, 1:]
        x = torch.cat([*[maps[i] for i in others], F.relu(self.remember(half(seen)))], 1)
        h, w = base.shape[-2:]
        x = F.pixel_shuffle(self.head(self.unet(F.relu(self.gather(x)))), 2)[..., :h, :w]
        means = torch.cat([base, old], 1)
        means = torch.cat([means, blur(means)], 1)
        mean = (torch.softmax(x[:, 2:], 1) * means).sum(1, keepdim=True) + x[:, :1]
        return mean, torch.exp(x[:, 1:2].clamp(-8, 4))

    def training_loss(self, clip: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
        """Squared error of the blind mean, and likelihood of its variance; robust if need be.

        The variance is fitted to the residual of a *detached* mean: fitting
        both jointly by likelihood trains badly.
        """
        first = int(torch.randint(0, HISTORY + 1, (1,), generator=generator))
        mean, variance = self._estimate_clip(clip[:, first:])
        target, use = clip[:, -1 - self.lag, None], valid[:, -1 - self.lag, None].to(clip.dtype)
        error = target - mean
        squared = error.detach() ** 2
        if has_outliers(clip[:, -self.window + HISTORY :], valid[:, -self.window + HISTORY :]):
            error_loss = torch.sqrt(error**2 + 0.01)
            squared = squared.clamp(max=9.0)
        else:
            error_loss = error**2
        total = 1 + variance
        loss = error_loss + 0.5 * (torch.log(total) + squared / total)
        return (loss * use).sum() / use.sum().clamp(min=1)

    def _estimate_clip(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate frame -1 - lag of (n, t, h, w); what is older than the window is memory."""
        n, t, h, w = clip.shape
        width = 2 * self.lag + 1
        levels = level_and_scale(clip[:, :1])
        memory = clip.new_zeros(n, len(self.rates), h, w)
        weights = clip.new_zeros(n, len(self.rates), 1, 1)
        for frame in clip[:, : t - width].unbind(1):
            memory, weights = self.blend(memory, weights, frame[:, None], torch.ones_like(weights))
        recent = clip[:, t - width :]
        flat = recent.reshape(n * width, 1, h, w)
        encoded = self.encode(flat, levels.repeat_interleave(width, 0))
        maps = list(encoded.reshape(n, width, *encoded.shape[1:]).unbind(1))
        frames = [frame[:, None] for frame in recent.unbind(1)]
        return self.estimate(maps, frames, memory, weights, levels)

    @torch.no_grad()
    def blind_estimate(self, frames: Tensor) -> Tensor:
        """Estimate each frame of (t, h, w) by streaming; the ends are mirrored."""
        t = len(frames)
        places = range(-self.lag, t + self.lag)
        estimates = self._streamed(frames, [mirror(j, t) for j in places])[2 * self.lag :]
        for i in range(t):
            # Near an end a frame meets its own mirror image: it gets a stream without that.
            places = range(max(-self.lag, i - 4 * self.lag), i + self.lag + 1)
            seen = [mirror(j, t) for j in places]
            if seen.count(i) > 1:
                other = i + 1 if i + 1 < t else i - 1
                shown = [other if k == i != j else k for j, k in zip(places, seen, strict=True)]
                estimates[i] = self._streamed(frames, shown)[-1]
        return estimates

    def _streamed(self, frames: Tensor, indices: list[int]) -> Tensor:
        """Means that all calls give when the frames of these indices come one after the other."""
        state = self.initial_state(1, *frames.shape[1:])
        means = []
        for i in indices:
            mean, _, state = self(frames[None, None, i], state)
            means.append(mean[0, 0])
        return torch.stack(means)


class UNet(nn.Module):
    """Three scales, dense 3x3 convolutions, additive skips; (n, a, h, w) -> the same."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        a, b, c = widths
        self.down1, self.down2 = conv(a, a), conv(a, b, stride=2)
        self.down3, self.down4 = conv(b, b), conv(b, c, stride=2)
        self.middle1, self.middle2 = conv(c, c), conv(c, b)
        self.up1, self.up2, self.up3 = conv(b, b), conv(b, a), conv(a, a)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network; h and w must be multiples of four."""
        fine = F.relu(self.down1(x))
        medium = F.relu(self.down3(F.relu(self.down2(fine))))
        coarse = F.relu(self.middle1(F.relu(self.down4(medium))))
        x = F.relu(self.up1(up(F.relu(self.middle2(coarse))) + medium))
        return F.relu(self.up3(up(F.relu(self.up2(x))) + fine))


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (or halves it)."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(nn_bias(layer))
    return layer


def nn_bias(layer: nn.Conv2d) -> Tensor:
    """The bias of a layer that surely has one."""
    assert layer.bias is not None  # noqa: S101 - for the type checker
    return layer.bias


def half(x: Tensor) -> Tensor:
    """Move 2 x 2 pixels into channels; the edges are repeated up to a multiple of eight."""
    h, w = x.shape[-2:]
    return F.pixel_unshuffle(F.pad(x, (0, -w % 8, 0, -h % 8), mode="replicate"), 2)


def blur(x: Tensor) -> Tensor:
    """Smooth with the binomial kernel 1 4 6 4 1 along both axes; the edges are repeated."""
    h, w = x.shape[-2:]
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    taps = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
    rows = torch.stack([tap * padded[..., i : i + w] for i, tap in enumerate(taps)]).sum(0)
    return torch.stack([tap * rows[..., i : i + h, :] for i, tap in enumerate(taps)]).sum(0)


def up(x: Tensor) -> Tensor:
    """Double the size by repetition."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def level_and_scale(frame: Tensor) -> Tensor:
    """Mean and contrast of a frame (n, 1, h, w) -> (n, 2, 1, 1): keeps inputs near one.

    Taken once per run from its first frame, so that it can never flicker.
    """
    level = frame.mean((2, 3), keepdim=True)
    spread = ((frame - level) ** 2).mean((2, 3), keepdim=True).sqrt()
    return torch.cat([level, (spread / 3).clamp(1.0, 10.0)], 1)


def has_outliers(clip: Tensor, valid: Tensor) -> bool:
    """More than 1 % of temporal differences lie beyond six robust standard deviations."""
    difference = (clip[:, 1:] - clip[:, :-1])[valid[:, 1:] & valid[:, :-1]].abs()
    if difference.numel() == 0:
        return False
    # stabilised noise has unit variance, so a difference has a s.d. of at least 1.4
    limit = 6 * max(float(difference.median()) / 0.6745, 1.4)
    return float((difference > limit).float().mean()) > 0.01


def mirror(i: int, t: int) -> int:
    """Index of frame ``i`` of a series of ``t`` frames mirrored about both ends."""
    if t == 1:
        return 0
    period = 2 * (t - 1)
    i = abs(i) % period
    return period - i if i >= t else i
