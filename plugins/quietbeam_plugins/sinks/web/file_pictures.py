"""A finished file as a source of pictures: the same viewer shows it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quietbeam.core.errors import DataError
from quietbeam.core.events import RunStart
from quietbeam.offline.recording import Recording
from quietbeam_plugins.sinks.web.entries import Entry, maps_described, run_described

_ROWS = 32
"""Decompressed frames kept of one file: the viewer steps back and forth."""


class FilePictures:
    """A finished file as a source of pictures; ids are the rows of what it holds most of.

    HDF5 is not safe for threads: one lock for all reading.
    """

    live = False

    def __init__(self, name: str, file: Recording) -> None:
        self.name = name
        self._file = file
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Entry] = OrderedDict()
        kind = "clean" if file.has_clean else "raw"
        self._frame_ids = file.column(f"{kind}/frame_id")
        times = file.column(f"{kind}/time")
        self._times = times - times[0] if len(times) else times
        self._unix = file.column(f"{kind}/host_time")
        self._raw_rows = _rows(file, "raw/frame_id") if file.has_raw else {}
        self._metrics = {n: v for n, v in file.metrics.items() if v.ndim == 1}
        self._denoisers = file.denoisers if file.has_clean else None
        self._versions = file.column("clean/model_version") if file.has_clean else None
        self._maps = file.maps
        self._start = _start(file)

    def __len__(self) -> int:
        return len(self._frame_ids)

    def newest(self) -> Entry | None:
        """Give the last frame."""
        return self.get(len(self) - 1)

    def get(self, number: int) -> Entry | None:
        """Give the frame of this row, or the nearest there is; None where it is damaged."""
        if not len(self):
            return None
        row = min(max(number, 0), len(self) - 1)
        with self._lock:
            entry = self._kept.get(row)
            if entry is None:
                try:
                    entry = self._read(row)
                except (DataError, OSError):
                    return None
                self._kept[row] = entry
                while len(self._kept) > _ROWS:
                    self._kept.popitem(last=False)
            return entry

    def ids(self, after: int = -1) -> Sequence[int]:
        """Give the rows beyond ``after``."""
        return range(after + 1, len(self))

    def span(self) -> dict[str, Any]:
        """Describe the file's extent."""
        if not len(self):
            return {"first": None, "last": None, "frames": 0, "seconds": 0, "times_s": None}
        ends = [float(self._times[0]), float(self._times[-1])]
        seconds = ends[1] - ends[0]
        last = len(self) - 1
        return {"first": 0, "last": last, "frames": last + 1, "seconds": seconds, "times_s": ends}

    def described(self) -> dict[str, Any]:
        """Describe the run and what was measured in it."""
        metrics = {
            n: {"unit": self._file.unit(f"metrics/{n}"), "description": ""} for n in self._metrics
        }
        told = self._file.provenance
        maps = maps_described({name: self._file.map_spec(name) for name in self._maps})
        run = run_described(self._start, end_reason=told.end_reason)
        return {"run": run, "metrics": metrics, "maps": maps}

    def _read(self, row: int) -> Entry:
        file, index = self._file, int(self._frame_ids[row])
        raw_row = self._raw_rows.get(index)
        cleaned: dict[str, Any] = {}
        if file.has_clean and self._denoisers is not None and self._versions is not None:
            cleaned = {
                "clean": file.clean[row],
                "sd": file.errors[row],
                "denoiser": str(self._denoisers[row]),
                "model_version": int(self._versions[row]),
                "maps": {name: images[row] for name, images in self._maps.items()},
                "metrics": {name: float(values[row]) for name, values in self._metrics.items()},
            }
        return Entry(
            id=row,
            run=file.run,
            index=index,
            start=self._start,
            time_s=float(self._times[row]),
            unix_s=float(self._unix[row]),
            raw=None if raw_row is None else file.raw[raw_row],
            **cleaned,
        )


@contextmanager
def opened_pictures(name: str, path: Path) -> Iterator[FilePictures]:
    """Open a recording as pictures.

    Raises:
        DataError: It cannot be read.
    """
    with Recording(path) as file:
        yield FilePictures(name, file)


def _rows(file: Recording, column: str) -> dict[int, int]:
    return {int(index): row for row, index in enumerate(file.column(column))}


def _start(file: Recording) -> RunStart:
    if file.has_raw:
        return file.run_start()
    frames = file.clean
    shape = frames.shape[1:]
    return RunStart(run=file.run, shape=shape, dtype=frames.dtype, channels=file.channels)
