"""NTNDArrays of EPICS PV Access, from a server on loopback."""

import itertools
import socket
import threading
import time
import zlib

import h5py
import hdf5plugin
import numpy as np
import pytest

from helpers.daemons import free_port
from quietbeam.core.events import Dropped, Frame, Rejected, RunEnd, RunStart
from quietbeam.testing.simulators import encoder, simulate

pytest.importorskip("p4p")

from quietbeam.testing.simulators.pva import as_value, open_pva_sender
from quietbeam_plugins.sources.pva import Pva, _Updates

IMAGES = np.random.default_rng(0).poisson(9, (6, 24, 40)).astype("u2")


def value(pixels=IMAGES[0], blob=None, **about):
    base = {"uniqueId": 3, "dimension": list(pixels.shape[::-1]), "type": pixels.dtype.name}
    base |= {"codec": "", "uncompressedSize": pixels.nbytes, "time_ns": 7_500_000_000}
    return as_value({**base, **about}, pixels.tobytes() if blob is None else blob)


def decoded(*values, **settings):
    running = Pva(channel="x", **settings).decoder()
    return [event for one in values for event in running.update(one, 0)]


def blosc(pixels):
    with h5py.File("packed", "w", driver="core", backing_store=False) as file:
        data = file.create_dataset("x", data=pixels, chunks=pixels.shape, **hdf5plugin.Blosc())
        return data.id.read_direct_chunk((0, 0))[1]


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_scalar_type_is_read_x_first(dtype):
    pixels = IMAGES[0].astype(dtype)
    begun, frame = decoded(value(pixels))
    assert (begun.shape, begun.dtype) == ((24, 40), np.dtype(dtype))
    assert (frame.index, frame.time_ns) == (3, 7_500_000_000)
    np.testing.assert_array_equal(frame.pixels, pixels)


@pytest.mark.parametrize("codec", ["lz4", "bslz4", "blosc", "zlib"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_codecs_of_areadetector(codec, dtype):
    pixels = np.repeat(IMAGES[0], 4, axis=0).astype(dtype)
    packers = {"blosc": blosc, "zlib": lambda p: zlib.compress(p.tobytes())}
    pack = packers.get(codec) or (
        lambda p: encoder("pva", codec).frame(
            Frame(run="", index=0, time_ns=0, received_ns=0, pixels=p)
        )[0][1]
    )
    frame = decoded(value(pixels, pack(pixels), codec=codec))[-1]
    assert frame.pixels.dtype == pixels.dtype
    np.testing.assert_array_equal(frame.pixels, pixels)


def test_raw_data_are_read_whatever_they_are_called():
    pixels = IMAGES[0].astype("u1")
    frame = decoded(value(pixels, codec="pvapyc"))[-1]
    np.testing.assert_array_equal(frame.pixels, pixels)


def test_an_update_without_an_image_is_no_frame_and_no_error():
    assert decoded(type(value())(value().type())) == []


BAD = [
    (value(blob=b"12345678", codec="jpeg"), "compression"),
    (value(blob=b"12345678", codec="blosc"), "truncated"),
    (value(blob=blosc(IMAGES[0])[:-200], codec="blosc"), "compression"),
    (value(blob=b"\2\1\1\2" + b"\xff" * 40, codec="blosc"), "compression"),
    (value(blob=b"12345678", codec="zlib"), "compression"),
    (value(blob=IMAGES[0].tobytes()[:-2]), "truncated"),
    (value(blob=b""), "dtype"),
    (value(blob=b"", codec="lz4"), "dtype"),
    (value(blob=IMAGES[0].tobytes() + b"ab"), "oversized"),
    (value(dimension=[40, 24, 2, 2]), "shape"),
    (value(dimension=[0, 24]), "shape"),
    (value(dimension=[2**31 - 1, 2**31 - 1]), "oversized"),
    (value(uniqueId=-1), "malformed"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_what_is_wrong_is_refused_by_reason(bad, reason):
    good = value(), value(uniqueId=5)
    events = decoded(good[0], bad, good[1])
    assert [event.reason for event in events if isinstance(event, Rejected)] == [reason]
    assert [event.index for event in events if isinstance(event, Frame)] == [3, 5]
    assert decoded(bad, max_frame_bytes=1000)[0].reason in {reason, "oversized"}


def test_updates_that_find_no_room_are_counted_by_reason():
    updates = _Updates(2)
    for number in range(5):
        updates.put(value(uniqueId=number))
    updates.put(ConnectionError())  # is no frame
    events = itertools.islice(Pva(channel="x", receive_frames=2)._events(updates), 4)
    dropped, begun, *frames = events
    assert dropped == Dropped(frames=3, reason="queue_full")
    assert isinstance(begun, RunStart)
    assert [frame.index for frame in frames] == [0, 1]


def test_a_damaged_blosc_image_is_refused():
    packed = bytearray(blosc(np.repeat(IMAGES[0], 4, axis=0)))
    packed[16:40] = b"\xff" * 24
    events = decoded(value(np.repeat(IMAGES[0], 4, axis=0), bytes(packed), codec="blosc"))
    assert [event.reason for event in events] == ["compression"]


def test_a_channel_that_is_no_image_is_refused():
    from p4p.nt import NTScalar

    assert decoded(NTScalar("d").wrap(1.0))[0].reason == "unknown_type"


@pytest.mark.parametrize("compression", ["none", "lz4", "bslz4"])
def test_a_channel_is_read_bit_exact_from_a_server(compression):
    search = free_port(socket.SOCK_DGRAM)
    conf = {"EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1", "EPICS_PVAS_SERVER_PORT": str(free_port())}
    conf |= {"EPICS_PVAS_BROADCAST_PORT": str(search), "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO"}
    source = Pva(channel="test:image", servers=f"127.0.0.1:{search}", run_timeout_s=2.0)
    with open_pva_sender("pva://test:image", **conf) as sender, source.open() as stream:

        def send():
            assert sender.wait_for_reader(15)
            simulate(IMAGES, encoder("pva", compression), sender, rate_hz=20, frames=6)

        thread = threading.Thread(target=send)
        thread.start()
        events, deadline_s = [], time.monotonic() + 30
        for event in stream:
            events += [] if event is None else [event]
            if isinstance(event, RunEnd) or time.monotonic() > deadline_s:
                break
        thread.join(10)
    assert isinstance(events[0], RunStart)
    frames = [event for event in events if isinstance(event, Frame)]
    assert [frame.index for frame in frames] == list(range(6))
    np.testing.assert_array_equal([frame.pixels for frame in frames], IMAGES)
    assert len(events) == 8
