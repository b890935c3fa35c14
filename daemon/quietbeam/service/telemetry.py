"""The Prometheus registry: the table of metrics, read from the daemon's snapshot at scrape time.

Label values known beforehand are there from the start, at 0, so that
``increase()`` works on the first event.  Nothing here runs per frame but the
two histograms.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quietbeam.service.metrics import FAMILIES
from quietbeam.service.metrics_read import STAGES, Status

PREFIX = "quietbeam_"
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

END_TO_END = "end_to_end"
"""Name under which the pipeline reports the time from arrival to the clean frame."""


class SnapshotCollector(Collector):
    """Turns one snapshot into all metrics of the table."""

    def __init__(self, snapshot: Callable[[], Status]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Give nothing: the registry then does not scrape at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the snapshot once and give every family of the table."""
        status = self._snapshot()
        for family in FAMILIES:
            made = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = made(PREFIX + family.name, family.help, labels=family.labels)
            for labels, value in family.read(status):
                if math.isfinite(value):  # alerts must never compare with NaN
                    metric.add_metric(labels, value)
            yield metric


class Telemetry:
    """The registry of one daemon.

    Args:
        snapshot: Gives the daemon's full status; called once per scrape.
    """

    def __init__(self, snapshot: Callable[[], Status]) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry(auto_describe=False)
        self._latency = Histogram(
            f"{PREFIX}{END_TO_END}_latency_seconds",
            "From the arrival of a frame to its clean frame.",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._stage = Histogram(
            f"{PREFIX}stage_duration_seconds",
            "Time a stage takes for one frame.",
            ["stage"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        for stage in (*STAGES, "finish"):
            self._stage.labels(stage)
        ProcessCollector(namespace="quietbeam", pid=os.getpid, registry=self.registry)
        self.registry.register(SnapshotCollector(snapshot))

    def observe(self, stage: str, seconds: float) -> None:
        """Take one duration; any thread may call."""
        if stage == END_TO_END:
            self._latency.observe(seconds)
        else:
            self._stage.labels(stage).observe(seconds)
