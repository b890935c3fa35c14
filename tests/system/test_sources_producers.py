"""Detector simulators that others wrote, run for real, each in an environment of its own.

Each is looked for under the name in an environment variable, then on PATH, and
skipped where it is not installed:

    QUIETBEAM_EIGER_SIMULATOR   the command of eiger-simulator 0.5.1
    QUIETBEAM_LIBERTEM_PYTHON   a Python that has libertem-dectris 0.3.2
"""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import h5py
import hdf5plugin
import numpy as np
import pytest

from quietbeam.core.events import Frame, Rejected, RunEnd, RunStart
from quietbeam_plugins.sources.dectris import Dectris

pytestmark = pytest.mark.slow
EIGER_SIMULATOR = shutil.which(os.environ.get("QUIETBEAM_EIGER_SIMULATOR", "eiger-simulator"))
LIBERTEM = shutil.which(os.environ.get("QUIETBEAM_LIBERTEM_PYTHON", "libertem-dectris-python"))
needs = pytest.mark.skipif


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def process(*command, **options):
    """A process that certainly ends."""
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def ask(url, value=None):
    """PUT ``value`` to a SIMPLON interface."""
    body = json.dumps({"value": value}).encode() if value is not None else b"{}"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="PUT")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def wait_for(url, seconds=60):
    deadline_s = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline_s, url
            time.sleep(0.2)


def read_run(stream, seconds=60):
    events, deadline_s = [], time.monotonic() + seconds
    for event in stream:
        if event is not None:
            events.append(event)
        if isinstance(event, RunEnd):
            return events
        assert time.monotonic() < deadline_s, events
    return events


def acquire(detector, api, **config):
    """Arm, trigger and disarm in the background: some simulators block until all is sent."""

    def commands():
        ask(f"{detector}/detector/api/{api}/command/initialize")
        time.sleep(3)  # it listens from now on, and drops what nobody is connected for
        for key, value in config.items():
            ask(f"{detector}/detector/api/{api}/config/{key}", value)
        for command in ("arm", "trigger", "disarm"):
            ask(f"{detector}/detector/api/{api}/command/{command}")

    thread = threading.Thread(target=commands)
    thread.start()
    return thread


@needs(EIGER_SIMULATOR is None, reason="eiger-simulator is not installed")
@pytest.mark.parametrize("compression", ["bslz4", "lz4"])
def test_eiger_simulator_is_read_bit_exact(tmp_path, compression):
    images = np.random.default_rng(0).poisson(3, (3, 3269, 3110)).astype("u2")  # its only shape
    with h5py.File(tmp_path / "m_data_000001.h5", "w") as file:
        shape, packed = (1, 3269, 3110), hdf5plugin.Bitshuffle()
        file.create_dataset("/entry/data/data", data=images, chunks=shape, **packed)
    with h5py.File(tmp_path / "m_master.h5", "w") as file:
        link = h5py.ExternalLink("m_data_000001.h5", "/entry/data/data")
        file["/entry/data/data_000001"] = link
    http, stream = free_port(), free_port()
    command = (EIGER_SIMULATOR, "--host", "127.0.0.1", "--port", str(http))
    command += ("--zmq", f"tcp://127.0.0.1:{stream}", "--default-compression", compression)
    command += ("--dataset", str(tmp_path / "m_master.h5"))
    source = Dectris(address=f"tcp://127.0.0.1:{stream}")
    with process(*command, stdout=subprocess.DEVNULL), source.open() as stream_events:
        wait_for(f"http://127.0.0.1:{http}/detector/api/1.6.0/config/nimages")
        asking = acquire(f"http://127.0.0.1:{http}", "1.6.0", nimages=3, count_time=0.5)
        events = read_run(stream_events)
        asking.join(60)
    assert not [event for event in events if isinstance(event, Rejected)]
    frames = [event for event in events if isinstance(event, Frame)]
    assert [frame.index for frame in frames] == [0, 1, 2]
    np.testing.assert_array_equal([frame.pixels for frame in frames], images)
    assert events[-1].reason == "completed"


_LIBERTEM = """
import time
from libertem_dectris import DectrisSim
detector = DectrisSim.new_mocked("tcp://127.0.0.1", 20, None, True)
print(detector.get_uri(), flush=True)
time.sleep(1)
detector.send_headers()
detector.send_frames(None)
detector.send_footer()
time.sleep(5)
"""


@needs(LIBERTEM is None, reason="libertem-dectris is not installed")
def test_the_simulator_of_libertem_sends_every_header_part_by_itself():
    with process(LIBERTEM, "-c", _LIBERTEM, stdout=subprocess.PIPE, text=True) as detector:
        assert detector.stdout is not None
        address = detector.stdout.readline().strip()
        with Dectris(address=address).open() as stream:
            events = read_run(stream)
    begun = events[0]
    assert isinstance(begun, RunStart)
    assert (begun.shape, begun.dtype, begun.frames_expected) == ((512, 512), np.dtype("u2"), 20)
    assert len(events) == 22
    for number, frame in enumerate(events[1:-1]):  # it fills every frame with its number
        assert (frame.index, frame.pixels.min(), frame.pixels.max()) == (number, number, number)
