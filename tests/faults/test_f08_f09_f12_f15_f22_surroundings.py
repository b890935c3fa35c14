"""What stands around the daemon fails: consumers, detectors, disks, and what people write."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
import zmq.auth

from helpers.daemons import config_text, free_port, running
from helpers.faults import (
    Detector,
    acknowledged,
    assert_accounts_are_exact,
    at_rest,
    resident_bytes,
    small_disk,
    stopped,
)
from helpers.kills import everything_recorded, files_of, recorder_into, wait_until_recorded

QUIET = "[trainer]\nenabled = false\n"
CONSUMER = """
import sys, zmq
with zmq.Context() as context, context.socket(zmq.SUB) as socket:
    socket.set(zmq.SUBSCRIBE, b"")
    socket.connect(sys.argv[1])
    while True:
        socket.recv_multipart()
        print("got", flush=True)
"""


@contextmanager
def consumer(address):
    """A subscriber in a process of its own that says ``got`` for each message."""
    command = [sys.executable, "-c", CONSUMER, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def messages_ready(process, seconds):
    """Count the messages a consumer gets in so long."""
    os.set_blocking(process.stdout.fileno(), False)
    process.stdout.read()
    time.sleep(seconds)
    return (process.stdout.read() or b"").count(b"got")


@pytest.mark.faults
@pytest.mark.fault(
    "F8",
    how="one of two subscribers is stopped (SIGSTOP) for 20 s at 200 frames/s",
    criterion="recording whole, the other one gets >= 95 % of what it got, memory + < 100 MB",
)
def test_a_consumer_that_stops_costs_the_others_and_the_recording_nothing(tmp_path, measured):
    address = f"tcp://127.0.0.1:{free_port()}"
    sinks = recorder_into(tmp_path / "files") + f'[[sinks]]\nkind = "zmq"\naddress = "{address}"\n'
    with (
        running(tmp_path, sinks=sinks, more=QUIET) as daemon,
        consumer(address) as stalled,
        consumer(address) as reading,
        Detector(daemon.port, 200) as detector,
    ):
        daemon.wait_for(lambda s: acknowledged(s) > 400, 60)
        before, memory = messages_ready(reading, 10), resident_bytes(daemon.process.pid)
        with stopped(stalled.pid):
            after = messages_ready(reading, 20) / 2
            grew = resident_bytes(daemon.process.pid) - memory
        sent = detector.stop()
        wait_until_recorded(daemon, sent, 60)
        assert daemon.stop() == 0, daemon.log()
    measured.note = f"{before} and {after:.0f} messages in 10 s, {grew / 1e6:+.1f} MB"
    everything_recorded(measured, tmp_path / "files", sent)
    assert after >= 0.95 * before > 0
    assert grew < 100e6


@pytest.mark.faults
@pytest.mark.fault(
    "F9",
    how="a detector goes in the middle of its series, without an end; another comes",
    criterion="the first series is closed within its time-out, the second recorded whole",
)
def test_a_detector_that_vanishes_ends_its_run_and_the_next_one_is_whole(tmp_path, measured):
    sinks = recorder_into(tmp_path / "files")
    with running(tmp_path, sinks=sinks, more=QUIET, run_timeout_s="2") as daemon:
        pid = daemon.process.pid
        with Detector(daemon.port, 100) as first:
            daemon.wait_for(lambda s: acknowledged(s) > 100, 60)
            gone = first.stop()
        began = time.monotonic()
        daemon.wait_for(lambda s: s["run"] is None, 60)
        measured.recovered_s = time.monotonic() - began
        with Detector(daemon.port, 100, frames=100) as second:
            second.finish()
        status = wait_until_recorded(daemon, gone + 100, 60)
        assert status["pid"] == pid if "pid" in status else daemon.process.poll() is None
        assert daemon.stop() == 0, daemon.log()
    files = files_of(tmp_path / "files")
    assert files == [list(range(gone)), list(range(100))]
    measured.sent = measured.recorded = gone + 100
    measured.lost = 0
    assert measured.recovered_s < 5


def is_full(status):
    return status["outputs"]["hdf5.0"]["status"].get("state") == "disk_full"


@pytest.mark.faults
@pytest.mark.fault(
    "F12",
    how="a file system of 40 MB fills up while frames come, and has room again later",
    criterion="`disk_full` in < 2 s, what was acknowledged readable, recording resumes by itself",
)
def test_a_full_disk_stops_recording_alone_and_room_starts_it_again(tmp_path, measured):
    with small_disk(tmp_path / "disk", 40) as disk:
        sinks = recorder_into(disk / "files")
        with (
            running(tmp_path, sinks=sinks, more=QUIET) as daemon,
            Detector(daemon.port, 50) as detector,
        ):
            daemon.wait_for(lambda s: acknowledged(s) > 100, 60)
            room = os.statvfs(disk)
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - 1_000_000))
            began = time.monotonic()
            full = daemon.wait_for(is_full, 60)
            told_s = time.monotonic() - began
            clean = full["ledger"]["denoise"]["sent"]
            goes_on = daemon.wait_for(lambda s: s["ledger"]["denoise"]["sent"] > clean + 100, 60)
            safe = acknowledged(goes_on)
            ballast.unlink()
            began = time.monotonic()
            daemon.wait_for(lambda s: acknowledged(s) > safe + 50, 60)
            measured.recovered_s = time.monotonic() - began
            sent = detector.stop()
            wait_until_recorded(daemon, sent, 60)
            status = daemon.wait_for(at_rest, 60)
            assert daemon.stop() == 0, daemon.log()
        lives = files_of(disk / "files")
    promised = acknowledged(status)
    measured.sent, measured.recorded = sent, sum(map(len, lives))
    measured.lost = promised - measured.recorded
    given_up = status["outputs"]["hdf5.0"]["dropped_total"]["disk_full"]
    measured.note = f"told after {told_s:.1f} s; {given_up} frames given up while there was no room"
    assert len(lives) >= 2
    assert measured.lost == 0
    assert measured.recorded + given_up == sent
    assert told_s < 2
    assert_accounts_are_exact(status)


BAD = {
    "not TOML": ("[source]", "[source", "line"),
    "unknown table": ("[rings]", "[ringz]", "ringz"),
    "unknown key": ("raw_mib", "raw_mb", "raw_mb"),
    "unknown kind": ('kind = "kalman"', 'kind = "kalmann"', "kalmann"),
    "text for a number": ("raw_mib = 64", 'raw_mib = "much"', "raw_mib"),
    "below its range": ("raw_mib = 64", "raw_mib = -1", "raw_mib"),
    "no number": ("run_timeout_s = 1.0", "run_timeout_s = nan", "run_timeout_s"),
    "address without a port": ("tcp://127.0.0.1:", "tcp://127.0.0.1#", "address"),
    "unknown log format": ('log = "json"', 'log = "xml"', "log"),
    "http without a port": ('http = "127.0.0.1:0"', 'http = "everywhere"', "http"),
    "nothing calibrated": ("frames = 4", "frames = 0", "frames"),
    "a list for a table": ("[denoiser]", "[[denoiser]]", "denoiser"),
    "an output of no kind": ("[rings]", "[[sinks]]\nkind = 7\n[rings]", "sinks"),
}


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.fault(
    "F15",
    how=f"{len(BAD)} configurations, each wrong in another way, given to `quietbeam run`",
    criterion="exit 78, the key named, no traceback",
)
def test_a_configuration_that_cannot_work_is_refused_by_name(tmp_path):
    config = tmp_path / "config.toml"
    text = config_text(tmp_path, free_port())
    wrong = {}
    for name, (good, bad, word) in BAD.items():
        assert good in text, name
        config.write_text(text.replace(good, bad, 1))
        done = subprocess.run(
            [sys.executable, "-m", "quietbeam", "run", str(config)],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        said = done.stdout + done.stderr
        if done.returncode != 78 or word not in said or "Traceback" in said:
            wrong[name] = (done.returncode, said[-500:])
    assert wrong == {}


@pytest.mark.faults
@pytest.mark.fault(
    "F22",
    how="a secret key that others may read (0644), given to an encrypted output",
    criterion="exit 78, the file named, the key nowhere in what was said",
)
def test_a_secret_that_others_may_read_is_refused_and_not_repeated(tmp_path):
    (tmp_path / "clients").mkdir()
    _, secret = zmq.auth.create_certificates(tmp_path, "server")
    Path(secret).chmod(0o644)
    sinks = f"""[[sinks]]
kind = "zmq"
address = "tcp://127.0.0.1:{free_port()}"
curve_secret_key = "{secret}"
curve_clients = "{tmp_path / "clients"}"
"""
    config = tmp_path / "config.toml"
    config.write_text(config_text(tmp_path, free_port(), sinks=sinks, more=QUIET))
    done = subprocess.run(
        [sys.executable, "-m", "quietbeam", "run", str(config)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 78, said
    assert "server.key_secret" in said
    assert "0600" in said
    assert zmq.auth.load_certificate(secret)[1].decode() not in said
