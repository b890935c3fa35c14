"""A real daemon: real processes, real sockets on loopback, real signals."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers.daemons import config_text, free_port, get, running, send_frames, started


@pytest.fixture(scope="module")
def systemd(tmp_path_factory):
    """The socket on which systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path_factory.mktemp("systemd") / "notify"))
        receiver.settimeout(10)
        yield receiver


@pytest.fixture(scope="module")
def daemon(tmp_path_factory, systemd):
    """One daemon for the tests that leave it running."""
    environment = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "2000000"}
    with running(tmp_path_factory.mktemp("shared"), environment) as daemon:
        yield daemon
        assert daemon.stop() == 0, daemon.log()


def rings_of(pid):
    return list(Path("/dev/shm").glob(f"quietbeam-*-{pid}.*"))


def test_sigterm_in_the_middle_of_a_run_passes_on_what_was_accepted(tmp_path):
    with running(tmp_path) as daemon:
        sending = threading.Thread(target=quietly_send, args=(daemon.port, 2000))
        sending.start()
        daemon.wait_for(lambda s: s["ledger"].get("denoise", {}).get("sent", 0) > 20)
        pid = daemon.process.pid
        assert rings_of(pid)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 10
        sending.join()
        assert rings_of(pid) == []
        assert not (tmp_path / "run" / "control-token").exists()
        [last] = daemon.events("daemon_stopped")
        assert last["left"] == []
        ingest, denoise = last["stages"]["ingest"], last["stages"]["denoise"]
        assert ingest["received"] > 20
        assert denoise["received"] == ingest["sent"] == ingest["received"]
        assert denoise["sent"] + sum(denoise["dropped"].values()) == denoise["received"]
        assert last["rings"]["clean"]["frames"] == denoise["sent"]


def quietly_send(port, frames):
    try:
        send_frames(port, frames)
    except AssertionError:  # nobody takes them any more
        return


def test_the_interface_answers_and_refuses_what_it_must(daemon):
    assert get(f"{daemon.url}/healthz")[0] == 200
    assert get(f"{daemon.url}/readyz")[0] == 200
    code, metrics = get(f"{daemon.url}/metrics")
    assert code == 200
    assert b'quietbeam_stage_frames_dropped_total{reason="overload",stage="denoise"} 0.0' in metrics
    assert daemon.token.encode() not in metrics + get(f"{daemon.url}/api/v1/status")[1]
    frozen = daemon.control("train_freeze")
    assert json.loads(frozen.stdout) == {"frozen_by": ["operator"]}
    assert json.loads(daemon.control("train_resume").stdout) == {"frozen_by": []}
    refused = daemon.control("rollback", "7")
    assert refused.returncode == 1
    assert "no promoted model 7" in refused.stderr
    wrong = daemon.control("use", "sometimes")
    assert wrong.returncode == 1
    assert "'classical' or 'live'" in wrong.stderr


def test_systemd_is_told_when_it_is_ready_and_that_it_lives(daemon, systemd):
    told = [systemd.recv(4096).decode() for _ in range(6)]
    assert told[0].startswith("READY=1\nSTATUS=reading array")
    assert "WATCHDOG=1" in told
    assert any(text.startswith("STATUS=waiting") for text in told)


def test_a_second_daemon_is_refused_and_names_the_first(daemon):
    second = subprocess.run(
        [sys.executable, "-m", "quietbeam", "run", str(daemon.config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert second.returncode == 78
    assert f"pid {daemon.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert daemon.status()["state"] == "running"


def test_check_before_a_reload_is_not_disturbed_by_the_daemon_itself(daemon):
    check = subprocess.run(
        [sys.executable, "-m", "quietbeam", "check", str(daemon.config), "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert check.returncode == 0, check.stdout


@pytest.mark.slow
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


def test_reload_is_validated_first_and_loses_no_frame(daemon):
    good = daemon.config.read_text()
    before = daemon.status()["ledger"].get("denoise", {}).get("sent", 0)
    sending = threading.Thread(target=send_frames, args=(daemon.port, 300))
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
    status = daemon.wait_for(
        lambda s: s["ledger"]["denoise"]["sent"] == before + 300, what="all clean"
    )
    assert status["ledger"]["ingest"]["dropped"] == {}


def test_an_alarm_is_in_status_metrics_log_and_table_until_it_is_over(daemon):
    daemon.wait_for(lambda s: s["run"] is None, what="the end of the run before")
    sending = threading.Thread(target=send_frames, args=(daemon.port, [*range(0, 80, 2)]))
    sending.start()
    status = daemon.wait_for(lambda s: s["alarms"], what="an alarm")
    assert list(status["alarms"]) == ["regular_gaps"]
    assert daemon.events("alarm_raised")[-1]["alarm"] == "regular_gaps"
    metrics = get(f"{daemon.url}/metrics")[1].decode()
    assert 'quietbeam_alarm_active{alarm="regular_gaps"} 1.0' in metrics
    assert 'quietbeam_alarm_active{alarm="end_missing"} 0.0' in metrics
    table = subprocess.run(
        [sys.executable, "-m", "quietbeam", "control", "ledger", "--config", str(daemon.config)],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "ALARM regular_gaps" in table
    sending.join()
    run = status["run"]["run"]
    daemon.wait_for(lambda s: s["run"] is None, what="the end of the run")
    ledger = json.loads(get(f"{daemon.url}/api/v1/ledger")[1])
    assert ledger["runs"][0]["run"] == run
    assert ledger["runs"][0]["missing_ranges"] == [[n, n] for n in range(1, 78, 2)]
    send_frames(daemon.port, 40)
    daemon.wait_for(lambda s: not s["alarms"], what="the end of the alarm")
    assert daemon.events("alarm_cleared")[-1]["alarm"] == "regular_gaps"


BROKEN = """
import dataclasses, sys
from contextlib import contextmanager
from pathlib import Path
from quietbeam import SourcePlugin
from quietbeam.config import Named, load
from quietbeam.service.daemon import run

class Broken(SourcePlugin):
    @contextmanager
    def open(self):
        def events():
            yield None
            raise RuntimeError("a bug, not a lost connection")
        yield events()

config = load(Path(sys.argv[1]))
sys.exit(run(dataclasses.replace(config, source=Named("broken", Broken()))))
"""


def test_a_thread_that_fails_ends_the_daemon_with_1(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(config_text(tmp_path, free_port()))
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, str(config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    [failed] = [entry for entry in entries if entry["event"] == "thread_failed"]
    assert failed["thread"] == "ingest"
    assert "a bug, not a lost connection" in failed["exception"]
    assert entries[-1]["event"] == "daemon_stopped"


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
