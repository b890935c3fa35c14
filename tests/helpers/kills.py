"""Processes that die while frames are recorded, and what is in the files afterwards."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from helpers.daemons import frame_pixels
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


def recorder_into(directory):
    return RECORDER.format(directory=directory)


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


def files_of(directory):
    """Give the frame numbers of each file, oldest file first, after checking the pixels.

    A recorder killed while it takes up its own file again may leave it as ``.part``:
    ``quietbeam repair`` then makes it whole.
    """
    for part in sorted(Path(directory).glob("*.part")):
        repair(part)
    found = []
    for path in sorted(Path(directory).glob("*.h5"), key=lambda path: path.stat().st_mtime_ns):
        with Recording(path) as recording:
            raw, ids = recording.raw, recording.column("raw/frame_id")
            assert len(raw) == len(ids)
            shape = raw.shape[1:]
            for position, number in enumerate(map(int, ids)):
                assert np.array_equal(raw[position], frame_pixels(number, shape)), number
            found.append([int(number) for number in ids])
    return found


def recorded(directory):
    """Give the frame numbers in all files, in order; pixels are checked."""
    return sorted(number for numbers in files_of(directory) for number in numbers)


def everything_recorded(measured, directory, sent):
    """Hold that frames 0 to ``sent`` are in the files, each once; write it into the row."""
    numbers = recorded(directory)
    measured.sent, measured.recorded = sent, len(numbers)
    measured.lost = len(set(range(sent)) - set(numbers))
    assert numbers == list(range(sent))


def wait_until_recorded(daemon, sent, seconds=40):
    def settled(status):
        output = status["outputs"]["hdf5.0"]
        gone = sum(n for k, n in output["dropped_total"].items() if not k.startswith("clean_"))
        return output["up"] and output["totals"]["raw_written"] + gone == sent

    return daemon.wait_for(settled, seconds, "every raw frame written")
