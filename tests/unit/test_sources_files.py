"""Series of images in files: read lazily, played on time, refused with a reason."""

import time

import h5py
import hdf5plugin
import numpy as np
import pytest
import tifffile

from quietbeam.core.errors import DataError
from quietbeam.core.events import Frame, Rejected, RunEnd, RunStart
from quietbeam.offline.capture import CaptureWriter, read_capture
from quietbeam.offline.series import open_series
from quietbeam_plugins.sources.replay import Replay

IMAGES = np.random.default_rng(0).poisson(9, (5, 12, 16)).astype("u2")


def write_hdf5(path, data=IMAGES, name="frames", **filters):
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=data, chunks=(1, *data.shape[1:]), **filters)
    return path


def write_nexus(path, *, old=False):
    with h5py.File(path, "w") as file:
        file.attrs["default"] = "entry"
        for name, images in (("raw", IMAGES + 1), ("clean", IMAGES)):
            group = file.create_group(f"entry/{name}")
            group.attrs["NX_class"] = "NXdata"
            group["data"] = images
            group["data_errors"] = images
            group["time"] = np.arange(5) * 40.0
            group["time"].attrs["units"] = "ms"
            if old:
                group["data"].attrs["signal"] = 1
            else:
                group.attrs["signal"] = "data"
        file["entry"].attrs["NX_class"] = "NXentry"
        file["entry"].attrs["default"] = "clean"
    return path


def write_tiff(path, kind):
    if kind == "one page after the other":
        with tifffile.TiffWriter(path) as file:
            for image in IMAGES:
                file.write(image)
        return path
    options = {
        "plain": {},
        "ImageJ": {"imagej": True},
        "big-endian, deflated": {"byteorder": ">", "compression": "zlib"},
        "OME": {"ome": True, "metadata": {"axes": "TYX"}},
        "BigTIFF": {"bigtiff": True},
    }[kind]
    tifffile.imwrite(path, IMAGES, photometric="minisblack", **options)
    return path


def assert_reads(spec, images=IMAGES):
    with open_series(spec) as series:
        assert series.shape == images.shape
        assert (len(series), series.dtype) == (len(images), images.dtype)
        for index, image in enumerate(series):
            np.testing.assert_array_equal(image, images[index])
        np.testing.assert_array_equal(series[-1], images[-1])
        return series.frame_time_s


def test_hdf5_is_read_by_name_or_by_its_only_series(tmp_path):
    path = write_hdf5(tmp_path / "a.h5", **hdf5plugin.Bitshuffle())
    assert assert_reads(path) is None
    assert_reads(f"{path}:/frames")


@pytest.mark.parametrize("old", [False, True])
def test_nexus_gives_its_default_signal_and_frame_time(tmp_path, old):
    path = write_nexus(tmp_path / "a.nxs", old=old)
    assert assert_reads(path) == pytest.approx(0.04)
    assert_reads(f"{path}:/entry/raw/data", IMAGES + 1)


@pytest.mark.parametrize(
    "kind",
    ["plain", "ImageJ", "big-endian, deflated", "OME", "BigTIFF", "one page after the other"],
)
def test_tiff_stacks_of_every_kind(tmp_path, kind):
    assert_reads(write_tiff(tmp_path / "a.tif", kind))


def test_npy_and_single_images(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES.astype(">f4"))
    assert_reads(tmp_path / "a.npy", IMAGES.astype("f4"))
    np.save(tmp_path / "b.npy", IMAGES[0])
    assert_reads(tmp_path / "b.npy", IMAGES[:1])


def bad_files(tmp_path):
    def cut(path, share=0.5):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        return path

    np.save(tmp_path / "cut.npy", IMAGES)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.full((3, 4, 4), "x"))
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((4, 20, 20, 3), "u1"))
    (tmp_path / "words.h5").write_text("not HDF5")
    (tmp_path / "words.tif").write_text("not TIFF")
    (tmp_path / "film.avi").write_text("what")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = IMAGES, IMAGES
    return {
        tmp_path / "missing.h5": "does not exist",
        tmp_path: "is a directory",
        cut(tmp_path / "cut.npy"): "not a complete .npy",
        tmp_path / "objects.npy": "not a complete .npy",
        tmp_path / "text.npy": "not a count",
        tmp_path / "colour.tif": "not colour",
        tmp_path / "words.h5": "not a complete HDF5",
        tmp_path / "words.tif": "not a complete TIFF",
        cut(write_tiff(tmp_path / "cut.tif", "ImageJ"), 0.8): "not a complete TIFF",
        tmp_path / "film.avi": "unknown kind",
        tmp_path / "two.h5": "/a, /b",
        f"{write_hdf5(tmp_path / 'a.h5')}:/nothing": "/frames",
        f"{write_hdf5(tmp_path / 'b.h5')}:/": "/frames",
        cut(write_hdf5(tmp_path / "cut.h5")): "not a complete HDF5",
        write_hdf5(tmp_path / "four.h5", np.zeros((2, 2, 4, 4), "u1")): "no default image series",
    }


def test_files_that_are_no_image_series_are_refused_with_a_reason(tmp_path):
    for spec, reason in bad_files(tmp_path).items():
        with pytest.raises(DataError, match=reason), open_series(spec) as series:
            series[-1]


def test_a_frame_number_beyond_the_end_is_an_index_error(tmp_path):
    with open_series(write_hdf5(tmp_path / "a.h5")) as series, pytest.raises(IndexError):
        series[5]


def replayed(**settings):
    with Replay(**settings).open() as events:
        return [event for event in events if event is not None]


def test_a_file_is_played_as_one_run_on_time(tmp_path):
    path = write_hdf5(tmp_path / "a.h5")
    began_s = time.monotonic()
    events = replayed(file=str(path), rate_hz=50)
    assert time.monotonic() - began_s >= 4 / 50
    begun, *frames, over = events
    assert isinstance(begun, RunStart)
    assert (begun.shape, begun.dtype, begun.frames_expected) == ((12, 16), np.dtype("u2"), 5)
    assert begun.frame_time_s == pytest.approx(0.02)
    assert [frame.index for frame in frames] == list(range(5))
    assert [frame.time_ns for frame in frames] == [20_000_000 * n for n in range(5)]
    np.testing.assert_array_equal([frame.pixels for frame in frames], IMAGES)
    assert over == RunEnd(run=begun.run, reason="completed")


def test_a_slow_replay_gives_the_daemon_time(tmp_path):
    path = write_hdf5(tmp_path / "a.h5", IMAGES[:2])
    with Replay(file=str(path), rate_hz=3).open() as events:
        assert None in list(events)


def test_a_looped_replay_is_a_run_each_time(tmp_path):
    path = write_hdf5(tmp_path / "a.h5")
    runs = []
    with Replay(file=str(path), rate_hz=1e4, loop=True, frames=2).open() as events:
        for event in events:
            if isinstance(event, RunStart):
                runs.append(event.run)
            if len(runs) == 3:
                break
    assert len(runs) == 3


def test_a_damaged_frame_is_rejected_and_the_others_are_played(tmp_path):
    path = write_hdf5(tmp_path / "a.h5", **hdf5plugin.Bitshuffle())
    with h5py.File(path, "r+") as file:
        file["frames"].id.write_direct_chunk((2, 0, 0), b"rubbish")
    events = replayed(file=str(path), rate_hz=1e4)
    assert [event.index for event in events if isinstance(event, Frame)] == [0, 1, 3, 4]
    assert [event.reason for event in events if isinstance(event, Rejected)] == ["truncated"]


def captured(path, parts):
    with CaptureWriter(path, {"kind": "array"}) as writer:
        for number, (part, starts_message) in enumerate(parts):
            more = number + 1 < len(parts) and not parts[number + 1][1]
            writer.write(part, 5000 + 1000 * number, starts_message=starts_message, more=more)
    return path


PARTS = [(b"header", True), (bytes(1000), False), (b"", True), (memoryview(b"end"), True)]


def test_a_capture_gives_back_every_part(tmp_path):
    with read_capture(captured(tmp_path / "a.qbcap", PARTS)) as capture:
        assert capture.about["kind"] == "array"
        for _ in range(2):  # as often as one likes
            got = [(r.part, r.starts_message, r.time_ns) for r in capture]
            assert got == [(bytes(p), s, 1000 * n) for n, (p, s) in enumerate(PARTS)]
        assert [parts for _, parts in capture.messages()] == [
            [b"header", bytes(1000)],
            [b""],
            [b"end"],
        ]
        assert not capture.truncated


def test_a_capture_cut_off_anywhere_is_good_up_to_there(tmp_path):
    path = captured(tmp_path / "a.qbcap", PARTS)
    content = path.read_bytes()
    with read_capture(path) as capture:
        start = capture._start
    whole = {start, start + 30, start + 30 + 1024, start + 30 + 1024 + 24, len(content)}
    for size in [*range(start, start + 60), *range(len(content) - 60, len(content) + 1)]:
        path.write_bytes(content[:size])
        with read_capture(path) as capture:
            parts = [record.part for record in capture]
            assert parts == [bytes(part) for part, _ in PARTS[: len(parts)]]
            assert capture.truncated == (size not in whole), size


def test_a_damaged_capture_is_refused(tmp_path):
    path = captured(tmp_path / "a.qbcap", PARTS)
    content = bytearray(path.read_bytes())
    content[-500] ^= 1
    path.write_bytes(content)
    with read_capture(path) as capture, pytest.raises(DataError, match="checksum"):
        list(capture)
    (tmp_path / "b.qbcap").write_bytes(b"something else")
    for name, reason in (("b.qbcap", "not a capture"), ("none.qbcap", "cannot be read")):
        with pytest.raises(DataError, match=reason), read_capture(tmp_path / name):
            pass
