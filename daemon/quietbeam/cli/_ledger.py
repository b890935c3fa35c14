"""The account of every frame as tables, for ``quietbeam control ledger``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quietbeam.cli._output import print_mapping, print_table

_RANGES_SHOWN = 8
_SOURCE = ("received", "late", "missing", "duplicate", "foreign", "after_end")

Account = Mapping[str, Any]


def print_ledger(ledger: Account) -> None:
    """Print what came, where it went, and what became of the last runs."""
    for name, alarm in ledger["alarms"].items():
        print(f"ALARM {name} ({alarm['run']}): {alarm['message']}")
    print(f"balanced: {'yes' if ledger['balanced'] else 'NO'}\n")
    print_mapping({"source": ledger["source"]})
    print()
    accounts = {**ledger["stages"], **ledger["outputs"]}
    rows = [_stage_row(name, account) for name, account in accounts.items()]
    print_table(rows, ("stage or output", "received", "sent", "in flight", "dropped"))
    runs = [*([ledger["run"]] if ledger["run"] else []), *ledger["runs"]]
    if runs:
        print()
        print_table([_run_row(run) for run in runs], ("run", "end", *_SOURCE, "told"))
        print(f"\nnever came in {runs[0]['run']}: {_ranges(runs[0])}")


def _stage_row(name: str, account: Account) -> list[Any]:
    dropped = ", ".join(f"{reason} {frames}" for reason, frames in account["dropped"].items())
    return [name, account["received"], account["sent"], account["in_flight"], dropped or "-"]


def _run_row(run: Account) -> list[Any]:
    told = run["frames_expected"] if run["frames_sent"] is None else run["frames_sent"]
    counts = [run["source"][name] for name in _SOURCE]
    return [run["run"], run["reason"] or "going on", *counts, "-" if told is None else told]


def _ranges(run: Account) -> str:
    """Name the newest missing numbers."""
    found = [str(a) if a == b else f"{a}-{b}" for a, b in run["missing_ranges"]]
    more = f" and {len(found) - _RANGES_SHOWN} older ranges" if len(found) > _RANGES_SHOWN else ""
    return (", ".join(reversed(found[-_RANGES_SHOWN:])) or "none") + more
