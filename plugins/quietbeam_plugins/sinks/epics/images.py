"""What goes over PV Access alone: images, one structure of all metrics a frame, the PVI tree."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from p4p import Type, Value
from p4p.nt import NTNDArray
from p4p.nt.common import alarm as alarm_type
from p4p.nt.common import timeStamp as timestamp_type  # noqa: N813
from p4p.server import Server, StaticProvider
from p4p.server.raw import Handler
from p4p.server.thread import SharedPV

from quietbeam import Frame, Result
from quietbeam_plugins.sinks.epics.pv import Pv, camel

_NT = NTNDArray()
_MEMBERS: Mapping[str, str] = NTNDArray._code2u  # noqa: SLF001 - the union's members by dtype
_MONO, _RGB3 = 0, 4
_UNSEEN_S = 0.5
"""An image that nobody watches is brought up to date so often, for who reads it once."""


class Images:
    """Channels of a PV Access server beside that of the records.

    Args:
        table: What is served.
        prefix: Of all names.
        port: Of this server.
    """

    def __init__(self, table: tuple[Pv, ...], prefix: str, port: int) -> None:
        self._channels: dict[str, SharedPV] = {}
        self._viewers: dict[str, _Viewers] = {}
        self._severity: dict[str, int] = {}
        self._metrics = [pv for pv in table if pv.source.startswith("metric:")]
        self._struct = self._metrics_type()
        provider = StaticProvider("quietbeam")
        for pv in table:
            if pv.is_record:
                continue
            viewers = self._viewers[pv.source] = _Viewers()
            initial = self._initial(pv, table, prefix)
            self._channels[pv.source] = SharedPV(handler=viewers, initial=initial)
            provider.add(prefix + pv.name, self._channels[pv.source])
        # not in conf: that is ignored where an interface is set in the environment
        os.environ["EPICS_PVAS_SERVER_PORT"] = str(port)
        self._server = Server(providers=[provider])

    def post(
        self, source: str, pixels: np.ndarray, result: Result | Frame, attributes: Any
    ) -> None:
        """Show an image: (h, w) or (c, h, w), C order, of the frame ``result``.

        Where nobody watches, only every half second: a copy for no one costs the others time.
        """
        if not self._viewers[source].want(time.monotonic()) and not self._severity.get(source):
            return
        self._channels[source].post(ndarray(pixels, result, attributes))
        self._severity[source] = 0

    def post_metrics(self, result: Result, told: Mapping[str, Any]) -> None:
        """Show all metrics of one frame at once; ``told`` are the fields besides them."""
        measured = {camel(name): value for name, value in result.metrics.items()}
        known = {_field(pv): measured.get(_field(pv), np.nan) for pv in self._metrics}
        values = {
            _field(pv): float(known[_field(pv)])
            if pv.kind == "float"
            else np.atleast_1d(np.asarray(known[_field(pv)], np.float64))
            for pv in self._metrics
        }
        content = {"value": values, "uniqueId": result.index & 0x7FFFFFFF, **told}
        content |= {"latency": result.latency_s, "denoiser": result.denoiser}
        content |= {"modelVersion": result.model_version}
        content |= {"timeStamp": _stamp(arrival_ns(result)), "alarm": _alarm(0)}
        content |= {"dataTimeStamp": _stamp(result.time_ns)}
        self._channels["struct:metrics"].post(Value(self._struct, content))
        self._severity["struct:metrics"] = 0

    def alarm(self, severity: int, message: str) -> None:
        """Put an alarm on everything; values stay as they are."""
        for source, channel in self._channels.items():
            if source != "struct:pvi" and self._severity.get(source) != severity:
                kind = self._struct if source == "struct:metrics" else _NT.type
                channel.post(Value(kind, {"alarm": _alarm(severity, message)}))
                self._severity[source] = severity

    def close(self) -> None:
        """Hang up."""
        self._server.stop()

    # -- types ----------------------------------------------------------------------------

    def _initial(self, pv: Pv, table: tuple[Pv, ...], prefix: str) -> Value:
        if pv.source == "struct:pvi":
            return pvi(table, prefix)
        invalid = {"alarm": _alarm(3, "no frame yet")}
        if pv.kind == "struct":
            return Value(self._struct, invalid)
        return Value(_NT.type, {"value": ("floatValue", np.zeros(0, np.float32)), **invalid})

    def _metrics_type(self) -> Type:
        values = [(_field(pv), "d" if pv.kind == "float" else "ad") for pv in self._metrics]
        fields = [("value", ("S", None, values)), ("alarm", alarm_type)]
        fields += [("timeStamp", timestamp_type), ("dataTimeStamp", timestamp_type)]
        fields += [("uniqueId", "i"), ("modelVersion", "i"), ("denoiser", "s"), ("latency", "d")]
        fields += [("runUid", "s"), ("seriesId", "s"), ("version", "s")]
        return Type([*fields, ("generation", "i"), ("startTime", "d")], id="quietbeam:Metrics:1.0")


class _Viewers(Handler):
    """Knows whether anybody is connected to a channel; told so in a thread of the server."""

    def __init__(self) -> None:
        self._any = False
        self._due_s = 0.0

    def onFirstConnect(self, pv: SharedPV) -> None:  # noqa: ARG002, N802 - p4p's names
        self._any = True

    def onLastDisconnect(self, pv: SharedPV) -> None:  # noqa: ARG002, N802 - p4p's names
        self._any = False

    def want(self, now_s: float) -> bool:
        """Tell whether an image is worth its copy."""
        if not self._any and now_s < self._due_s:
            return False
        self._due_s = now_s + _UNSEEN_S
        return True


def ndarray(pixels: np.ndarray, of: Result | Frame, attributes: Mapping[str, Any]) -> Value:
    """Give an NTNDArray; ``timeStamp`` is when the frame arrived, ``dataTimeStamp`` its own clock.

    ``NTNDArray.wrap`` would copy twice and leave ``uniqueId`` and ``dataTimeStamp`` 0.
    """
    data = np.ascontiguousarray(pixels)
    colour = _RGB3 if data.ndim == 3 and data.shape[0] == 3 else _MONO
    return Value(
        _NT.type,
        {
            "value": (_MEMBERS[data.dtype.char], data.reshape(-1)),
            "compressedSize": data.nbytes,
            "uncompressedSize": data.nbytes,
            "uniqueId": of.index & 0x7FFFFFFF,
            "alarm": _alarm(0),
            "timeStamp": _stamp(arrival_ns(of)),
            "dataTimeStamp": _stamp(of.time_ns),
            "dimension": [
                {"size": n, "offset": 0, "fullSize": n, "binning": 1, "reverse": False}
                for n in reversed(data.shape)
            ],
            "attribute": [
                {"name": name, "value": value}
                for name, value in {"ColorMode": colour, **attributes}.items()
            ],
        },
    )


def pvi(table: tuple[Pv, ...], prefix: str) -> Value:
    """Give the names of all PVs with how each is used, as ophyd-async's PVI connector reads."""
    ways: dict[str, dict[str, str]] = {}
    for pv in table:
        if pv.name == "PVI":
            continue
        if pv.access == "rw" and pv.rbv:
            ways[pv.snake] = {"r": prefix + pv.readback, "w": prefix + pv.name}
        else:
            ways[pv.snake] = {pv.access: prefix + pv.name}
    children = [(name, ("S", None, [(way, "s") for way in way])) for name, way in ways.items()]
    fields = [("alarm", alarm_type), ("timeStamp", timestamp_type)]
    fields += [("display", ("S", None, [("description", "s")])), ("value", ("S", None, children))]
    content = {"display": {"description": "quietbeam"}, "value": ways}
    content["timeStamp"] = _stamp(time.time_ns())
    return Value(Type(fields, id="epics:nt/NTPVI:1.0"), content)


def arrival_ns(of: Result | Frame) -> int:
    """Give when a frame arrived, in Unix time."""
    return time.time_ns() - (time.monotonic_ns() - of.received_ns)


def _field(pv: Pv) -> str:
    return camel(pv.source.removeprefix("metric:"))


def _stamp(time_ns: int) -> dict[str, int]:
    return {"secondsPastEpoch": time_ns // 10**9, "nanoseconds": time_ns % 10**9}


def _alarm(severity: int, message: str = "") -> dict[str, Any]:
    return {"severity": severity, "status": 2 if severity else 0, "message": message}
