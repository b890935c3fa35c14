"""The zmq sink, read by decoders that know only the published formats, and by our own sources."""

import json
import threading
import time
from contextlib import ExitStack

import cbor2
import numpy as np
import pytest
import zmq
from dectris.compression import decompress

from helpers.recordings import frame, result, run_end, run_start
from quietbeam import ConfigError, Frame, RunEnd, RunStart, SinkError
from quietbeam.core.plugin import SinkPlugin, SourcePlugin
from quietbeam.core.result import Result
from quietbeam.registry import find

Zmq = find("sinks", "zmq", SinkPlugin)
SHAPE = (32, 48)


class Consumer:
    """A plain ZMQ socket that knows nothing of quietbeam."""

    def __init__(self, address, kind):
        self.context = zmq.Context()
        self.socket = self.context.socket(kind)
        if kind == zmq.SUB:
            self.socket.subscribe(b"")
        self.socket.connect(address)

    def message(self, timeout_ms=3000):
        assert self.socket.poll(timeout_ms), "nothing came"
        return self.socket.recv_multipart()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.destroy(linger=0)


@pytest.fixture
def opened():
    with ExitStack() as stack:

        def open_sink(**settings):
            settings = {"address": "tcp://127.0.0.1:*"} | settings
            return stack.enter_context(Zmq(**settings).open())

        yield open_sink


def heard(sink, subscribers=1):
    """Wait until the sink knows its subscribers."""
    deadline = time.monotonic() + 5
    while sink.subscribers < subscribers:
        sink._welcome()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("what", "dtype"), [("clean", "float32"), ("sd", "float32"), ("raw", "uint16")]
)
@pytest.mark.parametrize("compression", ["none", "bslz4"])
def test_array_messages_are_what_the_format_says(opened, what, dtype, compression):
    sink = opened(what=what, compression=compression)
    with Consumer(sink.address, zmq.SUB) as consumer:
        heard(sink)
        sink.start(run_start())
        sent, measured = result(11, version=3, denoiser="quiet"), frame(11)
        sink.raw(measured) if what == "raw" else sink.write(sent)
        header, data = consumer.message()
    header = json.loads(header)
    assert header["htype"] == "array-1.0"
    assert (header["shape"], header["type"], header["frame"]) == ([32, 48], dtype, 11)
    assert header["endianness"] == "little"
    if compression == "bslz4":
        assert header["encoding"] == "bslz4"
        framed = (32 * 48 * np.dtype(dtype).itemsize).to_bytes(8, "big")
        framed += (8192).to_bytes(4, "big") + data
        data = decompress(framed, "bslz4", elem_size=np.dtype(dtype).itemsize)
    got = np.frombuffer(data, dtype).reshape(header["shape"])
    expected = {"clean": sent.clean, "sd": sent.sd, "raw": measured.pixels}[what]
    np.testing.assert_array_equal(got, expected)
    assert (header["run"], header["seq"], header["what"]) == ("7", 1, what)
    if what != "raw":
        assert (header["model_version"], header["denoiser"]) == (3, "quiet")


def test_the_header_carries_the_estimated_quality_and_no_nan(opened):
    sink = opened()
    item = result(1)
    metrics = {"quality.psnr_estimated_db": 31.5, "quality.psnr_raw_db": float("nan")}
    values = {name: getattr(item, name) for name in Result.__slots__}
    with Consumer(sink.address, zmq.SUB) as consumer:
        heard(sink)
        sink.start(run_start())
        sink.write(Result(**(values | {"metrics": metrics})))
        header = json.loads(consumer.message()[0], parse_constant=pytest.fail)
    assert header["psnr_db"] == 31.5
    assert header["metrics"]["quality.psnr_raw_db"] is None


TYPED = {69: "<u2", 70: "<u4", 85: "<f4"}


def read_array(tag):
    """Read a multi-dimensional typed array as RFC 8746 and the Stream V2 page describe it."""
    assert tag.tag == 40
    shape, typed = tag.value
    data = typed.value
    if isinstance(data, cbor2.CBORTag):
        assert data.tag == 56500
        algorithm, element_size, blob = data.value
        data = decompress(blob, algorithm, elem_size=element_size)
    return np.frombuffer(data, TYPED[typed.tag]).reshape(shape)


@pytest.mark.parametrize("compression", ["none", "bslz4"])
def test_stream_v2_messages_are_what_the_format_says(opened, compression):
    sink = opened(format="dectris-v2", socket="push", compression=compression)
    mask = np.zeros(SHAPE, bool)
    mask[3, 4] = True
    run = run_start("run-7", frame_time_s=0.5, exposure_s=0.25, mask=mask, energy_kev=12.0)
    with Consumer(sink.address, zmq.PULL) as consumer:
        sent = result(11, version=3)
        sink.start(run)
        deadline = time.monotonic() + 5
        while not sink.sent and time.monotonic() < deadline:  # until the consumer is there
            sink.write(sent)
        sink.stop(run_end("run-7", "aborted"))
        raw = [consumer.message() for _ in range(3)]
    assert all(len(message) == 1 and message[0][:3] == b"\xd9\xd9\xf7" for message in raw)
    start, image, end = (cbor2.loads(message[0]) for message in raw)
    assert next(iter(start)) == "type"
    assert [m["type"] for m in (start, image, end)] == ["start", "image", "end"]
    assert len({(m["series_id"], m["series_unique_id"]) for m in (start, image, end)}) == 1
    assert start["series_unique_id"] == "run-7"
    assert (start["image_size_y"], start["image_size_x"]) == SHAPE
    assert (start["image_dtype"], list(start["channels"])) == ("float32", ["clean"])
    assert (start["count_time"], start["frame_time"]) == (0.25, 0.5)
    assert start["incident_energy"] == 12_000.0
    np.testing.assert_array_equal(read_array(start["pixel_mask"]["clean"]) != 0, mask)
    np.testing.assert_array_equal(read_array(image["data"]["clean"]), sent.clean)
    assert image["image_id"] == 11
    assert list(image["start_time"]) == [11 * 5_000_000 + 3, 10**9]
    assert list(image["real_time"]) == [250_000_000, 10**9]
    assert image["user_data"]["model_version"] == 3
    assert end["user_data"]["reason"] == "aborted"


def test_a_stalled_subscriber_never_blocks_and_sees_its_own_gaps(opened):
    sink = opened(queue_messages=8)
    shape = (256, 256)  # large enough that the system's own buffers cannot hide the queue
    with Consumer(sink.address, zmq.SUB) as consumer:
        consumer.socket.set(zmq.RCVHWM, 8)
        heard(sink)
        sink.start(run_start(shape=shape))
        item = result(0, shape=shape)
        began = time.monotonic()
        for _ in range(400):
            sink.write(item)
        assert time.monotonic() - began < 5
        assert sink.sent == sink.seq == 400
        numbers = []
        while consumer.socket.poll(300):
            numbers.append(json.loads(consumer.socket.recv_multipart()[0])["seq"])
    assert numbers == sorted(set(numbers))
    assert len(numbers) < 400


def test_a_puller_that_is_too_slow_is_counted_and_everything_adds_up(opened):
    sink = opened(socket="push", queue_messages=2)
    shape = (256, 256)
    got = []
    with Consumer(sink.address, zmq.PULL) as consumer:
        sink.start(run_start(shape=shape))
        deadline = time.monotonic() + 5
        while not sink.sent and time.monotonic() < deadline:
            sink.write(result(0, shape=shape))
        for _ in range(2000):
            sink.write(result(0, shape=shape))
            if sink.dropped["slow"]:
                break
        while consumer.socket.poll(500):
            got.append(consumer.socket.recv_multipart())
        assert sink.dropped["slow"] > 0
        assert sink.seq == sink.sent + sink.dropped.total()
        assert len(got) == sink.sent


@pytest.mark.parametrize("socket", ["pub", "push"])
def test_without_a_consumer_nothing_blocks_and_every_frame_is_counted(opened, socket):
    sink = opened(socket=socket, format="dectris-v2")
    sink.start(run_start())
    for index in range(20):
        sink.write(result(index))
    sink.stop(run_end())
    assert (sink.seq, sink.sent, dict(sink.dropped)) == (20, 0, {"no_consumer": 20})


def test_an_address_in_use_is_told_with_its_name(opened):
    sink = opened()
    with pytest.raises(SinkError, match="already in use"):
        opened(address=sink.address)


def test_an_address_of_another_kind_is_refused_before_anything_is_opened():
    with pytest.raises(ValueError, match="tcp://host:port"):
        Zmq(address="udp://x:1")


def read_events(plugin, ready, count, events):
    with plugin.open() as source:
        for event in source:
            if event is not None:
                events.append(event)
                ready.set()
            if sum(isinstance(e, RunEnd) for e in events) >= count:
                return


@pytest.mark.parametrize(
    ("source", "format_", "compression"),
    [
        ("array", "array-1.0", "none"),
        ("array", "array-1.0", "bslz4"),
        ("dectris", "dectris-v2", "none"),
        ("dectris", "dectris-v2", "bslz4"),
    ],
)
def test_a_second_quietbeam_reads_what_the_first_one_sends(opened, source, format_, compression):
    try:
        cls = find("sources", source, SourcePlugin)
    except ConfigError:
        pytest.skip("the sources are not installed")
    sink = opened(format=format_, socket="push", compression=compression)
    plugin = cls.model_validate({"address": sink.address, "socket": "pull", "run_timeout_s": 0.3})
    events, ready = [], threading.Event()
    reader = threading.Thread(target=read_events, args=(plugin, ready, 1, events), daemon=True)
    reader.start()
    sink.start(run_start("run-7", frame_time_s=0.5))
    index, sent = 0, []
    deadline = time.monotonic() + 10
    while len(sent) < 5 and time.monotonic() < deadline:
        before = sink.sent
        sink.write(result(index))
        sent += [index] if sink.sent > before else []
        index += 1
        time.sleep(0.02)
    sink.stop(run_end("run-7"))
    reader.join(10)
    assert not reader.is_alive()
    start = next(e for e in events if isinstance(e, RunStart))
    frames = [e for e in events if isinstance(e, Frame)]
    assert start.shape == SHAPE
    assert start.dtype == np.float32
    assert [f.index for f in frames] == sent
    for got in frames:
        np.testing.assert_array_equal(got.pixels, result(got.index).clean)
    if source == "dectris":
        assert (start.run, start.frame_time_s) == ("run-7", 0.5)
        assert frames[0].time_ns == frame(frames[0].index).time_ns
