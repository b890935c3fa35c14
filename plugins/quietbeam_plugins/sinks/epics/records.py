"""The records of pythonSoftIOC, made from the table: every scalar, setting and small array."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from softioc import alarm as alarms
from softioc import asyncio_dispatcher, autosave, builder, imports, softioc

from quietbeam_plugins.sinks.epics.pv import Pv
from quietbeam_plugins.sinks.epics.state import Alarm, State

Put = Callable[[Pv, Any], Awaitable[None]]

_SETTLE_S = 2.0


class Records:
    """All records of one table.  Made once in a process, like the IOC itself.

    Args:
        table: What is served.
        prefix: Of all names.
        put: Called in the IOC's event loop with what a client has written.
    """

    def __init__(self, table: tuple[Pv, ...], prefix: str, put: Put) -> None:
        self._pvs = [pv for pv in table if pv.is_record]
        self._ins: dict[str, Any] = {}
        self._outs: dict[str, Any] = {}
        self._shown: dict[str, tuple[Any, Alarm]] = {}
        self._put = put
        builder.SetDeviceName(prefix.removesuffix(":"))
        for pv in self._pvs:
            self._make(pv)

    def serve(self, access: Path, autosave_directory: Path | None) -> None:
        """Start the IOC; once in a process."""
        if autosave_directory is not None:
            autosave_directory.mkdir(parents=True, exist_ok=True)
            autosave.configure(
                autosave_directory, "quietbeam", save_period=1.0, timestamped_backups=False
            )
        builder.LoadDatabase()
        if imports.dbCore.asSetFilename(str(access).encode()) != 0:
            raise OSError(f"the access security file {access} was refused")
        self.dispatcher = asyncio_dispatcher.AsyncioDispatcher()
        softioc.iocInit(self.dispatcher)

    def settings(self) -> dict[str, Any]:
        """Give what the settings hold, with what was restored."""
        return {name: out.get() for name, out in self._outs.items()}

    def publish(self, state: State) -> None:
        """Bring every readback up to date, ``ArrayCounter_RBV`` last."""
        last = [pv for pv in self._pvs if pv.name == "ArrayCounter"]
        for pv in [pv for pv in self._pvs if pv.name != "ArrayCounter"] + last:
            if pv.access != "x" and pv.readback in self._ins:
                self.show(pv, state.value(pv), state.alarm(pv))

    def show(self, pv: Pv, value: Any, alarm: Alarm) -> None:
        """Set one readback, and its setting after it, where anything has changed."""
        shown = self._shown.get(pv.name)
        same = shown is not None and shown[1] == alarm and _equal(shown[0], value)
        if same:
            return
        self._shown[pv.name] = (value, alarm)
        self._ins[pv.readback].set(value, severity=alarm[0], alarm=alarm[1])
        if pv.readback != pv.name:
            self._outs[pv.name].set(value, process=False)

    def refuse(self, pv: Pv) -> None:
        """Show that what was written was not done: WRITE alarm, and the value in force."""
        shown = self._shown.get(pv.name)
        value = 0 if shown is None else shown[0]
        out = self._outs[pv.name]
        out.set(value, process=False, severity=alarms.MAJOR_ALARM, alarm=alarms.WRITE_ALARM)

    async def settled(self, name: str, value: int) -> None:
        """Wait until clients can read ``value`` and all that was set before it."""
        deadline_s = time.monotonic() + _SETTLE_S
        while self._ins[name].get_field("VAL") != str(value):
            if time.monotonic() > deadline_s:
                return
            await asyncio.sleep(0.001)

    def close(self) -> None:
        """Save the settings; the IOC itself ends with the process."""
        autosave.Autosave._stop()  # noqa: SLF001 - softioc offers nothing public, and would hang
        if autosave.AutosaveConfig.enabled:
            autosave.Autosave._save()  # noqa: SLF001

    # -- one record -----------------------------------------------------------------------

    def _make(self, pv: Pv) -> None:
        if pv.access == "r":
            self._ins[pv.name] = _record(pv, pv.name, "In", _limits(pv))
            return
        more: dict[str, Any] = {"ASG": pv.write, "autosave": pv.autosave}
        more |= {"on_update": self._updater(pv), "always_update": True, "blocking": True}
        if pv.drive is not None:
            more |= {"DRVL": pv.drive[0], "DRVH": pv.drive[1]}
        self._outs[pv.name] = _record(pv, pv.name, "Out", more)
        if pv.access == "rw" and pv.rbv:
            self._ins[pv.readback] = _record(pv, pv.readback, "In", _limits(pv))

    def _updater(self, pv: Pv) -> Callable[[Any], Awaitable[None]]:
        async def update(value: Any) -> None:
            if pv.access != "x" or value:
                await self._put(pv, value)
            if pv.access == "x":
                self._outs[pv.name].set(0, process=False)

        return update


def _record(pv: Pv, name: str, way: str, more: dict[str, Any]) -> Any:
    fields: dict[str, Any] = {"DESC": pv.description, "initial_value": pv.initial, **more}
    make: Any
    match pv.kind:
        case "float":
            make = getattr(builder, f"a{way}")
            fields |= {"EGU": pv.unit, "PREC": pv.precision}
        case "int":
            make = getattr(builder, f"long{way}")
            fields |= {"EGU": pv.unit}
        case "bool":
            make = getattr(builder, f"bool{way}")
            fields |= dict(zip(("ZNAM", "ONAM"), pv.choices, strict=True))
            fields |= {k: s for k, s in zip(("ZSV", "OSV"), pv.severities, strict=False) if s}
        case "enum":
            make = getattr(builder, f"mbb{way}")
            choices = zip(pv.choices, pv.severities or ("",) * len(pv.choices), strict=True)
            return make(name, *((c, s) if s else c for c, s in choices), **fields)
        case "string":
            make = getattr(builder, f"longString{way}")
            fields |= {"length": pv.length, "initial_value": str(pv.initial or "")}
        case _:
            make = getattr(builder, f"Waveform{way}")
            del fields["initial_value"]
            fields |= {"length": pv.length, "datatype": pv.dtype, "EGU": pv.unit}
    return make(name, **fields)


def _limits(pv: Pv) -> dict[str, Any]:
    """Give the fields of alarm limits."""
    found: dict[str, Any] = {}
    for field, severity in (("lolo", "MAJOR"), ("low", "MINOR"), ("high", "MINOR")):
        _limit(found, pv, field, severity)
    _limit(found, pv, "hihi", "MAJOR")
    return found


def _limit(found: dict[str, Any], pv: Pv, field: str, severity: str) -> None:
    value = getattr(pv.alarm, field)
    if value is not None:
        first = {"lolo": "LL", "low": "L", "high": "H", "hihi": "HH"}[field]
        found |= {field.upper(): value, f"{first}SV": severity}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.shape == np.shape(other) and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return one == other
