"""The recorder's own process: fed by real rings, killed, filled up, switched off and on."""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest

from helpers.recordings import (
    SinkProcess,
    feed,
    frame,
    pixels,
    result,
    run_end,
    run_start,
    sink_process,
    two_rings,
    whole_run,
)
from quietbeam.offline.recording import Recording

SHAPE = (128, 128)


@pytest.fixture
def shm(tmp_path):
    """A directory for rings in memory, if there is one."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    directory = memory / f"quietbeam-test-{os.getpid()}-{time.monotonic_ns()}"
    directory.mkdir()
    yield directory
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def settings(directory, **more):
    return {"directory": directory, "reserve_bytes": 0, "flush_interval_s": 0.1} | more


def contents(directory, shape=SHAPE):
    """Frame numbers by kind over all files; every pixel is checked on the way."""
    found = {"raw": [], "clean": []}
    for path in sorted(directory.iterdir()):
        assert path.suffix == ".h5", path
        with h5py.File(path) as file:
            for kind, ids in found.items():
                ids.extend(file[f"entry/{kind}/frame_id"][:].tolist())
            for row, index in enumerate(file["entry/raw/frame_id"][:].tolist()):
                np.testing.assert_array_equal(file["entry/raw/data"][row], pixels(index, shape))
            for row, index in enumerate(file["entry/clean/frame_id"][:].tolist()):
                expected = result(index, shape=shape)
                np.testing.assert_array_equal(file["entry/clean/data"][row], expected.clean)
                np.testing.assert_array_equal(file["entry/clean/data_errors"][row], expected.sd)
                assert file["entry/metrics/quality.psnr_db"][row] == 20 + index / 8
    return found


def is_finished(event):
    return event["type"] == "finished"


def test_a_run_goes_from_the_rings_into_one_file_whatever_signals_come(shm, tmp_path):
    with two_rings(shm) as rings, sink_process(rings, settings(tmp_path)) as child:
        child.process.terminate()  # the daemon alone decides when this process ends
        feed(rings, whole_run(50, shape=SHAPE))
        finished = child.wait_for(is_finished)
        assert (finished["raw"], finished["clean"], finished["missing"]) == (50, 50, 0)
        status = child.status(state="idle")
        assert (status["raw_written"], status["clean_written"]) == (50, 50)
        assert (status["dropped"], status["unflushed"]) == ({}, 0)
        assert child.stop() == 0
        for ring in rings:
            (count,) = ring.readers()
            assert (count.read, count.lost, count.in_flight) == (50, 0, 0)
    assert contents(tmp_path) == {"raw": list(range(50)), "clean": list(range(50))}
    assert Path(finished["file"]).is_file()


def test_a_wrong_setting_ends_the_process_with_the_code_for_configuration(shm):
    with two_rings(shm) as rings:
        child = SinkProcess(rings, {"directroy": "x"})
        assert child.process.wait(20) == 78
        child.close()
        assert any("output_refused" in line and "directroy" in line for line in child.logs)


def test_a_directory_that_cannot_be_written_fails_loudly_and_loses_nothing_of_the_ring(
    shm, tmp_path
):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with two_rings(shm) as rings:
        with sink_process(rings, settings(blocked / "x")) as child:
            feed(rings, whole_run(5))
            assert child.process.wait(10) == 1
            child.close()
            assert child.last_status()["state"] == "failed"
        with sink_process(rings, settings(tmp_path / "good")) as child:
            assert child.wait_for(is_finished)["raw"] == 5
            child.process.stdin.close()  # what happens when the daemon is killed
            assert child.process.wait(10) == 0


class Feeder(threading.Thread):
    """Writes one run into both rings at a steady rate, like ingest and the pipeline."""

    def __init__(self, rings, count, rate_hz):
        super().__init__(daemon=True)
        self.rings, self.count, self.rate_hz = rings, count, rate_hz

    def run(self):
        feed(self.rings, [run_start(shape=SHAPE)])
        began = time.monotonic()
        for index in range(self.count):
            feed(self.rings, [frame(index, shape=SHAPE), result(index, shape=SHAPE)])
            time.sleep(max(0, began + (index + 1) / self.rate_hz - time.monotonic()))
        feed(self.rings, [run_end()])


def kill_and_restart(shm, directory, *, kills, count, rate_hz, seed, mib):
    """Kill the recorder at random moments; give what the last one told at its end."""
    rng = random.Random(seed)
    acknowledged = 0
    with two_rings(shm, mib=mib) as rings:
        feeder = Feeder(rings, count, rate_hz)
        child = SinkProcess(rings, settings(directory, flush_interval_s=0.05)).ready()
        feeder.start()
        for _ in range(kills):
            time.sleep(rng.uniform(0.0, 0.5))
            child.kill()
            told = [e["raw_written"] for e in child.events if e["type"] == "status"]
            assert all(value >= acknowledged for value in told), "a count went back"
            acknowledged = max([acknowledged, *told])
            safe = [ring.readers()[0].acked_frames for ring in rings]
            child = SinkProcess(rings, settings(directory, flush_interval_s=0.05)).ready()
            first = child.status()
            assert first["raw_written"] >= safe[0]
            assert first["clean_written"] >= safe[1]
        feeder.join()
        finished = child.wait_for(is_finished, 60)
        assert child.stop() == 0
        counts = [ring.readers()[0] for ring in rings]
        assert [(c.lost, c.in_flight) for c in counts] == [(0, 0)] * 2
    return finished, child.last_status()


def check_killed(shm, directory, *, kills, count, seed):
    mib = 1 + count * 3 * SHAPE[0] * SHAPE[1] * 4 >> 20  # so that nothing is overwritten
    finished, status = kill_and_restart(
        shm, directory, kills=kills, count=count, rate_hz=200, seed=seed, mib=mib
    )
    everything = list(range(count))
    found = contents(directory)
    assert sorted(found["raw"]) == everything
    assert sorted(found["clean"]) == everything
    assert (finished["raw"], finished["missing"]) == (count, 0)
    assert (status["raw_written"], status["clean_written"]) == (count, count)
    assert status["dropped"] == {}


def test_a_recorder_killed_again_and_again_writes_every_frame_exactly_once(shm, tmp_path):
    check_killed(shm, tmp_path, kills=3, count=700, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_recorder_killed_twenty_times_writes_every_frame_exactly_once(shm, tmp_path):
    check_killed(shm, tmp_path, kills=20, count=4000, seed=2)


@pytest.mark.slow
def test_a_recorder_killed_in_the_middle_of_renaming_leaves_one_whole_file(shm, tmp_path):
    """The last window: complete, but not yet renamed, or renamed, but not yet acknowledged."""
    with two_rings(shm) as rings:
        with sink_process(rings, settings(tmp_path)) as child:
            feed(rings, whole_run(5, "1"))
            finished = child.wait_for(is_finished)
            child.status(state="idle")
            child.kill()
        path = Path(finished["file"])
        path.rename(path.with_name(path.name + ".part"))
        with sink_process(rings, settings(tmp_path)) as child:
            feed(rings, whole_run(3, "2"))
            files = [child.wait_for(is_finished)["file"] for _ in range(2)]
            assert child.stop() == 0
    assert files[0] == str(path)
    assert sorted(str(p) for p in tmp_path.iterdir()) == sorted(files)


@pytest.mark.slow
def test_what_a_dead_daemon_left_is_repaired_when_the_next_one_records(shm, tmp_path):
    with two_rings(shm) as rings, sink_process(rings, settings(tmp_path)) as child:
        feed(rings, list(whole_run(5, "1"))[:-1])
        child.status(raw_written=5, clean_written=5)
        child.kill()
    with two_rings(shm) as rings, sink_process(rings, settings(tmp_path)) as child:
        feed(rings, whole_run(3, "2"))
        files = [child.wait_for(is_finished) for _ in range(2)]
        assert child.stop() == 0
    assert [(f["raw"], f["reason"]) for f in files] == [(5, "lost"), (3, "completed")]
    assert all(p.suffix == ".h5" for p in tmp_path.iterdir())


@contextmanager
def small_disk(path, megabytes):
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    if os.getuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_stops_the_recording_in_time_and_it_resumes_by_itself(shm, tmp_path):
    with (
        small_disk(tmp_path / "disk", 16) as disk,
        two_rings(shm, mib=64) as rings,
        sink_process(rings, settings(disk, reserve_bytes=2 << 20, compression="none")) as child,
    ):
        feed(rings, [run_start(shape=SHAPE)])
        index = 0
        while child.process.poll() is None and index < 400:
            feed(rings, [frame(index, shape=SHAPE)])
            index += 1
        full = child.status(state="disk_full")
        assert full["free_bytes"] >= 2 << 20
        full = child.status(unflushed=0, dropped=lambda d: d.get("disk_full", 0) > 0)
        first = next(e for e in child.events if is_finished(e))
        assert first["reason"] == "disk_full"
        elsewhere = Path(shutil.copy(first["file"], tmp_path / "elsewhere"))
        Path(first["file"]).unlink()
        while child.events[-1].get("state") != "recording":
            feed(rings, [frame(index, shape=SHAPE)])
            index += 1
            time.sleep(0.02)
            assert index < 2000
        feed(rings, [frame(index, shape=SHAPE), run_end()])
        second = child.wait_for(lambda e: is_finished(e) and e["reason"] != "disk_full")
        status = child.status(state="idle")
        assert child.stop() == 0
        assert Path(second["file"]).stem.endswith("_part2")
        assert status["raw_written"] + status["dropped"]["disk_full"] == index + 1
        with Recording(elsewhere) as one, Recording(second["file"]) as two:
            assert len(one.raw) + len(two.raw) == status["raw_written"]
            for recording in (one, two):
                ids = recording.column("raw/frame_id")
                for row, number in enumerate(ids.tolist()):
                    np.testing.assert_array_equal(recording.raw[row], pixels(number, SHAPE))


def test_a_sink_of_another_kind_can_run_in_its_own_process(shm, tmp_path):
    """The process knows no HDF5: any recording sink from any package will do."""
    package = tmp_path / "toy"
    package.mkdir()
    (package / "toysink.py").write_text(
        """
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar
from quietbeam import SinkPlugin
class Lines:
    def __init__(self, path): self.file = path.open("a")
    def start(self, run): self.file.write(f"start {run.run}\\n")
    def raw(self, frame): self.file.write(f"raw {frame.index}\\n")
    def write(self, result): self.file.write(f"clean {result.index}\\n")
    def stop(self, end): self.file.write(f"stop {end.reason}\\n")
    def flush(self): self.file.flush()
class Toy(SinkPlugin):
    own_process: ClassVar[bool] = True
    path: Path
    @contextmanager
    def open(self):
        lines = Lines(self.path)
        yield lines
        lines.file.close()
"""
    )
    info = package / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[quietbeam.sinks]\ntoy = toysink:Toy\n")
    out = tmp_path / "lines"
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package), before]))
    try:
        with two_rings(shm) as rings, sink_process(rings, {"path": out}, kind="toy") as child:
            feed(rings, whole_run(2))
            status = child.status(raw_written=2, clean_written=2, unflushed=0)
            assert status["state"] in {"recording", "idle"}
            assert child.stop() == 0
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    lines = out.read_text().split("\n")
    assert lines[0] == "start 7"
    assert sorted(lines[1:5]) == ["clean 0", "clean 1", "raw 0", "raw 1"]
    assert lines[5] == "stop completed"


def test_the_process_imports_nothing_it_does_not_need():
    code = (
        "import sys, quietbeam.service.sink_process;"
        "print({'torch', 'h5py', 'zmq', 'openvino', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
