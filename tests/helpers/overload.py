"""A pipeline whose denoiser is slow on purpose, fed at a rate of one's choice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import PrivateAttr

from quietbeam import (
    AnalysisPlugin,
    DenoiserPlugin,
    Frame,
    MetricSpec,
    RunEnd,
    RunStart,
    SinkPlugin,
    SourcePlugin,
)
from quietbeam.config import Named, load
from quietbeam.core import ring
from quietbeam.core.channel import Delivery, Policy
from quietbeam.core.ledger import Ledger
from quietbeam.pipeline.pipeline import Pipeline, Rings
from quietbeam_plugins.denoisers._shared import Untrained

SHAPE = (32, 48)
CONFIG = """
name = "overload"
[source]
kind = "array"
address = "tcp://127.0.0.1:1"
[calibration]
gain = 1.0
[service]
max_backlog_frames = {backlog}
"""


class SlowFilter(Untrained):
    """Gives every frame back after a while."""

    window = 2
    blind = False

    def __init__(self, frame_s: float) -> None:
        super().__init__()
        self._frame_s = frame_s

    def initial_state(self, n: int, h: int, w: int) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(n, 1, 1, 1),)

    def forward(self, frame: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[Any, Any, Any]:
        time.sleep(self._frame_s)
        return frame, torch.ones_like(frame), state


class Slow(DenoiserPlugin):
    """A denoiser that takes ``frame_s`` for a frame."""

    frame_s: float

    def build(self) -> SlowFilter:
        return SlowFilter(self.frame_s)


class Load(SourcePlugin):
    """One run of frames in phases of (frames, Hz); each pixel can be told from the number.

    A phase begins once ``begins(its number)`` is true.
    """

    phases: tuple[tuple[int, float], ...]
    shape: tuple[int, int] = SHAPE
    begins: Callable[[int], bool] = lambda _phase: True

    @contextmanager
    def open(self) -> Iterator[Iterator[Any]]:
        yield self._play()

    def _play(self) -> Iterator[Any]:
        yield RunStart(run="load", shape=self.shape, dtype=np.dtype(np.uint16))
        number, due_s = 0, time.monotonic()
        for phase, (frames, rate_hz) in enumerate(self.phases):
            while not self.begins(phase):
                time.sleep(0.01)
                yield None
                due_s = time.monotonic()
            for _ in range(frames):
                while (wait_s := due_s - time.monotonic()) > 0:
                    time.sleep(min(wait_s, 0.05))
                    yield None
                yield numbered(number, self.shape)
                number += 1
                due_s += 1 / rate_hz
        yield RunEnd(run="load", reason="completed")


def offer_as_plugin(site: Path) -> None:
    """Make ``site`` (to be on the path) look like an installed distribution."""
    info = site / "quietbeam_slow-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quietbeam-slow\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[quietbeam.denoisers]\nslow = helpers.overload:Slow\n")


def numbered(number: int, shape: tuple[int, int] = SHAPE) -> Frame:
    """Frame ``number``."""
    pixels = (np.arange(shape[0] * shape[1]) % 50 + number % 1000).astype(np.uint16).reshape(shape)
    now = time.monotonic_ns()
    return Frame(run="load", index=number, time_ns=number, received_ns=now, pixels=pixels)


class Count(AnalysisPlugin):
    """Gives 1 for every frame it measures."""

    def metrics(self) -> dict[str, MetricSpec]:
        return {"seen": MetricSpec("", "1")}

    @contextmanager
    def open(self, run: RunStart) -> Iterator[Callable[..., dict[str, float]]]:
        del run
        yield lambda clean, sd: {"seen": 1.0}


class Gather(SinkPlugin):
    """Keeps the numbers of the frames it is given, and which of them were analysed."""

    policy: Policy = "lossless"
    _indices: list[int] = PrivateAttr(default_factory=list)
    _analysed: list[int] = PrivateAttr(default_factory=list)

    @property
    def delivery(self) -> Delivery:
        return Delivery(self.policy)

    @contextmanager
    def open(self) -> Iterator[Gather]:
        yield self

    def start(self, run: Any) -> None: ...

    def stop(self, end: Any) -> None: ...

    @property
    def indices(self) -> list[int]:
        return self._indices

    @property
    def analysed(self) -> list[int]:
        return self._analysed

    def write(self, result: Any) -> None:
        self._indices.append(result.index)
        if "count.seen" in result.metrics:
            self._analysed.append(result.index)


class Loaded:
    """A pipeline, the threads that run it, and its changes of state: (state, monotonic s)."""

    def __init__(self, pipeline: Pipeline, rings: Rings) -> None:
        self.pipeline, self.rings = pipeline, rings
        self.changes: list[tuple[str, float]] = []
        pipeline.shed.on_change = lambda state: self.changes.append((state, time.monotonic()))
        self._threads = [threading.Thread(target=b, name=n) for n, b in pipeline.bodies().items()]

    def start(self) -> Loaded:
        for thread in self._threads:
            thread.start()
        return self

    def states(self) -> list[str]:
        return [state for state, _ in self.changes]

    def join(self, seconds: float = 60.0) -> None:
        deadline_s = time.monotonic() + seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline_s - time.monotonic()))
            assert not thread.is_alive(), f"{thread.name} did not end"

    def assert_accounts_are_exact(self) -> None:
        for name, stage in self.pipeline.ledger.stages().items():
            assert stage.in_flight == 0, (name, stage)


@contextmanager
def loaded(
    directory: Path,
    phases: Sequence[tuple[int, float]],
    *,
    frame_s: float,
    sinks: Sequence[SinkPlugin] = (),
    backlog: int = 16,
    shape: tuple[int, int] = SHAPE,
    ring_mib: int = 32,
    denoiser: DenoiserPlugin | None = None,
    begins: Callable[[int], bool] = lambda _phase: True,
) -> Iterator[Loaded]:
    """Make a pipeline; whatever happens, its threads are gone afterwards."""
    path = directory / "overload.toml"
    path.write_text(CONFIG.format(backlog=backlog))
    config = load(path)
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    slow = Named("slow", denoiser or Slow(frame_s=frame_s))
    fields |= {
        "source": Named("load", Load(phases=tuple(phases), shape=shape, begins=begins)),
        "denoiser": slow,
        "fallback": slow,
        "analyses": (Named("count", Count()),),
        "sinks": tuple(Named(type(sink).__name__.lower(), sink) for sink in sinks),
    }
    rings = Rings(
        *(ring.create(directory / name, ring_mib << 20) for name in ("raw.ring", "clean.ring"))
    )
    running = Loaded(Pipeline(type(config)(**fields), rings, Ledger()), rings)
    try:
        yield running
    finally:
        running.pipeline.stop()
        running.join()
        rings.raw.unlink()
        rings.clean.unlink()
