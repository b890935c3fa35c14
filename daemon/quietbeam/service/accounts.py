"""The accounts of all frames: what the ledger's page shows, and one log line per run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import structlog

from quietbeam.core.ledger import RUNS_KEPT, Ledger, StageCount
from quietbeam.core.ring import RingWriter
from quietbeam.service.outputs import OutputProcess
from quietbeam.service.views import View

STREAMS = ("raw", "clean")
_CLEAN = "clean_"

log = structlog.get_logger()


def stages_account(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Give every stage's account as plain numbers."""
    return {name: count.as_dict() for name, count in ledger.stages().items()}


def outputs_account(
    outputs: Mapping[str, OutputProcess], rings: Mapping[str, RingWriter]
) -> dict[str, dict[str, Any]]:
    """Give the accounts of output processes, as ``NAME:raw`` and ``NAME:clean``.

    What they report is up to a second old; until then it is in flight.
    """
    return {
        f"{name}:{stream}": _output_account(output, stream, rings[stream]).as_dict()
        for name, output in outputs.items()
        for stream in STREAMS
    }


def _output_account(output: OutputProcess, stream: str, ring: RingWriter) -> StageCount:
    skipped = sum(reader.skipped for reader in ring.readers() if reader.name == output.name)
    count = StageCount(ring.frames - skipped, output.written[f"{stream}_written"])
    for reason, frames in output.dropped.items():
        if reason.startswith(_CLEAN) == (stream == "clean"):
            count.dropped[reason.removeprefix(_CLEAN)] += frames
    return count


def views_account(
    views: Mapping[str, View], rings: Mapping[str, RingWriter]
) -> dict[str, dict[str, Any]]:
    """Give the accounts of views, as ``NAME:raw`` and ``NAME:clean``.

    They begin when a view first reads a ring; what it passed over to keep up
    with the stream, or never wanted, is ``skipped``.
    """
    accounts = {}
    for stream, ring in rings.items():
        for reader in ring.readers():
            if reader.name in views:
                received = reader.read + reader.lost + reader.skipped + reader.in_flight
                count = StageCount(received, reader.read)
                count.dropped.update({"overrun": reader.lost, "skipped": reader.skipped})
                accounts[f"{reader.name}:{stream}"] = count.as_dict()
    return accounts


class RunLog:
    """Tells the account of every run once, as soon as no frame of it is in flight.

    Args:
        ledger: Where the accounts are.
        patience_s: An account that has not changed for so long is told as it is.
    """

    def __init__(self, ledger: Ledger, patience_s: float = 60.0) -> None:
        self._ledger, self._patience_s = ledger, patience_s
        self._told: deque[str] = deque(maxlen=2 * RUNS_KEPT)
        self._seen: dict[str, tuple[Mapping[str, Any], float]] = {}

    def tell(self, *, now: bool = False) -> None:
        """Log the runs that are over and settled; ``now``, also those that are not."""
        for account in reversed(self._ledger.runs_over(ranges=False)):
            name = account["run"]
            if name not in self._told and (now or self._is_settled(account)):
                self._seen.pop(name, None)
                self._told.append(name)
                log.info("run_account", **dict(_flat(account)))

    def _is_settled(self, account: Mapping[str, Any]) -> bool:
        name, stages = account["run"], account["stages"]
        if name not in self._seen or self._seen[name][0] != stages:
            self._seen[name] = stages, time.monotonic()
        flowing = any(stage["in_flight"] for stage in stages.values())
        in_ring = _count(stages, "ingest", "sent") - _count(stages, "denoise", "received")
        settled = not (flowing or in_ring)
        return settled or time.monotonic() - self._seen[name][1] >= self._patience_s


def _count(stages: Mapping[str, Mapping[str, int]], stage: str, what: str) -> int:
    return stages[stage][what] if stage in stages else 0


def _flat(account: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in account.items():
        if name == "source":
            yield from value.items()
        else:
            yield name, value
