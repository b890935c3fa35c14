"""The six kinds of plugin.

A plugin is a frozen set of settings.  Its fields are its keys in the TOML
file; its one method gives the running part and, where that holds resources,
takes it back: ``with plugin.open() as running: ...``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from quietbeam.core.channel import Delivery
from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.events import Event, Frame, RunEnd, RunStart
from quietbeam.core.result import MetricSpec, Result

Pixels = NDArray[np.float32]
Valid = NDArray[np.bool_]


class Plugin(BaseModel, ABC):
    """Settings of one plugin."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourcePlugin(Plugin):
    """Reads a detector.  Opened once, when the daemon starts."""

    @abstractmethod
    def open(self) -> AbstractContextManager[Iterator[Event | None]]:
        """Give the events, in order; ``None`` at least every 0.1 s when idle.

        Bad messages become ``Rejected`` events and never raise.  The iterator
        ends when there can be no more events (a file was played to its end).

        Raises:
            SourceError: The source cannot be reached or read.
        """


class CorrectionPlugin(Plugin):
    """Turns counts into something a model may see.  Opened for every run."""

    @abstractmethod
    def open(
        self, run: RunStart
    ) -> AbstractContextManager[Callable[[Pixels, Valid], tuple[Pixels, Valid]]]:
        """Give a map of (pixels, valid), each (h, w), to the same.

        The callable may write into its arguments.
        """


class DenoiserPlugin(Plugin):
    """Defines a denoiser; running and training it is the daemon's work."""

    @abstractmethod
    def build(self) -> StreamingDenoiser:
        """Give a fresh ``torch.nn.Module`` that is a ``StreamingDenoiser``."""


class AnalysisPlugin(Plugin):
    """Measures something on clean frames.  Opened for every run."""

    @abstractmethod
    def metrics(self) -> Mapping[str, MetricSpec]:
        """Declare every metric, by name, before the first frame."""

    @abstractmethod
    def open(
        self, run: RunStart
    ) -> AbstractContextManager[
        Callable[[Pixels, Pixels], Mapping[str, float | NDArray[np.float64]]]
    ]:
        """Give a function of (clean, sd), each (h, w), to the declared metrics."""


class Sink(Protocol):
    """Where results go.  Called from one thread, never concurrently."""

    def start(self, run: RunStart) -> None:
        """A run begins."""
        ...

    def write(self, result: Result) -> str | None:
        """Take one cleaned frame; give the reason where it was given up, to be counted."""
        ...

    def stop(self, end: RunEnd) -> None:
        """The run is over; everything written to it is complete."""
        ...


class RawSink(Protocol):
    """Where raw frames go, whatever becomes of the cleaned ones; else like ``Sink``."""

    def start(self, run: RunStart) -> None:
        """A run begins."""
        ...

    def raw(self, frame: Frame) -> str | None:
        """Take one raw frame; give the reason where it was given up, to be counted."""
        ...

    def stop(self, end: RunEnd) -> None:
        """The run is over."""
        ...


@runtime_checkable
class PacedSink(Protocol):
    """A light sink whose consumer sets the pace and is told of what it misses."""

    def ready(self, timeout_s: float) -> bool:
        """Wait for room for one more frame; False if there is none yet."""
        ...

    def lost(self, frames: int) -> None:
        """So many frames were given up before they came to this sink."""
        ...


class RecordingSink(Sink, Protocol):
    """A sink in its own process that also takes every raw frame."""

    def raw(self, frame: Frame) -> None:
        """One raw frame, before and independent of its cleaned one."""
        ...

    def flush(self) -> None:
        """Return only when all that was written survives the death of this process."""
        ...


class SinkPlugin(Plugin):
    """Publishes or records results.  Opened once, when the daemon starts."""

    own_process: ClassVar[bool] = False
    """Runs in a process of its own, reading the rings, as a ``RecordingSink``."""

    @property
    def takes(self) -> Literal["clean", "raw"]:
        """Which frames a light sink is given; one that takes raw ones is a ``RawSink``."""
        return "clean"

    @property
    def delivery(self) -> Delivery:
        """What is done when a light sink cannot keep up; the raw ring itself bounds raw frames."""
        return Delivery()

    @abstractmethod
    def open(self) -> AbstractContextManager[Sink]:
        """Give a sink; on exit everything written is flushed."""


class InversionPlugin(Plugin):
    """Solves an inverse problem on a recorded file, after the experiment."""

    @abstractmethod
    def solve(self, recording: Path) -> Mapping[str, Any]:
        """Give named fields in SI units; the same file gives the same fields."""
