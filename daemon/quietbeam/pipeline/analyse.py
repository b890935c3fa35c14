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
from quietbeam.core.planes import planes
from quietbeam.core.plugin import AnalysisPlugin, Pixels
from quietbeam.core.result import MetricSpec
from quietbeam.model.channels import named_for, specs_for

Measure = Callable[[Pixels, Pixels], Mapping[str, Any]]


class Analyses:
    """All analyses of the configuration over one run after the other.

    With several channels each analysis measures every channel by itself.
    """

    def __init__(self, plugins: Sequence[Named[AnalysisPlugin]], ledger: Ledger) -> None:
        self._plugins, self._ledger = plugins, ledger
        self._stack = ExitStack()
        self._running: dict[tuple[str, str, int], Measure] = {}  # analysis, channel, its number
        self._log = structlog.get_logger(stage="analyse")

    def specs(self, channels: Sequence[str] = ()) -> dict[str, MetricSpec]:
        """Every metric, as ``analysis.name``, or as ``analysis.name.channel`` of each channel."""
        plain = {
            f"{named.name}.{metric}": spec
            for named in self._plugins
            for metric, spec in named.plugin.metrics().items()
        }
        return specs_for(plain, channels) if channels else plain

    def start(self, run: RunStart) -> None:
        """Open every analysis for every channel of a run."""
        names = run.channels or ("",)
        for named in self._plugins:
            for number, (channel, plane) in enumerate(zip(names, run.planes(), strict=True)):
                try:
                    measure = self._stack.enter_context(named.plugin.open(plane))
                except Exception as error:  # noqa: BLE001 - a plugin's fault must not stop the beam
                    self._fail(named.name, error)
                else:
                    self._running[named.name, channel, number] = measure

    def measure(self, clean: Pixels, sd: Pixels) -> dict[str, float | NDArray[Any]]:
        """Measure one clean frame, counts and their s.d., (h, w) or (c, h, w) each."""
        metrics: dict[str, float | NDArray[Any]] = {}
        images = list(zip(planes(clean), planes(sd), strict=True))
        for key, measure in list(self._running.items()):
            name, channel, number = key
            try:
                measured = measure(*images[number])
            except Exception as error:  # noqa: BLE001 - as above
                self._running.pop(key)
                self._fail(name, error)
            else:
                found = {f"{name}.{metric}": value for metric, value in measured.items()}
                metrics |= {named_for(metric, channel): value for metric, value in found.items()}
        return metrics

    def stop(self) -> None:
        """The run is over."""
        self._running.clear()
        self._stack.close()

    def _fail(self, name: str, error: Exception) -> None:
        self._ledger.note("analysis_failures", name)
        self._log.error("analysis_switched_off", analysis=name, error=repr(error))
