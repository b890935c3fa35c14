"""The file that ``quietbeam analyse`` writes: NeXus, metrics and maps of raw and clean frames.

/entry                      NXentry, default = the best kind there is
  raw/ clean/               NXdata: one dataset per metric (t, ...), frame_id, time
    maps/NAME/              NXdata: data (k, h, w), and frame_id of the k frames it was made of
  process/                  NXprocess: program, settings, source and its checksum
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from quietbeam.core.errors import SinkError
from quietbeam.core.events import RunStart
from quietbeam.core.result import MapSpec, MetricSpec
from quietbeam.model.measure import Measurements

Node = Any
Add = Callable[[int, int, Measurements], None]


class Results:
    """What was measured on one kind of frames; maps are read when they are indexed.

    Names are those the analysis declared, with the channel where each is measured alone.

    Attributes:
        run: What the frames are of.
        frame_id: (t,) int64.
        time_s: (t,) float64, from the first frame.
        metrics: By name, (t, ...) float64; NaN where not measured.
    """

    def __init__(
        self,
        group: Node,
        run: RunStart,
        metric_specs: Mapping[str, MetricSpec],
        map_specs: Mapping[str, MapSpec],
    ) -> None:
        self.run = run
        self.metric_specs, self.map_specs = metric_specs, map_specs
        self.frame_id: NDArray[np.int64] = group["frame_id"][:]
        self.time_s: NDArray[np.float64] = group["time"][:]
        self.metrics: dict[str, NDArray[np.float64]] = {
            name: group[name][:] for name in metric_specs
        }
        self._maps = group.get("maps", {})

    def has_map(self, name: str) -> bool:
        """The map was made of at least one frame."""
        return name in self._maps and len(self._maps[name]["data"]) > 0

    def map(self, name: str, at: int = -1) -> NDArray[Any]:
        """Give the map (h, w) made of the last frame at or before position ``at``."""
        frames = self._maps[name]["frame_id"][:]
        wanted = self.frame_id[at]
        row = int(np.searchsorted(frames, wanted, side="right")) - 1
        return self._maps[name]["data"][max(row, 0)]

    def measured(self, name: str) -> NDArray[np.intp]:
        """Give the positions of the frames at which a metric was measured."""
        values = self.metrics[name]
        return np.flatnonzero(np.isfinite(values.reshape(len(values), -1)).any(1))

    def summary(self) -> dict[str, tuple[float, float]]:
        """Of every scalar metric: (mean over frames, mean of the s.d. stated with it)."""
        found = {}
        for name, spec in self.metric_specs.items():
            if spec.shape == ():
                error = self.metrics.get(spec.uncertainty)
                found[name] = (
                    _mean(self.metrics[name]),
                    float("nan") if error is None else _mean(error),
                )
        return found


class ResultsWriter:
    """Writes the file under another name until it is whole.  A context manager."""

    def __init__(self, path: Path, run: RunStart, provenance: Mapping[str, Any]) -> None:
        self._path, self._run, self._provenance = path, run, provenance
        self._unready = path.with_name(f"{path.name}.new")
        self._results: dict[str, Results] = {}
        self._done = False

    def __enter__(self) -> ResultsWriter:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file: Node = h5py.File(self._unready, "w")
        except OSError as error:
            raise SinkError(f"{self._path}: cannot be written: {error}") from error
        self._file.attrs.update({"default": "entry", "creator": "quietbeam"})
        entry = self._file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        entry["title"] = self._run.run
        process = entry.create_group("process")
        process.attrs["NX_class"] = "NXprocess"
        for name, value in self._provenance.items():
            process[name] = str(value)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None and self._done:
            self._unready.replace(self._path)
        else:
            self._unready.unlink(missing_ok=True)

    @contextmanager
    def kind(
        self, kind: str, metrics: Mapping[str, MetricSpec], maps: Mapping[str, MapSpec]
    ) -> Iterator[Add]:
        """Give a function that takes the measurements of one frame after the other."""
        group = self._file["entry"].create_group(kind)
        rows: list[tuple[int, int, dict[str, Any]]] = []
        short = {name: _short(name) for name in (*metrics, *maps)}

        def add(index: int, time_ns: int, found: Measurements) -> None:
            rows.append((index, time_ns, dict(found.metrics)))
            for name, image in found.maps.items():
                _append(group.require_group("maps"), short[name], image, index, maps[name])

        yield add
        specs = {short[name]: _local(spec) for name, spec in metrics.items()}
        self._columns(group, specs, rows)
        self._file["entry"].attrs["default"] = kind
        kept = {short[name]: spec for name, spec in maps.items()}
        self._results[kind] = Results(group, self._run, specs, kept)

    def _columns(
        self,
        group: Node,
        specs: Mapping[str, MetricSpec],
        rows: list[tuple[int, int, dict[str, Any]]],
    ) -> None:
        group["frame_id"] = np.array([row[0] for row in rows], np.int64)
        first = rows[0][1] if rows else 0
        group["time"] = np.array([(row[1] - first) / 1e9 for row in rows])
        group["time"].attrs["units"] = "s"
        found = [{_short(name): value for name, value in row[2].items()} for row in rows]
        for name, spec in specs.items():
            nothing = np.full(spec.shape, np.nan)
            values = [np.asarray(row.get(name, nothing), np.float64) for row in found]
            group[name] = np.stack(values) if values else np.zeros((0, *spec.shape))
            group[name].attrs.update({"units": spec.unit, "description": spec.description})
            if spec.uncertainty:
                group[name].attrs["uncertainty"] = spec.uncertainty
        scalars = [name for name, spec in specs.items() if spec.shape == ()]
        group.attrs.update({"NX_class": "NXdata", "axes": ["frame_id"]})
        if scalars:
            group.attrs.update({"signal": scalars[0], "auxiliary_signals": scalars[1:]})

    def finish(self) -> Mapping[str, Results]:
        """The file is whole; give what is in it, to be read while it is open."""
        self._file.flush()
        self._done = True
        return self._results


def _append(maps: Node, name: str, image: NDArray[Any], index: int, spec: MapSpec) -> None:
    maps.attrs["NX_class"] = "NXcollection"
    if name not in maps:
        group = maps.create_group(name)
        group.attrs.update({"NX_class": "NXdata", "signal": "data", "axes": ["frame_id", ".", "."]})
        data = group.create_dataset(
            "data",
            shape=(0, *image.shape),
            maxshape=(None, *image.shape),
            chunks=(1, *image.shape),
            dtype=image.dtype,
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
        data.attrs.update({"units": spec.unit, "description": spec.description})
        if spec.classes:
            data.attrs["classes"] = [one.name for one in spec.classes]
            data.attrs["colours"] = np.array([one.colour for one in spec.classes], np.uint8)
        group.create_dataset("frame_id", shape=(0,), maxshape=(None,), dtype=np.int64)
    group = maps[name]
    rows = len(group["data"])
    for part, value in (("data", image), ("frame_id", index)):
        group[part].resize(rows + 1, axis=0)
        group[part][rows] = value


def _short(name: str) -> str:
    """Leave out the name of the analysis: there is one in the file."""
    return name.partition(".")[2]


def _local(spec: MetricSpec) -> MetricSpec:
    return MetricSpec(spec.unit, spec.description, spec.shape, _short(spec.uncertainty))


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
