"""Every Prometheus metric, in one table, read from the daemon's snapshot at scrape time.

Label values known beforehand are there from the start, at 0, so that
``increase()`` works on the first event.  Nothing here runs per frame but the
two histograms.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quietbeam.core.events import RejectReason
from quietbeam.service.access import ENDPOINTS, REASONS
from quietbeam.service.live_model import SWAP_RESULTS
from quietbeam.service.supervise import RESTART_REASONS

PREFIX = "quietbeam_"
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

STAGES = ("ingest", "denoise", "publish")
DROP_REASONS = ("backlog", "overrun", "error", "closed")
RELOAD_RESULTS = ("applied", "unchanged", "restart_required", "failed")
DEGRADATION = ("normal", "training_paused", "frames_given_up")
RECORDER_STATES = ("idle", "recording", "disk_full", "off", "failed")
END_TO_END = "end_to_end"
"""Name under which the pipeline reports the time from arrival to the clean frame."""

Status = Mapping[str, Any]
Sample = tuple[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name without prefix, and how to read it from the snapshot."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...]
    read: Callable[[Status], Iterable[Sample]]


def _one(*path: str) -> Callable[[Status], Iterable[Sample]]:
    """Read one number, or nothing where it is missing or None."""

    def read(status: Status) -> Iterator[Sample]:
        value = _at(status, path)
        if value is not None:
            yield (), float(value)

    return read


def _each(
    *path: str, known: Iterable[str] = (), first: str | None = None
) -> Callable[[Status], Iterable[Sample]]:
    """Read a mapping from label value to number; ``known`` values are always there."""

    def read(status: Status) -> Iterator[Sample]:
        found = {**dict.fromkeys(known, 0), **(_at(status, path) or {})}
        before = () if first is None else (str(_at(status, (first, "kind"))),)
        for label, value in found.items():
            yield (*before, str(label)), float(value)

    return read


def _at(status: Any, path: Iterable[str]) -> Any:
    for key in path:
        status = status.get(key) if isinstance(status, Mapping) else None
    return status


def _stages(field: str) -> Callable[[Status], Iterable[Sample]]:
    def read(status: Status) -> Iterator[Sample]:
        stages = status["stages"]
        for name in dict.fromkeys((*STAGES, *stages)):
            yield (name,), float(_at(stages, (name, field)) or 0)

    return read


def _stage_drops(status: Status) -> Iterator[Sample]:
    stages = status["stages"]
    for name in dict.fromkeys((*STAGES, *stages)):
        dropped = {**dict.fromkeys(DROP_REASONS, 0), **(_at(stages, (name, "dropped")) or {})}
        for reason, frames in dropped.items():
            yield (name, reason), float(frames)


def _readers(field: str) -> Callable[[Status], Iterable[Sample]]:
    def read(status: Status) -> Iterator[Sample]:
        for ring, account in status["rings"].items():
            for reader in account["readers"]:
                yield (ring, reader["name"]), float(reader[field])

    return read


def _rings(field: str) -> Callable[[Status], Iterable[Sample]]:
    def read(status: Status) -> Iterator[Sample]:
        for ring, account in status["rings"].items():
            yield (ring,), float(account[field])

    return read


def _outputs(*path: str, total: bool = False) -> Callable[[Status], Iterable[Sample]]:
    def read(status: Status) -> Iterator[Sample]:
        for name, output in status["outputs"].items():
            value = _at(output, ("totals", *path) if total else path)
            yield (name,), float(value or 0)

    return read


def _output_states(status: Status) -> Iterator[Sample]:
    for name, output in status["outputs"].items():
        for state in RECORDER_STATES:
            yield (name, state), float(output.get("state") == state)


def _output_drops(status: Status) -> Iterator[Sample]:
    for name, output in status["outputs"].items():
        dropped = {**dict.fromkeys(("overrun", "disk_full"), 0), **output["dropped_total"]}
        for reason, frames in dropped.items():
            yield (name, reason), float(frames)


def _one_hot(known: tuple[str, ...], *path: str) -> Callable[[Status], Iterable[Sample]]:
    """Give 1 for the value the status has and 0 for the other known ones."""

    def read(status: Status) -> Iterator[Sample]:
        value = str(_at(status, path))
        for name in dict.fromkeys((*known, value)):
            yield (name,), float(name == value)

    return read


def _info(*paths: tuple[str, ...]) -> Callable[[Status], Iterable[Sample]]:
    def read(status: Status) -> Iterator[Sample]:
        yield tuple(str(_at(status, path) or "") for path in paths), 1.0

    return read


def _children(field: str) -> Callable[[Status], Iterable[Sample]]:
    def read(status: Status) -> Iterator[Sample]:
        for name, child in status["children"].items():
            value = child["state"] == "running" if field == "up" else child[field]
            yield (name,), float(value)

    return read


def _restarts(status: Status) -> Iterator[Sample]:
    for name, child in status["children"].items():
        for reason, count in child["restarts"].items():
            yield (name, reason), float(count)


def _trainer_restarts(status: Status) -> Iterator[Sample]:
    counts = _at(status, ("children", "trainer", "restarts")) or {}
    for reason in RESTART_REASONS:
        yield (reason,), float(counts.get(reason, 0))


def _failures(status: Status) -> Iterator[Sample]:
    for endpoint in ENDPOINTS:
        for reason in REASONS:
            yield (endpoint, reason), float(status["auth_failures"].get(f"{endpoint}:{reason}", 0))


C, G = "counter", "gauge"
FAMILIES: tuple[Family, ...] = (
    # the source
    Family("frames_received_total", C, "Frames the source gave.", ("source",),
           lambda s: [((str(s["source"]["kind"]),), float(_at(s, ("stages", "ingest", "received")) or 0))]),
    Family("received_bytes_total", C, "Bytes of pixels the source gave.", (), _one("pipeline", "received_bytes")),
    Family("frames_rejected_total", C, "Messages refused, by reason.", ("source", "reason"),
           _each("rejected", known=get_args(RejectReason), first="source")),
    Family("frames_missing_total", C, "Frame numbers that never came.", (), _one("notes", "missing")),
    Family("frames_duplicate_total", C, "Frame numbers that came twice.", (), _one("rejected_duplicate")),
    Family("frames_late_total", C, "Frames that came after a higher number.", (), _one("notes", "late")),
    Family("source_connected", G, "1 unless the source failed.", (), _one("source", "up")),
    Family("last_frame_timestamp_seconds", G, "Unix time of the newest frame.", (), _one("pipeline", "last_frame_unix_s")),
    # the accounts
    Family("stage_frames_in_total", C, "Frames that came into a stage.", ("stage",), _stages("received")),
    Family("stage_frames_out_total", C, "Frames that left a stage as they should.", ("stage",), _stages("sent")),
    Family("stage_frames_dropped_total", C, "Frames given up by a stage.", ("stage", "reason"), _stage_drops),
    Family("stage_frames_in_flight", G, "Frames taken in and not yet accounted for.", ("stage",), _stages("in_flight")),
    Family("accounting_balanced", G, "1 while every account adds up.", (), _one("balanced")),
    # the rings
    Family("ring_frames_total", C, "Frames written to a ring.", ("ring",), _rings("frames")),
    Family("ring_capacity_bytes", G, "Size of a ring.", ("ring",), _rings("capacity_bytes")),
    Family("ring_reader_frames_read_total", C, "Frames a reader took from a ring.", ("ring", "reader"), _readers("read")),
    Family("ring_reader_frames_lost_total", C, "Frames overwritten before a reader came.", ("ring", "reader"), _readers("lost")),
    Family("ring_reader_frames_skipped_total", C, "Frames a reader passed over.", ("ring", "reader"), _readers("skipped")),
    Family("ring_reader_frames_waiting", G, "Frames a reader has not come to yet.", ("ring", "reader"), _readers("in_flight")),
    Family("queue_frames", G, "Items waiting in a queue.", ("queue",), _each("queues", "frames")),
    Family("queue_capacity_frames", G, "Room in a queue.", ("queue",), _each("queues", "capacity")),
    # the model
    Family("received_frames_per_second", G, "Rate of arrival.", (), _one("pipeline", "received_hz")),
    Family("clean_frames_per_second", G, "Rate of cleaned frames.", (), _one("pipeline", "clean_hz")),
    Family("psnr_estimated_decibels", G, "Estimated PSNR of clean frames.", (), _one("pipeline", "psnr_estimated_db")),
    Family("psnr_raw_decibels", G, "Estimated PSNR of raw frames.", (), _one("pipeline", "psnr_raw_db")),
    Family("psnr_trusted", G, "1 while the noise allows the estimate.", (), _one("pipeline", "psnr_trusted")),
    Family("degradation_state", G, "1 for what is being given up now.", ("state",), _one_hot(DEGRADATION, "degradation")),
    Family("model_generation", G, "Version of the promoted model in use; 0 is classical.", (), _one("model", "version")),
    Family("model_age_seconds", G, "Time since the model was changed.", (), _one("model", "age_s")),
    Family("model_info", G, "The denoiser in use.", ("denoiser", "backend"),
           _info(("pipeline", "denoiser"), ("pipeline", "engine"))),
    Family("model_swaps_total", C, "Changes of the model, and refusals.", ("result",), _each("model", "swaps", known=SWAP_RESULTS)),
    Family("gate_decisions_total", C, "Decisions of the gate.", ("action",), _each("model", "actions")),
    # the trainer
    Family("trainer_up", G, "1 while the trainer is ready.", (), _one("trainer", "up")),
    Family("trainer_steps_total", C, "Steps of training.", (), _one("trainer_steps")),
    Family("trainer_steps_per_second", G, "Speed of training.", (), _one("trainer", "steps_per_s")),
    Family("trainer_loss", G, "Newest training loss.", (), _one("trainer", "loss")),
    Family("trainer_validation_loss", G, "Newest loss on guard data.", (), _one("trainer", "validation_loss")),
    Family("trainer_restarts_total", C, "Restarts of the trainer.", ("reason",), _trainer_restarts),
    Family("trainer_updates_rejected_total", C, "Candidates the gate refused.", (), _one("model", "actions", "reject")),
    # the outputs in processes of their own
    Family("recorder_up", G, "1 while the output's process is ready.", ("output",), _outputs("up")),
    Family("recorder_state", G, "1 for the state the output is in.", ("output", "state"), _output_states),
    Family("recorder_frames_written_total", C, "Raw frames that survive a crash.", ("output",), _outputs("raw_written", total=True)),
    Family("recorder_clean_frames_written_total", C, "Clean frames that survive a crash.", ("output",), _outputs("clean_written", total=True)),
    Family("recorder_frames_synced_total", C, "Raw frames that survive a power loss.", ("output",), _outputs("synced", total=True)),
    Family("recorder_written_bytes_total", C, "Bytes written.", ("output",), _outputs("bytes", total=True)),
    Family("recorder_unflushed_frames", G, "Frames a crash would lose.", ("output",), _outputs("unflushed")),
    Family("recorder_free_bytes", G, "Free space where the output writes.", ("output",), _outputs("free_bytes")),
    Family("recorder_frames_dropped_total", C, "Frames the output gave up.", ("output", "reason"), _output_drops),
    Family("published_frames_total", C, "Clean frames handed to an output.", ("output",), _each("published")),
    Family("output_dropped_total", C, "Clean frames an output did not take.", ("output", "reason"),
           lambda s: [((o, r), float(n)) for o, d in s["output_dropped"].items() for r, n in d.items()]),
    # the service
    Family("child_up", G, "1 while a child process is ready.", ("child",), _children("up")),
    Family("child_restarts_total", C, "Restarts of a child process.", ("child", "reason"), _restarts),
    Family("child_garbled_lines_total", C, "Lines from a child that were no event.", ("child",), _children("garbled")),
    Family("auth_failures_total", C, "Requests refused.", ("endpoint", "reason"), _failures),
    Family("config_reloads_total", C, "Reloads of the configuration.", ("result",), _each("config", "reloads", known=RELOAD_RESULTS)),
    Family("config_last_reload_successful", G, "1 unless the last reload failed.", (), _one("config", "last_reload_successful")),
    Family("config_last_reload_success_timestamp_seconds", G, "Unix time of the last good load.", (),
           _one("config", "last_reload_success_unix_s")),
    Family("heartbeat_age_seconds", G, "Time since a component last showed that it lives.", ("component",), _each("heartbeats")),
    Family("watchdog_last_ping_timestamp_seconds", G, "Unix time of the last watchdog ping.", (), _one("watchdog_last_ping_unix_s")),
    Family("up_time_seconds", G, "Time since the daemon started.", (), _one("uptime_s")),
    Family("build_info", G, "Version and configuration of the daemon.", ("version", "config_sha256"),
           _info(("version",), ("config", "sha256"))),
)  # fmt: skip


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
        for stage in STAGES:
            self._stage.labels(stage)
        ProcessCollector(namespace="quietbeam", pid=os.getpid, registry=self.registry)
        self.registry.register(SnapshotCollector(snapshot))

    def observe(self, stage: str, seconds: float) -> None:
        """Take one duration; any thread may call."""
        if stage == END_TO_END:
            self._latency.observe(seconds)
        else:
            self._stage.labels(stage).observe(seconds)
