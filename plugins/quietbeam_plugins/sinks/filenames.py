"""Which file a run goes to, and which unfinished file is whose."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from quietbeam.core import recording as names
from quietbeam.core.errors import DataError
from quietbeam.core.events import RunStart
from quietbeam.offline.repair import numbered, open_ours, part_of, text

PLACEHOLDERS = {"name", "run", "time", "date"}


def checked_pattern(value: str) -> str:
    """Give ``value`` back if it is a pattern for names inside a directory.

    Raises:
        ValueError: What is wrong with it.
    """
    fields = {field for _, field, _, _ in string.Formatter().parse(value) if field is not None}
    if fields - PLACEHOLDERS:
        known = ", ".join(sorted(PLACEHOLDERS))
        raise ValueError(f"unknown placeholder {sorted(fields - PLACEHOLDERS)}; known: {known}")
    path = Path(value)
    if not path.parts or ".." in path.parts or path.is_absolute() or value.endswith("/"):
        raise ValueError(f"{value!r} leads out of the directory or names no file")
    return value


def safe(value: str) -> str:
    """Give ``value`` as part of a file name: no separators, nothing hidden, not too long."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "_", value).lstrip(".")[:80] or "_"


def filled(pattern: str, run: RunStart) -> str:
    """Fill the placeholders of ``pattern`` for ``run``, at this moment."""
    now = datetime.now(UTC)
    values = {"name": str(ours(run).get("name", "quietbeam")), "run": run.run}
    values |= {"time": now.strftime("%Y%m%dT%H%M%SZ"), "date": now.strftime("%Y-%m-%d")}
    name = pattern.format(**{key: safe(value) for key, value in values.items()})
    return name if Path(name).suffix in {".h5", ".hdf5", ".nxs"} else f"{name}.h5"


def unused(path: Path) -> Path:
    """Give ``path``, numbered where it or its ``.part`` exists."""
    return next(p for p in numbered(path) if not (p.exists() or part_of(p).exists()))


def further_segment(path: Path, number: int) -> Path:
    """Name what follows ``path`` after trouble: ``NAME_part2.h5``, ..."""
    return path.with_name(f"{path.stem}_part{number}{path.suffix}")


def first_segment(path: Path) -> Path:
    """Undo ``further_segment``."""
    return path.with_name(re.sub(r"_part\d+$", "", path.stem) + path.suffix)


def ours(run: RunStart) -> dict[str, object]:
    """Give what the daemon itself added to the run's metadata."""
    found = run.metadata.get("quietbeam", {})
    return found if isinstance(found, dict) else {}


def session(run: RunStart) -> str:
    """Name the live daemon ``run`` comes from; "" if none."""
    return str(ours(run).get("session", ""))


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Whose a ``.part`` file is; ``complete`` if only its last renaming is missing."""

    run: str
    session: str
    complete: bool


def unfinished(path: Path) -> Unfinished | None:
    """Look into a ``.part`` file; None where it cannot be told whose it is."""
    try:
        with open_ours(path, "r", swmr=True) as file:
            return Unfinished(
                run=text(file[f"{names.ENTRY}/title"][()]),
                session=text(file[f"{names.PROCESS}/session"][()]),
                complete=bool(text(file[names.END_REASON][()])),
            )
    except (DataError, KeyError, OSError):
        return None
