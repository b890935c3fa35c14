"""Brings frames and status to the records and images; imported only where an IOC may run."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quietbeam import Frame, Link, Result, SinkError
from quietbeam_plugins.sinks.epics.access import written
from quietbeam_plugins.sinks.epics.capture import Capture
from quietbeam_plugins.sinks.epics.controls import Controls
from quietbeam_plugins.sinks.epics.images import Images
from quietbeam_plugins.sinks.epics.pv import Pv
from quietbeam_plugins.sinks.epics.records import Records
from quietbeam_plugins.sinks.epics.regions import region_value
from quietbeam_plugins.sinks.epics.snap import Snap
from quietbeam_plugins.sinks.epics.state import State, preview
from quietbeam_plugins.sinks.epics.table import scalars

if TYPE_CHECKING:
    from quietbeam_plugins.sinks.epics.sink import Epics

_POLL_S = 0.02
_RAW_BYTES = 256 << 20  # raw frames that wait for their cleaned ones
_INVALID = 3


class EpicsServer:
    """One IOC in one process.

    Args:
        settings: Of the sink.
        link: To the daemon.
        table: What is served.
        status: Of the daemon when it was made: says what is measured.
        scratch: For the access security file.
    """

    def __init__(
        self,
        settings: Epics,
        link: Link,
        table: tuple[Pv, ...],
        status: Mapping[str, Any],
        scratch: Path,
    ) -> None:
        self._settings, self._link, self._table = settings, link, table
        self._declared = {key: status[key] for key in ("metrics", "maps")}
        self._maps = _chosen_maps(settings, status["maps"])
        self._snap = Snap()
        names = {name: pv.name.removesuffix("_RBV") for name, pv in scalars(table).items()}
        self._capture = Capture(settings.capture_root, names)
        providers = {"snap": self._snap.value, "snap-metric": self._snap.metric}
        providers |= {"capture": self._capture.value}
        providers |= {"roi": self._live_region, "snap-roi": self._latched_region}
        self._state = State(link, settings.prefix, settings.stale_s, providers)
        self._controls = Controls(table, link, self._state, self._snap, self._capture)
        self._records = Records(table, settings.prefix, self._controls.put)
        access = settings.access_file or written(scratch, settings.operators, settings.experts)
        self._records.serve(access, settings.autosave_directory)
        self._state.own = self._records.settings()
        if settings.autosave_directory is None:
            self._state.own["MinCallbackTime"] = settings.image_period_s
        self._controls.records = self._records
        self._images = Images(table, settings.prefix, settings.image_port)
        self._raw: OrderedDict[int, Frame] = OrderedDict()
        self._next_s: dict[str, float] = {"records": 0.0, "images": 0.0, "preview": 0.0}
        self._attributes = [pv for pv in table if pv.attribute]

    def run(self) -> None:
        """Serve until the link says stop.

        Raises:
            SinkError: The daemon of now measures something else: the records must be made anew.
        """
        try:
            while not self._link.stopping:
                for item in self._link.poll(_POLL_S):
                    self._take(item)
                self._look_at_daemon()
                if self._due("records", 1.0 / self._settings.record_hz):
                    self._capture.tick()
                    self._records.publish(self._state)
        finally:
            self._capture.close()
            self._records.close()
            self._images.close()

    # -- frames ---------------------------------------------------------------------------

    def _take(self, item: Any) -> None:
        if isinstance(item, Frame):
            self._keep_raw(item)
            return
        self._state.take(item)
        if isinstance(item, Result):
            self._snap.add(item)
            self._capture.add(item)
            self._images.post_metrics(item, self._told())
            self._show(item)

    def _keep_raw(self, frame: Frame) -> None:
        self._raw[frame.index] = frame
        while len(self._raw) > 1 and len(self._raw) * frame.pixels.nbytes > _RAW_BYTES:
            self._raw.popitem(last=False)
            self._give_up(raw_waited=1)

    def _raw_of(self, result: Result) -> Frame | None:
        """Give the raw frame of a cleaned one, and forget all before it."""
        frame = self._raw.pop(result.index, None)
        while self._raw and next(iter(self._raw)) < result.index:
            self._raw.popitem(last=False)
        return None if frame is None or frame.run != result.run else frame

    def _show(self, result: Result) -> None:
        raw = self._raw_of(result)
        own = self._state.own
        if not own["EnableCallbacks"]:
            return
        attributes = self._attributes_of(result)
        if self._due("preview", 1.0 / self._settings.preview_hz):
            self._images.post("image:preview", preview(result.clean), result, attributes)
        if not self._due("images", float(own["MinCallbackTime"])):
            return
        self._images.post("image:clean", result.clean, result, attributes)
        self._images.post("image:sd", result.sd, result, attributes)
        if raw is not None:
            self._images.post("image:raw", raw.pixels, raw, attributes)
        for source, name in self._maps.items():
            if name in result.maps:
                self._images.post(source, _pixels(result.maps[name]), result, attributes)

    def _attributes_of(self, result: Result) -> dict[str, Any]:
        """Give the attributes of an image as plain numbers and texts."""
        found = {pv.attribute: self._state.value(pv) for pv in self._attributes}
        found |= {"RunUid": self._state.run_uid(), "SeriesId": result.run, "Valid": True}
        return found

    def _told(self) -> dict[str, Any]:
        """Give what identifies run and daemon, for ``Metrics``."""
        generation = self._link.status().get("generation") or {}
        return {
            "runUid": self._state.run_uid(),
            "seriesId": "" if self._state.run is None else self._state.run.run,
            "version": str(generation.get("version", "")),
            "generation": int(generation.get("number", 0)),
            "startTime": float(generation.get("started_unix_s", 0.0)),
        }

    def _live_region(self, what: str) -> float:
        newest = self._state.result
        return region_value(what, self._state.own, None if newest is None else newest.clean)

    def _latched_region(self, what: str) -> float:
        return region_value(what, self._state.own, self._snap.latest.image)

    # -- the daemon -----------------------------------------------------------------------

    def _look_at_daemon(self) -> None:
        """Alarm what is not of now; end where a successor measures something else."""
        if not self._link.connected:
            self._snap.fail()
            self._images.alarm(_INVALID, "the daemon does not answer")
        elif self._state.stale:
            self._images.alarm(_INVALID, "no frames come")
        status = self._link.status()
        if any(status.get(key) != value for key, value in self._declared.items()):
            raise SinkError("the daemon measures something else now; the server starts again")

    def _give_up(self, **counts: int) -> None:
        self._link.account(**counts)
        self._state.own_dropped += sum(counts.values())

    def _due(self, what: str, period_s: float) -> bool:
        now = time.monotonic()
        if now < self._next_s[what]:
            return False
        self._next_s[what] = max(self._next_s[what] + period_s, now - period_s)
        return True


def _chosen_maps(settings: Epics, maps: Mapping[str, Any]) -> dict[str, str]:
    """Give the maps that are shown, by channel."""
    plain = [name for name, spec in maps.items() if not spec["classes"]]
    classes = [name for name, spec in maps.items() if spec["classes"]]
    chosen = {
        "image:labels": settings.labels or next(iter(plain), ""),
        "image:phases": settings.phases or next(iter(classes), ""),
    }
    return {source: name for source, name in chosen.items() if name}


def _pixels(found: np.ndarray) -> np.ndarray:
    """Give labels as few bytes as they need; quantities as they are."""
    if found.dtype.kind in "iu" and found.size and found.min() >= 0 and found.max() < 256:
        return found.astype(np.uint8)
    return found
