"""A simulated measurement to invert: phase separation with its truth, as counts of a camera.

The truth is computed on a grid twice as fine, with another scheme than the inversion's,
and averaged over the area of a pixel: no inverse crime.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.plugin import SinkPlugin
from quietbeam.core.recording import Recorder
from quietbeam.registry import find
from quietbeam.testing.cahn_hilliard import NOISES, CahnHilliard, Noise, NoiseName

LOW, HIGH = 5_000.0, 25_000.0
"""Counts where c = 0 and c = 1; far enough from 0 and 65535 for noise of 0.2."""
LENGTH_M = 1e-6
"""The unit of length of ``CahnHilliard`` here; a pixel of 0.01 is 10 nm."""


@dataclass(frozen=True)
class Separating:
    """Frames of a periodic cell that separates into two phases; indexed by number.

    Attributes:
        size_px: Side of a frame.
        frames: How many; from the first visible fluctuations on.
        seed: Of everything.
        noise: Kind, one of the paper's four.
        level: Times the strength that the paper's figure 2 has (0.2 of Gaussian noise, ...).
        frame_time_s: From one frame to the next.
        interval: The same in the time unit of ``CahnHilliard``.
        since: Its time at the first frame.
    """

    size_px: int = 64
    frames: int = 40
    seed: int = 0
    noise: NoiseName = "gaussian"
    level: float = 0.5
    frame_time_s: float = 0.1
    interval: float = 0.004
    since: float = 0.03

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index: int) -> NDArray[np.uint16]:
        """Give counts: (h, w) uint16."""
        noisy = self._noise.apply(self.truth[index], seed=1000 * self.seed + index + 1)
        return np.clip(np.rint(LOW + (HIGH - LOW) * noisy), 0, 65_534).astype(np.uint16)

    @cached_property
    def truth(self) -> NDArray[np.float32]:
        """(t, h, w) composition, averaged over pixels."""
        model = replace(self._model, size_px=2 * self.size_px, pixel=self._model.pixel / 2)
        until = self.since + self.interval * (self.frames - 1)
        # White noise on the fine grid has four times the variance per area of the coarse one.
        fine = replace(model, fluctuation=2 * self._model.fluctuation)
        video = fine.simulate(self.frames, since=self.since, until=until, seed=self.seed)
        n = self.size_px
        return video.reshape(self.frames, n, 2, n, 2).mean((2, 4))

    @property
    def metadata(self) -> dict[str, Any]:
        """What an inversion has to know, as a source would say it, and the truth."""
        model, c = self._model, np.linspace(0.01, 0.99, 50)
        pixel_m = model.pixel * LENGTH_M
        potential = np.log(c / (1 - c)) + model.interaction * (1 - 2 * c)
        per_s = LENGTH_M**2 * self.interval / self.frame_time_s
        known = {"c": c, "mu_h": potential, "D": (1 - c) * per_s}
        return {
            "inversion": {
                "low_counts": LOW,
                "high_counts": HIGH,
                "pixel_size_m": pixel_m,
                "kappa_m2": model.kappa * LENGTH_M**2,
                "boundary": "periodic",
                "truth": {name: [float(f"{v:.6g}") for v in one] for name, one in known.items()},
            }
        }

    @property
    def _model(self) -> CahnHilliard:
        return CahnHilliard(size_px=self.size_px, step=4e-5, fluctuation=0.02)

    @property
    def _noise(self) -> Noise:
        paper = NOISES[self.noise]
        counts = None if paper.counts is None else paper.counts / self.level**2
        return Noise(
            counts=counts, sigma=paper.sigma * self.level, impulse=paper.impulse * self.level
        )


def record(cell: Separating, path: Path) -> None:
    """Write the frames as a recording of raw frames, as the daemon would.

    Raises:
        SinkError: It exists or cannot be written.
    """
    ours = {"version": "", "config": "", "config_sha256": "", "name": "simulate", "metrics": {}}
    run = RunStart(
        run=path.stem,
        shape=(cell.size_px, cell.size_px),
        dtype=np.dtype(np.uint16),
        frame_time_s=cell.frame_time_s,
        frames_expected=len(cell),
        metadata={"quietbeam": ours, **cell.metadata},
    )
    with _recorder(path) as sink:
        sink.start(run)
        for index in range(len(cell)):
            times = {"time_ns": round(index * cell.frame_time_s * 1e9), "received_ns": index}
            sink.raw(Frame(run=run.run, index=index, pixels=cell[index], **times))
        sink.stop(RunEnd(run=run.run, reason="completed"))


@contextmanager
def _recorder(path: Path) -> Iterator[Recorder]:
    plugin: type[Any] = find("sinks", "hdf5", SinkPlugin)
    with plugin(path=path).open() as sink:
        if not isinstance(sink, Recorder):
            raise TypeError(f"the hdf5 sink gives a {type(sink).__name__}, expected a recorder")
        yield sink
