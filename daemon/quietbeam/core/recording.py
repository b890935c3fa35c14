"""The layout of every file the program writes: names, shapes, units.  No HDF5 here.

NeXus, one entry, two NXdata groups::

    /entry                      NXentry, default = clean
      raw/      data (t,h,w)                    detector counts, the detector's dtype
      clean/    data, data_errors (t,h,w)       float32, corrected counts; NaN where bad
                with several channels (t,c,h,w), and channel (c) with their names
      metrics/  one dataset per metric (t, ...), aligned to clean/frame_id
      maps/     one dataset per map (t,h,w), aligned likewise; fill values where not measured
      instrument/detector, instrument/beam      what stays the same during the run
      process/  program, configuration, weights, gate decisions, end, missing frames

``raw`` and ``clean`` each carry ``frame_id``, ``time`` (detector clock),
``host_time`` and ``crc32`` for every frame.  Their rows need not correspond:
join them by ``frame_id``.

A *column* grows by one row; a *slot* has a fixed size and is overwritten.  All
exist before the first frame, because SWMR allows no new object afterwards.
``process/committed`` says how many rows are safe; it is written after the rows
are, so what lies behind it may be incomplete and was never acknowledged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.events import RunStart
from quietbeam.core.plugin import RecordingSink
from quietbeam.core.result import MapClass, MapSpec, MetricSpec

FORMAT = "quietbeam-recording-1"
"""Attribute ``quietbeam_format`` of ``/``: how a reader knows our files."""

ENTRY = "/entry"
RAW, CLEAN, METRICS = "/entry/raw", "/entry/clean", "/entry/metrics"
MAPS = "/entry/maps"
DETECTOR, BEAM, PROCESS = "/entry/instrument/detector", "/entry/instrument/beam", "/entry/process"
DECISIONS, WEIGHTS, MISSING = f"{PROCESS}/decisions", f"{PROCESS}/weights", f"{PROCESS}/missing"
DENOISERS, LEDGER = f"{PROCESS}/denoisers", f"{PROCESS}/ledger"
END_REASON, END_TIME = f"{PROCESS}/end_reason", "/entry/end_time"
COUNTS = {
    "received": f"{PROCESS}/frames_received",
    "written": f"{PROCESS}/frames_written",
    "missing": f"{PROCESS}/frames_missing",
    "overrun": f"{PROCESS}/frames_overrun",
    "cleaned": f"{PROCESS}/frames_cleaned",
}
"""Raw frames that reached the recorder, were written, never came (by number), were lost
because the recorder was too slow; and cleaned frames written."""
COMMITTED = f"{PROCESS}/committed"
TABLES = {
    "raw": (RAW,),
    "clean": (CLEAN, METRICS, MAPS),
    "decisions": (DECISIONS,),
    "weights": (WEIGHTS,),
    "denoisers": (DENOISERS,),
}
"""What grows together, by name; ``committed`` holds their safe lengths in this order."""

TEXT_BYTES = 2048
"""Room for one gate decision; a longer one is cut."""

Value = str | int | float | list[str] | list[int] | NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """A dataset whose first axis grows; ``shape`` is that of one row.

    ``dtype`` "S..." is fixed-length UTF-8 text.  ``pixels`` asks for one
    chunk per row and compression; ``fill`` stands where a row was not written.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    unit: str = ""
    description: str = ""
    pixels: bool = False
    fill: float = 0
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constant:
    """A dataset known when the file is made."""

    value: Value
    unit: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A dataset of fixed size that is overwritten; ``dtype`` as for ``Column``."""

    dtype: str
    shape: tuple[int, ...] = ()
    description: str = ""


@dataclass(slots=True, eq=False)
class Layout:
    """Everything in one file, by absolute path."""

    groups: dict[str, dict[str, Value]] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where and when a file was made, and where it stands in its run.

    Attributes:
        started: ISO 8601 with zone.
        host_epoch_ns: Unix time at zero of the host's monotonic clock.
        session: Names the live daemon the run comes from; "" if none.
        segment: 1, or more where a run had to go on in a further file.
    """

    version: str
    started: str
    host_epoch_ns: int
    session: str = ""
    segment: int = 1


def declared_metrics(run: RunStart) -> dict[str, MetricSpec]:
    """Read the metrics that ``metadata["quietbeam"]["metrics"]`` declares."""
    declared = _ours(run).get("metrics", {})
    return {
        name: MetricSpec(
            unit=spec.get("unit", ""),
            description=spec.get("description", ""),
            shape=tuple(spec.get("shape", ())),
            uncertainty=spec.get("uncertainty", ""),
        )
        for name, spec in declared.items()
    }


def declared_maps(run: RunStart) -> dict[str, MapSpec]:
    """Read the maps that ``metadata["quietbeam"]["maps"]`` declares."""
    return {
        name: MapSpec(
            unit=spec.get("unit", ""),
            description=spec.get("description", ""),
            dtype=spec.get("dtype", "float32"),
            classes=tuple(
                MapClass(one["name"], tuple(one["colour"])) for one in spec.get("classes", ())
            ),
            uncertainty=spec.get("uncertainty", ""),
        )
        for name, spec in _ours(run).get("maps", {}).items()
    }


def layout(run: RunStart, origin: Origin, *, raw: bool = True, clean: bool = True) -> Layout:
    """Give the layout of the file for ``run``."""
    made = Layout()
    made.groups["/"] = {"default": "entry", "creator": "quietbeam", "quietbeam_format": FORMAT}
    made.groups["/"] |= {"creator_version": origin.version, "file_time": origin.started}
    made.groups[ENTRY] = {"NX_class": "NXentry", "default": "clean" if clean else "raw"}
    made.constants[f"{ENTRY}/title"] = Constant(value=run.run)
    made.constants[f"{ENTRY}/start_time"] = Constant(value=origin.started)
    made.slots[END_TIME] = Slot(dtype="S40", description="when the file was completed")
    if raw:
        _raw(made, run)
    if clean:
        _clean(made, run)
        _metrics(made, declared_metrics(run))
        _maps(made, declared_maps(run), run.shape[-2:])
    _instrument(made, run)
    _process(made, run, origin)
    return made


def _ours(run: RunStart) -> Mapping[str, Any]:
    found = run.metadata.get("quietbeam", {})
    return found if isinstance(found, Mapping) else {}


def _frame_columns(made: Layout, group: str, run: RunStart) -> None:
    """Declare what raw and cleaned frames both carry."""
    int64, float64 = np.dtype(np.int64), np.dtype(np.float64)
    made.columns |= {
        f"{group}/frame_id": Column(dtype=int64, description="number given by the detector"),
        f"{group}/time": Column(
            dtype=float64, unit="s", description="detector clock, its own epoch"
        ),
        f"{group}/time_ns": Column(dtype=int64, unit="ns", description="detector clock, exact"),
        f"{group}/host_time": Column(
            dtype=float64, unit="s", description="arrival, seconds since 1970-01-01T00:00:00Z"
        ),
        f"{group}/crc32": Column(
            dtype=np.dtype(np.uint32),
            description="CRC-32 of the bytes of data, then of data_errors if there is one",
        ),
    }
    made.groups[group] = {
        "NX_class": "NXdata",
        "signal": "data",
        "axes": ["time", ".", "."],
        "time_indices": [0],
        "frame_id_indices": [0],
        "host_time_indices": [0],
    }
    if run.channels:
        made.groups[group] |= {"axes": ["time", "channel", ".", "."], "channel_indices": [1]}
        made.constants[f"{group}/channel"] = Constant(
            value=np.array([name.encode() for name in run.channels]),
            description="threshold, colour or whatever else distinguishes images of one frame",
        )


def _raw(made: Layout, run: RunStart) -> None:
    _frame_columns(made, RAW, run)
    made.columns[f"{RAW}/data"] = Column(
        dtype=run.dtype.newbyteorder("="), shape=run.shape, unit="counts", pixels=True
    )


def _clean(made: Layout, run: RunStart) -> None:
    _frame_columns(made, CLEAN, run)
    float32 = np.dtype(np.float32)
    made.columns |= {
        f"{CLEAN}/data": Column(
            dtype=float32,
            shape=run.shape,
            unit="counts",
            description="corrected and denoised; NaN where a pixel is bad",
            pixels=True,
        ),
        f"{CLEAN}/data_errors": Column(
            dtype=float32,
            shape=run.shape,
            unit="counts",
            description="one standard deviation of data",
            pixels=True,
        ),
        f"{CLEAN}/model_version": Column(
            dtype=np.dtype(np.uint32), description="0 classical, else the number of the promotion"
        ),
        f"{CLEAN}/denoiser": Column(
            dtype=np.dtype(np.uint8), description="row of /entry/process/denoisers"
        ),
        f"{CLEAN}/latency": Column(
            dtype=float32, unit="s", description="from arrival to the cleaned frame"
        ),
    }


def _metrics(made: Layout, specs: Mapping[str, MetricSpec]) -> None:
    for name, spec in specs.items():
        made.columns[f"{METRICS}/{name.replace('/', '.')}"] = Column(
            dtype=np.dtype(np.float64),
            shape=spec.shape,
            unit=spec.unit,
            description=spec.description,
            attributes=_uncertainty(spec),
        )
    scalars = [name.replace("/", ".") for name, spec in specs.items() if spec.shape == ()]
    attributes: dict[str, Value] = {"NX_class": "NXcollection"}
    if scalars:
        attributes = {"NX_class": "NXdata", "signal": scalars[0], "axes": ["frame_id"]}
        attributes |= {"frame_id_indices": [0], "time_indices": [0]}
        if scalars[1:]:
            attributes["auxiliary_signals"] = scalars[1:]
    made.groups[METRICS] = attributes
    made.links |= {f"{METRICS}/{name}": f"{CLEAN}/{name}" for name in ("frame_id", "time")}


def _maps(made: Layout, specs: Mapping[str, MapSpec], shape: tuple[int, ...]) -> None:
    if not specs:
        return
    for name, spec in specs.items():
        dtype = np.dtype(spec.dtype)
        classes: dict[str, Value] = {}
        if spec.classes:
            classes["classes"] = [one.name for one in spec.classes]
            classes["colours"] = np.array([one.colour for one in spec.classes], np.uint8)
        made.columns[f"{MAPS}/{name.replace('/', '.')}"] = Column(
            dtype=dtype,
            shape=shape,
            unit=spec.unit,
            description=spec.description,
            pixels=True,
            fill=np.nan if dtype.kind == "f" else 0,
            attributes=_uncertainty(spec) | classes,
        )
    found = [name.replace("/", ".") for name in specs]
    made.groups[MAPS] = {
        "NX_class": "NXdata",
        "signal": found[0],
        "axes": ["time", ".", "."],
        "time_indices": [0],
        "frame_id_indices": [0],
    }
    if found[1:]:
        made.groups[MAPS]["auxiliary_signals"] = found[1:]
    made.links |= {f"{MAPS}/{name}": f"{CLEAN}/{name}" for name in ("frame_id", "time")}


def _uncertainty(spec: MetricSpec | MapSpec) -> dict[str, Value]:
    return {"uncertainty": spec.uncertainty.replace("/", ".")} if spec.uncertainty else {}


def _instrument(made: Layout, run: RunStart) -> None:
    made.groups["/entry/instrument"] = {"NX_class": "NXinstrument"}
    made.groups[DETECTOR] = {"NX_class": "NXdetector"}
    known = {
        "frame_time": (run.frame_time_s, "s", "from one frame to the next"),
        "count_time": (run.exposure_s, "s", "time the shutter was open"),
        "x_pixel_size": (run.pixel_size_m, "m", ""),
        "y_pixel_size": (run.pixel_size_m, "m", ""),
        "distance": (run.distance_m, "m", ""),
        "saturation_value": (run.saturation, "", "count from which on a pixel is saturated"),
        "nodata_value": (run.nodata, "", 'count that means "no data"'),
        "frames_expected": (run.frames_expected, "", "as announced by the detector"),
    }
    for name, (value, unit, description) in known.items():
        if value is not None:
            path = f"{DETECTOR}/{name}"
            made.constants[path] = Constant(value=value, unit=unit, description=description)
    if run.mask is not None:
        made.constants[f"{DETECTOR}/pixel_mask"] = Constant(
            value=run.mask.astype(np.uint32), description="not 0 where a pixel is bad"
        )
    if run.energy_kev is not None:
        made.groups[BEAM] = {"NX_class": "NXbeam"}
        made.constants[f"{BEAM}/incident_energy"] = Constant(value=run.energy_kev, unit="keV")


def _process(made: Layout, run: RunStart, origin: Origin) -> None:
    ours = _ours(run)
    made.groups[PROCESS] = {"NX_class": "NXprocess"}
    rest = {key: value for key, value in run.metadata.items() if key != "quietbeam"}
    texts = {
        "program": "quietbeam",
        "version": origin.version,
        "date": origin.started,
        "config": str(ours.get("config", "")),
        "config_sha256": str(ours.get("config_sha256", "")),
        "config_name": str(ours.get("name", "")),
        "run_metadata": json.dumps(rest, default=str),
        "session": origin.session,
    }
    made.constants |= {f"{PROCESS}/{key}": Constant(value=text) for key, text in texts.items()}
    made.constants[f"{PROCESS}/segment"] = Constant(
        value=origin.segment, description="more than 1 where the run had to go on in a further file"
    )
    made.constants[f"{PROCESS}/host_epoch_ns"] = Constant(
        value=origin.host_epoch_ns, unit="ns", description="Unix time at zero of the host's clock"
    )
    made.slots[END_REASON] = Slot(dtype="S16", description="completed, aborted, lost or disk_full")
    made.slots[COMMITTED] = Slot(
        dtype="<i8",
        shape=(len(TABLES),),
        description=f"rows that are safe: {', '.join(TABLES)}; later ones may be incomplete",
    )
    for name, path in COUNTS.items():
        made.slots[path] = Slot(dtype="<i8", description=f"frames {name}")
    _tables(made)


def _tables(made: Layout) -> None:
    text = np.dtype(f"S{TEXT_BYTES}")
    made.columns[DECISIONS] = Column(dtype=text, description="the gate's decisions, JSON")
    made.columns[DENOISERS] = Column(dtype=np.dtype("S64"), description="see clean/denoiser")
    made.columns[MISSING] = Column(
        dtype=np.dtype(np.int64),
        shape=(2,),
        description="raw frames that never came: first and last frame_id of each gap",
    )
    made.groups[LEDGER] = {"NX_class": "NXcollection"}
    made.columns |= {
        f"{LEDGER}/stage": Column(dtype=np.dtype("S64"), description="source, a stage, an output"),
        f"{LEDGER}/what": Column(
            dtype=np.dtype("S64"), description="received, sent, in_flight, dropped:REASON, ..."
        ),
        f"{LEDGER}/frames": Column(dtype=np.dtype(np.int64), description="of the run, at its end"),
    }
    made.groups[WEIGHTS] = {"NX_class": "NXcollection"}
    made.columns |= {
        f"{WEIGHTS}/version": Column(dtype=np.dtype(np.uint32), description="see model_version"),
        f"{WEIGHTS}/denoiser": Column(dtype=np.dtype("S64")),
        f"{WEIGHTS}/sha256": Column(dtype=np.dtype("S64"), description="of the weights' file"),
        f"{WEIGHTS}/time": Column(dtype=np.dtype("S40"), description="of the promotion, ISO 8601"),
    }


def ledger_rows(account: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Give (stage, what, frames) for everything in ``RunEnd.account``; messages for rejected."""
    counted = {"source": account.get("source", {}), **account.get("stages", {})}
    rows = []
    for stage, counts in counted.items():
        for what, value in counts.items():
            if isinstance(value, Mapping):
                rows += [(stage, f"{what}:{reason}", n) for reason, n in value.items()]
            else:
                rows.append((stage, what, value))
    return rows


def gaps(frame_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give (n, 2): first and last of each run of numbers absent between the ends."""
    ids = np.unique(frame_ids)
    at = np.flatnonzero(np.diff(ids) > 1)
    return np.stack([ids[at] + 1, ids[at + 1] - 1], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkStatus:
    """What a recorder did since it was opened; frames, unless named otherwise.

    ``raw_written`` and ``clean_written`` count flushed frames only: they
    survive the death of the process.  ``synced`` counts those of both kinds
    that also survive a power cut.
    """

    state: Literal["idle", "recording", "disk_full", "failed"] = "idle"
    file: str | None = None
    raw_written: int = 0
    clean_written: int = 0
    synced: int = 0
    unflushed: int = 0
    bytes: int = 0
    free_bytes: int = 0
    raw_dropped: Mapping[str, int] = field(default_factory=dict)
    clean_dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedFile:
    """One file that is complete; ``missing`` counts numbers absent from ``raw``."""

    file: str
    raw: int
    clean: int
    missing: int
    reason: str


@runtime_checkable
class Recorder(RecordingSink, Protocol):
    """A recording sink that also tells about itself and takes notes."""

    def note(self, text: str) -> None:
        """Keep a JSON text (a gate decision) with the recording."""
        ...

    def lost(self, frames: int) -> None:
        """``frames`` raw frames of this run never reached this sink."""
        ...

    def status(self) -> SinkStatus:
        """Give the counts."""
        ...

    def take_finished(self) -> list[FinishedFile]:
        """Give the files completed since the last call."""
        ...
