"""The documents of one run.  Pixels never are in them: they point into the recording.

Stream ``primary``: cleaned frames, their s.d. and every metric, row for row.
Stream ``raw``: frames as measured; its rows need not correspond to ``primary``.
Stream ``live``: scalar metrics as events, at most ``events_hz`` of them, for plots.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import event_model
import numpy as np

from quietbeam.core import recording as names
from quietbeam.core.events import RunEnd, RunStart
from quietbeam.core.recording import Layout, Origin, layout
from quietbeam.core.result import Result

Emit = Callable[[str, dict[str, Any]], None]

DETECTOR = "quietbeam"
"""Name of the object that all data keys belong to."""
STREAMS = {"primary": (names.CLEAN, names.METRICS), "raw": (names.RAW,)}
_TABLE_OF = {"primary": "clean", "raw": "raw"}
_LEFT_OUT = ("crc32", "time_ns", "denoiser", "channel")
_EXIT: Mapping[str, Literal["success", "abort"]] = {
    "completed": "success",
    "aborted": "abort",
    "lost": "abort",
}
_METADATA_CHARACTERS = 16_000


class RunDocuments:
    """Composes and validates the documents of one run, in order.

    Args:
        run: As the daemon gives it, with "quietbeam" in its metadata.
        emit: Takes each (name, document).
        facts: More for the start document: a sample, the uid of a beamline's own run.
    """

    def __init__(self, run: RunStart, emit: Emit, facts: Mapping[str, Any] | None = None) -> None:
        self.run = run
        self._emit = emit
        self._bundle = event_model.compose_run(metadata=_start_metadata(run) | plain(facts or {}))
        self.uid: str = self._bundle.start_doc["uid"]
        self._keys = _data_keys(run)
        self._streams: dict[str, Any] = {}
        self._resources: dict[str, list[Any]] = {}
        self.rows = dict.fromkeys(STREAMS, 0)
        self._base = dict.fromkeys(STREAMS, 0)
        emit("start", dict(self._bundle.start_doc))

    def resource(self, stream: str, path: Path, chunks: Mapping[str, tuple[int, ...]]) -> None:
        """Point at one file of the recording.

        Args:
            stream: One of ``STREAMS``.
            path: Absolute; must stay valid after the run.
            chunks: HDF5 chunk shape of each dataset that is in the file, by its name.
        """
        compose = event_model.ComposeStreamResource(start=self._bundle.start_doc)
        found = {key: name for key, (name, _) in self._keys[stream].items() if name in chunks}
        if not found:
            return
        self._describe(stream)
        self._base[stream] = self.rows[stream]
        self._resources[stream] = []
        for key, name in found.items():
            bundle = compose(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{path}",
                data_key=key,
                parameters={
                    "dataset": name,
                    "chunk_shape": tuple(chunks[name]),
                    "swmr": True,
                    "join_method": "stack",
                },
            )
            self._emit("stream_resource", dict(bundle.stream_resource_doc))
            self._resources[stream].append(bundle.compose_stream_datum)

    def committed(self, stream: str, rows: int) -> None:
        """So many rows of the newest file can be read."""
        start, stop = self.rows[stream], self._base[stream] + rows
        if stop <= start or stream not in self._resources:
            return
        for compose in self._resources[stream]:
            datum = compose(
                indices={"start": start, "stop": stop},
                seq_nums={"start": start + 1, "stop": stop + 1},
                descriptor=self._streams[stream].descriptor_doc,
            )
            self._emit("stream_datum", dict(datum))
        self.rows[stream] = stop

    def event(self, result: Result) -> None:
        """Tell the scalar metrics of one frame."""
        if "live" not in self._streams:
            keys = {key: spec for key, (_, spec) in self._keys["live"].items()}
            self._compose_stream("live", keys, hinted="live_quality")
        measured_s = time.time() - (time.monotonic_ns() - result.received_ns) / 1e9
        data: dict[str, Any] = {
            "live_frame": result.index,
            "live_model_version": result.model_version,
            "live_latency": result.latency_s,
        }
        for key, (name, _) in self._keys["live"].items():
            if key not in data:
                value = result.metrics.get(name, np.nan)
                data[key] = float(value) if np.ndim(value) == 0 else np.nan
        event = self._streams["live"].compose_event(
            data=data, timestamps=dict.fromkeys(data, measured_s), time=measured_s
        )
        self._emit("event", dict(event))

    def stop(self, end: RunEnd) -> None:
        """The run is over, and so is its recording."""
        for stream, rows in self.rows.items():
            if stream in self._streams:  # what is in a file is counted here
                self._bundle.compose_stop.event_counters[stream] = rows + 1
        reason = "" if end.reason == "completed" else end.reason
        self._emit("stop", dict(self._bundle.compose_stop(_EXIT[end.reason], reason)))

    def _describe(self, stream: str) -> None:
        if stream not in self._streams:
            keys = {key: spec for key, (_, spec) in self._keys[stream].items()}
            self._compose_stream(stream, keys, hinted="clean_quality")

    def _compose_stream(self, stream: str, keys: dict[str, Any], *, hinted: str) -> None:
        fields = [key for key in keys if key.startswith(hinted)]
        bundle = self._bundle.compose_descriptor(
            name=stream,
            data_keys=keys,
            object_keys={DETECTOR: list(keys)},
            hints={DETECTOR: {"fields": fields}},
        )
        self._streams[stream] = bundle
        self._emit("descriptor", dict(bundle.descriptor_doc))


def plain(value: Any) -> Any:
    """Give ``value`` as a document may hold it: no ``.`` or ``/`` in keys, only plain data."""
    match value:
        case Mapping():
            return {re.sub(r"[./]", "_", str(key)): plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
        case np.generic():
            return value.item()
        case np.ndarray():
            return value.tolist() if value.size <= 64 else f"array {value.dtype} {value.shape}"
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)


def _start_metadata(run: RunStart) -> dict[str, Any]:
    ours = run.metadata.get("quietbeam", {})
    theirs = plain({key: item for key, item in run.metadata.items() if key != "quietbeam"})
    if len(str(theirs)) > _METADATA_CHARACTERS:  # documents stay small; all of it is recorded
        theirs = {"left_out": "see /entry/process of the recording"}
    kept = ("name", "version", "config_sha256", "session")
    detector = {
        "series": run.run,
        "shape": list(run.shape),
        "dtype": str(run.dtype),
        "channels": list(run.channels),
        "frame_time_s": run.frame_time_s,
        "exposure_s": run.exposure_s,
        "energy_kev": run.energy_kev,
        "metadata": theirs,
    }
    return {
        "plan_name": "quietbeam",
        "plan_type": "daemon",
        "detectors": [DETECTOR],
        "hints": {"dimensions": [[["time"], "primary"]]},
        "quietbeam": {key: ours[key] for key in kept if key in ours},
        "detector": detector,
    }


def _data_keys(run: RunStart) -> dict[str, dict[str, tuple[str, dict[str, Any]]]]:
    """Give, by stream and data key: the dataset (of ``live``: the metric), and its description."""
    made = layout(run, Origin(version="", started="", host_epoch_ns=0))
    keys = {stream: _external(made, stream) for stream in STREAMS}
    keys["live"] = {
        "live_frame": ("", _number("", "frame_id", "integer")),
        "live_model_version": ("", _number("", "model_version", "integer")),
        "live_latency": ("", _number("s", "latency", "number")),
    }
    for name, spec in names.declared_metrics(run).items():
        if spec.shape == ():
            keys["live"][f"live_{_key(name)}"] = (name, _number(spec.unit, name, "number"))
    return keys


def _external(made: Layout, stream: str) -> dict[str, tuple[str, dict[str, Any]]]:
    found = {}
    for path, column in made.columns.items():
        group, _, name = path.rpartition("/")
        if group not in STREAMS[stream] or name in _LEFT_OUT:
            continue
        prefix = _TABLE_OF[stream]
        key = prefix if name == "data" else f"{prefix}_{_key(name)}"
        spec: dict[str, Any] = {
            "source": f"{DETECTOR}:{path}",
            "dtype": "array" if column.shape else "number",
            "dtype_numpy": column.dtype.newbyteorder("<").str,
            "shape": list(column.shape),
            "external": "STREAM:",
            "object_name": DETECTOR,
        }
        found[key] = (path, spec | ({"units": column.unit} if column.unit else {}))
    return found


def _number(unit: str, name: str, kind: str) -> dict[str, Any]:
    spec = {"source": f"{DETECTOR}:{name}", "dtype": kind, "shape": [], "object_name": DETECTOR}
    spec["dtype_numpy"] = "<i8" if kind == "integer" else "<f8"
    return spec | ({"units": unit} if unit else {})


def _key(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", name)
