"""Children die by SIGKILL; raw recording goes on, and every frame is accounted for."""

import os
import signal
import threading
import time

import pytest

from helpers.daemons import running, send_frames
from helpers.kills import kill, recorded, recorder_into, wait_until_recorded


def sinks(tmp_path):
    return recorder_into(tmp_path / "files")


def test_killing_the_recorder_loses_no_frame(tmp_path):
    frames, kills = 600, 3
    with running(tmp_path, sinks=sinks(tmp_path)) as daemon:
        sending = threading.Thread(target=send_frames, args=(daemon.port, frames))
        sending.start()
        daemon.wait_for(lambda s: s["outputs"]["hdf5.0"]["status"].get("raw_written", 0) > 0)
        kill(daemon, "hdf5.0", kills, 0.2)
        sending.join()
        status = wait_until_recorded(daemon, frames)
        assert status["ledger"]["ingest"] == {
            "received": frames, "sent": frames, "dropped": {}, "in_flight": 0,
        }  # fmt: skip
        assert status["outputs"]["hdf5.0"]["dropped_total"] == {}
        assert status["children"]["hdf5.0"]["restarts"]["signal"] == kills
        assert daemon.stop() == 0, daemon.log()
    assert recorded(tmp_path / "files") == list(range(frames))


def test_a_second_sigterm_does_not_wait_for_a_recorder_that_hangs(tmp_path):
    with running(tmp_path, sinks=sinks(tmp_path)) as daemon:
        pid = daemon.status()["children"]["hdf5.0"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        daemon.process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        assert daemon.process.poll() is None
        began = time.monotonic()
        assert daemon.stop() == 1
        assert time.monotonic() - began < 4
        assert daemon.events("daemon_stopped")[0]["left"] == ["output hdf5.0"]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_a_recorder_that_hangs_cannot_keep_the_daemon_for_ten_seconds(tmp_path):
    with running(tmp_path, sinks=sinks(tmp_path)) as daemon:
        os.kill(daemon.status()["children"]["hdf5.0"]["pid"], signal.SIGSTOP)
        began = time.monotonic()
        assert daemon.stop() == 1
        assert time.monotonic() - began < 10
        assert daemon.events("daemon_stopped")[0]["left"] == ["output hdf5.0"]


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_killing_any_child_twenty_times_loses_no_frame(tmp_path):
    """Fourteen times the recorder and six times the trainer, while frames come."""
    sent = []
    done = threading.Event()
    with running(tmp_path, sinks=sinks(tmp_path), denoiser="quiet") as daemon:
        sending = threading.Thread(
            target=lambda: sent.append(
                send_frames(daemon.port, 10**6, rate_hz=40, stop=done.is_set)
            )
        )
        sending.start()
        recorder = threading.Thread(target=kill, args=(daemon, "hdf5.0", 14, 3.5))
        recorder.start()
        kill(daemon, "trainer", 6, 2.0, up_s=60, state="any")  # starting or running
        recorder.join()
        done.set()
        sending.join()
        status = wait_until_recorded(daemon, sent[0])
        assert status["outputs"]["hdf5.0"]["dropped_total"] == {}
        assert status["children"]["hdf5.0"]["restarts"]["signal"] == 14
        assert status["children"]["trainer"]["restarts"]["signal"] == 6
        assert daemon.stop() == 0, daemon.log()
    assert recorded(tmp_path / "files") == list(range(sent[0]))
