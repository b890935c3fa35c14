"""``n2v``: Noise2Void (Krull et al. 2019) with the repairs of N2V2 (Höck et al. 2022).

One frame in, one frame out: for scans and for series whose frames have little
to do with each other.  Some pixels of a frame are replaced by the median of
their neighbours and the network has to tell what was there, which it cannot do
for noise that differs from pixel to pixel.  For noise that neighbours share (scan
lines, a blurring scintillator) the pixels near the hidden one are replaced as
well (structN2V, Broaddus et al. 2020); how far, is measured on the frames.

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
Axis = Literal["auto", "none", "x", "y"]
Reach = tuple[int, int]
"""How far noise is shared, in pixels to either side: (along y, along x)."""

_REACH = 2
"""The replacing median is over 5 x 5 pixels."""

_FOURTH_POWER = 70.0
"""Power of white noise of unit variance after a fourth difference."""

_SHARED, _BLURRED, _AREA = 0.15, 0.75, 2
"""Correlation that matters; finest power that white noise exceeds; reach of an area at most."""

_STEP = 4
"""Hidden pixels of one blind pass stand this far apart: beyond each other's medians."""


class N2V(DenoiserPlugin):
    """Settings of Noise2Void; the defaults train to something useful in a minute."""

    filters: PositiveInt = 16
    """Channels at the finest scale; they double twice."""
    hidden: float = Field(default=0.04, gt=0, le=0.1)
    """Fraction of the pixels that is replaced in a training step."""
    noise_axis: Axis = "auto"
    """Direction along which noise is correlated: "x" for horizontal scan lines; "auto" measures."""
    noise_span_px: int = Field(default=4, ge=1, le=32)
    """How far the correlation reaches to either side; with "auto" the most that is hidden."""
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
        noise_axis: Axis = "auto",
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
        reach = self.reach(frames, usable)
        chance = torch.rand(frames.shape, generator=generator).to(frames.device)
        share = self.hidden / (1 + 2 * min(reach))  # an area hides more than a line
        asked = (chance < share) & usable
        error = self.predict(self.hide(frames, asked, reach)) - frames
        robust = self.loss == "l1" or (self.loss == "auto" and is_impulsive(clip))
        return masked_mean(error.abs() if robust else error**2, asked)

    def reach(self, frames: Tensor, valid: Tensor | None = None) -> Reach:
        """Tell how far around a pixel its noise is shared; (n, 1, h, w) each."""
        span = self.noise_span
        if self.noise_axis == "auto":
            return measured_reach(frames, valid, span)
        return {"none": (0, 0), "x": (0, span), "y": (span, 0)}[self.noise_axis]

    def hide(self, frames: Tensor, asked: Tensor, reach: Reach | None = None) -> Tensor:
        """Replace the pixels ``asked`` for, and those whose noise goes with theirs, by medians.

        Args:
            frames: (n, 1, h, w).
            asked: (n, 1, h, w) bool.
            reach: As ``self.reach`` gives it for these frames, if it has been asked already.
        """
        down, along = reach or self.reach(frames)
        size = (2 * down + 1, 2 * along + 1)
        replaced = F.max_pool2d(asked.float(), size, 1, (down, along)) > 0
        n, _, y, x = torch.nonzero(replaced, as_tuple=True)
        offsets = unrelated(down, along)
        far = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
        padded = F.pad(frames, (far,) * 4, mode="reflect")
        around = torch.stack([padded[n, 0, y + far + dy, x + far + dx] for dy, dx in offsets])
        ordered = around.sort(0).values
        middle = len(ordered) // 2
        values = ordered[middle]
        if len(ordered) % 2 == 0:
            values = (values + ordered[middle - 1]) / 2
        hidden = frames.clone()
        hidden[n, 0, y, x] = values
        return hidden

    @torch.no_grad()
    def blind_estimate(self, frames: Tensor) -> Tensor:
        """Estimate each pixel of (t, h, w) with itself hidden: one pass per place in a grid."""
        reach = self.reach(frames[:, None])
        step_y, step_x = (2 * (2 * r + 1) if r else _STEP for r in reach)
        estimates = torch.empty_like(frames)
        for dy in range(step_y):
            for dx in range(step_x):
                for frame, estimate in zip(frames, estimates, strict=True):
                    asked = torch.zeros_like(frame, dtype=torch.bool)
                    asked[dy::step_y, dx::step_x] = True
                    shown = self.hide(frame[None, None], asked[None, None], reach)
                    estimate[asked] = self.predict(shown)[0, 0][asked]
        return estimates


def unrelated(down: int, along: int) -> list[tuple[int, int]]:
    """Offsets (dy, dx) of the pixels a median is taken of: none whose noise is shared."""
    if down and along:  # a frame around what is shared
        ys, xs = (range(-r - _REACH, r + _REACH + 1) for r in (down, along))
        return [(dy, dx) for dy in ys for dx in xs if abs(dy) > down or abs(dx) > along]
    places = [(dy, dx) for dy in range(-_REACH, _REACH + 1) for dx in range(-_REACH, _REACH + 1)]
    if along:
        return [(dy, dx) for dy, dx in places if dy]
    if down:
        return [(dy, dx) for dy, dx in places if dx]
    return [place for place in places if place != (0, 0)]


@torch.no_grad()
def measured_reach(frames: Tensor, valid: Tensor | None, most: int) -> Reach:
    """Tell how far noise is shared along columns and along rows, from single frames.

    A fourth difference across the direction asked about takes most of the scene
    away and leaves the correlation along it.  What is left of the scene looks
    much the same in both directions.  So it is noise where one direction shows
    clearly more than the other, or where the finest structure, scene and noise
    together, is weaker than white noise of unit variance alone would be.

    Args:
        frames: (n, 1, h, w), stabilised units.
        valid: The same, bool; None where all are.
        most: To either side, in pixels; in an area two.
    """
    image = frames if valid is None else frames.masked_fill(~valid, float("nan"))
    across_y, across_x = (torch.diff(image, n=4, dim=axis) for axis in (2, 3))
    r_x, r_y = _shared(across_y, 3, most), _shared(across_x, 2, most)
    finest = torch.diff(across_y, n=4, dim=3) / _FOURTH_POWER
    blurred = float((finest**2).nanmean()) < _BLURRED
    along = _reach(r_x) if blurred or r_x[0] > r_y[0] + _SHARED else 0
    down = _reach(r_y) if blurred or r_y[0] > r_x[0] + _SHARED else 0
    return (min(down, _AREA), min(along, _AREA)) if down and along else (down, along)


def _shared(x: Tensor, axis: int, most: int) -> list[float]:
    """Correlation coefficients of (n, 1, h, w) along ``axis`` at 1, 2, ... pixels."""
    limit = 5 * _FOURTH_POWER**0.5  # an edge of the scene weighs no more than that
    x, length = x.clamp(-limit, limit), x.shape[axis]
    power = float((x**2).nanmean())
    lags = range(1, min(most, length - 1) + 1)
    products = [x.narrow(axis, 0, length - lag) * x.narrow(axis, lag, length - lag) for lag in lags]
    return [float(product.nanmean()) / power if power > 0 else 0.0 for product in products]


def _reach(coefficients: list[float]) -> int:
    if not coefficients[0] > _SHARED:
        return 0
    return next((i for i, r in enumerate(coefficients) if not r > _SHARED / 2), len(coefficients))


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
