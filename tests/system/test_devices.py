"""Devices and plans, each in a program of its own, against an IOC made from the table of PVs."""

from itertools import pairwise

import pytest

from helpers.soft_ioc import recorded, serving, session

pytest.importorskip("softioc", reason="needs the extra [epics]")
pytest.importorskip("ophyd_async", reason="needs the extra [bluesky]")

CLASSIC = """
from quietbeam_plugins.devices.classic import Denoiser
from quietbeam_plugins.devices import plans, safeguards
den = Denoiser(PREFIX, name="den", metrics=("front.position", "front.position_sd"))
den.wait_for_connection(timeout=20)
def ids():
    return [(e["data"]["den_first_id"], e["data"]["den_last_id"]) for e in named("event")]
"""
ASYNCHRONOUS = """
from ophyd_async.core import init_devices
from quietbeam_plugins.devices.asynchronous import Denoiser
from quietbeam_plugins.devices import plans
with init_devices():
    den = Denoiser(PROTOCOL + "://" + PREFIX, ("front.position", "front.position_sd"), name="den")
def ids():
    return [(e["data"]["den-first_id"], e["data"]["den-last_id"]) for e in named("event")]
"""


@pytest.fixture(scope="module")
def ioc(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("ioc")) as environment:
        yield environment


def apart(ids, frames):
    """Every measurement has its frames, and shares none with another."""
    whole = all(last - first + 1 == frames for first, last in ids)
    return whole and all(a[1] < b[0] for a, b in pairwise(ids))


def test_a_classic_device_counts_with_frames_of_its_own(ioc):
    told = session(
        ioc,
        CLASSIC
        + """
RE(bp.count([den], num=5))
told["ids"] = ids()
told["hints"] = den.hints["fields"]
told["units"] = named("descriptor")[0]["data_keys"]["den_front_position"]["units"]
told["configuration"] = list(named("descriptor")[0]["configuration"]["den"]["data"])
from ophyd.utils import LimitError
try:
    den.num_frames.set(10**9).wait(10)
except LimitError:
    told["refused"] = True
""",
    )
    assert len(told["ids"]) == 5
    assert apart(told["ids"], 3)
    assert told["hints"] == ["den_front_position"]
    assert told["units"] == "px"
    assert "den_config_hash" in told["configuration"]
    assert told["refused"]


@pytest.mark.parametrize("protocol", ["ca", "pva"])
def test_an_asynchronous_device_counts_with_frames_of_its_own(ioc, protocol):
    told = session(
        ioc,
        f"PROTOCOL = {protocol!r}"
        + ASYNCHRONOUS
        + """
RE(plans.count_clean(den, num=4, frames=6))
told["ids"] = ids()
told["hints"] = named("descriptor")[0]["hints"]["den"]["fields"]
told["frames"] = named("descriptor")[0]["configuration"]["den"]["data"]["den-num_frames"]
""",
    )
    assert len(told["ids"]) == 4
    assert apart(told["ids"], 6)
    assert told["hints"] == ["den-front_position"]
    assert told["frames"] == 6


def test_plans_act_on_what_they_measured(ioc):
    told = session(
        ioc,
        CLASSIC
        + """
from ophyd.sim import SynAxis
RE = RunEngine({}, call_returns_result=True)
RE.subscribe(lambda name, doc: documents.append((name, doc)))
found = RE(
    plans.measure_until(den, "front.position_sd", 0.1, frame_sd=0.5, frames=5)
).plan_result
told["found"] = [found.value, found.frames]
told["taken"] = 5 * len(named("event"))
documents.clear()
start = float(den.live_front_position.get())
waiting = plans.wait_for_metric(den, "front.position", at_least=start + 2, frames=5)
told["value"] = RE(waiting).plan_result - start
told["waited"] = [e["data"]["den_front_position"] - start for e in named("event")]
try:
    RE(plans.wait_for_metric(den, "front.position", at_most=0, timeout_s=0.2, frames=2))
except plans.NotReachedError as error:
    told["gave_up"] = str(error)
documents.clear()
motor = SynAxis(name="motor")
RE(plans.track_front(den, motor, "front.position", start, motor_per_unit=1.0, steps=4, gain=0.5))
told["motor"] = [e["data"]["motor"] for e in named("event")]
""",
    )
    assert told["found"] == [0.5, 25]
    assert told["value"] == told["waited"][-1]
    assert told["taken"] == 25  # 0.5 / sqrt(25) = 0.1
    assert told["waited"][-1] >= 2 > max(told["waited"][:-1], default=0)
    assert "wanted -inf to 0" in told["gave_up"]
    assert told["motor"][0] == 0
    assert told["motor"] == sorted(told["motor"], reverse=True)  # the front runs away, upwards
    assert told["motor"][-1] < -1


def test_a_measurement_of_a_daemon_that_was_started_again_is_refused(ioc):
    told = session(
        ioc,
        CLASSIC
        + """
import threading
from epics import caput
RE(bps.mv(den.num_frames, 60))
threading.Timer(0.2, lambda: caput(PREFIX + "Sim:Generation", 8)).start()
try:
    RE(bp.count([den]))
except Exception as error:
    told["refused"] = [type(error).__name__, str(error.__cause__ or error)]
caput(PREFIX + "Sim:Generation", 7, wait=True)
told["events"] = len(named("event"))
RE(bps.mv(den.num_frames, 3))
""",
    )
    assert "generation 7" in str(told["refused"])
    assert told["events"] == 0


def test_a_measurement_without_frames_fails_instead_of_giving_old_ones(ioc):
    told = session(
        ioc,
        "PROTOCOL = 'pva'"
        + ASYNCHRONOUS
        + """
from p4p.client.thread import Context
with Context("pva") as client:
    client.put(PREFIX + "Acquire", 0)
    client.put(PREFIX + "Snap:Timeout", 0.3)
    try:
        RE(bp.count([den]))
    except Exception as error:
        told["refused"] = str(error.__cause__ or error)
    client.put(PREFIX + "Acquire", 1)
    client.put(PREFIX + "Snap:Timeout", 10.0)
told["events"] = len(named("event"))
RE(bp.count([den]))
told["afterwards"] = len(named("event"))
""",
    )
    assert "Timeout with 0 of 3 frames" in told["refused"]
    assert (told["events"], told["afterwards"]) == (0, 1)


def test_the_daemon_is_told_the_run_and_a_degraded_one_holds_the_plan(ioc):
    told = session(
        ioc,
        CLASSIC
        + """
import threading, time
from epics import caput, caget
RE.preprocessors.append(safeguards.telling_run_uid(den))
seen = []
den.run_uid.subscribe(lambda value, **_: seen.append(value))
guard = safeguards.pause_on_degraded(den, sleep_s=0.1)
RE.install_suspender(guard)
caput(PREFIX + "Sim:State", 3, wait=True)
while not guard.tripped:  # the device hears of it a moment later
    time.sleep(0.01)
states = []
den.state.subscribe(lambda value, **_: states.append((value, len(named("event")))))
def well():
    told["while_degraded"] = len(named("event"))
    caput(PREFIX + "Sim:State", 2)
threading.Timer(1.0, well).start()
RE(bp.count([den], num=2))
told["uid"], told["seen"] = named("start")[0]["uid"], seen
told["now"] = den.run_uid.get()
told["events"] = len(named("event"))
""",
    )
    assert told["uid"] in told["seen"]
    assert told["now"] == ""
    assert (told["while_degraded"], told["events"]) == (0, 2)


def test_a_detector_writes_a_frame_a_step_and_as_many_as_asked_for_in_a_fly_scan(ioc, tmp_path):
    told = recorded(ioc, tmp_path, steps=5, flown=40)
    assert told["events"] == 5
    assert {tuple(step) for step in told["steps"]} == {(n, n + 1) for n in range(5)}
    assert told["shape"] == [5, 24, 32]
    assert told["keys"] == {"det": [1, 24, 32]}
    assert told["flown"] == 40
    assert told["flown_shape"] == [40, 24, 32]


def test_it_is_a_plugin_to_devices_made_for_area_detectors(ioc):
    told = session(
        ioc,
        """
from ophyd_async.core import init_devices
from ophyd_async.epics import adcore
with init_devices():
    io = adcore.NDArrayBaseIO("ca://" + PREFIX, name="io")
told["children"] = sorted(name for name, _ in io.children())
from ophyd.areadetector.plugins import PluginBase
plugin = PluginBase(PREFIX, name="plugin", read_attrs=[], configuration_attrs=[])
told["type"] = plugin.plugin_type.get(timeout=10)
""",
    )
    assert "array_counter" in told["children"]
    assert told["type"] == "NDPluginDenoise"


@pytest.mark.slow
def test_a_hundred_starts_and_arms_never_read_an_older_metric(ioc):
    told = session(
        ioc,
        CLASSIC
        + """
told["before"] = []
for _ in range(100):
    told["before"].append(int(den.unique_id.get(use_monitor=False)))
    RE(plans.count_clean(den, num=1, frames=2))
told["ids"], told["starts"] = ids(), len(named("start"))
""",
        timeout_s=300,
    )
    assert told["starts"] == 100
    assert all(b < f for b, (f, _) in zip(told["before"], told["ids"], strict=True))
    assert apart(told["ids"], 2)
