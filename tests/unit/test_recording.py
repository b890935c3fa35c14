"""The layout of recordings, the sink that writes them, and the reader."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from helpers.recordings import frame, pixels, result, run_end, run_start
from quietbeam import DataError, Frame, MapClass, RunEnd, SinkError
from quietbeam.core import recording as names
from quietbeam.core.plugin import SinkPlugin
from quietbeam.core.recording import Recorder, gaps
from quietbeam.offline.recording import Recording
from quietbeam.offline.repair import checksum
from quietbeam.registry import find

Hdf5 = find("sinks", "hdf5", SinkPlugin)
PROMOTION = {"action": "promote", "version": 1, "denoiser": "quiet", "sha256": "ab" * 32}


def sink_settings(directory, **more):
    return Hdf5(**({"directory": directory, "reserve_bytes": 0} | more))


def record(directory, indices=range(5), *, run="7", start=None, **more):
    """Write one run through the plugin and give the file."""
    with sink_settings(directory, **more).open() as sink:
        sink.start(start or run_start(run))
        for index in indices:
            sink.raw(frame(index, run))
            sink.write(result(index, run))
        sink.stop(run_end(run))
        (finished,) = sink.take_finished()
    return Path(finished.file)


@pytest.fixture
def full(tmp_path):
    """A recording that has everything."""
    mask = np.zeros((32, 48), bool)
    mask[0, 0] = True
    start = run_start(
        mask=mask,
        frame_time_s=0.1,
        exposure_s=0.08,
        pixel_size_m=75e-6,
        energy_kev=12.4,
        distance_m=1.5,
        nodata=65535.0,
        saturation=60000.0,
        frames_expected=9,
    )
    with sink_settings(tmp_path).open() as sink:
        sink.start(start)
        for index in (0, 1, 2, 5, 6, 9):
            if index == 5:
                sink.note(json.dumps(PROMOTION))
            promoted = index >= 5
            sink.raw(frame(index))
            name = "quiet" if promoted else "kalman"
            sink.write(result(index, version=int(promoted), denoiser=name))
        sink.stop(run_end())
        (finished,) = sink.take_finished()
    return Path(finished.file)


def attribute(node, name):
    value = node.attrs[name]
    return value.decode() if isinstance(value, bytes) else value


def test_the_default_plot_is_found_as_nexus_says(full):
    with h5py.File(full) as file:
        entry = file[attribute(file, "default")]
        assert attribute(entry, "NX_class") == "NXentry"
        data = entry[attribute(entry, "default")]
        assert data.name == "/entry/clean"
        for group in (data, entry["raw"]):
            assert attribute(group, "NX_class") == "NXdata"
            signal = group[attribute(group, "signal")]
            axes = list(attribute(group, "axes"))
            assert len(axes) == signal.ndim == 3
            assert group[axes[0]].shape == signal.shape[:1]
            assert axes[1:] == [".", "."]
            for key in group.attrs:
                if key.endswith("_indices"):
                    assert group[key.removesuffix("_indices")].shape == signal.shape[:1]
        assert data["data_errors"].shape == data["data"].shape
        assert attribute(entry["process"], "NX_class") == "NXprocess"
        assert attribute(entry["instrument/detector"], "NX_class") == "NXdetector"


def test_every_group_has_a_class_and_every_quantity_a_unit(full):
    unitless = {"frame_id", "crc32", "model_version", "denoiser", "pixel_mask", "saturation_value"}
    unitless |= {"nodata_value", "frames_expected", "title", "start_time", "end_time"}
    with h5py.File(full) as file:

        def look(name, node):
            if isinstance(node, h5py.Group):
                assert "NX_class" in node.attrs, name
            elif "process" not in name and node.name.rpartition("/")[2] not in unitless:
                assert "units" in node.attrs, name

        file.visititems(look)
        assert attribute(file["entry/metrics/quality.psnr_db"], "units") == "dB"


def test_what_was_written_is_in_the_file_under_public_names(full):
    ids = [0, 1, 2, 5, 6, 9]
    with h5py.File(full) as file:
        entry = file["entry"]
        assert entry["raw/data"].dtype == np.uint16
        assert entry["raw/frame_id"][:].tolist() == ids
        assert entry["clean/frame_id"][:].tolist() == ids
        assert entry["metrics/frame_id"] == entry["clean/frame_id"]
        for row, index in enumerate(ids):
            np.testing.assert_array_equal(entry["raw/data"][row], pixels(index))
            np.testing.assert_array_equal(entry["clean/data"][row], result(index).clean)
            np.testing.assert_array_equal(entry["clean/data_errors"][row], result(index).sd)
            assert entry["raw/crc32"][row] == checksum(pixels(index))
        assert entry["raw/time_ns"][:].tolist() == [i * 5_000_000 + 3 for i in ids]
        np.testing.assert_allclose(entry["raw/time"][:], [i * 0.005 for i in ids], atol=1e-8)
        assert entry["clean/model_version"][:].tolist() == [0, 0, 0, 1, 1, 1]
        assert entry["metrics/quality.psnr_db"][:].tolist() == [20 + i / 8 for i in ids]
        assert entry["metrics/statistics.profile"].shape == (6, 3)
        assert entry["process/missing"][:].tolist() == [[3, 4], [7, 8]]
        assert entry["process/end_reason"][()] == b"completed"
        assert entry["process/frames_missing"][()] == 4
        assert entry["instrument/detector/count_time"][()] == 0.08
        assert entry["instrument/detector/pixel_mask"][0, 0] == 1
        assert entry["instrument/beam/incident_energy"][()] == 12.4


def test_the_reader_gives_it_all_back(full):
    with Recording(full) as recording:
        assert not recording.live
        assert recording.run == "7"
        assert recording.raw.shape == (6, 32, 48)
        np.testing.assert_array_equal(recording.raw[-1], pixels(9))
        np.testing.assert_array_equal(recording.clean[1:3], [result(i).clean for i in (1, 2)])
        np.testing.assert_array_equal(recording.raw[::-2], [pixels(i) for i in (9, 5, 1)])
        assert recording.raw[6:].shape == (0, 32, 48)
        with pytest.raises(IndexError):
            recording.raw[6]
        assert recording.denoisers.tolist() == ["kalman"] * 3 + ["quiet"] * 3
        assert set(recording.metrics) == {"quality.psnr_db", "statistics.profile"}
        assert recording.unit("clean/latency") == "s"
        assert recording.missing.tolist() == [[3, 4], [7, 8]]
        found = recording.provenance
        assert found.config == 'name = "tést"\n'
        assert found.config_sha256 == "ab" * 32
        assert found.end_reason == "completed"
        assert found.counts["written"] == found.counts["received"] == 6
        assert found.decisions == (PROMOTION,)
        (weights,) = found.weights
        assert (weights.version, weights.denoiser, weights.sha256) == (1, "quiet", "ab" * 32)
        start = recording.run_start()
        assert (start.run, start.shape, start.dtype) == ("7", (32, 48), np.uint16)
        assert (start.frame_time_s, start.exposure_s, start.saturation) == (0.1, 0.08, 60000.0)
        assert start.mask is not None
        assert start.mask.sum() == 1
        assert start.metadata == {"sample": "NMC"}


def test_the_account_of_the_run_is_in_the_file(tmp_path):
    source = {"received": 1, "missing": 3, "rejected": {"truncated": 2}}
    stage = {"received": 1, "sent": 0, "dropped": {"overload": 1}, "in_flight": 0}
    with sink_settings(tmp_path).open() as sink:
        sink.start(run_start("7"))
        sink.raw(frame(0, "7"))
        account = {"run": "7", "source": source, "stages": {"denoise": stage}}
        sink.stop(RunEnd(run="7", reason="completed", account=account))
        (finished,) = sink.take_finished()
    with Recording(finished.file) as recording:
        assert recording.ledger == {
            ("source", "received"): 1,
            ("source", "missing"): 3,
            ("source", "rejected:truncated"): 2,
            ("denoise", "received"): 1,
            ("denoise", "sent"): 0,
            ("denoise", "dropped:overload"): 1,
            ("denoise", "in_flight"): 0,
        }


def test_host_times_are_seconds_of_the_day_the_frame_came(tmp_path):
    before = time.time()
    path = record(tmp_path)
    with Recording(path) as recording:
        times = recording.column("raw/host_time")
    assert before - 0.01 <= times[0] <= times[-1] <= time.time() + 0.01


def test_a_recording_can_be_read_while_it_is_written(tmp_path):
    with sink_settings(tmp_path).open() as sink:
        sink.start(run_start())
        sink.raw(frame(0))
        sink.flush()
        with Recording(sink.status().file) as recording:
            assert recording.live
            assert len(recording.raw) == 1
            sink.raw(frame(1))
            sink.write(result(0))
            recording.refresh()
            assert (len(recording.raw), len(recording.clean)) == (1, 0)  # not yet flushed
            sink.flush()
            recording.refresh()
            assert (len(recording.raw), len(recording.clean)) == (2, 1)
            np.testing.assert_array_equal(recording.raw[1], pixels(1))
        sink.stop(run_end())


def test_only_flushed_frames_count_as_written(tmp_path):
    with sink_settings(tmp_path, fsync_interval_s=0).open() as sink:
        assert isinstance(sink, Recorder)
        sink.start(run_start())
        sink.raw(frame(0))
        sink.write(result(0))
        status = sink.status()
        assert (status.raw_written, status.clean_written, status.unflushed) == (0, 0, 2)
        assert status.state == "recording"
        sink.flush()
        status = sink.status()
        assert (status.raw_written, status.clean_written, status.unflushed) == (1, 1, 0)
        sink.stop(run_end())
        status = sink.status()
        assert (status.state, status.file, status.synced) == ("idle", None, 2)


def test_the_file_has_its_final_name_only_when_it_is_complete(tmp_path):
    with sink_settings(tmp_path).open() as sink:
        sink.start(run_start())
        sink.raw(frame(0))
        assert [p.suffix for p in tmp_path.iterdir()] == [".part"]
        sink.stop(run_end())
    assert [p.suffix for p in tmp_path.iterdir()] == [".h5"]


def test_nothing_is_ever_overwritten(tmp_path):
    paths = [record(tmp_path, filename="same.h5") for _ in range(3)]
    assert [p.name for p in paths] == ["same.h5", "same_2.h5", "same_3.h5"]


def test_a_run_without_frames_leaves_no_file(tmp_path):
    with sink_settings(tmp_path).open() as sink:
        sink.start(run_start())
        sink.stop(run_end())
        assert sink.take_finished() == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_ended_is_completed_as_lost_on_exit(tmp_path):
    with sink_settings(tmp_path).open() as sink:
        sink.start(run_start())
        sink.raw(frame(0))
    (path,) = tmp_path.iterdir()
    with Recording(path) as recording:
        assert recording.provenance.end_reason == "lost"


@pytest.mark.parametrize("run", ["../../etc/x", "a/b", ".hidden", "ü \n\0", "", "." * 300])
def test_no_run_name_leads_out_of_the_directory(tmp_path, run):
    inside = tmp_path / "inside"
    path = record(inside, run=run)
    assert path.parent == inside
    assert not path.name.startswith(".")
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]


@pytest.mark.parametrize("pattern", ["../x.h5", "/x.h5", "{run}/../../x", "{secret}", "{run", ""])
def test_a_pattern_that_is_no_safe_name_is_refused_before_anything_is_written(tmp_path, pattern):
    with pytest.raises(ValueError, match="filename"):
        sink_settings(tmp_path, filename=pattern)


def test_a_pattern_may_make_directories(tmp_path):
    path = record(tmp_path, filename="{name}/{run}")
    assert path.relative_to(tmp_path) == Path("test/7.h5")


def test_a_given_path_is_used_exactly_and_must_be_free(tmp_path):
    wanted = tmp_path / "out" / "x.h5"
    assert record(tmp_path / "unused", path=wanted) == wanted
    assert not (tmp_path / "unused").exists()
    with pytest.raises(SinkError, match="exists already"):
        record(tmp_path, path=wanted)


@pytest.mark.parametrize("compression", ["bslz4", "bszstd", "gzip", "none"])
def test_every_compression_gives_the_same_pixels(tmp_path, compression):
    path = record(tmp_path, compression=compression)
    with Recording(path) as recording:
        np.testing.assert_array_equal(recording.raw[:], [pixels(i) for i in range(5)])


def test_raw_alone_and_clean_alone_can_be_recorded(tmp_path):
    with Recording(record(tmp_path, clean=False)) as recording:
        assert (recording.has_raw, recording.has_clean) == (True, False)
        assert recording.metrics == {}
        with pytest.raises(DataError, match="clean frames were not recorded"):
            _ = recording.clean
    path = record(tmp_path, raw=False)
    with Recording(path) as recording:
        assert (recording.has_raw, len(recording.clean)) == (False, 5)
    with h5py.File(path) as file:
        assert file["entry"].attrs["default"] == "clean"


def test_a_frame_that_does_not_fit_its_run_is_counted_and_kept_out(tmp_path):
    with sink_settings(tmp_path).open() as sink:
        sink.start(run_start())
        sink.raw(frame(0))
        sink.raw(frame(1, shape=(8, 8)))
        wrong = frame(2)
        as_float = wrong.pixels.astype(np.float32)
        sink.raw(Frame(run="7", index=2, time_ns=0, received_ns=0, pixels=as_float))
        sink.raw(frame(3))
        sink.flush()
        assert sink.status().raw_written == 2
        assert sink.status().raw_dropped == {"mismatch": 2}
        sink.stop(run_end())
        (finished,) = sink.take_finished()
    with Recording(finished.file) as recording:
        assert recording.column("raw/frame_id").tolist() == [0, 3]
        assert recording.provenance.counts["received"] == 4


def test_metrics_that_were_not_declared_or_are_missing_do_no_harm(tmp_path):
    with sink_settings(tmp_path).open() as sink:
        sink.start(run_start())
        item = result(0)
        values = {name: getattr(item, name) for name in type(item).__slots__}
        sink.write(type(item)(**(values | {"metrics": {"other": 1.0}})))
        sink.stop(run_end())
        (finished,) = sink.take_finished()
    with Recording(finished.file) as recording:
        assert np.isnan(recording.metrics["quality.psnr_db"]).all()
        assert "other" not in recording.metrics


def test_maps_are_kept_with_their_classes_and_what_was_not_measured_is_known(tmp_path):
    phases = {"dtype": "uint8", "classes": [{"name": "gold", "colour": [212, 175, 55]}]}
    metric = {"unit": "", "description": "share", "shape": [], "uncertainty": "optical.share_sd"}
    maps = {"optical.phase": phases, "optical.charge": {"unit": "mV", "description": "of a pixel"}}
    start = run_start()
    start.metadata["quietbeam"].update(maps=maps, metrics={"optical.share": metric})
    charge = pixels(1).astype(np.float32)
    with sink_settings(tmp_path).open() as sink:
        sink.start(start)
        given = {"optical.charge": charge, "optical.phase": (pixels(1) % 2).astype(np.uint8)}
        for index, found in enumerate([given, {}, {"undeclared": charge}, given]):
            sink.write(dataclasses.replace(result(index), maps=found))
        sink.stop(run_end())
        (finished,) = sink.take_finished()
    with Recording(finished.file) as recording:
        assert set(recording.maps) == set(maps)
        np.testing.assert_array_equal(recording.maps["optical.charge"][3], charge)
        assert np.isnan(recording.maps["optical.charge"][1:3]).all()
        assert not recording.maps["optical.phase"][1].any()
        np.testing.assert_array_equal(recording.maps["optical.phase"][0], given["optical.phase"])
        assert recording.map_spec("optical.phase").classes == (MapClass("gold", (212, 175, 55)),)
        assert recording.map_spec("optical.charge").unit == "mV"
        assert recording.uncertainty("metrics/optical.share") == "optical.share_sd"
        with pytest.raises(DataError, match=r"no map other; there are .*optical\.phase"):
            recording.map_spec("other")
    with h5py.File(finished.file) as file:
        assert file["entry/maps"].attrs["NX_class"] == "NXdata"
        assert file["entry/maps/frame_id"][:].tolist() == [0, 1, 2, 3]


def test_a_note_too_long_to_keep_is_cut_and_still_json(tmp_path):
    with sink_settings(tmp_path).open() as sink:
        sink.start(run_start())
        sink.raw(frame(0))
        sink.note(json.dumps({"action": "reject", "reason": "ü" * 5000}))
        sink.note("not json")
        sink.stop(run_end())
        (finished,) = sink.take_finished()
    with h5py.File(finished.file) as file:
        cut, other = file["entry/process/decisions"][:]
    assert "cut" in json.loads(cut)
    assert other == b"not json"


def test_weights_promoted_in_an_earlier_run_are_named_in_the_next_file(tmp_path):
    with sink_settings(tmp_path).open() as sink:
        for run in ("1", "2"):
            sink.start(run_start(run))
            if run == "1":
                sink.note(json.dumps(PROMOTION))
            sink.raw(frame(0, run))
            sink.stop(run_end(run))
        files = [done.file for done in sink.take_finished()]
    for file in files:
        with Recording(file) as recording:
            assert [w.version for w in recording.provenance.weights] == [1]


def test_what_was_said_of_the_run_before_its_file_began_is_in_it(tmp_path):
    with sink_settings(tmp_path).open() as sink:
        sink.note(json.dumps({"run_metadata": {"run_uid": "early"}}))
        sink.start(run_start())
        sink.raw(frame(0))
        sink.stop(run_end())
        (finished,) = sink.take_finished()
    with h5py.File(finished.file) as file:
        (kept,) = file["entry/process/decisions"][:]
    assert json.loads(kept)["run_metadata"]["run_uid"] == "early"


class Disk:
    """Free space that a test decides about."""

    def __init__(self):
        self.free = 1 << 40

    def __call__(self, path):
        return self.free


@pytest.fixture
def disk_and_sink(tmp_path):
    cls = type(sink_settings(tmp_path).open().__enter__())
    disk = Disk()
    sink = cls(sink_settings(tmp_path, reserve_bytes=1 << 20), free=disk)
    yield disk, sink
    disk.free = 1 << 40
    sink.close()


def test_a_full_disk_ends_the_file_in_time_and_room_begins_another(
    disk_and_sink, tmp_path, monkeypatch
):
    monkeypatch.setattr("quietbeam_plugins.sinks.space._RECHECK_S", 0.0)
    disk, sink = disk_and_sink
    sink.start(run_start())
    for index in range(3):
        sink.raw(frame(index))
    disk.free = 3 << 20
    for index in range(3, 7):
        sink.raw(frame(index))
    status = sink.status()
    assert (status.state, status.raw_written) == ("disk_full", 3)
    assert status.raw_dropped == {"disk_full": 4}
    disk.free = 1 << 40
    sink.raw(frame(7))
    assert sink.status().state == "recording"
    sink.stop(run_end())
    first, second = sink.take_finished()
    assert (first.raw, first.reason, second.raw, second.reason) == (3, "disk_full", 1, "completed")
    assert second.file == first.file.replace(".h5", "_part2.h5")
    with Recording(second.file) as recording:
        assert recording.provenance.segment == 2
        assert recording.column("raw/frame_id").tolist() == [7]


def test_a_run_that_begins_on_a_full_disk_is_counted_until_there_is_room(
    disk_and_sink, monkeypatch
):
    monkeypatch.setattr("quietbeam_plugins.sinks.space._RECHECK_S", 0.0)
    disk, sink = disk_and_sink
    disk.free = 0
    sink.start(run_start())
    sink.raw(frame(0))
    sink.write(result(0))
    assert sink.status().state == "disk_full"
    disk.free = 1 << 40
    sink.raw(frame(1))
    sink.stop(run_end())
    (finished,) = sink.take_finished()
    assert (finished.raw, finished.clean) == (1, 0)
    assert sink.status().raw_dropped == sink.status().clean_dropped == {"disk_full": 1}


def test_a_directory_that_cannot_be_made_is_told_by_name(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with sink_settings(blocked / "below").open() as sink, pytest.raises(SinkError, match="below"):
        sink.start(run_start())


@pytest.mark.parametrize("content", [b"", b"not hdf5", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_no_hdf5_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "x.h5"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.h5"):
        Recording(path)


def test_a_file_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Recording(tmp_path / "x.h5")


def test_hdf5_of_another_program_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = [1]
    with pytest.raises(DataError, match="not a quietbeam recording"):
        Recording(tmp_path / "x.h5")


def test_a_truncated_recording_is_refused_or_read_but_never_crashes(tmp_path, full):
    whole = full.read_bytes()
    for part in range(1, 10):
        path = tmp_path / f"cut{part}.h5"
        path.write_bytes(whole[: len(whole) * part // 10])
        with pytest.raises(DataError, match=path.name):
            Recording(path)


def test_gaps_are_the_numbers_between_that_are_absent():
    assert gaps(np.array([], np.int64)).tolist() == []
    assert gaps(np.array([4])).tolist() == []
    assert gaps(np.array([9, 1, 2, 5, 5])).tolist() == [[3, 4], [6, 8]]
    assert gaps(np.array([0, 2**62])).tolist() == [[1, 2**62 - 1]]


def test_the_layout_needs_no_hdf5_to_be_known():
    code = "import sys, quietbeam.core.recording; print('h5py' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_committed_counts_every_table_in_order(full):
    with h5py.File(full) as file:
        committed = dict(zip(names.TABLES, file[names.COMMITTED][()].tolist(), strict=True))
    assert committed == {"raw": 6, "clean": 6, "decisions": 1, "weights": 1, "denoisers": 2}


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed")
def test_h5dump_shows_structure_and_pixels(full):
    environment = os.environ | {"HDF5_PLUGIN_PATH": hdf5plugin.PLUGINS_PATH}
    head = subprocess.run(["h5dump", "-H", full], capture_output=True, text=True, check=True)
    assert 'DATASET "data_errors"' in head.stdout
    command = ["h5dump", "-d", "/entry/raw/data[1,0,0;1,1,1;1,1,4]", full]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    shown = " ".join(str(value) for value in pixels(1)[0, :4]).replace(" ", ", ")
    assert shown in done.stdout
