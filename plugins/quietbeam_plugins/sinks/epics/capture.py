"""The file behind the HDF1 names: as many cleaned frames as a plan asks for, exactly.

The recorder keeps whole runs; this writes what a control system's plan counts:
``Capture`` opens a file, ``Start`` appends the next N frames (or each ``Snap``
one), and ``NumCaptured`` grows only after a flush, so that whoever waits for
it can read the frames.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from quietbeam import Result, SinkError
from quietbeam_plugins.sinks.epics.snap import Measurement

_FLUSH_S = 0.2
_MODES = ("Stream", "PerTrigger")


class Capture:
    """Settings come from the IOC's threads, frames from the view's.

    Args:
        root: No file is made anywhere else; None: none is made at all.
        metrics: Names of scalar metrics, with the names of their datasets.
    """

    def __init__(self, root: Path | None, metrics: dict[str, str]) -> None:
        self._root = None if root is None else root.resolve()
        self._metrics = metrics
        self._lock = threading.RLock()
        self._file: h5py.File | None = None
        self._values: dict[str, Any] = {
            "path": str(self._root or ""),
            "name": "clean",
            "template": "%s%s.h5",
            "num_capture": 0,
            "mode": 0,
            "captured": 0,
            "missed": 0,
            "file": "",
            "status": 0,
            "message": "",
        }
        self._rows = 0
        self._left: int | None = 0  # frames still wanted; None: until stopped
        self._asked_ns = 0
        self._last_index: int | None = None
        self._flushed_s = 0.0

    def value(self, name: str) -> Any:
        """Give a value for a ``capture:`` source."""
        with self._lock:
            if name == "open":
                return self._file is not None
            if name == "exists":
                return self._inside(self._values["path"]) is not None
            return self._values[name]

    def set(self, name: str, value: Any) -> None:
        """Change a setting.

        Raises:
            SinkError: Not allowed: the path lies elsewhere, or the file is open.
        """
        with self._lock, _Told(self._values):
            if self._file is not None and name in {"path", "name", "template", "mode"}:
                raise SinkError(f"{name} cannot be changed while the file is open")
            if name == "path" and self._inside(value) is None:
                raise SinkError(f"{value!r} is not a directory below {self._root}")
            self._values[name] = value

    def open(self) -> None:
        """Begin a file; nothing is appended yet.

        Raises:
            SinkError: The name is not allowed, or the file exists or cannot be made.
        """
        with self._lock, _Told(self._values):
            if self._file is not None:
                raise SinkError(f"{self._values['file']} is still open")
            path = self._target()
            try:
                self._file = h5py.File(path, "x", libver="latest")
            except OSError as error:
                raise SinkError(f"{path} cannot be made: {error}") from error
            self._values |= {"file": str(path), "captured": 0, "missed": 0}
            self._rows, self._left, self._last_index = 0, 0, None

    def start(self) -> None:
        """Append the next frames that arrive.

        Raises:
            SinkError: No file is open.
        """
        with self._lock, _Told(self._values):
            if self._file is None:
                raise SinkError("no file is open; write 1 to HDF1:Capture first")
            self._left = int(self._values["num_capture"]) or None
            self._asked_ns, self._last_index = time.monotonic_ns(), None

    def flush(self) -> None:
        """Make everything appended readable, and count it."""
        with self._lock:
            if self._file is not None:
                self._file.flush()
                self._values["captured"] = self._rows
                self._flushed_s = time.monotonic()

    def close(self) -> None:
        """End the file."""
        with self._lock:
            if self._file is not None:
                self.flush()
                self._file.close()
                self._file, self._left = None, 0

    def add(self, result: Result) -> None:
        """Take one cleaned frame, if it is wanted."""
        with self._lock:
            if self._file is None or self._left == 0 or result.received_ns <= self._asked_ns:
                return
            if self._last_index is not None:
                self._values["missed"] += max(0, result.index - self._last_index - 1)
            self._last_index = result.index
            self._append(result.clean, result, result.metrics)
            if self._left is not None:
                self._left -= 1
            if self._left == 0 or time.monotonic() - self._flushed_s > _FLUSH_S:
                self._flush_or_fail()

    def add_snap(self, measured: Measurement) -> None:
        """Append exactly one frame, the mean of a measurement, if files are written so."""
        with self._lock:
            per_trigger = _MODES[self._values["mode"]] == "PerTrigger"
            if self._file is None or not per_trigger:
                return
            if measured.image is not None and measured.last is not None:
                self._append(measured.image, measured.last, measured.means)
                self._flush_or_fail()

    def tick(self) -> None:
        """Flush what has waited for long."""
        with self._lock:
            late = time.monotonic() - self._flushed_s > _FLUSH_S
            if self._file is not None and late and self._rows > self._values["captured"]:
                self._flush_or_fail()

    # -- the file -------------------------------------------------------------------------

    def _inside(self, text: str) -> Path | None:
        """Give the directory if it exists below the root: links are followed first."""
        if self._root is None:
            return None
        path = Path(text).resolve()
        return path if path.is_relative_to(self._root) and path.is_dir() else None

    def _target(self) -> Path:
        """Give the file's path.

        Raises:
            SinkError: It would not lie in the directory.
        """
        directory = self._inside(self._values["path"])
        if directory is None:
            raise SinkError(
                "no capture_root is configured"
                if self._root is None
                else f"{self._values['path']!r} is not a directory below {self._root}"
            )
        name, template = str(self._values["name"]), str(self._values["template"])
        if template.count("%s") != 2 or template.count("%") != 2:
            raise SinkError(f"HDF1:FileTemplate {template!r}: expected %s twice: path and name")
        path = Path(template.replace("%s", f"{directory}/", 1).replace("%s", name, 1))
        if path.parent.resolve() != directory or not name or "\0" in name:
            raise SinkError(f"HDF1:FileName {name!r} leads out of {directory}")
        return path

    def _append(self, image: np.ndarray, result: Result, metrics: Any) -> None:
        assert self._file is not None  # noqa: S101 - for the type checker
        data: Any = self._file.get("entry/data/data")
        if data is None:
            data = self._lay_out(image)
        if data.shape[1:] != image.shape:
            self._fail(f"a frame of {image.shape} does not fit into {data.shape[1:]}")
            return
        row = self._rows
        group: Any = self._file["entry/data"]
        values = {"data": image, "unique_id": result.index, "time": result.time_ns / 1e9}
        values |= {n: float(metrics.get(m, np.nan)) for m, n in self._metrics.items()}
        values["model_version"] = result.model_version
        for name, value in values.items():
            group[name].resize(row + 1, axis=0)
            group[name][row] = value
        self._rows += 1

    def _lay_out(self, image: np.ndarray) -> Any:
        """Make the datasets, once the shape is known; from then on the file is SWMR."""
        assert self._file is not None  # noqa: S101 - for the type checker
        entry = self._file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        group = entry.create_group("data")
        group.attrs.update({"NX_class": "NXdata", "signal": "data"})
        shape = image.shape
        made = {"maxshape": (None, *shape), "chunks": (1, *shape)}
        data = group.create_dataset("data", (0, *shape), "<f4", **made)
        for name, dtype in (("unique_id", "<i8"), ("model_version", "<i8"), ("time", "<f8")):
            group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(1024,))
        for name in self._metrics.values():
            group.create_dataset(name, (0,), "<f8", maxshape=(None,), chunks=(1024,))
        group["time"].attrs["units"] = "s"
        self._file.swmr_mode = True
        return data

    def _flush_or_fail(self) -> None:
        try:
            self.flush()
        except (OSError, RuntimeError) as error:
            self._fail(f"the file could not be written: {error}")

    def _fail(self, why: str) -> None:
        self._values |= {"status": 1, "message": why}
        self._left = 0


class _Told:
    """Keeps how a request went for WriteStatus and WriteMessage."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __enter__(self) -> None:
        self._values |= {"status": 0, "message": ""}

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._values |= {"status": 1, "message": str(error)}
