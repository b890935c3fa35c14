"""One output, many consumers: late ones, slow ones, unknown ones; nobody hurts anybody."""

import json
import socket as sockets
import threading
from contextlib import ExitStack, contextmanager
from functools import partial

import cbor2
import numpy as np
import pytest
import zmq
import zmq.auth
from pydantic import ValidationError
from structlog.testing import capture_logs

from helpers import waiting
from helpers.recordings import frame, result, run_end, run_start
from quietbeam import Frame, RunStart, SinkError, SourceError, SourcePlugin
from quietbeam.core.plugin import PacedSink, SinkPlugin
from quietbeam.registry import find

Zmq = find("sinks", "zmq", SinkPlugin)
Array = find("sources", "array", SourcePlugin)
Dectris = find("sources", "dectris", SourcePlugin)


@contextmanager
def opened(**settings):
    with Zmq(**({"address": "tcp://127.0.0.1:*"} | settings)).open() as sink:
        yield sink


@contextmanager
def consumer(address, kind=zmq.SUB, topic=b"", **options):
    context = zmq.Context()
    socket = context.socket(kind)
    for name, value in options.items():
        socket.set(getattr(zmq, name), value)
    if kind == zmq.SUB:
        socket.subscribe(topic)
    socket.connect(address)
    try:
        yield socket
    finally:
        context.destroy(linger=0)


until = partial(waiting.until, seconds=10.0)


def known(sink, subscribers, seconds=10.0):
    """Wait until the sink has taken note of its subscribers."""

    def there():
        sink._welcome()
        return sink.subscribers == subscribers

    until(there, seconds=seconds)


def received(socket, quiet_ms=300):
    """All messages until none has come for a while."""
    messages = []
    while socket.poll(quiet_ms):
        messages.append(socket.recv_multipart())
    return messages


def kinds(messages):
    return [cbor2.loads(message[0])["type"] for message in messages]


@pytest.mark.parametrize("topic", [b"", b"\xd9\xd9\xf7"])
def test_whoever_comes_late_gets_the_header_and_nobody_else_gets_it_twice(topic):
    with opened(format="dectris-v2") as sink, consumer(sink.address) as early:
        known(sink, 1)
        sink.start(run_start())
        sink.write(result(0))
        with consumer(sink.address, topic=topic) as late:
            known(sink, 2)
            sink.write(result(1))
            sink.stop(run_end())
            assert kinds(received(early)) == ["start", "image", "image", "end"]
            got = received(late)
    assert kinds(got) == ["start", "image", "end"] if not topic else kinds(got) == ["image", "end"]


def test_our_own_source_joins_in_the_middle_of_a_run_with_its_name_and_mask():
    mask = np.zeros((32, 48), bool)
    mask[3, 4] = True
    with opened(format="dectris-v2") as sink:
        sink.start(run_start("run-7", mask=mask))
        sink.write(result(0))
        with Dectris(address=sink.address, socket="sub").open() as events:
            until(lambda: next(events) is None)
            known(sink, 1)
            sink.write(result(1))
            got = []
            until(lambda: got.append(next(events)) or isinstance(got[-1], Frame))
    start, image = (event for event in got if event is not None)
    assert isinstance(start, RunStart)
    assert start.run == "run-7"
    np.testing.assert_array_equal(start.mask, mask)
    np.testing.assert_array_equal(image.pixels, result(1).clean)


def test_consumers_that_come_and_go_in_numbers_leave_nothing_behind():
    with opened(format="dectris-v2") as sink:
        sink.start(run_start())
        for index in range(20):
            with consumer(sink.address), consumer(sink.address):
                sink.write(result(index))
        known(sink, 0)
        with consumer(sink.address) as last:
            known(sink, 1)
            sink.write(result(20))
            assert kinds(received(last))[-1] == "image"
        known(sink, 0)
        assert sink.write(result(21)) == "no_consumer"


def test_a_puller_that_is_started_again_gets_the_header_again():
    with opened(format="dectris-v2", socket="push") as sink:
        sink.start(run_start())
        index = iter(range(1000))
        for _ in range(2):
            with consumer(sink.address, zmq.PULL) as socket:
                until(lambda: sink.write(result(next(index))) is None)
                sink.write(result(next(index)))
                got = received(socket)
            assert "start" in kinds(got)[:2]
            assert kinds(got).count("start") == 1
            until(lambda: not sink.ready(0.0))


def test_a_consumer_counts_its_own_gaps_and_those_of_frames_that_never_came_here():
    with opened() as sink, consumer(sink.address) as socket:
        known(sink, 1)
        assert isinstance(sink, PacedSink)
        sink.start(run_start())
        sink.write(result(0))
        sink.lost(3)
        sink.write(result(1))
        numbers = [json.loads(message[0])["seq"] for message in received(socket)]
    assert numbers == [1, 5]


@pytest.fixture
def keys(tmp_path):
    """A server's key, and those of a known and of an unknown client."""
    for name in ("server", "known", "unknown"):
        zmq.auth.create_certificates(tmp_path, name)
    for secret in tmp_path.glob("*.key_secret"):
        secret.chmod(0o600)
    (tmp_path / "clients").mkdir()
    (tmp_path / "known.key").rename(tmp_path / "clients" / "known.key")
    return tmp_path


def server(keys):
    return {"curve_secret_key": keys / "server.key_secret", "curve_clients": keys / "clients"}


def client(keys, name):
    return {
        "curve_secret_key": keys / f"{name}.key_secret",
        "curve_server_key": keys / "server.key",
    }


def read_one(events, frames, stop):
    """Read until a frame comes or somebody says that it is enough."""
    for event in events:
        if isinstance(event, Frame):
            frames.append(event)
        if frames or stop.is_set():
            return


@contextmanager
def reading(plugin):
    """Give the list into which a thread puts the first frame it reads."""
    frames, stop = [], threading.Event()

    def read():
        with plugin.open() as events:
            read_one(events, frames, stop)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield frames
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize(("socket", "kind"), [("pub", "sub"), ("push", "pull")])
def test_only_known_keys_are_let_in_and_a_new_one_needs_no_restart(keys, socket, kind):
    with capture_logs() as logs, opened(socket=socket, **server(keys)) as sink, ExitStack() as all_:
        plain = all_.enter_context(reading(Array(address=sink.address, socket=kind)))
        other = Array(address=sink.address, socket=kind, **client(keys, "unknown"))
        unknown = all_.enter_context(reading(other))
        sink.start(run_start())
        until(lambda: any(entry["event"] == "client_refused" for entry in logs))
        assert {sink.write(result(index)) for index in range(5)} == {"no_consumer"}
        told = sink.connections()
        assert told.pop("refused") >= 1
        assert told == ({"subscribers": 0} if socket == "pub" else {})
        friend = Array(address=sink.address, socket=kind, **client(keys, "known"))
        known_ = all_.enter_context(reading(friend))
        until(lambda: (sink.write(result(1)), sink.connections().get("subscribers", 1) == 1)[1])
        until(lambda: (sink.write(result(1)), known_)[1])  # it leaves with the first frame
        np.testing.assert_array_equal(known_[0].pixels, result(1).clean)
        assert plain == unknown == []
        (keys / "unknown.key").rename(keys / "clients" / "late.key")
        until(lambda: (sink.write(result(2)), unknown)[1])
        assert plain == []
    told = repr(logs)
    for path in (*keys.glob("*.key_secret"), *keys.glob("clients/*")):
        for key in filter(None, zmq.auth.load_certificate(path)):
            assert key.decode() not in told


def test_a_source_that_is_refused_says_so(keys):
    with opened(**server(keys)) as sink, capture_logs() as logs:
        with reading(Array(address=sink.address, socket="sub", **client(keys, "unknown"))):
            until(lambda: any(entry["event"] == "connection_refused" for entry in logs))
        assert any(entry["event"] == "client_refused" for entry in logs)


@pytest.mark.parametrize(
    ("plugin", "settings", "text"),
    [
        (Zmq, {"curve_secret_key": "a.key_secret"}, "go together"),
        (Zmq, {"curve_secret_key": "a", "curve_clients": "b", "bind": False}, "bind = true"),
        (Array, {"address": "tcp://h:1", "curve_server_key": "b"}, "go together"),
        (
            Array,
            {
                "address": "tcp://h:1",
                "curve_secret_key": "a",
                "curve_server_key": "b",
                "bind": True,
            },
            "bind = false",
        ),
        (Zmq, {"policy": "lossless"}, "one output for each consumer"),
        (Zmq, {"policy": "every-nth"}, "every_nth = 2"),
        (Zmq, {"every_nth": 3}, "goes with"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(plugin, settings, text):
    with pytest.raises(ValidationError, match=text):
        plugin(**settings)


def test_keys_that_cannot_be_used_are_named_with_what_to_do(keys):
    secret = keys / "server.key_secret"
    damaged = keys / "damaged.key"
    damaged.write_text('public-key = "short"\n')
    cases = [
        (server(keys) | {"curve_clients": keys / "nobody"}, "expected a directory"),
        (server(keys) | {"curve_secret_key": keys / "none"}, "create_certificates"),
        (server(keys) | {"curve_secret_key": keys / "server.key"}, "holds no secret key"),
        (server(keys) | {"curve_secret_key": damaged}, "40 characters"),
    ]
    for settings, text in cases:
        with pytest.raises(SinkError, match=text), opened(**settings):
            pass
    secret.chmod(0o640)
    with pytest.raises(SinkError, match="chmod 600"), opened(**server(keys)):
        pass
    (keys / "known.key_secret").chmod(0o604)
    theirs = Array(address="tcp://127.0.0.1:1", **client(keys, "known"))
    with pytest.raises(SourceError, match="chmod 600"), theirs.open():
        pass


def test_a_client_key_that_is_damaged_keeps_out_nobody_else(keys):
    (keys / "clients" / "bad.key").write_text("nonsense\n")
    with opened(**server(keys)) as sink:
        plugin = Array(address=sink.address, socket="sub", **client(keys, "known"))
        with reading(plugin) as frames:
            sink.start(run_start())
            until(lambda: (sink.write(result(1)), frames)[1])


def test_an_output_open_to_all_is_told_of():
    with capture_logs() as logs, opened(address="tcp://*:*"):
        pass
    assert [entry["event"] for entry in logs] == ["open_to_all"]


@pytest.mark.slow
def test_a_subscriber_that_is_dead_is_forgotten_while_nothing_is_sent():
    with opened() as sink, silent_subscriber(sink) as dead:
        known(sink, 1)
        assert dead  # it never reads, and never answers a heartbeat
        known(sink, 0, seconds=20)


@contextmanager
def silent_subscriber(sink):
    """A subscriber that shakes hands (ZMTP 3.1, NULL), word for word, and then falls silent."""
    host, port = sink.address.removeprefix("tcp://").split(":")
    with sockets.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48))
        assert raw.recv(64, sockets.MSG_WAITALL)[:1] == b"\xff"
        ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"
        raw.sendall(bytes([4, len(ready)]) + ready)
        assert b"READY" in raw.recv(64)
        raw.sendall(b"\x04\x0a\x09SUBSCRIBE")
        yield raw


def test_raw_images_say_what_they_are_and_how_to_find_gaps():
    with opened(what="raw", format="dectris-v2") as sink, consumer(sink.address) as socket:
        known(sink, 1)
        sink.start(run_start())
        sink.raw(frame(4))
        start, image = (cbor2.loads(message[0]) for message in received(socket))
    assert start["image_dtype"] == "uint16"
    assert (image["image_id"], image["user_data"]["seq"]) == (4, 1)
    assert image["user_data"]["what"] == "raw"


def test_a_check_names_keys_that_are_missing(tmp_path):
    from quietbeam.config import load
    from quietbeam.service.checks import environment

    config = tmp_path / "c.toml"
    config.write_text(
        '[source]\nkind = "array"\naddress = "tcp://127.0.0.1:1"\n'
        f'[[sinks]]\nkind = "zmq"\naddress = "tcp://127.0.0.1:*"\n'
        f'curve_secret_key = "{tmp_path}/a.key_secret"\ncurve_clients = "{tmp_path}"\n'
    )
    findings = environment(load(config))
    [finding] = [text for text in findings if "curve" in text]
    assert f"curve_secret_key: {tmp_path}/a.key_secret does not exist" in finding
