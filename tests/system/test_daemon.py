"""A real daemon: real processes, real sockets on loopback, real signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers.daemons import config_text, free_port, get, running, send_frames, started


def rings_of(pid):
    return list(Path("/dev/shm").glob(f"quietbeam-*-{pid}.*"))


def test_every_frame_is_accounted_for_and_sigterm_drains_them(tmp_path):
    with running(tmp_path) as daemon:
        sent = send_frames(daemon.port, 120)
        daemon.wait_for(lambda s: s["ledger"]["ingest"]["received"] == sent, what="all received")
        pid = daemon.process.pid
        assert rings_of(pid)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 10
        assert rings_of(pid) == []
        assert not (tmp_path / "run" / "control-token").exists()
        [last] = daemon.events("daemon_stopped")
        assert last["left"] == []
        assert last["stages"]["ingest"] == {
            "received": sent, "sent": sent, "dropped": {}, "in_flight": 0,
        }  # fmt: skip
        assert last["stages"]["denoise"]["sent"] == sent
        assert last["stages"]["denoise"]["in_flight"] == 0
        assert last["rings"]["clean"]["frames"] == sent


def test_sigterm_in_the_middle_of_a_run_passes_on_what_was_accepted(tmp_path):
    with running(tmp_path) as daemon:
        sending = threading.Thread(target=quietly_send, args=(daemon.port, 2000))
        sending.start()
        daemon.wait_for(lambda s: s["ledger"].get("denoise", {}).get("sent", 0) > 20)
        assert daemon.stop() == 0
        sending.join()
        [last] = daemon.events("daemon_stopped")
        ingest, denoise = last["stages"]["ingest"], last["stages"]["denoise"]
        assert ingest["received"] > 20
        assert denoise["received"] == ingest["sent"] == ingest["received"]
        assert denoise["sent"] + sum(denoise["dropped"].values()) == denoise["received"]


def quietly_send(port, frames):
    try:
        send_frames(port, frames)
    except AssertionError:  # nobody takes them any more
        return


def test_the_interface_answers_and_refuses_what_it_must(tmp_path):
    with running(tmp_path) as daemon:
        assert get(f"{daemon.url}/healthz")[0] == 200
        assert get(f"{daemon.url}/readyz")[0] == 200
        code, metrics = get(f"{daemon.url}/metrics")
        assert code == 200
        assert b'quietbeam_stage_frames_in_total{stage="ingest"} 0.0' in metrics
        assert daemon.token.encode() not in metrics + get(f"{daemon.url}/api/v1/status")[1]
        frozen = daemon.control("train_freeze")
        assert json.loads(frozen.stdout) == {"frozen_by": ["operator"]}
        refused = daemon.control("rollback", "7")
        assert refused.returncode == 1
        assert "no promoted model 7" in refused.stderr
        wrong = daemon.control("use", "sometimes")
        assert wrong.returncode == 1
        assert "'classical' or 'live'" in wrong.stderr
        assert daemon.stop() == 0


def test_a_second_daemon_is_refused_and_names_the_first(tmp_path):
    with running(tmp_path) as daemon:
        second = subprocess.run(
            [sys.executable, "-m", "quietbeam", "run", str(daemon.config)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert second.returncode == 78
        assert f"pid {daemon.process.pid}" in second.stderr
        assert "Traceback" not in second.stderr
        assert daemon.status()["state"] == "running"


def test_what_a_killed_daemon_left_is_taken_over(tmp_path):
    with running(tmp_path) as daemon:
        daemon.process.kill()
        daemon.process.wait(10)
        stale = rings_of(daemon.process.pid)
        assert len(stale) >= 2
    with running(tmp_path) as daemon:
        assert [path for path in stale if path.exists()] == []
        assert daemon.stop() == 0


def test_a_taken_port_ends_the_start_with_78(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        port = free_port()
        text = config_text(tmp_path, port).replace("127.0.0.1:0", f"127.0.0.1:{taken}")
        with started(tmp_path, text, port) as daemon:
            assert daemon.process.wait(60) == 78
            assert f"127.0.0.1:{taken}" in daemon.log()
            assert "Traceback" not in daemon.log()
            assert rings_of(daemon.process.pid) == []


def test_reload_is_validated_first_and_loses_no_frame(tmp_path):
    with running(tmp_path) as daemon:
        good = daemon.config.read_text()
        sending = threading.Thread(target=send_frames, args=(daemon.port, 400))
        sending.start()
        daemon.config.write_text(good.replace('log = "json"', 'log = "jason"'))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(lambda s: s["config"]["reloads"]["failed"] == 1, what="a failed reload")
        assert not daemon.status()["config"]["last_reload_successful"]
        daemon.config.write_text(good.replace("raw_mib = 64", "raw_mib = 65"))
        reload = daemon.control("reload")
        assert json.loads(reload.stdout)["restart_required"] == ["rings.raw_mib"]
        daemon.config.write_text(good + "\n[trainer]\nenabled = false\n")
        assert json.loads(daemon.control("reload").stdout)["applied"] == ["trainer.enabled"]
        sending.join()
        status = daemon.wait_for(lambda s: s["ledger"]["denoise"]["sent"] == 400, what="all clean")
        assert status["ledger"]["ingest"]["dropped"] == {}
        assert daemon.stop() == 0


def test_a_second_sigterm_does_not_wait(tmp_path):
    with running(tmp_path) as daemon:
        # a thread that cannot end: the process is stopped while it holds frames
        os.kill(daemon.process.pid, signal.SIGSTOP)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGINT)
        os.kill(daemon.process.pid, signal.SIGCONT)
        assert daemon.process.wait(10) in {0, 1}
        assert rings_of(daemon.process.pid) == []


@pytest.mark.parametrize("wrong", ['[source]\nkind = "aray"', "[[sources]]", "nonsense"])
def test_a_configuration_that_cannot_work_ends_with_78_and_no_traceback(tmp_path, wrong):
    config = tmp_path / "wrong.toml"
    config.write_text(wrong)
    done = subprocess.run(
        [sys.executable, "-m", "quietbeam", "run", str(config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert str(config) in done.stderr
    assert "Traceback" not in done.stderr
