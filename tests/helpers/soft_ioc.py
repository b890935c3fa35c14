"""A small IOC made from the table of PVs: what devices and plans are tried against.

As a program it serves frames that it makes up; ``serving`` runs it.  It keeps the
promises of the real server: a measurement takes frames that arrived after the
put, and a recording exactly the frames it was asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

PREFIX = "QBTEST:DEN1:"
METRICS = {
    "quality.psnr_estimated_db": {"unit": "dB", "description": "", "shape": []},
    "quality.psnr_raw_db": {"unit": "dB", "description": "", "shape": []},
    "quality.noise_sd": {"unit": "count", "description": "", "shape": []},
    "front.position": {"unit": "px", "description": "moves with time", "shape": []},
    "front.position_sd": {"unit": "px", "description": "its error", "shape": []},
}
SHAPE = (24, 32)


class Server:
    """All records of the table, and made-up frames behind them."""

    def __init__(self, directory: str, rate_hz: float) -> None:
        from softioc import asyncio_dispatcher, builder, softioc

        from quietbeam_plugins.sinks.epics.table import table

        self.directory, self.rate_hz = Path(directory), rate_hz
        self.records: dict[str, object] = {}
        self.frame, self.counter = 1000, 0
        self.arrived = asyncio.Event()
        self.newest: dict[str, float] = {}
        self.rng = np.random.default_rng(3)
        self.file = None
        self.streaming = 0
        dispatcher = asyncio_dispatcher.AsyncioDispatcher()
        builder.SetDeviceName(PREFIX.rstrip(":"))
        for pv in table(METRICS):
            if pv.is_record:
                self._make(builder, pv)
        for name in ("Sim:State", "Sim:Generation"):
            self.records[name] = builder.longOut(name, on_update_name=self.written)
        builder.LoadDatabase()
        softioc.iocInit(dispatcher)
        for pv in table(METRICS):
            if pv.source.startswith("fixed:") and pv.kind == "string":
                self.put(pv.name, pv.source.removeprefix("fixed:"))
        self.put("Generation_RBV", 7)
        for name, value in {"Snap:NumFrames": 3, "DenoiserState_RBV": 2}.items():
            self.put(name, value)
        for axis, size in zip("XY", SHAPE[::-1], strict=True):
            self.put(f"ArraySize{axis}_RBV", size)
        asyncio.run_coroutine_threadsafe(self.produce(), dispatcher.loop).result()

    def _make(self, builder, pv) -> None:
        writes = pv.access != "r"
        make = {
            "float": (builder.aIn, builder.aOut),
            "int": (builder.longIn, builder.longOut),
            "bool": (builder.boolIn, builder.boolOut),
            "enum": (builder.mbbIn, builder.mbbOut),
            "string": (builder.longStringIn, builder.longStringOut),
            "text": (builder.stringIn, builder.stringOut),
            "array": (builder.WaveformIn, builder.WaveformOut),
        }["text" if pv.kind == "string" and pv.length <= 40 else pv.kind]
        options: dict = {}
        if pv.kind == "string" and pv.length > 40:
            options["length"] = pv.length
        if pv.kind == "array":
            options |= {"length": max(pv.length, 1), "datatype": pv.dtype}
        if pv.kind in {"float", "int"} and pv.unit:
            options["EGU"] = pv.unit
        if pv.kind == "float":
            options["PREC"] = pv.precision
        if pv.kind in {"bool", "enum"}:
            labels = pv.choices
            options |= {"ZNAM": labels[0], "ONAM": labels[1]} if pv.kind == "bool" else {}
        args = pv.choices if pv.kind == "enum" else ()
        if not writes:
            self.records[pv.name] = make[0](pv.name, *args, **options)
            return
        if pv.drive and pv.kind in {"float", "int"}:
            low, high = pv.drive
            options |= {"DRVL": low, "DRVH": high, "LOPR": low, "HOPR": high}
        if pv.access == "rw" and pv.rbv:
            shown = {"length", "EGU", "PREC", "ZNAM", "ONAM"}
            inputs = {key: value for key, value in options.items() if key in shown}
            self.records[pv.readback] = make[0](pv.readback, *args, **inputs)
        blocking = {"blocking": True} if pv.access == "x" else {}
        self.records[pv.name] = make[1](
            pv.name, *args, always_update=True, on_update_name=self.written, **blocking, **options
        )

    def put(self, name: str, value) -> None:
        for one in (name, f"{name}_RBV"):
            if one in self.records:
                self.records[one].set(value)

    def get(self, name: str):
        return self.records[name].get()

    async def written(self, value, name: str) -> None:
        name = name.removeprefix(PREFIX)
        if name == "Snap:Trigger" and value:
            await self.measure()
            self.records[name].set(0, process=False)
        elif name == "Sim:State":
            self.put("DenoiserState_RBV", value)
        elif name == "Sim:Generation":
            self.put("Generation_RBV", value)
        elif name == "HDF1:Capture":
            self.capture(bool(value))
        elif name == "HDF1:Start" and value:
            self.streaming = self.get("HDF1:NumCapture")
            self.records[name].set(0, process=False)
        if f"{name}_RBV" in self.records:
            self.records[f"{name}_RBV"].set(value)

    async def produce(self) -> None:
        asyncio.get_running_loop().create_task(self._frames())

    async def _frames(self) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(1 / self.rate_hz)
            self.frame += 1
            self.counter += 1
            position = 100 + 2.0 * (time.monotonic() - began)
            error = 0.5
            self.newest = {
                "quality.psnr_estimated_db": 30 + self.rng.normal(0, 0.1),
                "quality.psnr_raw_db": 12.0,
                "quality.noise_sd": 5.0,
                "front.position": position + self.rng.normal(0, error),
                "front.position_sd": error,
            }
            if self.streaming > 0:
                self.streaming -= 1
                self.append()
            self.put("UniqueId_RBV", self.frame)
            self.put("ArrayCounter_RBV", self.counter)
            self.arrived.set()
            self.arrived.clear()

    async def measure(self) -> None:
        wanted, taken = self.get("Snap:NumFrames"), []
        first = None
        deadline = time.monotonic() + self.get("Snap:Timeout")
        while len(taken) < wanted and time.monotonic() < deadline:
            waiting = deadline - time.monotonic()
            try:
                await asyncio.wait_for(self.arrived.wait(), max(waiting, 0.001))
            except TimeoutError:
                break
            if not self.get("Acquire"):
                continue
            first = first or self.frame
            taken.append(dict(self.newest))
        done = len(taken) == wanted
        for metric in METRICS:
            values = [one[metric] for one in taken]
            mean = float(np.mean(values)) if values else float("nan")
            self.put(f"Snap:{_camel(metric)}_RBV", mean)
        self.put("Snap:FirstId_RBV", first or 0)
        self.put("Snap:LastId_RBV", self.frame)
        self.put("Snap:Count_RBV", len(taken))
        self.put("Snap:Generation_RBV", self.get("Generation_RBV"))
        if done and self.file is not None and self.get("HDF1:WriteMode") == 1:
            self.append()
        self.put("Snap:State_RBV", 2 if done else 3)

    def capture(self, on: bool) -> None:
        import h5py

        if not on:
            if self.file is not None:
                self.file.close()
            self.file = None
            return
        path = Path(self.get("HDF1:FilePath")) / f"{self.get('HDF1:FileName')}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = h5py.File(path, "w", libver="latest")
        self.file.create_dataset(
            "entry/data/data", (0, *SHAPE), "<f4", maxshape=(None, *SHAPE), chunks=(1, *SHAPE)
        )
        self.file.swmr_mode = True
        self.put("HDF1:NumCaptured_RBV", 0)
        self.put("HDF1:FullFileName_RBV", str(path))

    def append(self) -> None:
        item = self.file["entry/data/data"]
        item.resize(len(item) + 1, axis=0)
        item[-1] = self.frame
        self.file.flush()
        self.put("HDF1:NumCaptured_RBV", len(self.file["entry/data/data"]))


def _camel(metric: str) -> str:
    from quietbeam_plugins.sinks.epics.pv import camel

    return camel(metric)


@contextmanager
def serving(directory: Path, rate_hz: float = 100.0):
    """Run the IOC; give the environment of its clients."""
    from helpers.daemons import free_port

    environment = {
        **os.environ,
        "EPICS_CA_ADDR_LIST": "127.0.0.1",
        "EPICS_CA_AUTO_ADDR_LIST": "NO",
        "EPICS_CAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_CA_SERVER_PORT": str(free_port()),
        "EPICS_PVA_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_SERVER_PORT": str(free_port()),
        "EPICS_PVA_BROADCAST_PORT": str(free_port()),
        "EPICS_CA_REPEATER_PORT": str(free_port()),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    process = subprocess.Popen(
        [sys.executable, __file__, str(directory), str(rate_hz)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if "serving" in line:
                break
        yield environment
    finally:
        process.kill()
        process.communicate()


def session(environment, code: str, timeout_s: float = 100.0) -> dict:
    """Run ``code`` as a program of its own; give the JSON of what it leaves in ``told``."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            _BEFORE + code + "\nprint('TOLD', json.dumps(told))",
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    assert lines, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(lines[-1].removeprefix("TOLD "))


RECORDED = """
import h5py
from pathlib import Path
from ophyd_async.core import StaticPathProvider, TriggerInfo, UUIDFilenameProvider, init_devices
from quietbeam_plugins.devices.detector import RecordingDenoiser
paths = StaticPathProvider(UUIDFilenameProvider(), Path(DIRECTORY))
with init_devices():
    det = RecordingDenoiser("pva://" + PREFIX, paths, name="det")
def shape():
    uri = named("stream_resource")[0]["uri"].removeprefix("file://localhost")
    with h5py.File(uri, "r") as file:
        return list(file["entry/data/data"].shape)
RE(bp.count([det], num=STEPS))
told["events"] = len(named("event"))
told["steps"] = [[d["indices"]["start"], d["indices"]["stop"]] for d in named("stream_datum")]
told["shape"] = shape()
told["keys"] = {k: v["shape"] for k, v in named("descriptor")[0]["data_keys"].items()}
documents.clear()

@bpp.stage_decorator([det])
@bpp.run_decorator()
def fly():
    yield from bps.prepare(det, TriggerInfo(number_of_events=FLOWN), wait=True)
    yield from bps.declare_stream(det, name="primary", collect=True)
    yield from bps.kickoff_all(det, wait=True)
    yield from bps.collect_while_completing(
        flyers=[det], dets=[det], flush_period=0.2, stream_name="primary"
    )
RE(fly())
told["flown"] = max(d["indices"]["stop"] for d in named("stream_datum"))
told["flown_shape"] = shape()
"""
"""Part of a session: ``STEPS`` steps, then a fly scan of ``FLOWN`` frames, into ``DIRECTORY``."""


def recorded(environment, directory, prefix: str = PREFIX, steps: int = 4, flown: int = 40) -> dict:
    """Have a detector record steps and a fly scan; give what the session told."""
    names = {"DIRECTORY": str(directory), "PREFIX": prefix, "STEPS": steps, "FLOWN": flown}
    given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    return session(environment, given + RECORDED)


_BEFORE = """
import json
from bluesky import RunEngine, plans as bp, plan_stubs as bps, preprocessors as bpp
from helpers.soft_ioc import PREFIX
told, documents = {}, []
RE = RunEngine({})
RE.subscribe(lambda name, doc: documents.append((name, doc)))
def named(name):
    return [doc for kind, doc in documents if kind == name]
"""

if __name__ == "__main__":
    server = Server(sys.argv[1], float(sys.argv[2]))
    server.put("Acquire", 1)
    server.put("Snap:Timeout", 10.0)
    print("serving", flush=True)
    sys.stdin.read()
