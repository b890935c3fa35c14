"""Devices against the daemon's own EPICS server, with frames coming from a detector."""

import os
from itertools import pairwise
from pathlib import Path

import pytest

from helpers import ioc as real
from helpers.daemons import detecting
from helpers.soft_ioc import recorded, session

pytest.importorskip("softioc", reason="needs the extra [epics]")
pytest.importorskip("ophyd_async", reason="needs the extra [bluesky]")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    directory = tmp_path_factory.mktemp("live")
    (directory / "captures").mkdir()
    settings = f'capture_root = "{directory / "captures"}"'
    with real.serving(directory, settings=settings) as ioc, detecting(ioc.daemon.port, 40.0):
        ioc.daemon.wait_for(lambda s: s["pipeline"]["clean_hz"] > 1, 60.0, "clean frames")
        yield {
            **os.environ,
            **ioc.ports.environment(),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "CAPTURES": str(directory / "captures"),
        }


NAME = f"PREFIX = {real.PREFIX!r}\n"


def apart(ids, frames):
    return all(b - a + 1 == frames for a, b in ids) and all(
        one[1] < two[0] for one, two in pairwise(ids)
    )


def test_a_classic_device_measures_frames_of_its_own(environment):
    told = session(
        environment,
        NAME
        + """
from quietbeam_plugins.devices.classic import Denoiser
from quietbeam_plugins.devices.plans import count_clean
from quietbeam_plugins.devices.safeguards import telling_run_uid
den = Denoiser(PREFIX, name="den")
den.wait_for_connection(timeout=30)
RE.preprocessors.append(telling_run_uid(den))
uids = []
den.run_uid.subscribe(lambda value, **_: uids.append(value))
RE(count_clean(den, num=4, frames=3))
told["ids"] = [(e["data"]["den_first_id"], e["data"]["den_last_id"]) for e in named("event")]
told["told"] = named("start")[0]["uid"] in uids
told["generation"] = named("event")[0]["data"]["den_snap_generation"]
""",
    )
    assert len(told["ids"]) == 4
    assert apart(told["ids"], 3)
    assert told["told"]
    assert told["generation"] >= 1


@pytest.mark.parametrize("protocol", ["ca", "pva"])
def test_an_asynchronous_device_measures_frames_of_its_own(environment, protocol):
    told = session(
        environment,
        NAME
        + f"PROTOCOL = {protocol!r}\n"
        + """
from ophyd_async.core import init_devices
from quietbeam_plugins.devices.asynchronous import Denoiser
from quietbeam_plugins.devices.plans import count_clean
with init_devices():
    den = Denoiser(PROTOCOL + "://" + PREFIX, name="den")
RE(count_clean(den, num=3, frames=4))
told["ids"] = [(e["data"]["den-first_id"], e["data"]["den-last_id"]) for e in named("event")]
""",
    )
    assert len(told["ids"]) == 3
    assert apart(told["ids"], 4)


def test_everything_that_is_served_becomes_a_child_and_images_are_read(environment):
    told = session(
        environment,
        NAME
        + """
from ophyd_async.core import init_devices
from ophyd_async.epics import adcore
from quietbeam_plugins.devices.asynchronous import Image, PviDenoiser
with init_devices():
    every = PviDenoiser("pva://" + PREFIX, name="every")
    image = Image("pva://" + PREFIX, name="image")
    io = adcore.NDArrayBaseIO("ca://" + PREFIX, name="io")
told["children"] = len(list(every.children()))
RE(bp.count([image]))
told["shape"] = named("descriptor")[0]["data_keys"]["image-image"]["shape"]
told["counter"] = "array_counter" in dict(io.children())
""",
    )
    assert told["children"] > 50
    assert told["shape"] == [32, 48]
    assert told["counter"]


def test_steps_and_fly_scans_write_what_was_asked_for(environment):
    told = recorded(environment, environment["CAPTURES"], real.PREFIX, steps=4, flown=200)
    assert told["steps"] == [[n, n + 1] for n in range(4)]
    assert told["shape"] == [4, 32, 48]
    assert told["flown"] == 200
    assert told["flown_shape"] == [200, 32, 48]


def test_a_hundred_starts_and_arms_never_read_an_older_metric(environment):
    told = session(
        environment,
        NAME
        + """
from quietbeam_plugins.devices.classic import Denoiser
from quietbeam_plugins.devices.plans import count_clean
den = Denoiser(PREFIX, name="den")
den.wait_for_connection(timeout=30)
told["before"] = []
for _ in range(100):
    told["before"].append(int(den.unique_id.get(use_monitor=False)))
    RE(count_clean(den, num=1, frames=2))
told["ids"] = [(e["data"]["den_first_id"], e["data"]["den_last_id"]) for e in named("event")]
told["starts"] = len(named("start"))
""",
        timeout_s=400,
    )
    assert told["starts"] == 100
    assert all(b < f for b, (f, _) in zip(told["before"], told["ids"], strict=True))
    assert apart(told["ids"], 2)
