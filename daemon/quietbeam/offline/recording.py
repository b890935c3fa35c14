"""Reads a recording: finished, or still being written.

    with Recording(path) as recording:
        clean = recording.clean[-1]

Frames are read when they are indexed; everything else is small.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from quietbeam.core import recording as names
from quietbeam.core.errors import DataError
from quietbeam.core.events import RunStart
from quietbeam.core.result import MapClass, MapSpec
from quietbeam.offline.repair import Node, open_ours, table, text


@dataclass(frozen=True, slots=True)
class Weights:
    """One promotion: the weights behind a ``model_version``."""

    version: int
    denoiser: str
    sha256: str
    time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How the file came about.

    Attributes:
        version: Of the program.
        config: Text of the configuration, "" if there was none.
        weights: Every promotion while it was written.
        decisions: The gate's decisions, as it told them.
        end_reason: completed, aborted, lost, disk_full, or "" while it is written.
        counts: See ``quietbeam.core.recording.COUNTS``.
    """

    version: str
    config: str
    config_sha256: str
    started: str
    ended: str
    segment: int
    weights: tuple[Weights, ...]
    decisions: tuple[dict[str, Any], ...]
    end_reason: str
    counts: dict[str, int]


class Frames:
    """Frames of one kind, read from the file when they are indexed.

    ``shape`` is (t, h, w), or (t, c, h, w) with several channels.
    """

    def __init__(self, dataset: Node, frames: int) -> None:
        self._dataset, self._frames = dataset, frames
        self.shape: tuple[int, ...] = (frames, *dataset.shape[1:])
        self.dtype: np.dtype[Any] = dataset.dtype

    def __len__(self) -> int:
        return self._frames

    def __getitem__(self, index: int | slice) -> NDArray[Any]:
        """Give one frame, or several where ``index`` is a slice.

        Raises:
            IndexError: There is no such frame.
            DataError: The file is damaged there.
        """
        span = range(self._frames)[index]
        try:
            if isinstance(span, int):
                return self._dataset[span]
            if span.step < 0:
                return (
                    self._dataset[span[-1] : span[0] + 1 : -span.step][::-1] if span else self[:0]
                )
            return self._dataset[span.start : span.stop : span.step]
        except OSError as error:
            where = f"{self._dataset.file.filename}:{self._dataset.name}[{index}]"
            raise DataError(f"{where} cannot be read: {error}") from error


class Recording:
    """One open file.  What is added to it later is seen after ``refresh``.

    Attributes:
        live: Its writer is at work, or was killed; see ``quietbeam repair``.

    Raises:
        DataError: No such file, truncated, or not a recording of ours.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{self.path}: there is no such file")
        self.live = self.path.suffix == ".part"
        self._file = open_ours(self.path, "r", swmr=self.live)
        self._rows: dict[str, int] = {}
        try:
            self._look()
        except (KeyError, OSError, RuntimeError) as error:
            self._file.close()
            raise DataError(f"{self.path}: damaged or truncated: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def refresh(self) -> None:
        """See what was written since; row counts of raw and clean never tear."""
        for node in self._growing():
            node.refresh()
        self._file[names.COMMITTED].refresh()
        self._look()

    @property
    def run(self) -> str:
        """Name of the run."""
        return self._text(f"{names.ENTRY}/title")

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels; empty where there is one."""
        group = names.RAW if self.has_raw else names.CLEAN
        found = self._file.get(f"{group}/channel")
        return () if found is None else tuple(text(name) for name in found[()])

    @property
    def raw(self) -> Frames:
        """Detector counts.  Raises DataError where they were not recorded."""
        return self._frames(f"{names.RAW}/data", "raw")

    @property
    def clean(self) -> Frames:
        """Corrected and denoised counts, float32, NaN where a pixel is bad."""
        return self._frames(f"{names.CLEAN}/data", "clean")

    @property
    def errors(self) -> Frames:
        """One standard deviation of ``clean``, float32."""
        return self._frames(f"{names.CLEAN}/data_errors", "clean")

    @property
    def has_raw(self) -> bool:
        """Raw frames were recorded."""
        return names.RAW in self._file

    @property
    def has_clean(self) -> bool:
        """Cleaned frames were recorded."""
        return names.CLEAN in self._file

    def column(self, path: str) -> NDArray[Any]:
        """Give one value per frame: "raw/frame_id", "clean/latency", "metrics/NAME", ...

        Raises:
            DataError: There is no such column.
        """
        full = f"{names.ENTRY}/{path}"
        kind = "raw" if path.startswith("raw/") else "clean"
        if full not in self._file or not isinstance(self._file[full], h5py.Dataset):
            raise DataError(f"{self.path}: there is no {path}")
        return self._file[full][: self._rows[kind]]

    @property
    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """By name: (t, ...) for the cleaned frames."""
        if names.METRICS not in self._file:
            return {}
        links = {"frame_id", "time"}
        return {
            name: self.column(f"metrics/{name}")
            for name in self._file[names.METRICS]
            if name not in links
        }

    @property
    def maps(self) -> dict[str, Frames]:
        """By name: (t, h, w) images for the cleaned frames; fill values where not measured."""
        group = self._file.get(names.MAPS, {})
        return {
            name: self._frames(f"{names.MAPS}/{name}", "clean")
            for name in group
            if name not in {"frame_id", "time"}
        }

    def map_spec(self, name: str) -> MapSpec:
        """Say what a map is.

        Raises:
            DataError: There is no such map.
        """
        item = self._file.get(f"{names.MAPS}/{name}")
        if item is None:
            raise DataError(f"{self.path}: there is no map {name}; there are {list(self.maps)}")
        attributes = item.attrs
        classes = zip(attributes.get("classes", ()), attributes.get("colours", ()), strict=True)
        return MapSpec(
            unit=str(attributes.get("units", "")),
            description=str(attributes.get("description", "")),
            dtype=item.dtype.name,
            classes=tuple(
                MapClass(text(one), (int(rgb[0]), int(rgb[1]), int(rgb[2]))) for one, rgb in classes
            ),
            uncertainty=str(attributes.get("uncertainty", "")),
        )

    def uncertainty(self, path: str) -> str:
        """Name of the metric or map that is the s.d. of this one, "" if there is none."""
        return str(self._file[f"{names.ENTRY}/{path}"].attrs.get("uncertainty", ""))

    def unit(self, path: str) -> str:
        """Give the unit of a column, "" if it has none."""
        return str(self._file[f"{names.ENTRY}/{path}"].attrs.get("units", ""))

    @property
    def denoisers(self) -> NDArray[np.str_]:
        """(t,) name of the denoiser behind each cleaned frame."""
        known = [text(name) for name in self._file[names.DENOISERS][: self._rows["denoisers"]]]
        return np.array(known or [""])[self.column("clean/denoiser")]

    @property
    def missing(self) -> NDArray[np.int64]:
        """(n, 2): first and last number of each gap in the raw frames."""
        return names.gaps(self.column("raw/frame_id")) if self.has_raw else np.zeros((0, 2), int)

    @property
    def ledger(self) -> dict[tuple[str, str], int]:
        """What became of the run's frames, by (stage, what); empty while the run goes on."""
        if names.LEDGER not in self._file:  # of an older version
            return {}
        columns = [self._file[f"{names.LEDGER}/{name}"][:] for name in ("stage", "what", "frames")]
        rows = zip(*columns, strict=True)
        return {(text(stage), text(what)): int(frames) for stage, what, frames in rows}

    @property
    def provenance(self) -> Provenance:
        """How the file came about."""
        process = names.PROCESS
        weights = self._file[names.WEIGHTS]
        columns = [weights[key][: self._rows["weights"]] for key in Weights.__slots__]
        notes = self._file[names.DECISIONS][: self._rows["decisions"]]
        return Provenance(
            version=self._text(f"{process}/version"),
            config=self._text(f"{process}/config"),
            config_sha256=self._text(f"{process}/config_sha256"),
            started=self._text(f"{names.ENTRY}/start_time"),
            ended=self._text(names.END_TIME),
            segment=int(self._file[f"{process}/segment"][()]),
            weights=tuple(
                Weights(int(row[0]), *(text(word) for word in row[1:]))
                for row in zip(*columns, strict=True)
            ),
            decisions=tuple(json.loads(text(note)) for note in notes),
            end_reason=self._text(names.END_REASON),
            counts={name: int(self._file[path][()]) for name, path in names.COUNTS.items()},
        )

    def run_start(self) -> RunStart:
        """Give the start of the run, to play the raw frames again.

        Raises:
            DataError: Raw frames were not recorded.
        """
        raw = self.raw
        mask = self._file.get(f"{names.DETECTOR}/pixel_mask")
        expected = self._number(f"{names.DETECTOR}/frames_expected")
        return RunStart(
            run=self.run,
            shape=raw.shape[1:],
            channels=self.channels,
            dtype=raw.dtype,
            frame_time_s=self._number(f"{names.DETECTOR}/frame_time"),
            exposure_s=self._number(f"{names.DETECTOR}/count_time"),
            frames_expected=None if expected is None else int(expected),
            pixel_size_m=self._number(f"{names.DETECTOR}/x_pixel_size"),
            energy_kev=self._number(f"{names.BEAM}/incident_energy"),
            distance_m=self._number(f"{names.DETECTOR}/distance"),
            mask=None if mask is None else mask[()] != 0,
            nodata=self._number(f"{names.DETECTOR}/nodata_value"),
            saturation=self._number(f"{names.DETECTOR}/saturation_value"),
            metadata=json.loads(self._text(f"{names.PROCESS}/run_metadata")),
        )

    def _look(self) -> None:
        committed = self._file[names.COMMITTED][()].tolist()
        for (name, groups), safe in zip(names.TABLES.items(), committed, strict=True):
            lengths = [node.shape[0] for node in table(self._file, groups)]
            self._rows[name] = min([safe, *lengths])

    def _growing(self) -> list[Node]:
        return [node for groups in names.TABLES.values() for node in table(self._file, groups)]

    def _frames(self, path: str, kind: str) -> Frames:
        if path not in self._file:
            raise DataError(f"{self.path}: {kind} frames were not recorded")
        return Frames(self._file[path], self._rows[kind])

    def _text(self, path: str) -> str:
        return text(self._file[path][()])

    def _number(self, path: str) -> float | None:
        return float(self._file[path][()]) if path in self._file else None
