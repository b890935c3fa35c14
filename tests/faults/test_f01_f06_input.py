"""What comes over the wire is wrong: hostile, too large, torn, not finite, disordered."""

import json
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest

from helpers.daemons import frame_pixels, get, running
from helpers.faults import (
    Detector,
    acknowledged,
    assert_accounts_are_exact,
    at_rest,
    resident_bytes,
)
from helpers.kills import recorded, recorder_into, wait_until_recorded
from quietbeam.core.events import Frame, RunStart
from quietbeam.offline.recording import Recording
from quietbeam.offline.sender import open_sender
from quietbeam.testing import hostile
from quietbeam.testing.hostile_damage import bits_turned, cut_off, small_series
from quietbeam.testing.simulators import encoder

QUIET = "[trainer]\nenabled = false\n"
SHAPE = (128, 128)
FRAME_BYTES = 1 << 20


def image(number, pixels, time_ns=None):
    when = number * 1_000_000 if time_ns is None else time_ns
    return Frame(run="r", index=number, time_ns=when, received_ns=0, pixels=pixels)


def wait_rejected(daemon, count, seconds=60):
    def all_counted(status):
        return sum(status["frames"]["rejected"].values()) >= count

    return daemon.wait_for(all_counted, seconds, f"{count} refusals")


def record_a_good_series(daemon, frames=20):
    """The next good series must come through whatever was before; give its final status."""
    before = acknowledged(daemon.status())
    with Detector(daemon.port, 100, frames=frames) as detector:
        detector.finish()
        return daemon.wait_for(lambda s: acknowledged(s) >= before + frames and at_rest(s), 60)


@pytest.mark.faults
@pytest.mark.fault(
    "F1",
    how="the whole hostile corpus of array-1.0 to a running daemon, 20 times over",
    criterion="each refused and counted once, <= 12 reasons, memory + < 20 MB, then a good run",
)
def test_hostile_messages_are_refused_counted_and_forgotten(tmp_path, measured):
    cases = [case for case in hostile.corpus() if case.format == "array-1.0"]
    sinks = recorder_into(tmp_path / "files")
    with running(tmp_path, sinks=sinks, more=QUIET, run_timeout_s="60") as daemon:
        with open_sender(f"tcp://127.0.0.1:{daemon.port}", bind=False) as sender:
            for message in hostile.before("array-1.0"):
                assert sender.send(message)
            for case in cases:
                assert sender.send(case.message)
            wait_rejected(daemon, len(cases))
            before = resident_bytes(daemon.process.pid)
            for case in cases * 19:
                assert sender.send(case.message)
            status = wait_rejected(daemon, 20 * len(cases))
            after = resident_bytes(daemon.process.pid)
            for message in hostile.after("array-1.0"):
                assert sender.send(message)
            daemon.wait_for(lambda s: s["frames"]["received"] == 3)
        refused = daemon.status()["frames"]["rejected"]
        record_a_good_series(daemon)
        assert daemon.stop() == 0, daemon.log()
    measured.note = f"{20 * len(cases)} messages, {len(refused)} reasons, {after - before:+d} bytes"
    assert sum(refused.values()) == 20 * len(cases)
    assert len(refused) <= 12
    assert after - before < 20 << 20
    assert status["state"] == "running"


@pytest.mark.faults
@pytest.mark.fault(
    "F1",
    how="a good message cut off at every byte and with a bit turned in every byte",
    criterion="0 crashes; the next good series is recorded",
)
def test_a_message_torn_anywhere_harms_no_other(tmp_path, measured):
    torn = []
    for part in small_series("array-1.0").values():
        torn += [*cut_off(part), *bits_turned(part)]
    with running(tmp_path, sinks=recorder_into(tmp_path / "files"), more=QUIET) as daemon:
        with open_sender(f"tcp://127.0.0.1:{daemon.port}", bind=False) as sender:
            for message in torn:
                assert sender.send(message or [b""])
        status = record_a_good_series(daemon)
        assert_accounts_are_exact(status)
        assert daemon.stop() == 0, daemon.log()
    measured.note = f"{len(torn)} messages"


@pytest.mark.faults
@pytest.mark.fault(
    "F2",
    how="ZMTP frames that declare 2^31 to 2^62 bytes; images and chunks that unpack to 2^40",
    criterion="memory < before + 2 frames + 64 MB; the daemon goes on",
)
def test_bombs_are_not_unpacked(tmp_path, measured):
    bombs = [case for case in hostile.corpus() if re.search("bomb|huge|2\\^|large", case.name)]
    bombs = [case.message for case in bombs if case.format == "array-1.0"]
    source = f"60\nmax_frame_bytes = {FRAME_BYTES}"
    sinks = recorder_into(tmp_path / "files")
    with running(tmp_path, sinks=sinks, more=QUIET, run_timeout_s=source) as daemon:
        before = resident_bytes(daemon.process.pid)
        held = [declare(daemon.port, 2**power) for power in (31, 33, 40, 62)]
        with open_sender(f"tcp://127.0.0.1:{daemon.port}", bind=False) as sender:
            for message in bombs * 10:
                assert sender.send(message)
        peak = before
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s:
            peak = max(peak, resident_bytes(daemon.process.pid))
            time.sleep(0.02)
        for connection in held:
            connection.close()
        record_a_good_series(daemon)
        assert daemon.stop() == 0, daemon.log()
    measured.note = f"{len(bombs)} kinds; {peak - before:+d} bytes"
    assert bombs
    assert peak - before < 2 * FRAME_BYTES + (64 << 20)


def declare(port, size):
    """Greet as a PUSH peer and announce a message of so many bytes; 4 MiB of it follow."""
    peer = socket.create_connection(("127.0.0.1", port), 5)
    peer.settimeout(5)
    peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 1 + 31))
    ready = b"\x05READY\x0bSocket-Type" + (4).to_bytes(4, "big") + b"PUSH"
    peer.sendall(b"\x04" + bytes([len(ready)]) + ready)
    with suppress(OSError):  # thrown out
        peer.sendall(b"\x02" + size.to_bytes(8, "big"))
        for _ in range(64):
            peer.sendall(bytes(1 << 16))
    return peer


@pytest.mark.faults
@pytest.mark.fault(
    "F3",
    how="100 bslz4 chunks cut off or with bits turned, between good ones",
    criterion="no torn chunk in the file; another process reads all of it, exit 0",
)
def test_torn_chunks_never_reach_the_file(tmp_path, measured):
    encode, rng = encoder("array-1.0", "bslz4"), np.random.default_rng(0)
    start = RunStart(run="r", shape=SHAPE, dtype=np.dtype("u2"))
    files = tmp_path / "files"
    sinks = recorder_into(files).replace('"none"', '"bslz4"')
    with running(tmp_path, sinks=sinks, more=QUIET, run_timeout_s="60") as daemon:
        with open_sender(f"tcp://127.0.0.1:{daemon.port}", bind=False) as sender:
            for message in encode.start(start):
                assert sender.send(message)
            for number in range(200):
                for *head, chunk in encode.frame(image(number, frame_pixels(number, SHAPE))):
                    cut = chunk[: rng.integers(0, len(chunk))] if number % 2 else chunk
                    assert sender.send([*head, cut])
            status = wait_rejected(daemon, 100)
            daemon.wait_for(lambda s: acknowledged(s) == 100, 60)
        assert daemon.stop() == 0, daemon.log()
    code = "import h5py, hdf5plugin, sys; print(h5py.File(sys.argv[1])['entry/raw/data'][:].sum())"
    [path] = files.glob("*.h5")
    read = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True)
    assert read.returncode == 0
    numbers = recorded(files)
    measured.sent, measured.recorded = 200, len(numbers)
    measured.lost = len(set(range(0, 200, 2)) - set(numbers))
    assert numbers == list(range(0, 200, 2))
    assert sum(status["frames"]["rejected"].values()) == 100


def not_finite(number, shape):
    """From none to all pixels NaN, infinite, saturated or negative."""
    pixels = np.random.default_rng(number).normal(100, 10, shape).astype(np.float32)
    holes = np.random.default_rng([1, number]).random(shape) < (number % 11) / 10
    pixels[holes] = (np.nan, np.inf, -np.inf, 3e38, -5.0)[number % 5]
    return pixels


@pytest.mark.faults
@pytest.mark.fault(
    "F4",
    how="float frames with 0 to 100 % NaN, infinite, saturated, negative pixels",
    criterion="raw bit for bit; clean finite, or NaN where nothing was measured; metrics finite",
)
def test_pixels_that_are_no_numbers_spoil_nothing_else(tmp_path, measured):
    files, shape = tmp_path / "files", (32, 48)
    with running(tmp_path, sinks=recorder_into(files), run_timeout_s="60") as daemon:
        with Detector(daemon.port, 100, frames=220, images=not_finite) as detector:
            detector.finish()
            status = daemon.wait_for(lambda s: acknowledged(s) == 220 and at_rest(s), 60)
        metrics = get(f"{daemon.url}/metrics")[1].decode()
        json.dumps(status, allow_nan=False)
        assert daemon.stop() == 0, daemon.log()
    assert not re.search(r" (nan|[+-]?inf)\b", metrics, re.IGNORECASE)
    [path] = files.glob("*.h5")
    with Recording(path) as recording:
        measured.sent, measured.recorded = 220, len(recording.raw)
        for row in range(220):
            np.testing.assert_array_equal(recording.raw[row], not_finite(row, shape))
        clean, ids = recording.clean[:], recording.column("clean/frame_id")
        good = [row for row, number in enumerate(ids) if number % 11 == 0]
        assert good
        assert np.isfinite(clean[good]).all()
        assert not np.isinf(clean).any()
    measured.lost = 0


@pytest.mark.faults
@pytest.mark.fault(
    "F5",
    how="three shapes and two dtypes one after the other on one connection, without a pause",
    criterion="each is a run of its own, denoised at its shape; no restart, no frame lost",
)
def test_another_shape_or_type_is_another_run(tmp_path, measured):
    files, sent = tmp_path / "files", 0
    kinds = [((32, 48), "u2"), ((48, 32), "u2"), ((64, 64), "u2"), ((64, 64), "u4")]
    with running(tmp_path, sinks=recorder_into(files), more=QUIET) as daemon:
        with open_sender(f"tcp://127.0.0.1:{daemon.port}", bind=False) as sender:
            for shape, dtype in kinds:
                encode = encoder("array-1.0")
                for number in range(25):
                    pixels = frame_pixels(number, shape).astype(dtype)
                    for message in encode.frame(image(number, pixels)):
                        assert sender.send(message)
                        sent += 1
            status = daemon.wait_for(lambda s: acknowledged(s) == sent and at_rest(s), 60)
        assert status["ledger"]["denoise"]["sent"] == sent
        assert_accounts_are_exact(status)
        assert daemon.stop() == 0, daemon.log()
    shapes = []
    for path in files.glob("*.h5"):
        with Recording(path) as recording:
            shapes.append((tuple(recording.raw.shape[1:]), recording.raw.dtype.str[1:]))
    assert sorted(shapes) == sorted(kinds)
    measured.sent, measured.recorded, measured.lost = sent, acknowledged(status), 0


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.fault(
    "F6",
    how="10,000 frames with numbers missing, twice and late; the detector's clock jumps by 1 h",
    criterion="missing, duplicate and late exact to the frame; latency never < 0",
)
def test_disorder_is_counted_to_the_frame(tmp_path, measured):
    count, files = 10_000, tmp_path / "files"
    numbers, late, doubled = [], 0, 0
    for number in range(count):
        if number % 97 == 50:
            continue
        if number % 101 == 60 and (number + 1) % 97 != 50:
            numbers.append(number + 1)
            late += 1
        numbers.append(number)
        if number % 103 == 70:
            numbers.append(number)
    unique = set(numbers)
    doubled = len(numbers) - len(unique)
    with running(tmp_path, sinks=recorder_into(files), more=QUIET, run_timeout_s="5") as daemon:
        encode = encoder("array-1.0")
        with open_sender(f"tcp://127.0.0.1:{daemon.port}", bind=False) as sender:
            for position, number in enumerate(numbers):
                jump_ns = (0, 3_600_000_000_000, -3_600_000_000_000)[position // 2000 % 3]
                when_ns = 10**13 + number * 1_000_000 + jump_ns
                for message in encode.frame(image(number, frame_pixels(number), when_ns)):
                    assert sender.send(message, 30.0)
                if position % 100 == 0:
                    latency_s = daemon.status()["pipeline"]["latency_p50_s"]
                    assert latency_s is None or latency_s >= 0
            daemon.wait_for(lambda s: s["frames"]["received"] == len(unique), 90)
        status = wait_until_recorded(daemon, len(unique), 90)
        found = daemon.wait_for(lambda s: at_rest(s) and s["run"] is None, 60)["frames"]
        assert daemon.stop() == 0, daemon.log()
    measured.sent, measured.recorded = len(numbers), acknowledged(status)
    measured.note = f"missing {found['missing']}, duplicate {found['duplicate']}, late {late}"
    assert found["missing"] == count - len(unique)
    assert found["duplicate"] == doubled
    measured.lost = len(unique - set(recorded(files)))
    assert measured.lost == 0
