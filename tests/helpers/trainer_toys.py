"""A denoiser small enough to train in a test, and a distribution that offers it as a plugin."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from quietbeam import DenoiserPlugin, SourcePlugin

torch.set_num_threads(1)  # more would only wait for each other on networks as small as these

ENTRY_POINTS = """\
[quietbeam.denoisers]
toy = helpers.trainer_toys:Toy

[quietbeam.sources]
silent = helpers.trainer_toys:Silent
"""

CONFIG = """\
[source]
kind = "silent"

[denoiser]
kind = "toy"

[trainer]
batch = 8
patch_px = 32
history_mib = 32
candidate_every_s = 1.0
"""


def offer_as_plugin(site: Path) -> None:
    """Make ``site`` (to be on the path) look like an installed distribution."""
    info = site / "quietbeam_toys-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quietbeam-toys\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)


class Silent(SourcePlugin):
    """Never says anything."""

    @contextmanager
    def open(self):
        yield iter([])


class Toy(DenoiserPlugin):
    """Two convolutions on the mean of the neighbours."""

    lag: int = 1

    def build(self) -> ToyNet:
        return ToyNet(self.lag)


class ToyNet(nn.Module):
    """Mean of ``2 lag`` neighbours plus a small correction; one variance for all pixels."""

    blind = True
    trainable = True

    def __init__(self, lag: int = 1) -> None:
        super().__init__()
        self.lag = lag
        self.window = 2 * lag + 1
        self.first = nn.Conv2d(2 * lag, 8, 5, padding=2)
        self.second = nn.Conv2d(8, 1, 5, padding=2)
        self.log_variance = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.zeros_(self.second.weight)
        nn.init.constant_(self.log_variance.weight, -1.0)

    def initial_state(self, n, h, w):
        return tuple(torch.zeros(n, 1, h, w) for _ in range(2 * self.lag))

    def forward(self, frame, state):
        frames = [*state, frame]
        others = torch.cat(frames[: self.lag] + frames[self.lag + 1 :], 1)
        mean, variance = self.estimate(others)
        return mean, variance, tuple(frames[1:])

    def estimate(self, others):
        base = others.mean(1, keepdim=True)
        correction = self.second(torch.relu(self.first(others - base)))
        smooth = nn.functional.avg_pool2d(base, 3, 1, 1, count_include_pad=False)
        mean = smooth + correction
        return mean, torch.exp(self.log_variance(torch.ones_like(base)))

    def training_loss(self, clip, valid, generator):
        target, use = clip[:, self.lag, None], valid[:, self.lag, None].to(clip.dtype)
        others = torch.cat([clip[:, : self.lag], clip[:, self.lag + 1 :]], 1)
        mean, variance = self.estimate(others)
        error = target - mean
        total = 1 + variance
        loss = error**2 + 0.5 * (torch.log(total) + error.detach() ** 2 / total)
        return (loss * use).sum() / use.sum().clamp(min=1)

    def blind_estimate(self, frames):
        padded = torch.cat([frames[1 : self.lag + 1].flip(0), frames])
        padded = torch.cat([padded, frames[-self.lag - 1 : -1].flip(0)])
        t = len(frames)
        shifts = [s for s in range(2 * self.lag + 1) if s != self.lag]
        others = torch.stack([padded[s : s + t] for s in shifts], 1)
        return self.estimate(others)[0][:, 0]
