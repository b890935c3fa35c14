"""One recording file while it is open: frames go in, ``commit`` makes them safe."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core import recording as names
from quietbeam.core.errors import DataError
from quietbeam.core.events import Frame
from quietbeam.core.recording import FinishedFile, Layout
from quietbeam.core.result import Result
from quietbeam.offline.repair import (
    Node,
    checksum,
    complete,
    frame_ids,
    mend,
    open_ours,
    published,
    survey,
    table,
    text,
)
from quietbeam.offline.superblock import clear_consistency_flags, lock
from quietbeam_plugins.sinks.nexus import Compression, create


class _Table:
    """Datasets that grow together; ``append`` writes pixels at once, the rest on ``commit``."""

    def __init__(self, file: Node, groups: tuple[str, ...]) -> None:
        # by name within the first group; metrics (the second) by their whole path
        self._columns = {
            item.name.removeprefix(groups[0] + "/"): item for item in table(file, groups)
        }
        self.rows = min((item.shape[0] for item in self._columns.values()), default=0)
        self._pending: list[Mapping[str, Any]] = []

    def __len__(self) -> int:
        return self.rows + len(self._pending)

    @property
    def pending(self) -> int:
        return len(self._pending)

    def append(self, row: Mapping[str, Any], pixels: Mapping[str, Any]) -> None:
        at = len(self)
        for name, array in pixels.items():
            item = self._columns[name]
            item.resize(at + 1, axis=0)
            if array is not None:
                item[at] = array
        self._pending.append(row)

    def commit(self) -> None:
        if not self._pending:
            return
        end = len(self)
        for name, item in self._columns.items():
            if name in self._pending[0]:
                item.resize(end, axis=0)
                item[self.rows : end] = np.array([row[name] for row in self._pending], item.dtype)
        self.rows = end
        self._pending.clear()


class Segment:
    """One open file.  Used by one thread."""

    def __init__(self, path: Path, file: Node) -> None:
        self.path = path
        self.unflushed_bytes = 0
        self.overrun = 0
        self.dropped = 0
        self._file = file
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if not lock(self._descriptor):
            os.close(self._descriptor)
            raise DataError(f"{path}: is being written by another process")
        self._committed_at = file[names.COMMITTED].id.get_offset()
        self._epoch_ns = int(file[f"{names.PROCESS}/host_epoch_ns"][()])
        self._tables = {name: _Table(file, groups) for name, groups in names.TABLES.items()}
        self.number = int(file[f"{names.PROCESS}/segment"][()])
        self._denoisers = [text(name) for name in file[names.DENOISERS][:]]
        self._metrics = _row_shapes(file, names.METRICS)
        self._maps = _row_shapes(file, names.MAPS)
        self._syncer = _Syncer(self._descriptor)

    @classmethod
    def new(cls, path: Path, layout: Layout, compression: Compression) -> Segment:
        """Make the file ``path``.

        Raises:
            OSError: It exists, or cannot be written.
        """
        return cls(path, create(path, layout, compression))

    @classmethod
    def resume(cls, path: Path) -> Segment:
        """Go on in a file whose writer was killed; what was not committed is cut off.

        Raises:
            DataError: It is being written by another, or damaged.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not lock(descriptor):
                raise DataError(f"{path}: is being written by another process")
            clear_consistency_flags(path)
            file = open_ours(path, "r+")
            mend(file)
            file.flush()
            file.swmr_mode = True
        finally:
            os.close(descriptor)
        return cls(path, file)

    @property
    def committed(self) -> tuple[int, int]:
        """Raw and cleaned frames that are safe."""
        return self._tables["raw"].rows, self._tables["clean"].rows

    @property
    def pending(self) -> tuple[int, int]:
        """Raw and cleaned frames written since the last commit."""
        return self._tables["raw"].pending, self._tables["clean"].pending

    @property
    def synced(self) -> int:
        """Frames of both kinds that survive a power cut."""
        return self._syncer.synced

    @property
    def bytes(self) -> int:
        """Size of the file now."""
        return os.fstat(self._descriptor).st_size

    def ids(self, group: str) -> set[int]:
        """Frame numbers in the file already."""
        return set(frame_ids(self._file, group).tolist())

    def add_raw(self, frame: Frame) -> None:
        """Append one raw frame."""
        row = self._times(frame) | {"crc32": checksum(frame.pixels)}
        self._tables["raw"].append(row, {"data": frame.pixels})
        self.unflushed_bytes += frame.pixels.nbytes

    def add_clean(self, result: Result) -> None:
        """Append one cleaned frame with its metrics."""
        row = self._times(result)
        row |= {
            "crc32": checksum(result.clean, result.sd),
            "model_version": result.model_version,
            "denoiser": self._denoiser(result.denoiser),
            "latency": result.latency_s,
        }
        for name, shape in self._metrics.items():
            value = np.asarray(result.metrics.get(name, np.nan), np.float64)
            fits = value.shape == shape
            row[f"{names.METRICS}/{name}"] = value if fits else np.full(shape, np.nan)
        pixels = {"data": result.clean, "data_errors": result.sd}
        maps = {f"{names.MAPS}/{name}": _map(result, name, s) for name, s in self._maps.items()}
        self._tables["clean"].append(row, pixels | maps)
        self.unflushed_bytes += sum(a.nbytes for a in (*pixels.values(), *result.maps.values()))

    def note(self, note: str) -> None:
        """Keep a gate decision; a promotion also enters the table of weights."""
        encoded = note.encode()
        if len(encoded) > names.TEXT_BYTES:
            start = encoded[: names.TEXT_BYTES // 2].decode(errors="ignore")
            encoded = json.dumps({"cut": start}).encode()[: names.TEXT_BYTES]
        self._tables["decisions"].append({names.DECISIONS: encoded}, {})

    def promoted(self, version: int, denoiser: str, sha256: str, when: str) -> None:
        """Enter weights into the table of weights."""
        row = {"version": version, "denoiser": denoiser.encode(), "sha256": sha256.encode()}
        self._tables["weights"].append(row | {"time": when.encode()}, {})

    def keep_ledger(self, account: Mapping[str, Any]) -> None:
        """Enter the account of the run, once, at its end."""
        rows = names.ledger_rows(account)
        if not rows or names.LEDGER not in self._file:  # a file begun by an older version
            return
        for column, values in zip(
            ("stage", "what", "frames"), zip(*rows, strict=True), strict=True
        ):
            item = self._file[f"{names.LEDGER}/{column}"]
            item.resize(len(rows), axis=0)
            item[:] = np.array(values, item.dtype)

    def commit(self) -> None:
        """Make everything written so far survive the death of this process."""
        for part in self._tables.values():
            part.commit()
        self._file.flush()
        lengths = [part.rows for part in self._tables.values()]
        # past the caches of HDF5 and in one call: never ahead of the rows, never half
        os.pwrite(self._descriptor, struct.pack(f"<{len(lengths)}q", *lengths), self._committed_at)
        self.unflushed_bytes = 0

    def sync_if_due(self, interval_s: float) -> None:
        """Start an fsync in the background if the last is ``interval_s`` ago."""
        self._syncer.start_if_due(interval_s, sum(self.committed))

    def finish(self, reason: str) -> FinishedFile | None:
        """Commit, fill in the end, close, and give the file its final name.

        A file without a frame is removed, and None given.
        """
        self.commit()
        raw, clean = self.committed
        found = survey(self._file)
        received = raw + self.dropped
        complete(self._file, reason, found, received=received, overrun=self.overrun)
        self._file.close()
        self._syncer.finish()
        self.close()
        if raw + clean == 0:
            self.path.unlink()
            return None
        target = published(self.path)
        _sync_directory(target.parent)
        return FinishedFile(
            file=str(target), raw=raw, clean=clean, missing=found.missing, reason=reason
        )

    def close(self) -> None:
        """Let go of the file as it is; it keeps its ``.part`` unless it was finished."""
        with suppress(OSError):
            os.close(self._descriptor)

    def _times(self, item: Frame | Result) -> dict[str, Any]:
        return {
            "frame_id": item.index,
            "time": item.time_ns / 1e9,
            "time_ns": item.time_ns,
            "host_time": (item.received_ns + self._epoch_ns) / 1e9,
        }

    def _denoiser(self, name: str) -> int:
        if name not in self._denoisers:
            self._denoisers.append(name)
            self._tables["denoisers"].append({names.DENOISERS: name.encode()[:64]}, {})
        return min(self._denoisers.index(name), 255)


class _Syncer:
    """fsync beside the writing thread: a slow disk must not hold up the ring."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._last = time.monotonic()
        self._thread: threading.Thread | None = None
        self.synced = 0

    def start_if_due(self, interval_s: float, frames: int) -> None:
        busy = self._thread is not None and self._thread.is_alive()
        if busy or frames == self.synced or time.monotonic() - self._last < interval_s:
            return
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._sync, args=(frames,), name="fsync")
        self._thread.start()

    def finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
        os.fsync(self._descriptor)

    def _sync(self, frames: int) -> None:
        os.fsync(self._descriptor)
        self.synced = frames


def _map(result: Result, name: str, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Give the map to write; None leaves the fill value: it was not measured."""
    image = result.maps.get(name)
    return image if image is not None and image.shape == shape else None


def _row_shapes(file: Node, group: str) -> dict[str, tuple[int, ...]]:
    prefix = group + "/"
    items = table(file, names.TABLES["clean"])  # gives the links under their first name only
    return {
        item.name.removeprefix(prefix): item.shape[1:]
        for item in items
        if item.name.startswith(prefix)
    }


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def now_iso() -> str:
    """Give the time of day, ISO 8601 with zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")
