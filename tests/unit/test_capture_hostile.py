"""Capture files that are damaged, cut off, or made to do harm: told apart, and told clearly."""

import json
import struct
import time

import numpy as np
import pytest

from quietbeam import DataError, Frame, RunEnd, RunStart
from quietbeam.cli import main
from quietbeam.offline.capture import MAGIC, CaptureFullError, CaptureWriter, read_capture
from quietbeam_plugins.sources.array import Array
from quietbeam_plugins.sources.replay import Replay

SECOND_NS = 1_000_000_000
IMAGES = np.random.default_rng(0).poisson(9, (6, 8, 12)).astype("<u2")


def write(path, times_s=range(6), about=None, max_bytes=None):
    """A capture of array-1.0 messages, received at these times."""
    about = {"kind": "array", "settings": {"run_timeout_s": 2.5}} if about is None else about
    with CaptureWriter(path, about, max_bytes) as writer:
        for number, (pixels, seconds) in enumerate(zip(IMAGES, times_s, strict=False)):
            header = {"htype": "array-1.0", "shape": [8, 12], "type": "uint16", "frame": number}
            now_ns = 7 * SECOND_NS + round(seconds * SECOND_NS)
            writer.write(json.dumps(header).encode(), now_ns, more=True)
            writer.write(pixels.tobytes(), now_ns, starts_message=False)
    return path


def replayed(path, **settings):
    with Replay(file=str(path), **settings).open() as events:
        return [event for event in events if event is not None]


def frames(events):
    return [event.index for event in events if isinstance(event, Frame)]


def test_only_whole_messages_of_a_capture_cut_off_anywhere_are_played(tmp_path):
    path = write(tmp_path / "a.qbcap")
    content = path.read_bytes()
    with read_capture(path) as capture:
        start = capture._start
    message = (len(content) - start) // 6
    for size in range(start, len(content) + 1, 13):
        path.write_bytes(content[:size])
        with read_capture(path) as capture:
            got = list(capture.messages())
        assert len(got) == (size - start) // message
        assert all(len(parts) == 2 for _, parts in got)


def test_a_part_of_a_capture_is_played_by_time(tmp_path):
    path = write(tmp_path / "a.qbcap")
    assert frames(replayed(path, speed=1e9, from_s=2.0, to_s=5.0)) == [2, 3, 4]
    assert frames(replayed(path, speed=1e9, from_s=99.0)) == []


def test_a_capture_is_played_at_any_speed_and_frames_say_when_they_came(tmp_path):
    path = write(tmp_path / "a.qbcap", [n * 0.2 for n in range(6)])
    began_s = time.monotonic()
    events = replayed(path, speed=4.0)
    assert 0.25 <= time.monotonic() - began_s < 5
    came_ns = [event.received_ns for event in events if isinstance(event, Frame)]
    np.testing.assert_allclose(np.diff(came_ns), 0.05e9, atol=2e6)
    assert came_ns[-1] <= time.monotonic_ns()


@pytest.mark.parametrize("speed", [0.2, 1e9])
def test_runs_end_by_the_clock_of_the_stream_at_any_speed(tmp_path, speed):
    """A pause of 3 s ends a run that times out after 2.5 s, however long it lasts here."""
    times_s = [0, 0.01, 0.02, 3.03, 3.04, 3.05] if speed > 1 else [n * 0.06 for n in range(6)]
    about = {"kind": "array", "settings": {"run_timeout_s": 2.5 if speed > 1 else 0.2}}
    events = replayed(write(tmp_path / "a.qbcap", times_s, about), speed=speed)
    assert frames(events) == list(range(6))
    runs = sum(isinstance(event, RunStart) for event in events)
    assert runs == sum(isinstance(event, RunEnd) for event in events) == (2 if speed > 1 else 1)


@pytest.mark.parametrize("jump_s", [-5.0, 1e9])
def test_a_clock_that_jumped_neither_stalls_nor_reorders_what_is_played(tmp_path, jump_s):
    path = write(tmp_path / "a.qbcap", [0, 0.01, 0.02, jump_s, jump_s + 0.01, jump_s + 0.02])
    with read_capture(path) as capture:
        times = [record.time_ns for record in capture]
    assert times == sorted(times)
    began_s = time.monotonic()
    events = replayed(path, speed=1e9)
    assert frames(events) == list(range(6))
    assert time.monotonic() - began_s < 10


def test_a_pause_of_years_is_shortened_and_the_source_stays_awake(tmp_path, monkeypatch):
    monkeypatch.setattr("quietbeam_plugins.sources.zmq_parts._LONGEST_PAUSE_S", 0.3)
    path = write(tmp_path / "a.qbcap", [0, 5e8])
    began_s = time.monotonic()
    with Replay(file=str(path)).open() as stream:
        events = list(stream)
    assert 0.3 <= time.monotonic() - began_s < 10
    assert frames(events) == [0, 1]
    assert None in events


def raw_file(path, header, records=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(MAGIC + struct.pack("<I", len(text)) + text + records)
    return path


HOSTILE = {
    "empty": b"",
    "header longer than the file": MAGIC + struct.pack("<I", 0xFFFFFFFF) + b"{}",
    "header is a list": MAGIC + struct.pack("<I", 2) + b"[]",
    "header is too deep": MAGIC + struct.pack("<I", 200_000) + b"[" * 200_000,
    "header is no text": MAGIC + struct.pack("<I", 4) + b"\xff\xfe\x00\x01",
    "no kind": MAGIC + struct.pack("<I", 2) + b"{}",
    "kind is a list": MAGIC + struct.pack("<I", 13) + b'{"kind": [1]}',
    "kind of another program": MAGIC + struct.pack("<I", 16) + b'{"kind": "evil"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_good_capture_is_refused_with_a_reason(tmp_path, name, capsys):
    path = tmp_path / "x.qbcap"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(DataError, match=str(path)):
        replayed(path)
    assert main(["replay", str(path), "--json"]) == 65
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"run_timeout_s": "soon"}, "setting run_timeout_s"), ({"grace_s": -1}, "setting grace_s")],
)
def test_settings_that_cannot_be_are_refused_with_their_name(tmp_path, settings, words):
    path = raw_file(tmp_path / "x.qbcap", {"kind": "array", "settings": settings})
    with pytest.raises(DataError, match=words):
        replayed(path)


def test_a_capture_names_no_file_socket_or_limit_of_ours(tmp_path):
    victim = tmp_path / "precious.txt"
    victim.write_text("keep me")
    settings = {
        "tap": str(victim),
        "address": "tcp://127.0.0.1:1",
        "bind": True,
        "max_frame_bytes": 1 << 60,
        "curve_secret_key": str(victim),
        "run_timeout_s": 9.0,
    }
    path = write(tmp_path / "x.qbcap", about={"kind": "array", "settings": settings})
    assert frames(replayed(path, speed=1e9)) == list(range(6))
    assert victim.read_text() == "keep me"
    with read_capture(path) as capture:
        kept = capture.settings(Array, Array.__mro__[1])
    assert kept == {"run_timeout_s": 9.0}


@pytest.mark.parametrize(
    ("record", "truncated"),
    [
        (struct.pack("<QIIQ", 0, 1, 0, 1 << 62), True),
        (struct.pack("<QIIQ", 1 << 63, 1, 0, 0), False),
        (b"\x00" * 11, True),
    ],
)
def test_records_that_claim_too_much_allocate_nothing(tmp_path, record, truncated):
    path = raw_file(tmp_path / "x.qbcap", {"kind": "array"}, record)
    with read_capture(path) as capture:
        list(capture)
        assert capture.truncated is truncated
    assert frames(replayed(path, speed=1e9)) == []


def test_a_flag_nobody_knows_is_damage(tmp_path):
    path = raw_file(tmp_path / "x.qbcap", {"kind": "array"}, struct.pack("<QIIQ", 0, 8, 0, 0))
    with pytest.raises(DataError, match="damaged at byte"):
        replayed(path)


def test_a_capture_never_grows_beyond_its_limit_and_stays_whole(tmp_path):
    with pytest.raises(CaptureFullError):
        write(tmp_path / "a.qbcap", max_bytes=1000)
    assert (tmp_path / "a.qbcap").stat().st_size <= 1000
    assert frames(replayed(tmp_path / "a.qbcap", speed=1e9)) == [0, 1]


def test_every_part_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    writer = CaptureWriter(tmp_path / "a.qbcap", {"kind": "array"})
    for number in range(3):
        writer.write(b"part", number)
        with read_capture(tmp_path / "a.qbcap") as capture:
            assert len(list(capture)) == number + 1
    writer.close()


def test_a_tap_that_is_full_ends_without_the_stream(tmp_path):
    path = write(tmp_path / "a.qbcap")
    tap = {"tap": tmp_path / "b.qbcap", "tap_max_bytes": 1000}
    for required, expected in ((False, list(range(6))), (True, [0, 1])):
        settings = {"address": path.as_uri(), "pace": "fast", "tap_required": required}
        with Array(**settings, **tap).open() as events:
            assert frames(events) == expected
        assert frames(replayed(tmp_path / "b.qbcap", speed=1e9)) == [0, 1]
