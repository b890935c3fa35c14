"""Children die by SIGKILL; raw recording goes on, and every frame is accounted for."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.daemons import frame_pixels, running, send_frames
from quietbeam.offline.recording import Recording
from quietbeam.offline.repair import repair

RECORDER = """
[[sinks]]
kind = "hdf5"
directory = "{directory}"
compression = "none"
flush_interval_s = 0.2
reserve_bytes = 1000000
"""


def sinks(tmp_path):
    return RECORDER.format(directory=tmp_path / "files")


def kill(daemon, child, times, pause_s, *, up_s=30.0, state="running"):
    """Kill one child again and again; each time it is another process, in ``state``."""
    last = None
    for killed in range(times):
        status = daemon.wait_for(
            lambda s, last=last: (
                s["children"][child]["pid"] not in {None, last}
                and state in {"any", s["children"][child]["state"]}
            ),
            up_s,
            f"{child} up again",
        )
        last = status["children"][child]["pid"]
        os.kill(last, signal.SIGKILL)
        daemon.wait_for(
            lambda s, n=killed: s["children"][child]["restarts"]["signal"] > n, what="a restart"
        )
        time.sleep(pause_s)


def recorded(directory):
    """Give the frame numbers in all files, in order, after checking the pixels.

    A recorder killed while it takes up its own file again may leave it as ``.part``:
    ``quietbeam repair`` then makes it whole.
    """
    numbers = []
    for part in sorted(Path(directory).glob("*.part")):
        repair(part)
    for path in sorted(Path(directory).glob("*.h5")):
        with Recording(path) as recording:
            raw, ids = recording.raw, recording.column("raw/frame_id")
            assert len(raw) == len(ids)
            for position, number in enumerate(map(int, ids)):
                assert np.array_equal(raw[position], frame_pixels(number)), number
                numbers.append(number)
    return sorted(numbers)


def wait_until_recorded(daemon, sent):
    def settled(status):
        output = status["outputs"]["hdf5.0"]
        gone = sum(n for k, n in output["dropped_total"].items() if not k.startswith("clean_"))
        return output["up"] and output["totals"]["raw_written"] + gone == sent

    return daemon.wait_for(settled, 40, "every raw frame written")


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
