"""The EPICS server of a running daemon, seen by clients that nobody here wrote."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from helpers.daemons import detecting
from helpers.ioc import PREFIX, Ports, serving
from helpers.waiting import until

CLIENTS = ("softioc", "p4p", "aioca", "epics", "pvaccess")
MISSING = [name for name in CLIENTS if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: extra dev")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("captures")


@pytest.fixture(scope="module")
def ioc(tmp_path_factory, root):
    settings = f'image_hz = 0.0\ncapture_root = "{root}"'
    with (
        serving(tmp_path_factory.mktemp("ioc"), settings=settings) as found,
        detecting(found.daemon.port),
    ):
        get(found, "DenoiserState_RBV", "Running")
        yield found


_GET = """
import sys, time, epics
prefix, name, wanted = sys.argv[1:]
pv = epics.PV(prefix + name)
assert pv.wait_for_connection(20), name
deadline = time.monotonic() + 20
while time.monotonic() < deadline and wanted and pv.get(as_string=True) != wanted:
    time.sleep(0.05)
print(pv.get(as_string=True))
"""


def get(ioc, name, wanted=""):
    """Read a PV over Channel Access as text, waiting for ``wanted``."""
    found = ioc.python(_GET, PREFIX, name, wanted).strip()
    assert not wanted or found == wanted
    return found


_PUT = """
import json, sys, epics
prefix, name, value = sys.argv[1:]
pv = epics.PV(prefix + name)
assert pv.wait_for_connection(20), name
pv.put(json.loads(value), wait=True, timeout=20)
print(pv.put_complete)
"""


def put(ioc, name, value):
    """Write over Channel Access and wait until it is done."""
    ioc.python(_PUT, PREFIX, name, json.dumps(value))


_COVER = """
import asyncio, json, sys
import numpy as np
from aioca import DBR_CHAR_STR, FORMAT_CTRL, caget
from p4p.client.thread import Context

rows = json.loads(sys.argv[1])

def shown(value):
    return value.decode() if isinstance(value, bytes) else value

async def over_ca():
    found = {}
    for name, text in rows.items():
        options = {"datatype": DBR_CHAR_STR} if text else {}
        value = await caget(name, format=FORMAT_CTRL, timeout=10, **options)
        found[name] = {
            "value": np.asarray(value).tolist() if not text else str(value),
            "units": getattr(value, "units", ""),
            "precision": getattr(value, "precision", 0),
            "enums": list(getattr(value, "enums", [])),
        }
    return found

ca = asyncio.run(over_ca())
with Context("pva", nt=False) as pva:
    values = pva.get(list(rows), timeout=10)
found = {}
for name, value in zip(rows, values):
    enums = list(value.value.choices) if value.getID().startswith("epics:nt/NTEnum") else []
    plain = value.value.index if enums else value.value
    display = value.get("display") or {}
    found[name] = {
        "value": np.asarray(plain).tolist() if not isinstance(plain, str) else plain,
        "units": display.get("units", ""), "enums": enums,
        "description": display.get("description", ""),
        "precision": display.get("precision", 0) if "precision" in display else 0,
    }
print(json.dumps({"ca": ca, "pva": found}))
"""


def served_table(ioc):
    from quietbeam_plugins.sinks.epics.table import table

    return table(ioc.daemon.status()["metrics"])


def test_every_record_of_the_table_is_the_same_on_both_protocols(ioc):
    records = [pv for pv in served_table(ioc) if pv.is_record]
    rows = {PREFIX + name: pv.kind == "string" for pv in records for name in pv.names}
    found = json.loads(ioc.python(_COVER, json.dumps(rows), timeout_s=90.0))
    assert len(rows) > 100
    for pv in records:
        for name in pv.names:
            ca, pva = found["ca"][PREFIX + name], found["pva"][PREFIX + name]
            if pv.choices:
                assert ca["enums"] == pva["enums"] == list(pv.choices), name
            elif pv.kind == "float":
                assert ca["units"] == pva["units"] == pv.unit, name
                assert ca["precision"] == pva["precision"] == pv.precision, name
            assert pva["description"] == pv.description, name
            still = pv.source.startswith(("fixed:", "view:own", "snap:", "capture:"))
            if still and pv.kind != "array":
                assert ca["value"] == pva["value"], name


def test_readbacks_cannot_be_written(ioc):
    before = get(ioc, "Snap:NumFrames_RBV")
    ioc.run(sys.executable, "-c", _PUT, PREFIX, "Snap:NumFrames_RBV", "77")
    assert get(ioc, "Snap:NumFrames_RBV") == before


_IMAGES = """
import os, sys, time
import pvaccess
from collections import OrderedDict
prefix, wanted = sys.argv[1], int(sys.argv[2])
seen = {1: OrderedDict(), 2: OrderedDict(), 5: OrderedDict()}
def take(number):
    def monitor(image):
        seen[number][image["uniqueId"]] = image
    return monitor
channels = []
for number in seen:
    channel = pvaccess.Channel(f"{prefix}Pva{number}:Image")
    channel.subscribe("m", take(number))
    channel.startMonitor("field()")
    channels.append(channel)
deadline = time.monotonic() + 20
while min(map(len, seen.values())) < wanted and time.monotonic() < deadline:
    time.sleep(0.05)
both = [n for n in seen[1] if n in seen[2] and n in seen[5] and n > 0]
clean, raw = seen[1][both[-1]], seen[2][both[-1]]
for image in (clean, raw):
    assert image["timeStamp"]["secondsPastEpoch"] > 1_600_000_000
    stamp = image["dataTimeStamp"]
    assert stamp["secondsPastEpoch"] + stamp["nanoseconds"] > 0
    assert [d["size"] for d in image["dimension"]] == [48, 32]
assert clean["value"][0]["floatValue"].dtype == "float32"
assert raw["value"][0]["ushortValue"][0] == both[-1] % 65536
names = {a["name"] for a in clean["attribute"]}
wanted = "ColorMode RunUid SeriesId ModelVersion LatencyMs Generation Version"
print(sorted(set(wanted.split()) - names))
print(len(both), flush=True)
os._exit(0)  # its threads would end the interpreter with an abort
"""


def test_raw_and_clean_images_of_one_frame_carry_its_number_and_times(ioc):
    missing, both = ioc.python(_IMAGES, PREFIX, "20").splitlines()
    assert missing == "[]"
    assert int(both) >= 10


_METRICS = """
import sys, time, threading
from p4p.client.thread import Context
prefix, wanted = sys.argv[1], int(sys.argv[2])
got, full = [], threading.Event()
def take(value):
    got.append((value.uniqueId, value.generation, value.startTime, value.version))
    if len(got) >= wanted: full.set()
with Context("pva", nt=False) as pva:
    subscription = pva.monitor(prefix + "Metrics", take, request="record[queueSize=50]")
    assert full.wait(30), len(got)
    subscription.close()
ids = [one[0] for one in got]
print(max(b - a for a, b in zip(ids, ids[1:])), min(b - a for a, b in zip(ids, ids[1:])))
print(*got[-1][1:])
"""


def test_metrics_come_as_one_structure_for_every_frame_and_say_which_daemon_speaks(ioc):
    steps, marker = ioc.python(_METRICS, PREFIX, "30").splitlines()
    assert steps == "1 1"
    told = ioc.daemon.status()["generation"]
    assert marker == f"{told['number']} {told['started_unix_s']} {told['version']}"


_SNAPS = """
import sys, epics
prefix, times = sys.argv[1], int(sys.argv[2])
pv = {n: epics.PV(prefix + n) for n in ("Snap:NumFrames", "Snap:Trigger", "Snap:FirstId_RBV",
      "Snap:LastId_RBV", "Snap:Count_RBV", "UniqueId_RBV", "Snap:State_RBV")}
assert all(one.wait_for_connection(20) for one in pv.values())
read = lambda name: pv[name].get(use_monitor=False)
pv["Snap:NumFrames"].put(3, wait=True)
last, failed = -1, 0
while times:
    before = read("UniqueId_RBV")
    pv["Snap:Trigger"].put(1, wait=True, timeout=15)
    first, end = read("Snap:FirstId_RBV"), read("Snap:LastId_RBV")
    if pv["Snap:State_RBV"].get(as_string=True, use_monitor=False) != "Done":
        failed += 1  # a starved daemon falls silent: that is told, and shows no frames
        assert failed < 10 and first == end == 0, (failed, first, end)
        continue
    times -= 1
    assert read("Snap:Count_RBV") == 3, read("Snap:Count_RBV")
    assert first > before and first > last and end == first + 2, (before, last, first, end)
    last = end
print(last)
"""


def test_a_snap_ends_after_frames_that_arrived_after_the_put_and_never_shows_older_ones(ioc):
    assert int(ioc.python(_SNAPS, PREFIX, "20")) > 0


@pytest.mark.slow
def test_a_snap_without_frames_times_out_with_an_alarm(ioc):
    put(ioc, "Snap:Timeout", 0.3)
    put(ioc, "Acquire", 0)
    until(lambda: not ioc.daemon.status()["processing"]["on"], 10)
    put(ioc, "Snap:Trigger", 1)
    assert get(ioc, "Snap:State_RBV") == "Timeout"
    assert get(ioc, "Snap:State_RBV.SEVR") == "MAJOR"
    assert "measurement: timeout" in get(ioc, "StatusMessage_RBV")
    put(ioc, "Acquire", 1)
    put(ioc, "Snap:Timeout", 10)
    get(ioc, "DenoiserState_RBV", "Running")
    counts = ioc.daemon.status()["ledger"]["denoise"]
    assert counts["dropped"]["paused"] > 0


@pytest.mark.slow
def test_controls_go_through_the_daemons_commands_and_refusals_are_told(ioc):
    put(ioc, "EnableTraining", 0)
    get(ioc, "EnableTraining_RBV", "Disable")
    assert ioc.daemon.status()["trainer"]["frozen_by"] == ["operator"]
    put(ioc, "FreezeWeights", 1)
    get(ioc, "FreezeWeights_RBV", "Freeze")
    put(ioc, "Denoiser", 1)
    get(ioc, "Denoiser_RBV", "Classical")
    put(ioc, "RunUid", "5f3b-uid")
    get(ioc, "RunUid_RBV", "5f3b-uid")
    assert ioc.daemon.status()["run_metadata"] == {"run_uid": "5f3b-uid"}
    put(ioc, "Record", 1)  # there is no recorder
    assert "there is no recorder" in get(ioc, "StatusMessage_RBV")
    assert get(ioc, "Record.SEVR") == "MAJOR"
    commands = [entry["command"] for entry in ioc.daemon.events("control_command")]
    assert {"train_freeze", "weights_freeze", "use", "describe_run"} <= set(commands)
    assert {entry["who"] for entry in ioc.daemon.events("control_command")} == {"epics.0"}


@pytest.mark.slow
def test_a_capture_holds_exactly_the_frames_asked_for_and_stays_below_its_root(ioc, root):
    put(ioc, "HDF1:FilePath", "/etc")
    assert get(ioc, "HDF1:WriteStatus") == "Error"
    assert "below" in get(ioc, "HDF1:WriteMessage")
    put(ioc, "HDF1:FileName", "../outside")
    put(ioc, "HDF1:Capture", 1)
    assert get(ioc, "HDF1:Capture_RBV") == "Done"
    assert not (root.parent / "outside.h5").exists()
    put(ioc, "HDF1:FileName", "scan1")
    put(ioc, "HDF1:NumCapture", 7)
    put(ioc, "HDF1:Capture", 1)
    assert get(ioc, "HDF1:NumCaptured_RBV") == "0"
    put(ioc, "HDF1:Start", 1)
    get(ioc, "HDF1:NumCaptured_RBV", "7")
    assert get(ioc, "HDF1:FullFileName_RBV") == str(root / "scan1.h5")
    put(ioc, "HDF1:Capture", 0)
    with h5py.File(root / "scan1.h5") as file:
        data = file["entry/data"]
        assert data["data"].shape == (7, 32, 48)
        assert list(data["unique_id"][:] - data["unique_id"][0]) == list(range(7))
        assert data["QualityNoiseSd"].shape == (7,)


@pytest.mark.slow
def test_a_capture_takes_one_frame_for_each_snap(ioc, root):
    put(ioc, "HDF1:FileName", "steps")
    put(ioc, "HDF1:WriteMode", 1)
    put(ioc, "HDF1:Capture", 1)
    for number in range(1, 4):
        put(ioc, "Snap:Trigger", 1)
        assert get(ioc, "HDF1:NumCaptured_RBV") == str(number)
    put(ioc, "HDF1:Capture", 0)
    put(ioc, "HDF1:WriteMode", 0)
    with h5py.File(root / "steps.h5") as file:
        assert file["entry/data/data"].shape == (3, 32, 48)


def test_the_plugin_and_its_table_load_no_control_system():
    code = (
        "import sys, quietbeam_plugins.sinks.epics.sink, quietbeam_plugins.sinks.epics.table\n"
        "heavy = {'softioc', 'p4p', 'pvaccess', 'epics', 'ophyd', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_server_loads_no_client_and_no_network():
    code = (
        "import sys, quietbeam_plugins.sinks.epics.server\n"
        "heavy = {'pvaccess', 'epics', 'ophyd', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


_WATCH = """
import json, sys, time, asyncio
from aioca import FORMAT_TIME, caget
prefix, until_severity, names = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
async def severities():
    values = await caget([prefix + n for n in names], format=FORMAT_TIME, timeout=10)
    return {n: v.severity for n, v in zip(names, values)}, max(v.timestamp for v in values)
async def main():
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        found, at = await severities()
        if all((s >= 2) == (until_severity >= 2) for s in found.values()):
            break
        await asyncio.sleep(0.05)
    print(json.dumps([at, found]))
asyncio.run(main())
"""


def watch(ioc, severity, names):
    return subprocess.Popen(
        [sys.executable, "-c", _WATCH, PREFIX, str(severity), json.dumps(names)],
        env={**os.environ, **ioc.ports.environment()},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_daemon_is_a_fault_on_every_pv_within_2_s_and_its_successor_clears_it(tmp_path):
    ports = Ports()
    with serving(tmp_path, ports=ports) as first:
        with detecting(first.daemon.port):
            get(first, "DenoiserState_RBV", "Running")
            alarmed = [
                pv.readback
                for pv in served_table(first)
                if pv.is_record
                and pv.access != "x"
                and pv.readback.endswith("_RBV")
                and not pv.source.startswith(("fixed:", "view:", "snap", "capture:"))
            ] + ["DenoiserState_RBV", "Connected_RBV"]
            pid = first.daemon.status()["children"]["epics.0"]["pid"]
            with watch(first, 2, alarmed) as watcher:
                time.sleep(1.0)  # the client is connected and sees no alarm
                killed = time.time()
                first.daemon.process.kill()
                at, severities = json.loads(watcher.communicate(timeout=60)[0])
        assert min(severities.values()) >= 2, severities
        assert at - killed < 2.0
        with serving(tmp_path, ports=ports) as second, detecting(second.daemon.port):
            get(second, "DenoiserState_RBV", "Running")
            with watch(second, 0, alarmed) as watcher:
                _, severities = json.loads(watcher.communicate(timeout=60)[0])
            calm = {name for name, severity in severities.items() if severity < 2}
            unknown = {"TrainLoss_RBV", "ValLoss_RBV"}  # NaN-free, but never learned here
            assert set(severities) - unknown <= calm, severities
            assert second.daemon.status()["children"]["epics.0"]["pid"] == pid


@pytest.mark.slow
def test_who_is_not_named_may_read_and_not_write(tmp_path):
    with serving(tmp_path, settings='operators = ["somebody_else"]') as ioc:
        before = get(ioc, "Snap:NumFrames_RBV")
        code = (
            "import json, sys, p4p.client.thread as c\n"
            "with c.Context('pva', nt=False) as pva:\n"
            "    try: pva.put(sys.argv[1], json.loads(sys.argv[2]), timeout=10)\n"
            "    except c.RemoteError as e: print('refused', e)\n"
        )
        written = {"Snap:NumFrames": {"value": 9}, "Acquire": {"value": {"index": 0}}}
        written |= {"Metrics": {"uniqueId": 9}, "Pva1:Image": {"uniqueId": 9}}
        for name, content in written.items():
            assert "refused" in ioc.python(code, PREFIX + name, json.dumps(content)), name
        ioc.run(sys.executable, "-c", _PUT, PREFIX, "Snap:NumFrames", "9")
        assert get(ioc, "Snap:NumFrames_RBV") == before


@pytest.mark.slow
def test_settings_are_restored_and_the_server_stops_at_once(tmp_path):
    settings = f'autosave_directory = "{tmp_path / "autosave"}"'
    with serving(tmp_path, settings=settings) as first:
        put(first, "Snap:NumFrames", 42)
        pid = first.daemon.status()["children"]["epics.0"]["pid"]
        assert first.daemon.stop() == 0
        until(lambda: not Path(f"/proc/{pid}").exists(), 5, "the end of the view")
    with serving(tmp_path, settings=settings) as second:
        assert get(second, "Snap:NumFrames_RBV", "42") == "42"
