"""Runs the analyses on clean frames; one that fails is switched off for the run, not the beam."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import structlog
from numpy.typing import NDArray

from quietbeam.config import Named
from quietbeam.core.events import RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.plugin import AnalysisPlugin, Pixels
from quietbeam.core.result import MetricSpec

Measure = Callable[[Pixels, Pixels], Mapping[str, Any]]


class Analyses:
    """All analyses of the configuration over one run after the other."""

    def __init__(self, plugins: Sequence[Named[AnalysisPlugin]], ledger: Ledger) -> None:
        self._plugins, self._ledger = plugins, ledger
        self._stack = ExitStack()
        self._running: dict[str, Measure] = {}
        self._log = structlog.get_logger(stage="analyse")

    def specs(self) -> dict[str, MetricSpec]:
        """Every metric, as ``analysis.name``."""
        return {
            f"{named.name}.{metric}": spec
            for named in self._plugins
            for metric, spec in named.plugin.metrics().items()
        }

    def start(self, run: RunStart) -> None:
        """Open every analysis for a run."""
        for named in self._plugins:
            try:
                measure = self._stack.enter_context(named.plugin.open(run))
            except Exception as error:  # noqa: BLE001 - a plugin's fault must not stop the beam
                self._fail(named.name, error)
            else:
                self._running[named.name] = measure

    def measure(self, clean: Pixels, sd: Pixels) -> dict[str, float | NDArray[Any]]:
        """Measure one clean frame: (h, w) counts and its s.d."""
        metrics: dict[str, float | NDArray[Any]] = {}
        for name, measure in list(self._running.items()):
            try:
                measured = measure(clean, sd)
            except Exception as error:  # noqa: BLE001 - as above
                self._running.pop(name)
                self._fail(name, error)
            else:
                metrics |= {f"{name}.{metric}": value for metric, value in measured.items()}
        return metrics

    def stop(self) -> None:
        """The run is over."""
        self._running.clear()
        self._stack.close()

    def _fail(self, name: str, error: Exception) -> None:
        self._ledger.note("analysis_failures", name)
        self._log.error("analysis_switched_off", analysis=name, error=repr(error))
