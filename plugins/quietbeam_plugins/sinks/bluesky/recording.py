"""Follows a recording while it is written, and gives it a name that lasts.

A recording is ``NAME.h5.part`` until it is complete, and may then be numbered.
Documents must name it before that, so they name a hard link, made in a folder
beside it: the same file under a second name, whatever becomes of the first.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quietbeam.core import recording as names
from quietbeam.core.errors import DataError
from quietbeam.offline.repair import open_ours, text


class FollowedFile:
    """One file of the recording, open for as long as it is followed.

    Attributes:
        run: Name of the run in it.
        chunks: HDF5 chunk shape of every dataset that grows, by name.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            OSError: It is not there (any more).
            DataError: It is not ours.
        """
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with open_ours(path, "r", swmr=True) as file:
                self.run = text(file[f"{names.ENTRY}/title"][()])
                self._committed_at = file[names.COMMITTED].id.get_offset()
                self.chunks = _chunks(file)
        except (OSError, DataError, KeyError):
            self.close()
            raise

    @property
    def committed(self) -> dict[str, int]:
        """Rows that can be read, by table: past HDF5, as the recorder writes them.

        Raises:
            OSError: The disk failed.
        """
        size = 8 * len(names.TABLES)
        lengths = struct.unpack(
            f"<{len(names.TABLES)}q", os.pread(self._descriptor, size, self._committed_at)
        )
        return dict(zip(names.TABLES, lengths, strict=True))

    @property
    def complete(self) -> bool:
        """It has its final name (or was removed, being empty)."""
        if self._path.suffix != ".part":
            return True
        with suppress(OSError):
            return not os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        return True

    def is_same(self, other: FollowedFile) -> bool:
        """Whether both are one file, whatever their names."""
        return os.path.sameopenfile(self._descriptor, other._descriptor)

    def close(self) -> None:
        """Let go of it."""
        with suppress(OSError):
            os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class RecorderFiles:
    """The files of one recorder, as the daemon's status names them.

    Attributes:
        is_configured: There is such a recorder, or the daemon has not said yet.
        finished: The latest complete ones.
        current: The one being written, if there is one.
    """

    is_configured: bool
    finished: tuple[Path, ...]
    current: tuple[Path, ...]


def recorder_files(status: Mapping[str, Any], output: str | None) -> RecorderFiles:
    """Read ``status``, a snapshot of the daemon, for the recorder ``output`` (None: the first)."""
    if not status:
        return RecorderFiles(is_configured=True, finished=(), current=())
    outputs = status.get("outputs") or {}
    of_kind = (told for told in outputs.values() if told.get("kind") == "hdf5")
    told = outputs.get(output) if output is not None else next(of_kind, None)
    if told is None:
        return RecorderFiles(is_configured=False, finished=(), current=())
    finished = tuple(Path(one["file"]) for one in told.get("finished") or [])
    current = (told.get("status") or {}).get("file")
    return RecorderFiles(
        is_configured=True, finished=finished, current=(Path(current),) if current else ()
    )


def _chunks(file: Any) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for group in (names.RAW, names.CLEAN, names.METRICS):
        for name, item in file.get(group, {}).items():
            if getattr(item, "chunks", None) and item.maxshape[0] is None:
                found[f"{group}/{name}"] = tuple(item.chunks)
    return found
