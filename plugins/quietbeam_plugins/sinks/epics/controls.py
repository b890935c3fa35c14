"""What a write to a PV does: a command of the daemon, a setting of this server, a measurement."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from quietbeam import Link, QuietbeamError
from quietbeam_plugins.sinks.epics.capture import Capture
from quietbeam_plugins.sinks.epics.pv import Pv
from quietbeam_plugins.sinks.epics.records import Records
from quietbeam_plugins.sinks.epics.snap import Snap
from quietbeam_plugins.sinks.epics.state import State, at

SWITCHES: Mapping[str, tuple[str, str]] = {
    "Acquire": ("process_stop", "process_start"),
    "EnableTraining": ("train_freeze", "train_resume"),
    "FreezeWeights": ("weights_release", "weights_freeze"),
    "Record": ("record_stop", "record_start"),
}
"""Settings of two values, with the command for each."""
_CAPTURE = {
    "HDF1:FilePath": "path",
    "HDF1:FileName": "name",
    "HDF1:FileTemplate": "template",
    "HDF1:NumCapture": "num_capture",
    "HDF1:WriteMode": "mode",
}
_LATCHED = ("snap:", "snap-metric:", "snap-roi:")
_COUNTERS = {"ArrayCounter": "array_counter", "DroppedArrays": "dropped"}


class Controls:
    """Carries out what clients write.  Runs in the IOC's event loop.

    Args:
        table: What is served.
        link: To the daemon.
        state: Told of refusals and settings.
        snap: Measures.
        capture: Writes files.
    """

    def __init__(
        self, table: tuple[Pv, ...], link: Link, state: State, snap: Snap, capture: Capture
    ) -> None:
        self.records: Records | None = None
        self._link, self._state, self._snap, self._capture = link, state, snap, capture
        self._snap_pvs = [pv for pv in table if pv.source.startswith(_LATCHED)]
        self._capture_pvs = [pv for pv in table if pv.source.startswith("capture:") and pv.readback]

    async def put(self, pv: Pv, value: Any) -> None:
        """Do what was written; where it is refused, say why and show what is in force."""
        self._state.refusal = ""
        try:
            if pv.name == "Snap:Trigger":
                await self._measure()
            else:
                await asyncio.to_thread(self._do, pv, value)
        except QuietbeamError as error:
            self._state.refusal = f"{pv.name}: {error}"
            structlog.get_logger().warning("put_refused", pv=pv.name, reason=str(error))
            if self.records is not None:
                self.records.refuse(pv)
        self._show(self._capture_pvs if pv.name.startswith("HDF1:") else ())

    def _do(self, pv: Pv, value: Any) -> None:
        if pv.name in SWITCHES:
            self._link.command(SWITCHES[pv.name][int(value)], {})
        elif pv.name in _CAPTURE:
            self._capture.set(_CAPTURE[pv.name], value)
        elif pv.name in _COUNTERS:
            self._state.set_counter(_COUNTERS[pv.name], int(value))
        elif pv.source == "view:own":
            self._state.own[pv.name] = value
        else:
            self._rest()[pv.name](value)

    def _rest(self) -> Mapping[str, Callable[[Any], object]]:
        give, capture = self._link.command, self._capture
        return {
            "Denoiser": lambda v: give("use", {"which": "classical" if v else "live"}),
            "RollBack": lambda _: give("rollback", self._version()),
            "Checkpoint": lambda _: give("checkpoint", {}),
            "Reset": lambda _: give("reset", {}),
            "RunUid": lambda v: give("describe_run", {"metadata": json.dumps({"run_uid": v})}),
            "ScanId": lambda v: give("describe_run", {"metadata": json.dumps({"scan_id": v})}),
            "HDF1:Capture": lambda v: capture.open() if v else capture.close(),
            "HDF1:Start": lambda _: capture.start(),
            "HDF1:FlushNow": lambda _: capture.flush(),
            "NDArrayPort": lambda _: None,  # the source is the daemon's configuration
            "NDArrayAddress": lambda _: None,
            "BlockingCallbacks": lambda _: None,
        }

    def _version(self) -> dict[str, int]:
        version = int(self._state.own.get("RollBackTo", -1))
        return {} if version < 0 else {"version": version}

    async def _measure(self) -> None:
        """Measure; when the client's put completes, what was measured can be read."""
        own = self._state.own
        if not self._link.connected:
            raise QuietbeamError("the daemon does not answer; nothing is measured")
        generation = int(at(self._link.status(), "generation.number") or 0)
        measured = await self._snap.measure(
            int(own["Snap:NumFrames"]), float(own["Snap:Timeout"]), generation
        )
        await asyncio.to_thread(self._capture.add_snap, measured)
        self._show([*self._capture_pvs, *self._snap_pvs])
        if self.records is not None:
            await self.records.settled("Snap:Serial_RBV", self._snap.serial)
        if measured.state != "Done":
            raise QuietbeamError(f"measurement: {measured.state.lower()}")

    def _show(self, pvs: Any) -> None:
        if self.records is not None:
            for pv in pvs:
                self.records.show(pv, self._state.value(pv), self._state.alarm(pv))
