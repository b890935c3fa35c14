"""``n2v``: Noise2Void (Krull et al. 2019) with the repairs of N2V2 (Höck et al. 2022).

One frame in, one frame out: for scans and for series whose frames have little
to do with each other.  Some pixels of a frame are replaced by the median of
their neighbours and the network has to tell what was there, which it cannot do
for noise that differs from pixel to pixel.  For noise that runs along a scan
line, the line's pixels near the hidden one are replaced as well (structN2V,
Broaddus et al. 2020).

Against checkerboards, as in N2V2: the median in place of a random neighbour,
max-blur pooling, no skip at the finest scale.  No layer has a bias, and a
local mean is taken off before and put back after: any level and any contrast
of the signal are one problem to the network, and nothing can flicker.

Shapes: n streams, t frames of a clip, h height, w width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Generator, Tensor, nn

from quietbeam import DenoiserPlugin
from quietbeam_plugins.denoisers._shared import is_impulsive, local_mean, masked_mean

Loss = Literal["auto", "l2", "l1"]
Axis = Literal["none", "x", "y"]

_REACH = 2
"""The replacing median is over 5 x 5 pixels."""

_STEP = 4
"""Hidden pixels of one blind pass stand this far apart: beyond each other's medians."""


class N2V(DenoiserPlugin):
    """Settings of Noise2Void; the defaults train to something useful in a minute."""

    filters: PositiveInt = 16
    """Channels at the finest scale; they double twice."""
    hidden: float = Field(default=0.04, gt=0, le=0.1)
    """Fraction of the pixels that is replaced in a training step."""
    noise_axis: Axis = "none"
    """Direction along which noise is correlated: "x" for horizontal scan lines."""
    noise_span_px: int = Field(default=4, ge=1, le=32)
    """How far the correlation reaches to either side."""
    loss: Loss = "auto"
    """``auto`` takes l1 for frames with impulses, l2 for all others."""

    def build(self) -> N2VNet:
        """Give the network with fresh weights."""
        return N2VNet(self.filters, self.hidden, self.noise_axis, self.noise_span_px, self.loss)


class N2VNet(nn.Module):
    """A ``StreamingDenoiser`` of lag 0 without state; not blind, variance unknown: 0."""

    lag = 0
    window = 1
    blind = False
    trainable = True

    def __init__(
        self,
        filters: int = 16,
        hidden: float = 0.04,
        noise_axis: Axis = "none",
        noise_span: int = 4,
        loss: Loss = "auto",
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.noise_axis: Axis = noise_axis
        self.noise_span = noise_span
        self.loss: Loss = loss
        a, b, c = filters, 2 * filters, 4 * filters
        self.fine = stack(1, a, a)
        self.medium = stack(a, b, b)
        self.coarse = stack(b, c, b)
        self.up_medium = stack(b + b, b, a)
        self.up_fine = stack(a, a, a)
        self.head = nn.Conv2d(a, 1, 1, bias=False)
        nn.init.normal_(self.head.weight, std=1e-2)

    def initial_state(self, n: int, h: int, w: int) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Give the empty state: a frame is all there is."""
        return ()

    def forward(
        self, frame: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Denoise one frame (n, 1, h, w); see ``StreamingDenoiser``."""
        mean = self.predict(frame)
        return mean, torch.zeros_like(mean), state

    def predict(self, frame: Tensor) -> Tensor:
        """Map (n, 1, h, w) to the same."""
        h, w = frame.shape[-2:]
        base = local_mean(frame)
        x = F.pad(frame - base, (0, -w % 4, 0, -h % 4), mode="replicate")
        medium = self.medium(pooled(self.fine(x)))
        x = doubled(self.coarse(pooled(medium)))
        x = doubled(self.up_medium(torch.cat((x, medium), 1)))
        return base + self.head(self.up_fine(x))[..., :h, :w]

    def training_loss(self, clip: Tensor, valid: Tensor, generator: Generator) -> Tensor:
        """Difference to the measured value of pixels hidden from the network."""
        frames = clip.reshape(-1, 1, *clip.shape[-2:])
        usable = valid.reshape_as(frames)
        chance = torch.rand(frames.shape, generator=generator).to(frames.device)
        asked = (chance < self.hidden) & usable
        error = self.predict(self.hide(frames, asked)) - frames
        robust = self.loss == "l1" or (self.loss == "auto" and is_impulsive(clip))
        return masked_mean(error.abs() if robust else error**2, asked)

    def hide(self, frames: Tensor, asked: Tensor) -> Tensor:
        """Replace the pixels ``asked`` for, and those whose noise goes with theirs, by medians.

        Args:
            frames: (n, 1, h, w).
            asked: (n, 1, h, w) bool.
        """
        replaced = self._with_correlated(asked)
        n, _, y, x = torch.nonzero(replaced, as_tuple=True)
        padded = F.pad(frames, (_REACH,) * 4, mode="reflect")
        around = torch.stack([padded[n, 0, y + dy, x + dx] for dy, dx in self._offsets()])
        ordered = around.sort(0).values
        middle = len(ordered) // 2
        values = ordered[middle]
        if len(ordered) % 2 == 0:
            values = (values + ordered[middle - 1]) / 2
        hidden = frames.clone()
        hidden[n, 0, y, x] = values
        return hidden

    def _with_correlated(self, asked: Tensor) -> Tensor:
        if self.noise_axis == "none":
            return asked
        span = self.noise_span
        size, pad = ((1, 2 * span + 1), (0, span))
        if self.noise_axis == "y":
            size, pad = size[::-1], pad[::-1]
        return F.max_pool2d(asked.float(), size, 1, pad) > 0

    def _offsets(self) -> list[tuple[int, int]]:
        """Places in the padded frame of the pixels a median is taken of: none of equal noise."""
        places = range(2 * _REACH + 1)
        related = {
            "none": lambda dy, dx: dy == _REACH and dx == _REACH,
            "x": lambda dy, _: dy == _REACH,
            "y": lambda _, dx: dx == _REACH,
        }[self.noise_axis]
        return [(dy, dx) for dy in places for dx in places if not related(dy, dx)]

    @torch.no_grad()
    def blind_estimate(self, frames: Tensor) -> Tensor:
        """Estimate each pixel of (t, h, w) with itself hidden: one pass per place in a grid."""
        along = 2 * (2 * self.noise_span + 1)
        step_y = along if self.noise_axis == "y" else _STEP
        step_x = along if self.noise_axis == "x" else _STEP
        estimates = torch.empty_like(frames)
        for dy in range(step_y):
            for dx in range(step_x):
                for frame, estimate in zip(frames, estimates, strict=True):
                    asked = torch.zeros_like(frame, dtype=torch.bool)
                    asked[dy::step_y, dx::step_x] = True
                    shown = self.hide(frame[None, None], asked[None, None])
                    estimate[asked] = self.predict(shown)[0, 0][asked]
        return estimates


def stack(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions with ReLU that keep the size."""
    return nn.Sequential(conv(inputs, middle), nn.ReLU(), conv(middle, outputs), nn.ReLU())


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution without bias that repeats the edge."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate", bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def pooled(x: Tensor) -> Tensor:
    """Halve the size by max-blur pooling (Zhang 2019): maximum, [1 2 1] / 4, every second.

    The binomial blur is two boxes of two pixels.
    """
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 2, 1)
    return F.avg_pool2d(F.avg_pool2d(x, 2, 1), 2)


def doubled(x: Tensor) -> Tensor:
    """Double the size, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
