"""The EPICS server seen by EPICS base's own command-line clients.

`make epics-tools` builds them from their sources; QUIETBEAM_PRODUCERS names another directory.
"""

import importlib.util
import os
import re
from pathlib import Path

import pytest

from helpers.daemons import detecting
from helpers.ioc import PREFIX, serving
from helpers.waiting import until

PRODUCERS = Path(
    os.environ.get("QUIETBEAM_PRODUCERS", Path(__file__).parents[2] / ".venv-producers")
)
BIN = PRODUCERS / "epics-tools" / "bin"
pytestmark = [
    pytest.mark.skipif(not (BIN / "pvlist").exists(), reason="not built: make epics-tools"),
    pytest.mark.skipif(importlib.util.find_spec("softioc") is None, reason="needs [epics]"),
]


@pytest.fixture(scope="module")
def ioc(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tools")
    with serving(directory, settings="image_hz = 0.0") as found, detecting(found.daemon.port):
        until(lambda: ask(found, "caget", "DenoiserState_RBV").endswith("Running"), 60, "Running")
        yield found


def ask(ioc, tool, name, *more, options=()):
    """Run a tool on one PV; give what it prints."""
    done = ioc.run(str(BIN / tool), *options, PREFIX + name, *more, timeout_s=60)
    return done.stdout.strip() + done.stderr.strip()


def number(ioc, name):
    return int(ask(ioc, "caget", name, options=("-t", "-w", "20")))


def longest(ioc):
    return float(ask(ioc, "caget", "Snap:Timeout_RBV", options=("-t", "-w", "20")))


def measured_after(ioc):
    """Measure; give the number of the last frame before.  A starved daemon is asked again."""
    ask(ioc, "caput", "Snap:Timeout", "15", options=("-c", "-w", "20"))
    for _ in range(10):
        before = number(ioc, "UniqueId_RBV")
        ask(ioc, "caput", "Snap:Trigger", "1", options=("-c", "-w", "20"))
        if ask(ioc, "caget", "Snap:State_RBV", options=("-t", "-w", "20")) == "Done":
            return before
    raise AssertionError(ask(ioc, "caget", "StatusMessage_RBV", options=("-S",)))


def test_caget_shows_units_precision_limits_and_names_of_states(ioc):
    shown = ask(ioc, "caget", "Snap:Timeout", options=("-w", "20", "-d", "DBR_CTRL_DOUBLE"))
    assert re.search(r"Units:\s+s\n", shown)
    assert re.search(r"Precision:\s+3\n", shown)
    assert re.search(r"Lo ctrl limit:\s+0\.01\n", shown)
    shown = ask(ioc, "caget", "DenoiserState_RBV", options=("-w", "20", "-d", "DBR_CTRL_ENUM"))
    assert [line.split()[-1] for line in shown.splitlines()[-5:]] == [
        *("Idle", "WarmingUp", "Running", "Degraded", "Fault")
    ]


def test_caput_with_completion_ends_after_as_many_new_frames_as_were_asked_for(ioc):
    ask(ioc, "caput", "Snap:NumFrames", "4", options=("-c", "-w", "20"))
    last = -1
    for _ in range(3):
        before = measured_after(ioc)
        first, end = number(ioc, "Snap:FirstId_RBV"), number(ioc, "Snap:LastId_RBV")
        assert first > max(before, last)
        assert end == first + 3
        last = end


def test_caput_is_clamped_to_the_limits_and_a_readback_cannot_be_written(ioc):
    ask(ioc, "caput", "Snap:Timeout", "1e9", options=("-c", "-w", "20"))
    until(
        lambda: longest(ioc) == 86_400.0,
        20,
    )
    ask(ioc, "caput", "Snap:Timeout", "10", options=("-c", "-w", "20"))
    ask(ioc, "caput", "Snap:Timeout_RBV", "5", options=("-w", "20"))
    until(lambda: longest(ioc) == 10.0, 20)


def test_camonitor_sees_the_counter_rise(ioc):
    stopped = ["timeout", "5", str(BIN / "camonitor"), "-w", "20", PREFIX + "ArrayCounter_RBV"]
    seen: list[int] = []

    def watched():
        lines = ioc.run(*stopped, timeout_s=60).stdout.splitlines()
        seen[:] = [int(line.split()[-1]) for line in lines]
        return len(seen) >= 3

    until(watched, 60, "three updates within one watch")
    assert seen == sorted(set(seen))


def test_pvget_reads_records_images_and_the_structure_of_metrics(ioc):
    assert "Running" in ask(ioc, "pvget", "DenoiserState_RBV", options=("-w", "20"))
    field = "field(uniqueId,timeStamp,dimension,attribute)"
    image = ask(ioc, "pvget", "Pva1:Image", options=("-w", "20", "-r", field, "-v"))
    assert int(re.search(r"uniqueId (\d+)", image)[1]) > 0
    assert re.findall(r"int size (\d+)", image) == ["48", "32"]
    assert '"ModelVersion"' in image or "ModelVersion" in image
    metrics = ask(ioc, "pvget", "Metrics", options=("-w", "20", "-v"))
    assert "quietbeam:Metrics:1.0" in metrics
    assert re.search(r"double QualityNoiseSd [0-9.e+-]+", metrics)


def test_pvput_to_an_image_is_refused(ioc):
    told = ask(ioc, "pvput", "Pva1:Image", "uniqueId=9", options=("-w", "10"))
    assert "not supported" in told.lower()


def test_pvlist_finds_exactly_the_two_servers_on_the_ports_that_were_configured(ioc):
    listed = ioc.run(str(BIN / "pvlist"), "-w", "5", timeout_s=60).stdout
    ports = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", listed)}
    assert ports == {ioc.ports.pva, ioc.ports.image}, listed
    told = ioc.run(str(BIN / "pvlist"), "-w", "5", f"127.0.0.1:{ioc.ports.image}", timeout_s=60)
    names = told.stdout.split()
    assert {PREFIX + "Pva1:Image", PREFIX + "Metrics", PREFIX + "PVI"} <= set(names)
    assert "falling back" not in ioc.daemon.log_path.read_text()
