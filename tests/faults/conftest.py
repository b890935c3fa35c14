"""Writes what every fault did into the table named by ``QUIETBEAM_FAULT_TABLE``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_ROWS = pytest.StashKey[list["Row"]]()
_HEAD = ("fault", "what must hold, and how it was injected", "criterion", "outcome")
_FIGURES = ("sent", "recorded", "acknowledged frames lost", "recovered in s")


@dataclass
class Row:
    """One fault: what was done, what had to hold, and what came out.

    A test sets what it measured: ``sent``, ``recorded``, ``lost`` (frames that
    were acknowledged and are not there) and ``recovered_s``; ``note`` is free.
    """

    number: str
    sentence: str
    how: str
    criterion: str
    sent: int | None = None
    recorded: int | None = None
    lost: int | None = None
    recovered_s: float | None = None
    note: str = ""
    outcome: str = field(default="not run", repr=False)

    def cells(self) -> list[str]:
        recovered = None if self.recovered_s is None else f"{self.recovered_s:.1f}"
        figures = [self.sent, self.recorded, self.lost, recovered]
        shown = ["" if figure is None else str(figure) for figure in figures]
        text = f"**{self.sentence}**: {self.how}" + (f" ({self.note})" if self.note else "")
        return [self.number, text, self.criterion, self.outcome, *shown]


@pytest.fixture
def measured(request):
    """The row of this test in the table."""
    return request.node.stash[_ROW]


_ROW = pytest.StashKey[Row]()


def pytest_configure(config):
    config.stash[_ROWS] = []


def pytest_collection_modifyitems(items):
    for item in items:
        marker = item.get_closest_marker("fault")
        if marker is not None:
            sentence = item.name.removeprefix("test_").replace("_", " ")
            item.stash[_ROW] = Row(marker.args[0], sentence, **marker.kwargs)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    row = item.stash.get(_ROW, None)
    if row is None or (report.when != "call" and report.passed):
        return
    row.outcome = {"passed": "held", "failed": "**FAILED**"}.get(report.outcome, "skipped")
    if report.skipped and isinstance(report.longrepr, tuple):
        row.outcome += f": {report.longrepr[2].removeprefix('Skipped: ')}"
    item.config.stash.setdefault(_ROWS, []).append(row)


def pytest_sessionfinish(session):
    target, rows = os.environ.get("QUIETBEAM_FAULT_TABLE"), session.config.stash.get(_ROWS, [])
    if target and rows:
        Path(target).write_text(_table(rows))


def _table(rows):
    lines = [
        "# What every fault did",
        "",
        "Written by `make test-faults`; do not edit; see [how the tests lie](../README.md).",
        "",
        _where(),
        "",
        "| " + " | ".join([*_HEAD, *_FIGURES]) + " |",
        "|" + "---|" * (len(_HEAD) + len(_FIGURES)),
    ]
    ordered = sorted(rows, key=lambda row: (int(row.number[1:]), row.sentence))
    return "\n".join([*lines, *("| " + " | ".join(row.cells()) + " |" for row in ordered)]) + "\n"


def _where():
    return (
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, commit {_commit()}, "
        f"{os.cpu_count()} cores {platform.machine()}, Linux {platform.release()}, "
        f"Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}"
    )


def _commit():
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
