"""The service under a real systemd: its unit, user, sandbox, credentials and restarts."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.booted import PYTHON, booted, why_not
from helpers.daemons import config_text
from helpers.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

UNIT = "quietbeam.service"
CONFIG = "/etc/quietbeam/quietbeam.toml"
PROGRAM = f'#!/bin/sh\nexec {" ".join(PYTHON)} -m quietbeam "$@"\n'
FASTER = """[Service]
WatchdogSec=6
TimeoutAbortSec=2
RestartSec=0.2
Environment=OMP_NUM_THREADS=1
"""
PORT = 45000
SINKS = """
[[sinks]]
kind = "hdf5"
directory = "/data"
compression = "none"
flush_interval_s = 0.2
reserve_bytes = 1000000
[trainer]
enabled = false
"""
SEND = "from helpers.daemons import send_frames; send_frames({port}, range({a}, {b}), rate_hz=60)"
WRITTEN = """
import json, urllib.request
status = json.load(urllib.request.urlopen("http://127.0.0.1:9469/api/v1/status"))
print(status["outputs"]["hdf5.0"]["totals"]["raw_written"])
"""
READ = """
import json, pathlib
from helpers.daemons import frame_pixels
from quietbeam.offline.recording import Recording
numbers = []
for path in sorted(pathlib.Path("/data").glob("*.h5")):
    with Recording(path) as recording:
        ids = list(map(int, recording.column("raw/frame_id")))
        assert all((recording.raw[i] == frame_pixels(n)).all() for i, n in enumerate(ids))
        numbers += ids
print(json.dumps(sorted(numbers)))
"""


def configuration(tmp_path):
    """A configuration whose runtime directory is the one that systemd makes."""
    text = config_text(tmp_path, PORT, sinks=SINKS, run_timeout_s="3.0")
    lines = [line for line in text.splitlines() if not line.startswith("runtime_directory")]
    return "\n".join(lines).replace("127.0.0.1:0", "127.0.0.1:9469").replace('log = "json"', "")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    work = tmp_path_factory.mktemp("machine") / "work"
    work.mkdir()
    with booted(work) as up:
        up.write("/opt/quietbeam/bin/quietbeam", PROGRAM, 0o755)
        subprocess.run(
            [sys.executable, "-m", "quietbeam", "install-service", "--root", str(up.root),
             "--program", "/opt/quietbeam/bin/quietbeam", "--data", "/data"],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        up.write(f"/etc/systemd/system/{UNIT}.d/zz-test.conf", FASTER)
        up.run("systemd-sysusers")
        up.run("systemd-tmpfiles", "--create")
        up.run("install", "-d", "-o", "quietbeam", "/data")
        up.run("systemctl", "daemon-reload")
        yield up


@pytest.fixture
def service(machine, tmp_path):
    """The service, ready; stopped afterwards."""
    machine.write(CONFIG, configuration(tmp_path))
    machine.start_unit(UNIT)
    yield machine
    machine.run("systemctl", "stop", UNIT, check=False)
    machine.run("systemctl", "reset-failed", UNIT, check=False)


def main_pid(machine):
    return int(machine.show(UNIT, "MainPID"))


def is_new_and_ready(machine, before):
    """Another process than ``before`` has said READY."""
    return machine.show(UNIT, "ActiveState") == "active" and main_pid(machine) not in {0, before}


def inside(machine, pid):
    """The number that ``pid`` of the machine has out here."""
    namespace = Path(f"/proc/{machine.pid}/ns/pid").readlink()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns/pid").readlink() != namespace:
                continue
            status = (entry / "status").read_text()
        except OSError:  # gone meanwhile
            continue
        if re.search(rf"^NSpid:.*\t{pid}$", status, re.MULTILINE):
            return int(entry.name)
    raise AssertionError(f"no process {pid} in the machine")


def test_it_is_ready_and_tells_how_it_goes(service):
    assert service.show(UNIT, "ActiveState") == "active"
    until(lambda: "frames" in service.show(UNIT, "StatusText"), 60, "a status text")
    entries = service.journal(UNIT, "EVENT=daemon_ready", "-o", "json")
    newest = json.loads(entries.splitlines()[-1])
    assert newest["URL"] == "http://127.0.0.1:9469"
    assert newest["PRIORITY"] == "6"
    assert newest["_SYSTEMD_UNIT"] == UNIT
    assert len(newest["MESSAGE_ID"]) == 32


def test_its_sandbox_is_in_force(service):
    status = (service.root / f"proc/{main_pid(service)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    user = service.run("id", "-u", "quietbeam").stdout.strip()
    assert set(fields["Uid"].split()) == {user} != {"0"}


def test_its_credentials_are_read_by_the_service_alone(service):
    token = (service.root / "etc/quietbeam/secrets/web-token").read_text().strip()
    held = service.root / f"run/credentials/{UNIT}/web-token"
    assert held.read_text().strip() == token
    assert stat.S_IMODE(held.stat().st_mode) & 0o077 == 0
    for user, path in (
        ("nobody", f"/run/credentials/{UNIT}/web-token"),
        ("nobody", "/run/quietbeam/control-token"),
        ("nobody", "/etc/quietbeam/secrets/web-token"),
        ("quietbeam", "/etc/quietbeam/secrets/web-token"),
    ):
        argv = ("setpriv", "--reuid", user, "--clear-groups", "cat", path)
        assert service.run(*argv, check=False).returncode != 0, (user, path)
    control = (
        "import sys, urllib.request as u\n"
        "r = u.Request('http://127.0.0.1:9469/api/v1/control/status', b'', method='POST',\n"
        "              headers={'Authorization': 'Bearer ' + sys.stdin.read().strip()})\n"
        "print(u.urlopen(r).status)"
    )
    nsenter = ("nsenter", "--target", str(service.pid), "--all", *PYTHON, "-c", control)
    for given, good in ((token, True), (token[:-1] + "~", False)):
        done = subprocess.run(
            nsenter, input=given, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.stdout == "200\n") is good, done.stderr
    for name in ("environ", "cmdline"):
        assert (
            token.encode() not in (service.root / f"proc/{main_pid(service)}/{name}").read_bytes()
        )
    assert token not in service.journal(UNIT, "-o", "json")


def test_a_frozen_daemon_is_started_again_by_the_watchdog(service):
    before = main_pid(service)
    os.kill(inside(service, before), signal.SIGSTOP)
    until(lambda: is_new_and_ready(service, before), 120, "a restart")
    assert "watchdog" in service.journal(UNIT).lower()


def test_a_killed_daemon_mends_its_recording_and_goes_on(service):
    written = lambda: int(service.run(*PYTHON, "-c", WRITTEN).stdout)  # noqa: E731
    service.background("detector", *PYTHON, "-c", SEND.format(port=PORT, a=0, b=9000))
    until(lambda: written() > 60, 60, "a recording")
    acknowledged, before = written(), main_pid(service)
    os.kill(inside(service, before), signal.SIGKILL)
    service.run("systemctl", "kill", "--signal", "KILL", "detector.service", check=False)
    until(lambda: is_new_and_ready(service, before), 120, "a restart")
    assert int(service.show(UNIT, "NRestarts")) >= 1
    send = SEND.format(port=PORT, a=20_000, b=20_120)
    service.background("detector2", *PYTHON, "-c", send)
    until(lambda: written() >= 120, 60, "the next recording")
    service.run("systemctl", "stop", UNIT)
    assert "leftover_repaired" in service.journal(UNIT)
    assert [p.name for p in (service.root / "data").iterdir() if p.suffix != ".h5"] == []
    numbers = json.loads(service.run(*PYTHON, "-c", READ).stdout)
    first = [number for number in numbers if number < 20_000]
    assert first == list(range(len(first)))
    assert len(first) >= acknowledged
    assert numbers[len(first) :] == list(range(20_000, 20_120))


def test_a_configuration_that_can_never_work_is_not_tried_again(service):
    service.run("systemctl", "stop", UNIT)
    service.write(CONFIG, '[source]\nkind = "nobody knows"\n')
    assert service.run("systemctl", "start", UNIT, check=False).returncode != 0
    assert service.show(UNIT, "ActiveState") == "failed"
    assert service.show(UNIT, "ExecMainStatus") == "78"
    assert service.show(UNIT, "NRestarts") == "0"
