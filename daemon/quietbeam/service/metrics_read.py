"""Ways to read samples of a metric from the daemon's snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from quietbeam.pipeline.alarms import ALARMS
from quietbeam.service.access import ENDPOINTS, REASONS
from quietbeam.service.sink_driver import REASONS as SINK_DROP_REASONS
from quietbeam.service.supervise import RESTART_REASONS

STAGES = ("ingest", "denoise", "publish")
DROP_REASONS: Mapping[str, tuple[str, ...]] = {
    "ingest": ("oversized", "queue_full"),
    "denoise": (
        "overload",
        "recorder_behind",
        "ring_overrun",
        "no_run",
        "shape",
        "paused",
        "failed",
    ),
}
RECORDER_STATES = ("idle", "recording", "disk_full", "off", "failed")
LIGHT_DROP_REASONS = (
    *("full", "superseded", "every_nth", "shed", "overrun"),
    *("no_consumer", "slow", "failed"),
)
OUTPUT_DROP_REASONS = ("overrun", *SINK_DROP_REASONS)

Status = Mapping[str, Any]
Sample = tuple[tuple[str, ...], float]
Reader = Callable[[Status], Iterable[Sample]]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name without prefix, and how to read it from the snapshot."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...]
    read: Reader


def one(*path: str) -> Reader:
    """Read one number, or nothing where it is missing or None."""

    def read(status: Status) -> Iterator[Sample]:
        value = at(status, path)
        if value is not None:
            yield (), float(value)

    return read


def each(*path: str, known: Iterable[str] = (), first: str | None = None) -> Reader:
    """Read a mapping from label value to number; ``known`` values are always there."""

    def read(status: Status) -> Iterator[Sample]:
        found = {**dict.fromkeys(known, 0), **(at(status, path) or {})}
        before = () if first is None else (str(at(status, (first, "kind"))),)
        for label, value in found.items():
            yield (*before, str(label)), float(value)

    return read


def at(status: Any, path: Iterable[str]) -> Any:
    """Follow ``path`` into nested mappings; None where it ends early."""
    for key in path:
        status = status.get(key) if isinstance(status, Mapping) else None
    return status


def stages(field: str) -> Reader:
    """Read one number of the account of every stage and every output."""

    def read(status: Status) -> Iterator[Sample]:
        accounts = _accounts(status)
        for name in dict.fromkeys((*STAGES, *accounts)):
            yield (name,), float(at(accounts, (name, field)) or 0)

    return read


def stage_drops(status: Status) -> Iterator[Sample]:
    """Read the frames given up, by stage and reason."""
    accounts = _accounts(status)
    for name in dict.fromkeys((*STAGES, *accounts)):
        reasons = OUTPUT_DROP_REASONS if ":" in name else DROP_REASONS.get(name, ())
        dropped = {**dict.fromkeys(reasons, 0), **(at(accounts, (name, "dropped")) or {})}
        for reason, frames in dropped.items():
            yield (name, reason), float(frames)


def _accounts(status: Status) -> Status:
    """Stages and light outputs by name; outputs in a process of their own as NAME:raw, :clean."""
    return {**status["ledger"], **status["output_accounts"]}


def readers(field: str) -> Reader:
    """Read one number of every ring reader's account."""

    def read(status: Status) -> Iterator[Sample]:
        for ring, account in status["rings"].items():
            for reader in account["readers"]:
                yield (ring, reader["name"]), float(reader[field])

    return read


def connections(field: str) -> Reader:
    """Read one number of every output that knows who is connected."""

    def read(status: Status) -> Iterator[Sample]:
        for output, account in (status.get("connections") or {}).items():
            if field in account:
                yield (output,), float(account[field])

    return read


def rings(field: str) -> Reader:
    """Read one number of every ring."""

    def read(status: Status) -> Iterator[Sample]:
        for ring, account in status["rings"].items():
            yield (ring,), float(account[field])

    return read


def outputs(*path: str, total: bool = False) -> Reader:
    """Read one number of every output process; ``total`` over all its lives."""

    def read(status: Status) -> Iterator[Sample]:
        for name, output in status["outputs"].items():
            value = at(output, ("totals", *path) if total else path)
            yield (name,), float(value or 0)

    return read


def views_up(status: Status) -> Iterator[Sample]:
    """Give 1 for every view that is ready."""
    for name, view in status["views"].items():
        yield (name,), float(view["up"])


def views_given(status: Status) -> Iterator[Sample]:
    """Read the frames, raw and clean, that views took."""
    for name, view in status["views"].items():
        yield (name,), float(view["given_total"])


def view_refusals(status: Status) -> Iterator[Sample]:
    """Read what views were sent and did not take, by reason."""
    for name, view in status["views"].items():
        for reason, count in (view["status"].get("refused") or {}).items():
            yield (name, reason), float(count)


def view_drops(status: Status) -> Iterator[Sample]:
    """Read the frames views gave up, by reason."""
    for name, view in status["views"].items():
        for reason, frames in {"behind": 0, **view["dropped_total"]}.items():
            yield (name, reason), float(frames)


def output_states(status: Status) -> Iterator[Sample]:
    """Give 1 for the state every output process is in."""
    for name, output in status["outputs"].items():
        for state in RECORDER_STATES:
            yield (name, state), float(output["status"].get("state") == state)


def output_drops(status: Status) -> Iterator[Sample]:
    """Read the frames output processes gave up, by reason."""
    for name, output in status["outputs"].items():
        dropped = {**dict.fromkeys(OUTPUT_DROP_REASONS, 0), **output["dropped_total"]}
        for reason, frames in dropped.items():
            yield (name, reason), float(frames)


def published(status: Status) -> Iterator[Sample]:
    """Read the clean frames that light outputs took."""
    for name in _light(status):
        yield (name,), float(at(status, ("ledger", name, "sent")) or 0)


def not_published(status: Status) -> Iterator[Sample]:
    """Read the clean frames that light outputs did not take, by reason."""
    for name in _light(status):
        dropped = at(status, ("ledger", name, "dropped")) or {}
        for reason, frames in {**dict.fromkeys(LIGHT_DROP_REASONS, 0), **dropped}.items():
            yield (name, reason), float(frames)


def _light(status: Status) -> list[str]:
    heavy = {*status["outputs"], *status["views"]}
    return [name for name in status["sinks"] if name not in heavy]


def alarms(status: Status) -> Iterator[Sample]:
    """Give 1 for what is wrong now."""
    for name in ALARMS:
        yield (name,), float(name in status["alarms"])


def one_hot(known: tuple[str, ...], *path: str) -> Reader:
    """Give 1 for the value the status has and 0 for the other known ones."""

    def read(status: Status) -> Iterator[Sample]:
        value = str(at(status, path))
        for name in dict.fromkeys((*known, value)):
            yield (name,), float(name == value)

    return read


def info(*paths: tuple[str, ...]) -> Reader:
    """Give one sample of value 1 whose labels are texts of the status."""

    def read(status: Status) -> Iterator[Sample]:
        yield tuple(str(at(status, path) or "") for path in paths), 1.0

    return read


def children(field: str) -> Reader:
    """Read one number of every child process."""

    def read(status: Status) -> Iterator[Sample]:
        for name, child in status["children"].items():
            value = child["state"] == "running" if field == "up" else child[field]
            yield (name,), float(value)

    return read


def restarts(status: Status) -> Iterator[Sample]:
    """Read the restarts of every child process, by reason."""
    for name, child in status["children"].items():
        for reason, count in child["restarts"].items():
            yield (name, reason), float(count)


def trainer_restarts(status: Status) -> Iterator[Sample]:
    """Read the restarts of the trainer, by reason."""
    counts = at(status, ("children", "trainer", "restarts")) or {}
    for reason in RESTART_REASONS:
        yield (reason,), float(counts.get(reason, 0))


def failures(status: Status) -> Iterator[Sample]:
    """Read the refused requests, by endpoint and reason."""
    for endpoint in ENDPOINTS:
        for reason in REASONS:
            yield (endpoint, reason), float(status["auth_failures"].get(f"{endpoint}:{reason}", 0))


def counter(name: str, text: str, labels: tuple[str, ...], read: Reader) -> Family:
    """Describe a number that only grows."""
    return Family(name, "counter", text, labels, read)


def gauge(name: str, text: str, labels: tuple[str, ...], read: Reader) -> Family:
    """Describe a number that may fall."""
    return Family(name, "gauge", text, labels, read)
