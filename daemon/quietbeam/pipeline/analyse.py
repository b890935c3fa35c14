"""Runs the analyses on clean frames; one that fails is switched off for the run, not the beam."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from quietbeam.config import Named
from quietbeam.core.events import RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.plugin import AnalysisPlugin, Observation
from quietbeam.core.result import MapSpec, MetricSpec
from quietbeam.model.measure import Measure, Measurements, map_specs, metric_specs


class Analyses:
    """All analyses of the configuration over one run after the other.

    One that takes whole frames sees all channels at once; any other measures
    every channel by itself.
    """

    def __init__(self, plugins: Sequence[Named[AnalysisPlugin]], ledger: Ledger) -> None:
        self._plugins = [(named.name, named.plugin) for named in plugins]
        self._measure = Measure(self._plugins, self._failed)
        self._ledger = ledger
        self._log = structlog.get_logger(stage="analyse")

    def specs(self, channels: Sequence[str] = ()) -> dict[str, MetricSpec]:
        """Every metric, by its whole name."""
        return metric_specs(self._plugins, channels)

    def maps(self, channels: Sequence[str] = ()) -> dict[str, MapSpec]:
        """Every map, by its whole name."""
        return map_specs(self._plugins, channels)

    def states(self) -> dict[str, dict[str, str | None]]:
        """Say of each analysis whether it is on, and why not; from any thread."""
        return self._measure.states()

    def start(self, run: RunStart) -> None:
        """Open every analysis for a run."""
        self._measure.start(run)

    def measure(self, seen: Observation) -> Measurements:
        """Measure one frame."""
        return self._measure(seen)

    def stop(self) -> None:
        """The run is over."""
        self._measure.stop()

    def _failed(self, name: str, error: Exception) -> None:
        self._ledger.note("analysis_failures", name)
        self._log.error("analysis_switched_off", analysis=name, error=repr(error))
