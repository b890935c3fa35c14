"""Plans on disk: keyed by all they depend on, checked when read, built anew when damaged."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

_MAGIC = b"quietbeam plan 1\n"
_HEADER = len(_MAGIC) + 32
_KEPT = 16
log = structlog.get_logger()


def key(facts: Mapping[str, Any]) -> str:
    """Name of the plan that ``facts`` (JSON) lead to: network, shapes, types, versions, GPU."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def get(directory: Path, name: str, build: Callable[[Path], None]) -> bytes:
    """Find the plan called ``name`` in ``directory``, or build it.

    A file that is damaged is deleted and built again.  The file appears whole
    or not at all; the oldest beyond 16 are deleted.

    Args:
        directory: Made if missing.
        name: From ``key``.
        build: Writes the plan to the path it is given.

    Raises:
        EngineError: What ``build`` raises.
    """
    path = directory / f"{name}.plan"
    plan = _read(path)
    if plan is not None:
        os.utime(path)
        return plan
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        fresh = Path(scratch) / "plan"
        build(fresh)
        plan = fresh.read_bytes()
        whole = Path(scratch) / "whole"
        whole.write_bytes(_MAGIC + hashlib.sha256(plan).digest() + plan)
        whole.replace(path)
    _prune(directory)
    return plan


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, plan = data[len(_MAGIC) : _HEADER], data[_HEADER:]
    if data.startswith(_MAGIC) and hashlib.sha256(plan).digest() == digest:
        return plan
    log.warning("plan_damaged", path=str(path), consequence="it is built again")
    path.unlink(missing_ok=True)
    return None


def _prune(directory: Path) -> None:
    plans = sorted(directory.glob("*.plan"), key=lambda path: path.stat().st_mtime)
    for path in plans[:-_KEPT]:
        path.unlink(missing_ok=True)
