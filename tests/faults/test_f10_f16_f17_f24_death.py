"""Processes that die, hang, are told to end, or are started twice."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.daemons import config_text, free_port, running, started
from helpers.faults import (
    KILLS,
    Detector,
    acknowledged,
    assert_accounts_are_exact,
    at_rest,
    stopped,
)
from helpers.kills import (
    everything_recorded,
    files_of,
    kill,
    recorder_into,
    wait_until_recorded,
)


@pytest.mark.faults
@pytest.mark.timeout(1500)
@pytest.mark.fault(
    "F10",
    how="SIGKILL of recorder, live page and trainer in turn, while frames come",
    criterion="every frame recorded once; each is started again; the others go on",
)
def test_killing_any_child_again_and_again_loses_no_frame(tmp_path, measured):
    web = f'[[sinks]]\nkind = "web"\naddress = "127.0.0.1:{free_port()}"\n'
    sinks = recorder_into(tmp_path / "files") + web
    with (
        running(tmp_path, sinks=sinks, denoiser="quiet") as daemon,
        Detector(daemon.port, 50) as detector,
    ):
        for child in ("hdf5.0", "web.1", "trainer"):
            state = "any" if child == "trainer" else "running"
            kill(daemon, child, KILLS, 0.3, up_s=60, state=state)
        status = daemon.wait_for(lambda s: s["outputs"]["hdf5.0"]["up"], 60)
        sent = detector.stop()
        status = wait_until_recorded(daemon, sent, 90)
        for child in ("hdf5.0", "web.1", "trainer"):
            assert status["children"][child]["restarts"]["signal"] == KILLS
        assert daemon.stop() == 0, daemon.log()
    measured.note = f"{KILLS} times each"
    everything_recorded(measured, tmp_path / "files", sent)


@pytest.mark.faults
@pytest.mark.timeout(2400)
@pytest.mark.fault(
    "F10",
    how="SIGKILL of the main process at random moments, started again each time",
    criterion="each file opens after repair, holds all that was acknowledged, no wrong pixel",
)
def test_killing_the_daemon_itself_keeps_every_acknowledged_frame(tmp_path, measured):
    port, moments = free_port(), [0.3 + 0.37 * (n % 5) for n in range(KILLS)]
    text = config_text(tmp_path, port, sinks=recorder_into(tmp_path / "files"))
    text += "\n[trainer]\nenabled = false\n"
    promised, recovered = [], []
    with Detector(port, 100) as detector:
        for moment_s in moments:
            with started(tmp_path, text, port) as daemon:
                began = time.monotonic()
                daemon.wait_for(lambda s: s["state"] == "running" and acknowledged(s) > 0, 90)
                recovered.append(time.monotonic() - began)
                time.sleep(moment_s)
                promised.append(acknowledged(daemon.status()))
                daemon.process.kill()
                daemon.process.wait(10)
        with started(tmp_path, text, port) as daemon:
            daemon.wait_for(lambda s: s["state"] == "running" and acknowledged(s) > 0, 90)
            detector.stop()
            promised.append(acknowledged(daemon.wait_for(at_rest, 60)))
            assert daemon.stop() == 0, daemon.log()
    lives = files_of(tmp_path / "files")
    assert len(lives) == len(promised)
    measured.sent, measured.recorded = detector.sent, sum(map(len, lives))
    measured.recovered_s = max(recovered)
    lives.sort(key=min)  # the detector counts on from one life to the next
    measured.lost = sum(
        max(0, safe - len(life)) for safe, life in zip(promised, lives, strict=True)
    )
    measured.note = f"{KILLS} times; recovery is the whole start"
    assert measured.lost == 0
    assert len({number for life in lives for number in life}) == measured.recorded


@pytest.mark.faults
@pytest.mark.fault(
    "F16",
    how="SIGTERM at 200 frames/s",
    criterion="exit 0 in less than 10 s; every accepted frame in the file; nothing in flight",
)
def test_sigterm_under_load_drains_everything_that_was_accepted(tmp_path, measured):
    with (
        running(tmp_path, sinks=recorder_into(tmp_path / "files")) as daemon,
        Detector(daemon.port, 200) as detector,
    ):
        daemon.wait_for(lambda s: acknowledged(s) > 100, 60)
        began = time.monotonic()
        assert daemon.stop() == 0, daemon.log()
        measured.recovered_s = time.monotonic() - began
        assert measured.recovered_s < 10
        [last] = daemon.events("daemon_stopped")
        detector.stop()
    accepted = last["stages"]["ingest"]["received"]
    assert last["left"] == []
    everything_recorded(measured, tmp_path / "files", accepted)


@pytest.mark.faults
@pytest.mark.fault(
    "F16",
    how="SIGTERM while the recorder is stopped by SIGSTOP; a second SIGTERM",
    criterion="the end comes at once, exit 1, what is left behind is named",
)
def test_a_second_sigterm_waits_for_nobody(tmp_path, measured):
    with running(tmp_path, sinks=recorder_into(tmp_path / "files")) as daemon:
        pid = daemon.status()["children"]["hdf5.0"]["pid"]
        with stopped(pid):
            daemon.process.send_signal(signal.SIGTERM)
            time.sleep(1.0)
            assert daemon.process.poll() is None
            began = time.monotonic()
            assert daemon.stop() == 1
        measured.recovered_s = time.monotonic() - began
        assert measured.recovered_s < 5
        assert daemon.events("daemon_stopped")[0]["left"] == ["output hdf5.0"]


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.fault(
    "F17",
    how="SIGSTOP of the recorder for good, while frames come",
    criterion="noticed by its silence and started again; no frame lost",
)
def test_a_recorder_that_hangs_is_started_again_and_loses_no_frame(tmp_path, measured):
    with (
        running(tmp_path, sinks=recorder_into(tmp_path / "files")) as daemon,
        Detector(daemon.port, 50) as detector,
    ):
        daemon.wait_for(lambda s: acknowledged(s) > 20, 60)
        began = time.monotonic()
        os.kill(daemon.status()["children"]["hdf5.0"]["pid"], signal.SIGSTOP)
        daemon.wait_for(lambda s: s["children"]["hdf5.0"]["restarts"]["silent"] == 1, 60)
        daemon.wait_for(lambda s: s["outputs"]["hdf5.0"]["up"], 60)
        measured.recovered_s = time.monotonic() - began
        sent = detector.stop()
        wait_until_recorded(daemon, sent, 60)
        assert daemon.stop() == 0, daemon.log()
    everything_recorded(measured, tmp_path / "files", sent)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.fault(
    "F17",
    how="SIGSTOP of the main process for 6 s under a watchdog, then SIGCONT",
    criterion="no ping while it hangs; afterwards pings and frames go on, none lost",
)
def test_a_main_process_that_hangs_feeds_no_watchdog(tmp_path, measured):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(2.5)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        with (
            running(tmp_path, environment, sinks=recorder_into(tmp_path / "files")) as daemon,
            Detector(daemon.port, 50) as detector,
        ):
            wait_for_ping(systemd)
            with stopped(daemon.process.pid):
                drain(systemd)
                time.sleep(6.0)
                assert drain(systemd) == []
            began = time.monotonic()
            wait_for_ping(systemd)
            measured.recovered_s = time.monotonic() - began
            sent = detector.stop()
            wait_until_recorded(daemon, sent, 60)
            assert daemon.stop() == 0, daemon.log()
    everything_recorded(measured, tmp_path / "files", sent)


def wait_for_ping(systemd):
    while "WATCHDOG=1" not in systemd.recv(4096).decode():
        continue


def drain(systemd):
    """Take what has been said so far; give the pings among it."""
    told = []
    while select.select([systemd], [], [], 0)[0]:
        told.append(systemd.recv(4096).decode())
    return [text for text in told if "WATCHDOG=1" in text]


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.fault(
    "F24",
    how="a second daemon on the same directory; SIGKILL of the first, then a new one",
    criterion="the second ends with 78 and names the holder; stale rings and port are taken over",
)
def test_a_second_daemon_is_refused_and_what_a_dead_one_left_is_taken_over(tmp_path, measured):
    with running(tmp_path) as daemon:
        second = subprocess.run(
            [sys.executable, "-m", "quietbeam", "run", str(daemon.config)],
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert second.returncode == 78
        assert f"pid {daemon.process.pid}" in second.stderr
        daemon.process.kill()
        daemon.process.wait(10)
        stale = list(Path("/dev/shm").glob(f"quietbeam-*-{daemon.process.pid}.*"))
        assert len(stale) >= 2
        text, port = daemon.config.read_text(), daemon.port
    began = time.monotonic()
    with started(tmp_path, text, port) as daemon:
        daemon.wait_for(lambda s: s["state"] == "running", 60)
        measured.recovered_s = time.monotonic() - began
        assert [path for path in stale if path.exists()] == []
        with Detector(port, 100, frames=20) as detector:
            detector.finish()
            status = daemon.wait_for(
                lambda s: s["frames"]["received"] == 20 and at_rest(s) and s["run"] is None, 60
            )
        assert_accounts_are_exact(status)
        assert daemon.stop() == 0, daemon.log()
