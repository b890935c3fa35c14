"""The six kinds of plugin.

A plugin is a frozen set of settings.  Its fields are its keys in the TOML
file; its one method gives the running part and, where that holds resources,
takes it back: ``with plugin.open() as running: ...``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from quietbeam.core.channel import Delivery
from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.errors import SinkError
from quietbeam.core.events import Event, Frame, RunEnd, RunStart
from quietbeam.core.planes import planes
from quietbeam.core.result import MapSpec, MetricSpec, Result

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """One frame, or one channel of it, as an analysis sees it; arrays are not to be written to.

    All arrays have the same shape: (h, w), or (c, h, w) for several channels together.

    Attributes:
        index: The detector's number of the frame.
        time_ns: Detector clock.
        clean: float32, corrected counts; NaN where a pixel is bad.
        sd: float32, one standard deviation of ``clean``.
        corrected: float32, the measured frame after all corrections, before denoising.
        valid: bool, where ``corrected`` means something.
        raw: As the detector gave it.
        denoiser: Name of what made ``clean``.
        model_version: As in ``Result``.
    """

    index: int
    time_ns: int
    clean: Pixels
    sd: Pixels
    corrected: Pixels
    valid: Valid
    raw: NDArray[Any]
    denoiser: str = ""
    model_version: int = 0

    def plane(self, number: int) -> Observation:
        """Give one channel, arrays (h, w); views."""
        images = ("clean", "sd", "corrected", "valid", "raw")
        return replace(self, **{name: planes(getattr(self, name))[number] for name in images})


Measured = Mapping[str, float | NDArray[Any]]
"""What was measured on one frame: declared metrics and declared maps, by name."""


class AnalysisPlugin(Plugin):
    """Measures something on clean frames.  Opened for every run."""

    sees: ClassVar[Literal["clean", "channel", "frame"]] = "clean"
    """clean: each channel's (clean, sd); channel: an ``Observation`` of each channel, with the
    measured frame; frame: one ``Observation`` of all channels together."""

    @abstractmethod
    def metrics(self) -> Mapping[str, MetricSpec]:
        """Declare every metric, by name, before the first frame."""

    def maps(self) -> Mapping[str, MapSpec]:
        """Declare every map, an image of the size of a frame, by names no metric has."""
        return {}

    @abstractmethod
    def open(self, run: RunStart) -> AbstractContextManager[Callable[..., Measured]]:
        """Give a function to the declared metrics and maps.

        Its arguments are (clean, sd), each (h, w), or one ``Observation``: see ``sees``.
        What it leaves out was not measured.  Where it has an attribute ``message`` that is
        not None, an operator is shown it: why numbers are missing or not to be trusted.
        """


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


@runtime_checkable
class ServingSink(Protocol):
    """A light sink that knows who is connected to it."""

    def connections(self) -> Mapping[str, int]:
        """Give ``subscribers`` now and clients ``refused`` so far, where known; from any thread."""
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


class Link(Protocol):
    """What a view is connected to the daemon by; outlives the daemon and finds its successor."""

    @property
    def stopping(self) -> bool:
        """The view must come to its end now."""
        ...

    @property
    def connected(self) -> bool:
        """A daemon lives and has spoken within the last 1.5 s."""
        ...

    def poll(self, timeout_s: float) -> Sequence[RunStart | RunEnd | Frame | Result]:
        """Give what has come from both rings, in order of arrival within each; wait if nothing.

        A start is given once, by the ring that tells it first; an end when the
        cleaned frames are over.  A slow view misses frames, which are counted.
        Called from one thread.
        """
        ...

    def status(self) -> Mapping[str, Any]:
        """Give the newest snapshot of the daemon, as /api/v1/status does; {} before the first."""
        ...

    def command(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have the daemon carry out one of its commands; from any thread.

        Raises:
            QuietbeamError: It was refused, failed, or nobody answers; the message says why.
        """
        ...

    def verify(self, token: str) -> bool:
        """Tell whether this is the daemon's control token; from any thread."""
        ...

    def account(self, **counts: int) -> None:
        """Add frames that this view gave up, by reason; from any thread."""
        ...

    def tell(self, **facts: Any) -> None:
        """Put JSON values into the daemon's status, under this view; from any thread.

        ``refused``, a mapping of reason to number, is a metric as well.
        """
        ...


class ViewSink(SinkPlugin):
    """Serves clients (a control system, browsers) from a process that outlives the daemon.

    The process ends when the daemon stops in an orderly way, and ``linger_s``
    after a daemon that died without a successor.
    """

    own_process: ClassVar[bool] = True

    linger_s: float = Field(default=300.0, gt=0)
    """How long clients are still served after the daemon has died, waiting for its successor."""

    @property
    def clean_backlog(self) -> int:
        """Cleaned frames that may wait; of more only the newest are given.  0: none are wanted."""
        return 64

    @property
    def raw_backlog(self) -> int:
        """The same for raw frames."""
        return 16

    @abstractmethod
    def serve(self, link: Link) -> None:
        """Serve clients until ``link.stopping``."""

    def open(self) -> AbstractContextManager[Sink]:
        """Refuse: a view is served.

        Raises:
            SinkError: Always.
        """
        raise SinkError(f"{type(self).__name__} is a view: it is served, not opened")


class InversionPlugin(Plugin):
    """Solves an inverse problem on a recorded file, after the experiment."""

    @abstractmethod
    def solve(self, recording: Path) -> Mapping[str, Any]:
        """Give named fields in SI units; the same file gives the same fields."""
