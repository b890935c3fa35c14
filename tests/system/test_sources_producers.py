"""Detector simulators that others wrote, run for real, each in an environment of its own.

`make producers` installs them, from tests/producers/*.txt, into .venv-producers; the environment
variable QUIETBEAM_PRODUCERS names another directory. What is not installed is skipped.
"""

import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import cbor2
import h5py
import hdf5plugin
import numpy as np
import pytest
from dectris.compression import decompress

from helpers.daemons import free_port
from quietbeam.core.events import Frame, Rejected, RunEnd, RunStart
from quietbeam_plugins.sources.dectris import Dectris
from quietbeam_plugins.sources.karabo import Karabo
from quietbeam_plugins.sources.pva import Pva

pytestmark = pytest.mark.slow
HOME = Path(os.environ.get("QUIETBEAM_PRODUCERS", Path(__file__).parents[2] / ".venv-producers"))


def needs(producer):
    missing = not (HOME / producer / "bin" / "python").exists()
    return pytest.mark.skipif(missing, reason=f"{producer} is not installed: make producers")


def program(producer, name):
    return str(HOME / producer / "bin" / name)


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


@needs("eiger-simulator")
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
    command = (
        program("eiger-simulator", "eiger-simulator"),
        "--host",
        "127.0.0.1",
        "--port",
        str(http),
    )
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


_TICKIT = """
import sys
import aiozmq
from tickit.cli import main
create = aiozmq.create_zmq_stream
aiozmq.create_zmq_stream = lambda kind, *, bind, connect: create(kind, bind=bind)
main(["--log-level", "ERROR", "all", sys.argv[1]])
"""
"""Its PUSH socket is bound, but also connects to itself and so may give itself messages."""


@contextmanager
def tickit(folder):
    """Give the REST interface and the addresses of Stream V1 and V2."""
    http, v1, v2 = free_port(), free_port(), free_port()
    (folder / "eiger.yaml").write_text(
        f"- {{type: tickit_devices.eiger.Eiger, name: eiger, inputs: {{}}, host: 127.0.0.1, "
        f"port: {http}, stream_legacy_port: {v1}, stream_cbor_port: {v2}}}\n"
    )
    python = program("tickit-devices", "python")
    with process(python, "-c", _TICKIT, folder / "eiger.yaml", stdout=subprocess.DEVNULL):
        rest = f"http://127.0.0.1:{http}"
        wait_for(f"{rest}/detector/api/1.8.0/config/nimages")
        yield rest, {"legacy": f"tcp://127.0.0.1:{v1}", "cbor": f"tcp://127.0.0.1:{v2}"}


def sample_of_tickit(form):
    """Give the one image it sends, decoded by hand: a real EIGER2 16M, 4362 x 4148 pixels."""
    [data] = (HOME / "tickit-devices").glob("lib/python*/site-packages/tickit_devices/eiger/data")
    if form == "legacy":
        blob, shape = (data / "frame_sample").read_bytes(), (4362, 4148)
    else:
        message = cbor2.loads((data / "stream2" / "image.cbor").read_bytes())
        [array] = message["data"].values()
        shape, typed = array.value
        blob = typed.value.value[2]
    flat = np.frombuffer(decompress(blob, "bslz4", elem_size=2), "u2")
    return flat.reshape(tuple(shape))


@needs("tickit-devices")
@pytest.mark.parametrize("form", ["legacy", "cbor"])
@pytest.mark.parametrize("detail", ["basic", "all"])
def test_tickit_is_read_bit_exact(tmp_path, form, detail):
    with tickit(tmp_path) as (rest, addresses):
        ask(f"{rest}/stream/api/1.8.0/config/format", form)
        ask(f"{rest}/stream/api/1.8.0/config/header_detail", detail)
        with Dectris(address=addresses[form]).open() as stream:
            # It is armed for external triggers, and answers no other until the series is over.
            asking = acquire(rest, "1.8.0", trigger_mode="ints", nimages=4, frame_time=0.1)
            events = read_run(stream)
            asking.join(60)
    begun, *frames, end = events
    assert isinstance(begun, RunStart)
    assert (begun.shape, begun.dtype, begun.frames_expected) == ((4362, 4148), np.dtype("u2"), 4)
    assert (end.reason, [frame.index for frame in frames]) == ("completed", [0, 1, 2, 3])
    expected = sample_of_tickit(form)
    for frame in frames:
        np.testing.assert_array_equal(frame.pixels, expected)


@needs("libertem-dectris")
def test_the_simulator_of_libertem_sends_every_header_part_by_itself():
    python = program("libertem-dectris", "python")
    with process(python, "-c", _LIBERTEM, stdout=subprocess.PIPE, text=True) as detector:
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


_KARABO = """
import sys
import numpy as np
import zmq
from karabo_bridge.serializer import serialize
images = np.load(sys.argv[1])
socket = zmq.Context().socket(getattr(zmq, sys.argv[2]))
print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
if sys.argv[2] == "PUB":
    sys.stdin.readline()
for number, pulses in enumerate(images):
    if sys.argv[2] == "REP":
        assert socket.recv() == b"next"
    about = {"source": "a", "timestamp.tid": 100 + number}
    data = {"a": {"image.data": pulses, "gain": pulses + 1, "x": 1.5}}
    socket.send_multipart(serialize(data, {"a": about}))
sys.stdin.readline()
"""


@needs("karabo-bridge")
@pytest.mark.parametrize(("server", "reader"), [("REP", "req"), ("PUB", "sub"), ("PUSH", "pull")])
def test_what_karabo_bridge_serialises_is_read_bit_exact(tmp_path, server, reader):
    images = np.random.default_rng(0).poisson(9, (5, 2, 3, 32, 16)).astype("u2")  # t, p, m, y, x
    np.save(tmp_path / "x.npy", images)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = (program("karabo-bridge", "python"), "-c", _KARABO, tmp_path / "x.npy", server)
    with process(*command, **pipes) as bridge:
        address = f"tcp://127.0.0.1:{bridge.stdout.readline().strip()}"
        with Karabo(address=address, socket=reader, run_timeout_s=1.0).open() as stream:
            for _ in range(10):  # a second, by which a subscription has arrived
                assert next(stream) is None or server != "PUB"
                if server != "PUB":
                    break
            bridge.stdin.write("go\n")
            bridge.stdin.flush()
            events = read_run(stream)
    frames = [event for event in events if isinstance(event, Frame)]
    assert not [event for event in events if isinstance(event, Rejected)]
    assert [frame.index for frame in frames][-1] == 9
    expected = images.reshape(10, 96, 16)[-len(frames) :]
    np.testing.assert_array_equal([frame.pixels for frame in frames], expected)
    assert len(frames) == 10


@needs("karabo-bridge")
@pytest.mark.parametrize(("server", "reader"), [("REP", "req"), ("PUSH", "pull")])
def test_the_simulator_of_karabo_sends_trains_of_agipd(server, reader):
    port = free_port()
    command = (
        program("karabo-bridge", "karabo-bridge-server-sim"),
        "-d",
        "AGIPDModule",
        "-r",
        "-z",
        server,
        str(port),
    )
    source = Karabo(address=f"tcp://127.0.0.1:{port}", socket=reader, axes="yxp")
    with process(*command, stdout=subprocess.DEVNULL), source.open() as stream:
        events = []
        while len(events) < 1 + 2 * 64:
            event = next(stream)
            events += [] if event is None else [event]
    assert isinstance(events[0], RunStart)
    assert (events[0].shape, events[0].metadata["pulses"]) == ((128, 512), 64)
    frames = events[1:]
    assert [frame.index for frame in frames] == list(range(128))
    for frame in frames:  # it draws from 1500 to 1600
        assert 1500 <= frame.pixels.min() < 1510 < 1590 < frame.pixels.max() < 1600


@needs("karabo-bridge")
def test_version_1_0_of_karabo_is_refused_by_name():
    port = free_port()
    command = (
        program("karabo-bridge", "karabo-bridge-server-sim"),
        "-d",
        "AGIPDModule",
        "-r",
        "-p",
        "1.0",
        str(port),
    )
    with (
        process(*command, stdout=subprocess.DEVNULL),
        Karabo(address=f"tcp://127.0.0.1:{port}").open() as stream,
    ):
        event = next(event for event in stream if event is not None)
    assert isinstance(event, Rejected)
    assert (event.reason, "karabo" in event.detail) == ("unsafe", True)


@needs("pvapy")
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_the_area_detector_simulator_of_pvapy_is_read_bit_exact(tmp_path, dtype):
    images = np.random.default_rng(0).poisson(9, (5, 24, 40)).astype(dtype)
    np.save(tmp_path / "x.npy", images)
    search, channel = free_port(), f"sw{free_port()}:image"
    command = (
        program("pvapy", "pvapy-ad-sim-server"),
        "-cn",
        channel,
        "-if",
        tmp_path / "x.npy",
        "-fps",
        "10",
        "-rt",
        "60",
    )
    command += ("-nf", "5", "-dc", "-std", "3")
    server = {"EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1", "EPICS_PVAS_BROADCAST_PORT": str(search)}
    server |= {"EPICS_PVAS_SERVER_PORT": str(free_port())}
    source = Pva(channel=channel, servers=f"127.0.0.1:{search}")
    options = {"stdout": subprocess.DEVNULL, "env": {**os.environ, **server}}
    with process(*map(str, command), **options), source.open() as stream:
        events, deadline_s = [], time.monotonic() + 60
        while len(events) < 12:  # it sends the five again and again
            event = next(stream)
            events += [] if event is None else [event]
            assert time.monotonic() < deadline_s, events
    begun, *frames = events
    assert (begun.shape, begun.dtype) == ((24, 40), np.dtype(dtype))
    first = frames[0].index
    assert [frame.index for frame in frames] == list(range(first, first + len(frames)))
    shift = next(n for n in range(5) if (images[n] == frames[0].pixels).all())
    for n, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.pixels, images[(shift + n) % 5])
