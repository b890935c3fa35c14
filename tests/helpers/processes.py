"""What the kernel says of running processes."""

from __future__ import annotations

from pathlib import Path


def descendants(pid: int) -> list[int]:
    """``pid``, the processes it started, and theirs in turn; who ends meanwhile may be missing.

    Parents are read, not the lists of children: those belong to threads, which come and go.
    """
    started: dict[int, list[int]] = {}
    for child, parent in _parents():
        started.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:  # grows while it is walked
        found += started.get(one, [])
    return found


def _parents():
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            said = (directory / "stat").read_text()
        except OSError:  # ended meanwhile
            continue
        yield int(directory.name), int(said.rpartition(")")[2].split()[1])
