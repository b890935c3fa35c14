"""Recordings whose writer was killed, and what repair makes of them."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from helpers.recordings import frame, pixels, result, run_end, run_start
from quietbeam import DataError
from quietbeam.cli import main
from quietbeam.core import recording as names
from quietbeam.core.plugin import SinkPlugin
from quietbeam.offline import superblock
from quietbeam.offline.recording import Recording
from quietbeam.offline.repair import LIBVER, repair
from quietbeam.registry import find

Hdf5 = find("sinks", "hdf5", SinkPlugin)

VICTIM = """
    import os, sys, signal
    sys.path.insert(0, sys.argv[1])
    from helpers.recordings import frame, result, run_start
    from quietbeam.core.plugin import SinkPlugin
    from quietbeam.registry import find
    settings = {"directory": sys.argv[2], "reserve_bytes": 0, "filename": "x.h5"}
    with find("sinks", "hdf5", SinkPlugin)(**settings).open() as sink:
        sink.start(run_start())
        for index in [0, 1, 2, 5]:
            sink.raw(frame(index))
            sink.write(result(index))
        sink.note('{"action": "reject"}')
        sink.flush()
        for index in range(6, 40):  # never flushed
            sink.raw(frame(index))
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def _killed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("killed")
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-c", textwrap.dedent(VICTIM), str(tests), str(directory)]
    assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == -9
    return directory / "x.h5.part"


@pytest.fixture
def killed(_killed, tmp_path):
    """A recording with four acknowledged frames whose writer was killed."""
    return Path(shutil.copy(_killed, tmp_path))


@pytest.fixture
def finished(tmp_path):
    with Hdf5(directory=tmp_path, reserve_bytes=0, filename="done").open() as sink:
        sink.start(run_start())
        for index in range(3):
            sink.raw(frame(index))
            sink.write(result(index))
        sink.stop(run_end())
    return tmp_path / "done.h5"


def test_the_hash_is_that_of_the_published_vectors():
    assert superblock.lookup3(b"") == 0xDEADBEEF
    assert superblock.lookup3(b"Four score and seven years ago") == 0x17770551


def test_a_killed_recording_opens_for_live_readers_but_for_no_others(killed):
    with pytest.raises(OSError, match="h5clear"):
        h5py.File(killed)
    with Recording(killed) as recording:
        assert len(recording.raw) == 4


@pytest.mark.skipif(shutil.which("h5clear") is None, reason="h5clear is not installed")
def test_the_flag_is_cleared_exactly_as_h5clear_does_it(killed):
    theirs = Path(shutil.copy(killed, killed.with_name("theirs")))
    subprocess.run(["h5clear", "-s", theirs], check=True)
    assert superblock.clear_consistency_flags(killed)
    assert killed.read_bytes() == theirs.read_bytes()
    assert not superblock.clear_consistency_flags(killed)


def test_repair_keeps_what_was_acknowledged_and_cuts_the_rest(killed):
    done = repair(killed, verify=True)
    assert done.was_open
    assert (done.found.raw, done.found.clean) == (4, 4)
    assert (done.found.bad, done.found.missing, done.found.duplicate) == (0, 2, 0)
    assert done.end_reason == "lost"
    path = killed.with_suffix("")
    assert Path(done.file) == path
    assert not killed.exists()
    with h5py.File(path) as file:  # any reader, without SWMR
        assert file["entry/raw/data"].shape == (4, 32, 48)
        assert file["entry/raw/frame_id"][:].tolist() == [0, 1, 2, 5]
        np.testing.assert_array_equal(file["entry/raw/data"][3], pixels(5))
        np.testing.assert_array_equal(file["entry/clean/data"][3], result(5).clean)
        assert file["entry/process/missing"][:].tolist() == [[3, 4]]
        assert file["entry/process/frames_received"][()] == 4
        assert file["entry/process/decisions"].shape == (1,)


def test_rows_that_reached_the_disk_without_being_acknowledged_are_cut(killed):
    superblock.clear_consistency_flags(killed)
    with h5py.File(killed, "r+", libver=LIBVER) as file:
        file["entry/raw/data"].resize(9, axis=0)  # as if the kernel had written half a flush
        file["entry/raw/frame_id"].resize(7, axis=0)
        file["entry/clean/data_errors"].resize(5, axis=0)
    found = repair(killed, verify=True).found
    assert (found.raw, found.clean, found.removed, found.bad) == (4, 4, 5 + 1, 0)
    with Recording(killed.with_suffix("")) as recording:
        assert recording.raw.shape == (4, 32, 48)


def test_repairing_twice_changes_nothing_more(killed):
    first = repair(killed)
    before = Path(first.file).read_bytes()
    second = repair(Path(first.file))
    assert not second.was_open
    assert second.found == replace(first.found, removed=0)
    assert Path(first.file).read_bytes() == before


def test_a_file_in_order_is_left_as_it_is(finished):
    before = finished.read_bytes()
    done = repair(finished, verify=True)
    assert (done.was_open, done.end_reason, done.found.raw) == (False, "completed", 3)
    assert finished.read_bytes() == before


def test_a_file_that_only_missed_its_renaming_keeps_its_end(finished):
    part = finished.rename(finished.with_name("done.h5.part"))
    done = repair(part)
    assert done.end_reason == "completed"
    assert Path(done.file) == finished


def test_a_file_of_that_name_is_never_overwritten(killed):
    precious = killed.with_suffix("")
    precious.write_text("precious")
    done = repair(killed)
    assert Path(done.file).name == "x_2.h5"
    assert precious.read_text() == "precious"


def test_a_file_that_is_being_written_is_refused(tmp_path):
    with Hdf5(directory=tmp_path, reserve_bytes=0).open() as sink:
        sink.start(run_start())
        sink.raw(frame(0))
        sink.flush()
        path = Path(sink.status().file)
        with pytest.raises(DataError, match="being written"):
            repair(path)
        sink.raw(frame(1))
        sink.stop(run_end())
    with Recording(path.with_suffix("")) as recording:
        assert len(recording.raw) == 2


def test_pixels_that_changed_afterwards_are_found_and_kept(finished):
    with h5py.File(finished, "r+") as file:
        file["entry/raw/data"][1, 0, 0] += 1
    found = repair(finished, verify=True).found
    assert (found.raw, found.bad) == (3, 1)


def test_duplicate_and_disordered_numbers_are_counted(tmp_path):
    with Hdf5(directory=tmp_path, reserve_bytes=0, filename="y").open() as sink:
        sink.start(run_start())
        for index in (0, 2, 1, 2):
            sink.raw(frame(index))
        sink.stop(run_end())
    found = repair(tmp_path / "y.h5").found
    assert (found.duplicate, found.disordered, found.missing) == (1, 1, 0)


@pytest.mark.parametrize("size", [0, 4, 30, 47, 200, 2000])
def test_a_file_cut_off_at_its_beginning_is_refused_by_name(killed, size):
    os.truncate(killed, size)
    with pytest.raises(DataError, match=killed.name):
        repair(killed)


def test_a_damaged_superblock_is_refused_and_left_alone(killed):
    content = bytearray(killed.read_bytes())
    content[20] ^= 1
    killed.write_bytes(content)
    with pytest.raises(DataError, match="checksum of the superblock"):
        repair(killed)
    assert killed.read_bytes() == content


def test_hdf5_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["x"] = 1
    with pytest.raises(DataError, match="not a quietbeam recording"):
        repair(path)


def test_old_hdf5_is_refused(tmp_path):
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(DataError, match="superblock version 0"):
        repair(path)


def test_committed_rows_that_are_not_there_are_damage(killed):
    superblock.clear_consistency_flags(killed)
    with h5py.File(killed, "r+", libver=LIBVER) as file:
        file["entry/raw/data"].resize(2, axis=0)
    with pytest.raises(DataError, match="fewer than its 4 safe rows"):
        repair(killed)


def test_the_command_reports_in_json(killed, capsys):
    assert main(["repair", str(killed), "--json", "--verify"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["given"] == str(killed)
    assert report["file"] == str(killed.with_suffix(""))
    assert (report["was_open"], report["end_reason"]) == (True, "lost")
    assert report["found"]["raw"] == 4


def test_the_command_goes_on_after_a_bad_file_and_tells_by_its_exit_code(
    killed, finished, tmp_path, capsys
):
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"no")
    assert main(["repair", str(bad), str(killed), str(finished)]) == 65
    told = capsys.readouterr()
    assert "bad.h5" in told.err
    assert "its writer had been killed" in told.out
    assert "was closed in order" in told.out


def test_the_end_slots_of_a_repaired_file_are_complete(killed):
    repair(killed)
    with Recording(killed.with_suffix("")) as recording:
        found = recording.provenance
    assert set(found.counts) == set(names.COUNTS)
    assert found.counts["missing"] == 2
    assert found.ended > found.started
