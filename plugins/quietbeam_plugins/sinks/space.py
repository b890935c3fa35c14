"""Stops a recording before the disk is full: HDF5 does not survive ENOSPC."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

FreeBytes = Callable[[Path], int]

_MARGIN_BYTES = 2 << 20  # HDF5's own needs: the index of chunks, the columns, the end
_RECHECK_S = 0.5


def free_bytes(path: Path) -> int:
    """Give what an ordinary user may still write on the file system of ``path``."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def existing(path: Path) -> Path:
    """Give ``path`` or the nearest directory above it that exists."""
    while not path.is_dir():
        path = path.parent
    return path


class Space:
    """Knows whether there is room; says so once when it goes, once when it is back."""

    def __init__(self, reserve_bytes: int, free: FreeBytes = free_bytes) -> None:
        self._reserve_bytes = reserve_bytes
        self._free = free
        self._full_since: float | None = None
        self._checked_s = 0.0
        self._log = structlog.get_logger().bind(sink="hdf5")

    @property
    def full(self) -> bool:
        """The last answer was no."""
        return self._full_since is not None

    def free(self, directory: Path) -> int:
        """Bytes free on the file system of ``directory``."""
        return self._free(existing(directory))

    def forget(self) -> None:
        """Ask again at once."""
        self._full_since = None

    def room(self, directory: Path, size: int) -> bool:
        """Whether ``size`` more bytes leave the reserve alone; while full, asked now and then."""
        now = time.monotonic()
        if self.full and now - self._checked_s < _RECHECK_S:
            return False
        self._checked_s = now
        need = self._reserve_bytes + size + _MARGIN_BYTES
        if self.full:
            need += _MARGIN_BYTES + self._reserve_bytes // 8  # not to go to and fro
        roomy = self.free(directory) >= need
        if roomy != (not self.full):
            self._turn(directory, now, full=not roomy)
        return roomy

    def _turn(self, directory: Path, now: float, *, full: bool) -> None:
        if full:
            self._log.error(
                "disk_full",
                directory=str(directory),
                reserve_bytes=self._reserve_bytes,
                advice="free some space: recording goes on by itself in a further file",
            )
        else:
            self._log.info("disk_has_room", full_s=round(now - (self._full_since or now), 1))
        self._full_since = now if full else None
