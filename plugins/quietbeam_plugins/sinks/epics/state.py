"""What the process variables show now: read from the daemon's status and the newest frame."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from quietbeam import Link, Result, RunEnd, RunStart
from quietbeam_plugins.sinks.epics.pv import Pv
from quietbeam_plugins.sinks.epics.table import PREVIEW_PX, STATES

Severity = Literal[0, 1, 2, 3]
Alarm = tuple[Severity, int]

NO_ALARM, INVALID = 0, 3
COMM, TIMEOUT = 9, 10  # EPICS alarm conditions
_ALWAYS = {"Connected_RBV", "DenoiserState_RBV", "StatusMessage_RBV", "ViewDropped_RBV"}
_KEPT = ("fixed:", "view:own", "snap:", "snap-metric:", "snap-roi:", "capture:", "view:pva")
_INT32 = 2**31 - 1

Provider = Callable[[str], Any]


class State:
    """Takes what the link gives, in the view's thread; read by it alone.

    Args:
        link: To the daemon.
        prefix: Of all names.
        stale_s: Without a cleaned frame for so long, what is measured on frames is INVALID.
        providers: Values by the first word of a source, besides those this class knows.
    """

    def __init__(
        self, link: Link, prefix: str, stale_s: float, providers: Mapping[str, Provider]
    ) -> None:
        self.result: Result | None = None
        self.run: RunStart | None = None
        self.refusal = ""
        """Why the last request was refused; "" if it was not."""
        self.counters = {"array_counter": 0, "dropped": 0}
        self.own: dict[str, Any] = {}
        """Settings that only this server knows, by name of PV."""
        self.own_dropped = 0
        self._link, self._prefix, self._stale_s = link, prefix, stale_s
        self._providers: dict[str, Provider] = {
            "view": self._view,
            "frame": self._frame,
            "metric": self._metric,
            "status": self._status,
            **providers,
        }
        self._seen_s = -math.inf
        self._dropped_zero = 0

    def take(self, item: RunStart | RunEnd | Result) -> None:
        """Take one event of the cleaned stream."""
        match item:
            case RunStart():
                self.run = item
            case Result():
                self.result, self._seen_s = item, time.monotonic()
                self.counters["array_counter"] += 1

    def set_counter(self, name: str, value: int) -> None:
        """Have a counter go on from ``value``."""
        if name == "dropped":
            self._dropped_zero = self._dropped_ever() - value
        else:
            self.counters[name] = value

    @property
    def stale(self) -> bool:
        """No cleaned frame has come for a while."""
        return time.monotonic() - self._seen_s > self._stale_s

    @property
    def name(self) -> str:
        """State of denoising, one of ``STATES``."""
        status = self._link.status()
        if not self._link.connected or status.get("state") not in {"running", "starting"}:
            return "Fault"
        if at(status, "threads.failed") or at(status, "pipeline.message"):
            return "Fault"
        if status.get("degradation", "normal") != "normal" or status.get("alarms"):
            return "Degraded"
        if not self.stale:
            return "Running"
        return "WarmingUp" if at(status, "pipeline.run") and at(status, "processing.on") else "Idle"

    def value(self, pv: Pv) -> Any:
        """Give the value of a readback; its ``initial`` where nothing is known."""
        source, _, what = pv.source.partition(":")
        if source == "fixed":
            return _as(pv, what)
        found = self.own.get(pv.name) if what == "own" else self._providers[source](what)
        return _as(pv, pv.initial if found is None else found)

    def alarm(self, pv: Pv) -> Alarm:
        """Give severity and condition of a readback, besides the limits of its record."""
        if pv.name in _ALWAYS or pv.source.startswith(_KEPT):
            return NO_ALARM, 0
        if not self._link.connected:
            return INVALID, COMM
        if pv.fresh and self.stale:
            return INVALID, TIMEOUT
        return NO_ALARM, 0

    def run_uid(self) -> str:
        """Give the uid the control system has told for the run; "" if none."""
        return str(at(self._link.status(), "run_metadata.run_uid") or "")

    # -- sources --------------------------------------------------------------------------

    def _status(self, path: str) -> Any:
        return at(self._link.status(), path)

    def _frame(self, name: str) -> Any:
        return None if self.result is None else getattr(self.result, name)

    def _metric(self, name: str) -> Any:
        return math.nan if self.result is None else self.result.metrics.get(name, math.nan)

    def _view(self, name: str) -> Any:
        if name.startswith("pva"):
            return f"{self._prefix}Pva{name[3:]}:Image"
        if name in self.counters and name != "dropped":
            return self.counters[name]
        return getattr(self, f"_view_{name}", lambda: self._shape(name))()

    def _view_state(self) -> int:
        return STATES.index(self.name)

    def _view_message(self) -> str:
        if not self._link.connected:
            return "the daemon does not answer; its last values are INVALID"
        said = (self.refusal, at(self._link.status(), "pipeline.message"), self._view_alarms())
        return next((text for text in said if text), f"{self.name}")

    def _view_alarms(self) -> str:
        alarms: Mapping[str, Any] = self._link.status().get("alarms") or {}
        return "; ".join(f"{name}: {alarm['message']}" for name, alarm in alarms.items())

    def _view_connected(self) -> bool:
        return self._link.connected

    def _view_training(self) -> bool:
        return "operator" not in (at(self._link.status(), "trainer.frozen_by") or ())

    def _view_recording(self) -> bool:
        outputs: Mapping[str, Any] = self._link.status().get("outputs") or {}
        states = [at(output, "status.state") for output in outputs.values()]
        return any(state not in {None, "off", "failed"} for state in states)

    def _view_unique_id(self) -> int:
        return 0 if self.result is None else self.result.index

    def _view_time_s(self) -> float:
        return 0.0 if self.result is None else self.result.time_ns / 1e9

    def _view_latency_ms(self) -> float:
        return math.nan if self.result is None else self.result.latency_s * 1e3

    def _view_latency_p50_ms(self) -> float:
        median = at(self._link.status(), "pipeline.latency_p50_s")
        return math.nan if median is None else median * 1e3

    def _view_dropped(self) -> int:
        return self._dropped_ever() - self._dropped_zero

    def _dropped_ever(self) -> int:
        stages: Mapping[str, Any] = self._link.status().get("ledger") or {}
        main = (stages.get(stage) or {} for stage in ("ingest", "denoise", "publish"))
        return sum(sum((stage.get("dropped") or {}).values()) for stage in main)

    def _view_own_dropped(self) -> int:
        return self.own_dropped

    def _view_port(self) -> str:
        return str(self._link.status().get("name") or "")

    def _view_source(self) -> str:
        return str(at(self._link.status(), "source.kind") or "")

    def _view_version(self) -> str:
        return str(self._link.status().get("version") or "")

    def _view_promotions(self) -> int:
        return len(at(self._link.status(), "model.promotions") or ())

    def _view_run_uid(self) -> str:
        return self.run_uid()

    def _view_scan_id(self) -> Any:
        return at(self._link.status(), "run_metadata.scan_id")

    def _view_series_id(self) -> str:
        return "" if self.run is None else self.run.run

    def _view_preview(self) -> Any:
        return None if self.result is None else preview(self.result.clean).ravel()

    def _shape(self, name: str) -> Any:
        shape = (0,) if self.result is None else self.result.clean.shape
        sizes = (*reversed(shape), 0, 0)
        step = preview_step(shape)
        known = {f"size_{axis}": sizes[axis] for axis in range(3)}
        known |= {"dimensions": len(shape), "bytes": 4 * math.prod(shape)}
        known |= {"color_mode": 4 if len(shape) == 3 and shape[0] == 3 else 0}
        known |= {"preview_x": -(-sizes[0] // step), "preview_y": -(-sizes[1] // step)}
        return known[name]


def at(status: Any, path: str) -> Any:
    """Follow a dotted path into nested mappings; None where it ends early."""
    for key in path.split("."):
        status = status.get(key) if isinstance(status, Mapping) else None
    return status


def preview_step(shape: tuple[int, ...]) -> int:
    """Give the stride that makes a frame fit into a preview."""
    return max(1, -(-max(shape[-2:]) // PREVIEW_PX)) if len(shape) >= 2 else 1


def preview(clean: np.ndarray) -> np.ndarray:
    """Give every n-th pixel of the (first) plane, (h, w) float32, C order."""
    plane = clean if clean.ndim == 2 else clean[0]
    step = preview_step(plane.shape)
    return np.ascontiguousarray(plane[::step, ::step])


def _as(pv: Pv, value: Any) -> Any:
    match pv.kind:
        case "float":
            return float(value)
        case "array":
            return np.atleast_1d(np.asarray(value, pv.dtype))[: pv.length]
        case "string":
            return str(value).encode(errors="replace")[: pv.length - 1].decode(errors="ignore")
        case "enum" | "bool" if isinstance(value, str) and value in pv.choices:
            return pv.choices.index(value)
        case _:
            return max(-_INT32 - 1, min(_INT32, int(value)))
