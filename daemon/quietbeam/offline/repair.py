"""Makes a recording whose writer was killed whole again."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters the files use
import numpy as np
from numpy.typing import NDArray

from quietbeam.core import recording as names
from quietbeam.core.errors import DataError
from quietbeam.offline.superblock import clear_consistency_flags, writer_lock

LIBVER = ("v110", "v110")
"""Readable by HDF5 1.10 and later; the oldest that knows SWMR."""

Node = Any
"""A file, group or dataset of h5py, whose own annotations name all of them at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """What was found in one file, in frames.

    Attributes:
        raw: Whole raw frames kept.
        clean: Whole cleaned frames kept.
        removed: Unacknowledged, perhaps incomplete frames cut from the ends.
        bad: Frames whose pixels do not fit their checksum, kept; 0 if not verified.
        missing: Numbers absent between the first and the last raw frame.
        duplicate: Raw frames whose number stands twice.
        disordered: Raw frames whose number is smaller than the one before.
    """

    raw: int
    clean: int
    removed: int
    bad: int
    missing: int
    duplicate: int
    disordered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """One repaired file: ``file`` is its name now; ``was_open`` if its writer had died."""

    file: str
    was_open: bool
    end_reason: str
    found: Mended


def checksum(*arrays: NDArray[Any]) -> int:
    """Give the CRC-32 that stands in the column ``crc32``."""
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return crc


def repair(path: Path, *, verify: bool = False) -> Repaired:
    """Clear the mark of a dead writer, cut what is incomplete, complete the rest.

    ``NAME.h5.part`` becomes ``NAME.h5``; nothing is ever overwritten.  A file
    that is in order is left as it is.

    Raises:
        DataError: It is being written, not ours, or damaged beyond this.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    with writer_lock(path):
        was_open = clear_consistency_flags(path)
        with open_ours(path, "r") as file:
            reason = text(file[names.END_REASON][()])
            found = survey(file, verify=verify) if reason else None
        if found is None:
            with open_ours(path, "r+") as file:
                found = mend(file, verify=verify)
                reason = complete(file, "lost", found)
        target = published(path)
    return Repaired(file=str(target), was_open=was_open, end_reason=reason, found=found)


def published(path: Path) -> Path:
    """Take ``.part`` off the name; a file already there is kept and ours gets a number."""
    if path.suffix != ".part":
        return path
    for target in numbered(path.with_suffix("")):
        if target.exists() or (part_of(target) != path and part_of(target).exists()):
            continue
        try:
            rename_new(path, target)
        except FileExistsError:  # made by somebody else just now
            continue
        return target
    raise AssertionError  # numbered() never ends


def numbered(path: Path) -> Iterator[Path]:
    """Give ``path``, then it with ``_2``, ``_3``, ... before the suffix, without end."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}_{number}{path.suffix}")


def rename_new(path: Path, target: Path) -> None:
    """Rename, but never onto a file that exists.

    Raises:
        FileExistsError: ``target`` exists.
    """
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(target) from None
        path.rename(target)
    else:
        path.unlink()


def part_of(path: Path) -> Path:
    """Name of ``path`` while it is being written."""
    return path.with_name(path.name + ".part")


def open_ours(path: Path, mode: str, *, swmr: bool = False) -> Node:
    """Open a recording of ours.

    Raises:
        DataError: Not HDF5, truncated, or made by another program.
    """
    try:
        file: Node = h5py.File(path, mode, libver=LIBVER, swmr=swmr)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be opened as HDF5: {error}; if its writer was killed, "
            f"run: quietbeam repair {path}"
        ) from error
    if file.attrs.get("quietbeam_format") != names.FORMAT:
        file.close()
        raise DataError(f"{path}: HDF5, but not a quietbeam recording ({names.FORMAT})")
    return file


def mend(file: Node, *, verify: bool = False) -> Mended:
    """Cut every table of ``file`` (open for writing) to the rows that are safe."""
    committed = file[names.COMMITTED][()]
    removed = 0
    for (name, groups), safe in zip(names.TABLES.items(), committed.tolist(), strict=True):
        columns = table(file, groups)
        longest = max((column.shape[0] for column in columns), default=0)
        if any(column.shape[0] < safe for column in columns):
            raise DataError(f"{file.filename}: {groups[0]} has fewer than its {safe} safe rows")
        for column in columns:
            if column.shape[0] != safe:
                column.resize(safe, axis=0)
        removed += longest - safe if name in {"raw", "clean"} else 0
    return survey(file, removed=removed, verify=verify)


def survey(file: Node, *, removed: int = 0, verify: bool = False) -> Mended:
    """Count what ``file`` holds; ``verify`` also compares every frame with its checksum."""
    ids = frame_ids(file, names.RAW)
    spans = names.gaps(ids)
    return Mended(
        raw=len(ids),
        clean=len(frame_ids(file, names.CLEAN)),
        removed=removed,
        bad=_bad_rows(file) if verify else 0,
        missing=int((spans[:, 1] - spans[:, 0] + 1).sum()),
        duplicate=len(ids) - len(np.unique(ids)),
        disordered=int((np.diff(ids) < 0).sum()),
    )


def complete(
    file: Node, reason: str, found: Mended, *, received: int | None = None, overrun: int = 0
) -> str:
    """Fill what is known only at the end, unless it was filled; give the end reason.

    Args:
        file: Open for writing.
        reason: Why the run or this part of it ended.
        found: What the file holds.
        received: Raw frames that reached the recorder for it, if known.
        overrun: Raw frames it lost because it was too slow.
    """
    slot = file[names.END_REASON]
    if text(slot[()]):
        return text(slot[()])
    spans = names.gaps(frame_ids(file, names.RAW))
    if len(spans):
        file[names.MISSING].resize(len(spans), axis=0)
        file[names.MISSING][:] = spans
    received = found.raw if received is None else received
    counts = {"received": received, "written": found.raw, "missing": found.missing}
    counts |= {"overrun": overrun, "cleaned": found.clean}
    for name, count in counts.items():
        file[names.COUNTS[name]][()] = count
    file[names.END_TIME][()] = np.bytes_(datetime.now(UTC).isoformat())
    slot[()] = np.bytes_(reason)
    return reason


def table(file: Node, groups: Iterable[str]) -> list[Node]:
    """Give the datasets at or in ``groups`` that grow, each once."""
    nodes = [file[path] for path in groups if path in file]
    items = [
        item
        for node in nodes
        for item in (node.values() if isinstance(node, h5py.Group) else [node])
    ]
    once: dict[Any, Node] = {}  # metrics/frame_id is a second name of clean/frame_id
    for item in items:
        if _grows(item):
            once.setdefault(item.id, item)
    return list(once.values())


def text(value: bytes | str) -> str:
    """Give fixed-length text without its padding."""
    return value if isinstance(value, str) else bytes(value).rstrip(b"\0").decode()


def frame_ids(file: Node, group: str) -> NDArray[np.int64]:
    """Give (t,) int64: the detector's numbers of the frames in ``group``."""
    path = f"{group}/frame_id"
    return np.asarray(file[path][:] if path in file else [], np.int64)


def _grows(item: Node) -> bool:
    return (
        isinstance(item, h5py.Dataset) and bool(item.shape) and (item.maxshape or (0,))[0] is None
    )


def _bad_rows(file: Node) -> int:
    """Count the frames whose pixels do not fit their checksum."""
    groups = [group for group in (names.RAW, names.CLEAN) if group in file]
    return sum(
        not _row_is_good(file, group, row)
        for group in groups
        for row in range(file[f"{group}/crc32"].shape[0])
    )


def _row_is_good(file: Node, group: str, row: int) -> bool:
    paths = [f"{group}/data", f"{group}/data_errors"]
    try:
        arrays = [file[path][row] for path in paths if path in file]
    except OSError:  # the codec refused the chunk
        return False
    return checksum(*arrays) == int(file[f"{group}/crc32"][row])
