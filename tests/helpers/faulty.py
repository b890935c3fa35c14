"""A network and a classical filter whose device fails or hangs while a file is there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from quietbeam import DenoiserPlugin
from quietbeam_plugins.denoisers._shared import Untrained

TESTS = Path(__file__).parents[1]
FLAG = "QUIETBEAM_TEST_FAULT"
"""Names the file: with ``fail`` in it every call raises, with ``hang`` it does not return."""

ENTRY_POINTS = """\
[quietbeam.denoisers]
faulty = helpers.faulty:Faulty
faulty_filter = helpers.faulty:FaultyFilter
"""


def offer_as_plugin(site: Path) -> dict[str, str]:
    """Make ``site`` look like an installed distribution; give the environment that finds it."""
    info = site / "quietbeam_faulty-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quietbeam-faulty\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    paths = (str(site), str(TESTS), os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(paths), FLAG: str(site / "fault")}


def _meet_the_fault() -> None:
    path = os.environ.get(FLAG, "")
    while path and os.path.exists(path):  # noqa: PTH110 - asked for every frame
        if Path(path).read_text().strip() == "fail":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        time.sleep(0.05)


class FaultyNet(nn.Module):
    """Multiplies by its one weight, which is trained; lag 0, no state."""

    lag = 0
    window = 1
    blind = False
    trainable = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def initial_state(self, n: int, h: int, w: int) -> tuple[torch.Tensor, ...]:
        return ()

    def forward(self, frame: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[Any, Any, Any]:
        _meet_the_fault()
        return frame * self.weight, torch.ones_like(frame), state

    def training_loss(self, clip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return ((self.weight * clip[:, 0] - clip[:, -1]) ** 2).mean()


class Faulty(DenoiserPlugin):
    """The network."""

    kind: ClassVar[str] = "faulty"

    def build(self) -> Any:
        return FaultyNet()


class _FaultyFilter(Untrained):
    window = 1
    blind = False

    def initial_state(self, n: int, h: int, w: int) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(n, 1, 1, 1),)

    def forward(self, frame: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[Any, Any, Any]:
        _meet_the_fault()
        return frame, torch.ones_like(frame), state


class FaultyFilter(DenoiserPlugin):
    """The filter."""

    def build(self) -> Any:
        return _FaultyFilter()
