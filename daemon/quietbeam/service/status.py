"""The snapshot of the daemon: what the status page shows and metrics are read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from quietbeam.core.ledger import Ledger, StageCount
from quietbeam.core.ring import ReaderCount, RingWriter

DONE = frozenset({"closed", "ended"})


def stages_account(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Give every stage's account as plain numbers."""
    return {name: _stage(count) for name, count in ledger.stages().items()}


def ring_account(ring: RingWriter, capacity_bytes: int) -> dict[str, Any]:
    """Give one ring's account, with all its readers."""
    return {
        "path": str(ring.path),
        "frames": ring.frames,
        "capacity_bytes": capacity_bytes,
        "readers": [_reader(reader) for reader in ring.readers()],
    }


def is_balanced(stages: Mapping[str, Mapping[str, Any]], rings: Mapping[str, Any]) -> bool:
    """Tell whether no stage and no reader has given away more than it took."""
    accounts = [*stages.values()]
    accounts += [reader for ring in rings.values() for reader in ring["readers"]]
    return all(account["in_flight"] >= 0 for account in accounts)


def left_over(
    stages: Mapping[str, Mapping[str, Any]], rings: Mapping[str, Any], needed: Iterable[str]
) -> list[str]:
    """Name what is not accounted for once everything is at rest.

    ``needed`` are the ring readers that must have come to the end.
    """
    left = [
        f"{account['in_flight']} frames in stage {name}"
        for name, account in stages.items()
        if account["in_flight"]
    ]
    for ring, account in rings.items():
        left += [
            f"{reader['in_flight']} frames of the {ring} ring not read by {reader['name']}"
            for reader in account["readers"]
            if reader["in_flight"] and reader["name"] in set(needed)
        ]
    return left


def _stage(count: StageCount) -> dict[str, Any]:
    return {
        "received": count.received,
        "sent": count.sent,
        "dropped": dict(count.dropped),
        "in_flight": count.in_flight,
    }


def _reader(count: ReaderCount) -> dict[str, Any]:
    return {
        "name": count.name,
        "read": count.read,
        "lost": count.lost,
        "skipped": count.skipped,
        "in_flight": count.in_flight,
        "acked_frames": count.acked_frames,
        "heartbeat_age_s": round(count.heartbeat_age_s, 3),
    }
