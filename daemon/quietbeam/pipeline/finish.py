"""Third stage, one thread: estimates -> counts, quality, analyses -> results.

It works on one frame while the denoiser is at the next: two processors, twice the frames.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import structlog

from quietbeam.core.channel import Channel
from quietbeam.core.events import RunEnd, RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.planes import stacked
from quietbeam.core.plugin import Observation
from quietbeam.core.result import Result
from quietbeam.model.channels import joined_figures, joined_notices
from quietbeam.model.clean import Estimate, to_counts
from quietbeam.model.correct import Float
from quietbeam.model.measure import Measurements
from quietbeam.model.stabilise import Stabiliser
from quietbeam.pipeline.analyse import Analyses
from quietbeam.pipeline.live import Model
from quietbeam.pipeline.quality import LiveQuality
from quietbeam.pipeline.shed import Shed

CAPACITY = 4
"""Estimates that may wait; then the denoiser waits, and frames do in the raw ring."""


@dataclass(frozen=True, slots=True, eq=False)
class Estimated:
    """One estimate, what made it, and the way back to counts of every channel."""

    estimate: Estimate
    model: Model
    stabilisers: tuple[Stabiliser, ...]


class Counts:
    """Takes the estimates of one channel, of a run or of what follows a reset, back to counts.

    Args:
        shape: (h, w).
        stabiliser: The one its frames were prepared with.
    """

    def __init__(self, shape: tuple[int, ...], stabiliser: Stabiliser) -> None:
        self.stabiliser = stabiliser
        self._quality = LiveQuality(stabiliser)
        self._ever_valid = np.zeros(shape, np.bool_)

    def __call__(self, estimate: Estimate, model: Model) -> tuple[Float, Float, dict[str, float]]:
        """Give (clean, sd, quality figures); NaN where never a pixel was valid."""
        self._ever_valid |= estimate.prepared.valid
        unknown = max(self._quality.chi2 - 1, 0.0)
        clean, sd = to_counts(estimate, self.stabiliser, unknown)
        figures = self._quality.update(estimate, clean, model.denoiser, model.version, sd=sd)
        sd /= np.float32(self._quality.overstated)
        never = ~self._ever_valid
        if never.any():
            clean[never] = sd[never] = np.nan
        return clean, sd, figures

    @property
    def notice(self) -> str | None:
        """What an operator should know of this run's noise, in plain words; None if nothing."""
        return self._quality.message


class Finish:
    """The thread.

    Args:
        stage: Whose account the frames are in.
        ledger: Frames given out.
        analyses: Opened and measured here only.
        publish: Takes the run's start and end, and every result.
        shed: Tells when frames go without analyses.
    """

    def __init__(
        self,
        stage: str,
        ledger: Ledger,
        analyses: Analyses,
        publish: Callable[[RunStart | Result | RunEnd], None],
        shed: Shed,
    ) -> None:
        self._stage, self._ledger = stage, ledger
        self._analyses, self._publish, self._shed = analyses, publish, shed
        self._channel: Channel[RunStart | Estimated | RunEnd] = Channel(CAPACITY)
        self._run: RunStart | None = None
        self._stabilisers: tuple[Stabiliser, ...] = ()
        self._counts: list[Counts] = []
        self._log = structlog.get_logger(stage="finish")
        self.live: Model | None = None
        self.latencies: deque[float] = deque(maxlen=512)
        self.last_figures: Mapping[str, float] = {}
        self.message: str | None = None
        self.heartbeat_ns = time.monotonic_ns()
        self.observe: Callable[[float], None] = lambda _seconds: None
        self.observe_latency: Callable[[float], None] = lambda _seconds: None

    def put(self, item: RunStart | Estimated | RunEnd) -> None:
        """Hand over the next item; waits while there is no room."""
        if not self._channel.put(item) and isinstance(item, Estimated):
            self._ledger.dropped(self._stage, "failed", run=item.estimate.prepared.frame.run)

    def close(self) -> None:
        """Nothing more will come; what is queued is still published."""
        self._channel.close()

    @property
    def heartbeat_age_s(self) -> float:
        """Time since it last did something that was there to do."""
        return (time.monotonic_ns() - self.heartbeat_ns) / 1e9 if len(self._channel) else 0.0

    def body(self) -> None:
        """The thread: until it is closed and empty."""
        try:
            for item in self._channel:
                self.heartbeat_ns = time.monotonic_ns()
                self._take(item)
        finally:
            self._channel.close()  # after a failure nobody may wait for room

    def _take(self, item: RunStart | Estimated | RunEnd) -> None:
        match item:
            case RunStart():
                self._run, self._stabilisers, self.message = item, (), None
                self._analyses.start(item)
                self._publish(item)
            case RunEnd():
                self._run = None
                self._analyses.stop()
                self._publish(item)
            case Estimated():
                began = time.perf_counter()
                self._finish(item)
                self.observe(time.perf_counter() - began)

    def _finish(self, item: Estimated) -> None:
        clean, sd, figures = self._back_to_counts(item)
        found = self._measure(item, clean, sd)
        frame = item.estimate.prepared.frame
        latency = (time.monotonic_ns() - frame.received_ns) / 1e9
        self._publish(
            Result(
                run=frame.run,
                index=frame.index,
                time_ns=frame.time_ns,
                received_ns=frame.received_ns,
                clean=clean,
                sd=sd,
                raw=frame.pixels,
                metrics={**figures, **found.metrics},
                maps=found.maps,
                denoiser=item.model.denoiser,
                model_version=item.model.version,
                latency_s=latency,
            )
        )
        self._ledger.sent(self._stage, run=frame.run)
        self.latencies.append(latency)
        self.observe_latency(latency)
        self.live, self.last_figures = item.model, figures

    def _measure(self, item: Estimated, clean: Float, sd: Float) -> Measurements:
        if self._shed.gives_up("analyses"):
            self._ledger.note("shed", "analyses")
            return Measurements()
        prepared = item.estimate.prepared
        return self._analyses.measure(
            Observation(
                index=prepared.frame.index,
                time_ns=prepared.frame.time_ns,
                clean=clean,
                sd=sd,
                corrected=prepared.pixels,
                valid=prepared.valid,
                raw=prepared.frame.pixels,
                denoiser=item.model.denoiser,
                model_version=item.model.version,
            )
        )

    def _back_to_counts(self, item: Estimated) -> tuple[Float, Float, dict[str, float]]:
        """New stabilisers mean that all figures begin anew."""
        if self._stabilisers is not item.stabilisers:
            self._stabilisers = item.stabilisers
            self._counts = [Counts(item.estimate.z.shape[-2:], s) for s in item.stabilisers]
        estimates = item.estimate.planes()
        answers = [c(e, item.model) for c, e in zip(self._counts, estimates, strict=True)]
        clean, sd, figures = zip(*answers, strict=True)
        channels = () if self._run is None else self._run.channels
        self._tell(joined_notices([counts.notice for counts in self._counts], channels))
        return stacked(clean), stacked(sd), joined_figures(figures, channels)

    def _tell(self, notice: str | None) -> None:
        if notice != self.message and notice is not None:
            # The wording holds figures that go on changing: said once, then only shown.
            log = self._log.debug if self.message else self._log.warning
            log("noise_is_not_white", noticed=notice)
        self.message = notice
