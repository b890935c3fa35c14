"""What real detectors sent, decoded bit-exact through real sockets.

The reference is an independent way to the pixels: the compressed bytes go
unchanged into an HDF5 file as a chunk, and HDF5's own filters unpack them.
"""

import os
import pickletools
import threading
import zipfile
from io import BytesIO
from pathlib import Path

import cbor2
import h5py
import hdf5plugin
import numpy as np
import pytest

from quietbeam.core.events import Frame, Rejected, RunEnd, RunStart
from quietbeam.offline.recording import Recording
from quietbeam.offline.sender import open_sender
from quietbeam_plugins.sinks.hdf5 import Hdf5
from quietbeam_plugins.sources.dectris import Dectris

REALDATA = Path(
    os.environ.get("QUIETBEAM_REALDATA", Path(__file__).parents[2] / "../shared/realdata")
)
CAPTURES = REALDATA / "stream_captures"
pytestmark = pytest.mark.skipif(not CAPTURES.is_dir(), reason="no real recordings here")

DTYPES = {64: "u1", 69: "<u2", 70: "<u4"}


def eiger_1m():
    """Every message of a complete series; the pickles are walked, never loaded."""
    with zipfile.ZipFile(CAPTURES / "eiger1m_stream2_maxiv" / "stream2.zip") as archive:
        content = BytesIO(archive.read(archive.namelist()[0]))
    size = content.getbuffer().nbytes
    messages = []
    while content.tell() < size:
        messages += [arg for _, arg, _ in pickletools.genops(content) if isinstance(arg, bytes)]
    return messages


def cbor_files(folder, names="*"):
    return [path.read_bytes() for path in sorted((CAPTURES / folder).glob(f"{names}.cbor"))]


def tickit():
    folder = CAPTURES / "eiger_stream2_tickit"
    return [(folder / f"{name}.cbor").read_bytes() for name in ("start", "image", "end")]


def through_a_socket(messages, **settings):
    """Send whole messages to a source; give its events but the final end of waiting."""
    with open_sender("tcp://127.0.0.1:0") as sender:

        def send():
            assert sender.wait_for_reader(10)
            for message in messages:
                sender.send([message])

        thread = threading.Thread(target=send)
        thread.start()
        with Dectris(address=sender.address, run_timeout_s=0.7, **settings).open() as stream:
            events = []
            for event in stream:
                if event is not None:
                    events.append(event)
                if isinstance(event, RunEnd) or len(events) > 50:
                    break
        thread.join(10)
    return events


def reference(message, channel, path):
    """Unpack one image with HDF5's filters."""
    data = cbor2.loads(message)["data"][channel]
    shape, array = data.value
    dtype, (algorithm, _, blob) = DTYPES[array.tag], array.value.value
    filters = hdf5plugin.Bitshuffle() if algorithm == "bslz4" else hdf5plugin.LZ4()
    with h5py.File(path, "w") as file:
        image = file.create_dataset("x", tuple(shape), dtype, chunks=tuple(shape), **filters)
        image.id.write_direct_chunk((0, 0), blob)
    with h5py.File(path) as file:
        return file["x"][()]


def images(messages):
    return [message for message in messages if cbor2.loads(message)["type"] == "image"]


def assert_bit_exact(events, messages, channel, path):
    frames = [event for event in events if isinstance(event, Frame)]
    sent = images(messages)
    assert len(frames) == len(sent) > 0
    for frame, message in zip(frames, sent, strict=True):
        expected = reference(message, channel, path)
        assert frame.pixels.dtype == expected.dtype
        np.testing.assert_array_equal(frame.pixels, expected)
    assert not [event for event in events if isinstance(event, Rejected)]


def test_a_complete_series_of_an_eiger_1m(tmp_path):
    messages = eiger_1m()
    assert len(messages) == 12
    events = through_a_socket(messages)
    assert_bit_exact(events, messages, "threshold_1", tmp_path / "x.h5")
    begun = events[0]
    assert isinstance(begun, RunStart)
    assert (begun.shape, begun.dtype) == ((1065, 1030), np.dtype("u4"))
    assert begun.run == "01HRCJF83SA63WH8M5X1VBKFJM"
    assert begun.frame_time_s == pytest.approx(1.0000029)
    assert (begun.energy_kev, begun.pixel_size_m, begun.frames_expected) == (8.0, 75e-6, 10)
    assert (begun.nodata, begun.saturation) == (2**32 - 1, 2943293)
    assert events[-1] == RunEnd(run=begun.run, reason="completed")
    # what the header calls bad carries the dtype's maximum in every frame
    assert begun.mask is not None
    assert 0 < begun.mask.sum() < begun.mask.size / 5
    gaps = cbor2.loads(messages[0])["pixel_mask"]["threshold_1"].value[1].value
    gaps = (np.frombuffer(gaps, "<u4") & 1).reshape(begun.shape).astype(bool)
    assert (events[1].pixels[gaps] == begun.nodata).all()
    assert [event.index for event in events[1:-1]] == list(range(10))
    assert np.all(np.diff([event.time_ns for event in events[1:-1]]) > 0.99e9)


def test_the_golden_messages_of_an_eiger2_16m(tmp_path):
    events = through_a_socket(tickit())
    assert_bit_exact(events, tickit(), "threshold_1", tmp_path / "x.h5")
    assert (events[0].shape, events[0].dtype) == ((4362, 4148), np.dtype("u2"))
    assert events[0].mask is None  # its mask was cut out by whoever published it
    assert events[-1].reason == "completed"


@pytest.mark.parametrize("channel", ["threshold_1", "threshold_2", "threshold_3", "threshold_4"])
def test_each_of_four_thresholds_of_a_run_joined_in_its_middle(tmp_path, channel):
    messages = cbor_files("dectris_stream2_4thr")
    events = through_a_socket(messages, channels=[channel])
    assert_bit_exact(events, messages, channel, tmp_path / "x.h5")
    assert (events[0].shape, events[0].dtype) == ((532, 515), np.dtype("u4"))
    assert [event.time_ns for event in events[1:-1]] == [0, 10_100_000_000, 20_200_000_000]
    assert events[-1].reason == "lost"


def test_all_four_thresholds_at_once_are_recorded_bit_exact(tmp_path):
    messages = cbor_files("dectris_stream2_4thr")
    events = through_a_socket(messages)
    names = tuple(f"threshold_{n}" for n in range(1, 5))
    assert (events[0].shape, events[0].channels) == ((4, 532, 515), names)
    recorded = tmp_path / "recorded.h5"
    with Hdf5(path=recorded, reserve_bytes=0).open() as recorder:
        recorder.start(events[0])
        for frame in events[1:-1]:
            recorder.raw(frame)
        recorder.stop(events[-1])
    with Recording(recorded) as recording:
        assert recording.channels == names
        assert len(recording.raw) == 3
        for pixels, message in zip(recording.raw[:], images(messages), strict=True):
            expected = [reference(message, name, tmp_path / "x.h5") for name in names]
            np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("folder", "dtype", "channel"),
    [
        ("r500k_bm_bslz4_16bit", "u2", "threshold_2"),
        ("r500k_bm_bslz4_16bit", "u2", "difference"),
        ("r500k_bm_lz4_8bit", "u1", "threshold_1"),
    ],
)
def test_the_reference_messages_of_dectris(tmp_path, folder, dtype, channel):
    messages = cbor_files(f"dectris_stream2_reference/{folder}")
    events = through_a_socket(messages, channels=[channel])
    assert_bit_exact(events, messages, channel, tmp_path / "x.h5")
    assert (events[0].shape, events[0].dtype) == ((514, 1030), np.dtype(dtype))
    assert events[-1].reason == "completed"
