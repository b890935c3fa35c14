"""Sources on real sockets: simulators send, sources read, captures repeat it bit-equal."""

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import h5py
import numpy as np
import pytest
import zmq

from helpers.daemons import free_port
from helpers.sources import source
from quietbeam.core.errors import SinkError, SourceError
from quietbeam.core.events import Frame, Rejected, RunEnd, RunStart
from quietbeam.offline.capture import CaptureWriter
from quietbeam.offline.sender import open_sender
from quietbeam.testing import hostile
from quietbeam.testing.simulators import FORMATS, UNCOMPRESSED, encoder, simulate
from quietbeam_plugins.sources.array import Array
from quietbeam_plugins.sources.dectris import Dectris
from quietbeam_plugins.sources.replay import Replay
from quietbeam_plugins.sources.zmq_parts import Part, _tapped

IMAGES = np.random.default_rng(0).poisson(9, (8, 24, 40)).astype("u2")
ENDLESS = ("array-1.0", "adzmq", "odin", "karabo")
"""Formats without an end of a series: only a pause tells."""


@contextmanager
def running(target):
    thread = threading.Thread(target=target)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)
        assert not thread.is_alive()


def read(settings, frames, seconds=15.0):
    """Events until so many frames and the end after them have come."""
    events, deadline_s = [], time.monotonic() + seconds
    with settings.open() as stream:
        for event in stream:
            if event is not None:
                events.append(event)
            count = sum(isinstance(event, Frame) for event in events)
            if count >= frames and isinstance(events[-1], RunEnd):
                break
            assert time.monotonic() < deadline_s, events
    return events


def assert_whole_run(events, images=IMAGES):
    assert isinstance(events[0], RunStart)
    frames = [event for event in events if isinstance(event, Frame)]
    assert [frame.index for frame in frames] == list(range(len(images)))
    np.testing.assert_array_equal([frame.pixels for frame in frames], images)
    assert len(events) == len(images) + 2


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "sls-4bit"])
@pytest.mark.parametrize("kind", ["push", "pub"])
def test_every_format_arrives_bit_exact_over_a_socket(form, kind):
    with open_sender("tcp://127.0.0.1:0", kind=kind) as sender:
        reports = []

        def send():
            assert sender.wait_for_reader(10)
            compression = "bslz4" if kind == "push" and form not in UNCOMPRESSED else "none"
            encoding = encoder(form, compression)
            reports.append(simulate(IMAGES, encoding, sender, rate_hz=100, frames=8))

        settings = source(
            form,
            address=sender.address,
            socket="pull" if kind == "push" else "sub",
            run_timeout_s=1.0 if form.startswith(ENDLESS) else 10.0,
        )
        with running(send):
            events = read(settings, 8)
    assert_whole_run(events)
    assert (reports[0].sent, reports[0].unsent) == (8, 0)
    assert reports[0].rate_hz == pytest.approx(100, rel=0.5)


def test_a_source_can_listen_for_a_detector_that_connects(tmp_path):
    address = f"ipc://{tmp_path}/socket"

    def send():
        with open_sender(address, bind=False) as sender:
            assert sender.wait_for_reader(10)
            simulate(IMAGES, encoder("dectris-v2"), sender, rate_hz=200, frames=8)

    with running(send):
        events = read(source("dectris-v2", address=address, bind=True), 8)
    assert_whole_run(events)


def test_a_pusher_that_nobody_reads_gives_up_and_counts():
    with open_sender("tcp://127.0.0.1:0") as sender:
        report = simulate(IMAGES, encoder("array-1.0"), sender, rate_hz=100, frames=4)
    assert (report.sent, report.unsent) == (0, 4)


def test_addresses_that_cannot_work_are_named():
    with open_sender("tcp://127.0.0.1:0") as sender:
        with pytest.raises(SourceError, match="cannot listen on tcp://127"):
            read(Array(address=sender.address, bind=True), 1)
        with (
            pytest.raises(SinkError, match="cannot listen on tcp://127"),
            open_sender(sender.address),
        ):
            pass
    with pytest.raises(ValueError, match="expected tcp://"):
        Array(address="localhost:9999")


def test_an_idle_source_says_so_ten_times_a_second():
    with Array(address="tcp://127.0.0.1:1").open() as events:
        began_s = time.monotonic()
        assert [next(events) for _ in range(5)] == [None] * 5
        assert time.monotonic() - began_s < 1.5


def test_a_message_larger_than_allowed_closes_the_connection_and_the_next_one_works():
    with open_sender("tcp://127.0.0.1:0") as sender:

        def send():
            assert sender.wait_for_reader(10)
            sender.send([b"{" * (8 << 20)])
            time.sleep(1.5)  # until the reader has thrown it out and come back
            simulate(IMAGES, encoder("array-1.0"), sender, rate_hz=100, frames=8)

        settings = Array(address=sender.address, max_frame_bytes=1 << 20, run_timeout_s=1.0)
        with running(send):
            events = read(settings, 8)
    assert [event.reason for event in events if isinstance(event, Rejected)] == ["oversized"]
    assert_whole_run([event for event in events if not isinstance(event, Rejected)])


@pytest.mark.parametrize(
    ("form", "part", "told"),
    [
        ("array-1.0", b'{"htype":"array-1.0","shape":0}', 4096),  # each may begin an array
        ("dectris-v1", b"\xff", 1),
        ("dectris-v2", b"", 1),
    ],
)
def test_a_message_of_100_000_parts_is_cut_short_and_the_next_frame_is_read(form, part, told):
    with open_sender("tcp://127.0.0.1:0") as sender:

        def send():
            assert sender.wait_for_reader(10)
            for message in [*hostile.before(form), [part] * 100_000, *hostile.after(form)]:
                sender.send(message)

        refused, frames = [], []
        settings = source(form, address=sender.address)
        with running(send), settings.open() as events:
            deadline_s = time.monotonic() + 20
            while len(frames) < 3 and time.monotonic() < deadline_s:
                event = next(events)
                refused += [event] if isinstance(event, Rejected) else []
                frames += [event.index] if isinstance(event, Frame) else []
    assert frames == [0, 1, 2]
    assert len(refused) == told + 1
    assert refused[-1].reason == "oversized"
    assert "more than 4096 parts" in refused[-1].detail


def test_a_detector_that_was_restarted_is_found_again():
    address = f"tcp://127.0.0.1:{free_port()}"

    def send():
        for _ in range(2):
            with open_sender(address) as sender:
                assert sender.wait_for_reader(10)
                simulate(IMAGES, encoder("dectris-v2"), sender, rate_hz=200, frames=8)
            time.sleep(1.0)

    with running(send):
        events = read(Dectris(address=address), 16)
    assert_whole_run(events[:10])
    assert_whole_run(events[10:])


def test_a_detector_that_finishes_and_leaves_while_we_are_behind_loses_nothing():
    frames = 500
    port, bound = [], threading.Event()

    def send_and_leave():
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.set(zmq.SNDHWM, frames)
            port.append(socket.bind_to_random_port("tcp://127.0.0.1"))
            bound.set()
            encoding = encoder("array-1.0")
            for i in range(frames):
                pixels = np.full((100, 100), i, "u2")
                frame = Frame(run="a", index=i, time_ns=i, received_ns=0, pixels=pixels)
                socket.send_multipart(encoding.frame(frame)[0])
            socket.close(linger=60_000)

    with running(send_and_leave):
        assert bound.wait(10)
        settings = Array(
            address=f"tcp://127.0.0.1:{port[0]}",
            receive_messages=8,
            heartbeat_s=0.2,
            run_timeout_s=5.0,
        )
        came = []
        with settings.open() as stream:
            for event in stream:
                if isinstance(event, Frame):
                    came.append(int(event.pixels[0, 0]))
                    time.sleep(0.005)
                if len(came) == frames or isinstance(event, RunEnd):
                    break
    assert came == list(range(frames))


@pytest.mark.parametrize("form", hostile.FORMATS)
def test_hostile_messages_over_a_socket_are_all_counted(form):
    cases = [case for case in hostile.corpus() if case.format == form]
    messages = [*hostile.before(form), *(case.message for case in cases), *hostile.after(form)]
    with open_sender("tcp://127.0.0.1:0") as sender:

        def send():
            assert sender.wait_for_reader(10)
            for message in messages:
                sender.send(message)

        rejected, frames = 0, []
        settings = source(form, address=sender.address, socket="pull")
        with running(send), settings.open() as events:
            deadline_s = time.monotonic() + 20
            while len(frames) < 3 and time.monotonic() < deadline_s:
                event = next(events)
                rejected += type(event).__name__ == "Rejected"
                frames += [event.index] if isinstance(event, Frame) else []
    assert (frames, rejected) == ([0, 1, 2], len(cases))


def test_a_capture_repeats_the_stream_bit_equal(tmp_path):
    tap = tmp_path / "x.qbcap"
    with open_sender("tcp://127.0.0.1:0") as sender:

        def send():
            assert sender.wait_for_reader(10)
            simulate(IMAGES, encoder("dectris-v1", "lz4"), sender, rate_hz=100, frames=8)

        with running(send):
            live = read(Dectris(address=sender.address, tap=tap), 8)
    assert_whole_run(live)
    again = read(Dectris(address=tap.as_uri()), 8)
    fast = read(Dectris(address=tap.as_uri(), pace="fast"), 8)
    named = read(Replay(file=str(tap), rate_hz=1000), 8)
    for events in (again, fast, named):
        assert_whole_run(events)
        assert [e.time_ns for e in events[1:-1]] == [e.time_ns for e in live[1:-1]]
    # played at its own pace, frames are as far apart as they were
    step_ns = np.diff([event.received_ns for event in again[1:-1]])
    np.testing.assert_allclose(
        step_ns, np.diff([event.received_ns for event in live[1:-1]]), atol=2e6
    )
    second = tmp_path / "y.qbcap"
    read(Dectris(address=tap.as_uri(), pace="fast", tap=second), 8)
    parts = [content.split(b'"}', 1)[1] for content in (tap.read_bytes(), second.read_bytes())]
    assert parts[0] == parts[1]


def test_a_tap_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(SourceError, match="cannot be written"):
        read(Dectris(address="tcp://127.0.0.1:1", tap=tmp_path / "no" / "x.qbcap"), 1)


def test_a_full_disk_ends_the_tap_and_the_stream_only_where_it_must(tmp_path):
    tap = tmp_path / "x.qbcap"
    parts = [Part(bytes(100_000), 0, True), None, Part(bytes(100_000), 1, True)]
    writer = CaptureWriter(tap, {})
    writer._file.close()
    writer._file = open("/dev/full", "wb")  # noqa: PTH123, SIM115
    assert list(_tapped(iter(parts), writer, required=False)) == parts
    with pytest.raises(SourceError, match="No space left"):
        list(_tapped(iter(parts), writer, required=True))
    with suppress(OSError):
        writer.close()


def quietbeam(*arguments):
    command = [sys.executable, "-m", "quietbeam", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process, code=0):
    out, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    return json.loads(out)


@pytest.mark.slow
def test_simulate_capture_and_replay_from_the_command_line(tmp_path):
    address = f"tcp://127.0.0.1:{free_port()}"
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["frames"] = IMAGES
    config = tmp_path / "config.toml"
    config.write_text(f'[source]\nkind = "dectris"\naddress = "{address}"\n')
    where = ("--bind", address, "--wait", "--json")

    detector = quietbeam("simulate", tmp_path / "a.h5", "--rate", 50, "--frames", 12, *where)
    writer = quietbeam("capture", config, "-o", tmp_path / "x.qbcap", "--frames", 12, "--json")
    written, sent = answer(writer), answer(detector)
    assert (sent["sent"], sent["unsent"], sent["address"]) == (12, 0, address)
    assert (written["frames"], written["runs"], written["rejected"]) == (12, 1, {})

    summary = answer(quietbeam("replay", tmp_path / "x.qbcap", "--json"))
    assert [(run["shape"], run["frames"]) for run in summary["runs"]] == [([24, 40], 12)]

    detector = quietbeam("replay", tmp_path / "x.qbcap", *where, "--rate", 200)
    writer = quietbeam("capture", config, "-o", tmp_path / "y.qbcap", "--frames", 12, "--json")
    assert answer(writer)["frames"] == 12
    assert answer(detector)["unsent"] == 0
    contents = [(tmp_path / name).read_bytes() for name in ("x.qbcap", "y.qbcap")]
    assert len(contents[0]) == len(contents[1])


@pytest.mark.slow
def test_a_simulator_that_is_asked_to_stop_ends_its_series():
    address = f"tcp://127.0.0.1:{free_port()}"
    detector = quietbeam(
        *("simulate", "phantom", "--size", 32, "--rate", 50, "--bind", address),
        *("--frames", 2000, "--wait", "--json"),
    )
    events = []
    with Dectris(address=address).open() as stream:
        for event in stream:
            if event is not None:
                events.append(event)
            if isinstance(event, Frame) and event.index == 18:
                detector.send_signal(signal.SIGTERM)
            if isinstance(event, RunEnd):
                break
    assert events[-1].reason == "completed"
    assert answer(detector)["sent"] == len(events) - 2


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("simulate", "missing.h5", "--bind", "tcp://127.0.0.1:0"), 65, "does not exist"),
        (("simulate", "phantom", "--rate", "0", "--bind", "tcp://127.0.0.1:0"), 2, "not a rate"),
        (("simulate", "phantom"), 2, "--bind"),
        (("replay", "missing.qbcap"), 65, "cannot be read"),
        (("capture", "missing.toml", "-o", "x.qbcap"), 78, "cannot be read"),
    ],
)
def test_commands_say_what_is_wrong(arguments, code, text):
    process = quietbeam(*arguments)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert text in errors
    assert "Traceback" not in errors
