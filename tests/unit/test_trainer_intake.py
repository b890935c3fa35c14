"""Reading a ring that may be faster than training."""

from __future__ import annotations

import numpy as np
import pytest

from quietbeam.core import records, ring
from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.trainer.intake import STRETCH, Intake, stored_dtype


class Seen:
    """Takes notes."""

    def __init__(self):
        self.runs, self.frames = [], []

    def start(self, run):
        self.runs.append(run.run)

    def frame(self, run, index, pixels, valid):
        self.frames.append((run, index, float(pixels.mean()), bool(valid.all())))

    @property
    def indices(self):
        return [index for _, index, _, _ in self.frames]


@pytest.fixture
def writer(tmp_path):
    writer = ring.create(tmp_path / "raw.ring", 8 << 20)
    yield writer
    writer.unlink()


def start(writer, run="r", **options):
    event = RunStart(run=run, shape=(16, 16), dtype=np.dtype(np.uint16), **options)
    records.put(writer, event)


def put(writer, indices, run="r", value=None):
    for index in indices:
        pixels = np.full((16, 16), index if value is None else value, np.uint16)
        frame = Frame(run=run, index=index, time_ns=0, received_ns=0, pixels=pixels)
        records.put(writer, frame)


def account(writer):
    return writer.readers()[0]


def test_all_is_read_while_training_keeps_up(writer):
    seen = Seen()
    intake = Intake(writer.path, [], seen)
    start(writer)
    put(writer, range(50))
    records.put(writer, RunEnd(run="r", reason="completed"))
    intake.pump(1.0)
    assert seen.runs == ["r"]
    assert seen.indices == list(range(50))
    assert seen.frames[7] == ("r", 7, 7.0, True)
    assert (intake.seen, intake.skipped) == (50, 0)
    intake.close()


def test_when_far_behind_old_frames_are_passed_over_and_the_next_ones_have_no_gap(writer):
    seen = Seen()
    intake = Intake(writer.path, [], seen)
    start(writer)
    put(writer, range(1000))
    intake.pump(0.0)
    put(writer, range(1000, 1000 + STRETCH))
    intake.pump(0.0)
    assert seen.indices[-STRETCH:] == list(range(1000, 1000 + STRETCH))
    count = account(writer)
    assert count.read == len(seen.indices)
    assert count.skipped == intake.skipped > 900
    assert count.in_flight == count.lost == 0


def test_reading_gives_way_to_training_when_its_time_is_used_up(writer):
    seen = Seen()
    intake = Intake(writer.path, [], seen)
    start(writer)
    put(writer, range(200))
    for _ in range(5):
        intake.pump(0.0)
    assert seen.indices == [0, 1, 2, 3]


def test_runs_that_begin_while_frames_are_passed_over_are_not_missed(writer):
    seen = Seen()
    intake = Intake(writer.path, [], seen)
    start(writer, "a")
    put(writer, range(400), "a")
    start(writer, "b")
    put(writer, range(400), "b")
    intake.pump(0.0)
    put(writer, range(400, 410), "b")
    intake.pump(1.0)
    assert seen.runs[-1] == "b"
    assert seen.frames[-1][:2] == ("b", 409)


def test_a_trainer_that_starts_in_the_middle_of_a_run_learns_of_it(writer):
    start(writer)
    put(writer, range(10))
    seen = Seen()
    intake = Intake(writer.path, [], seen)
    put(writer, range(10, 12))
    intake.pump(1.0)
    assert seen.runs == ["r"]
    assert seen.indices == [10, 11]


def test_holes_are_filled_and_marked(writer):
    seen = Seen()
    intake = Intake(writer.path, [], seen)
    start(writer, nodata=65535)
    pixels = np.full((16, 16), 5, np.uint16)
    pixels[3, 3] = 65535
    records.put(writer, Frame(run="r", index=0, time_ns=0, received_ns=0, pixels=pixels))
    intake.pump(1.0)
    assert seen.frames == [("r", 0, 5.0, False)]


def test_the_end_of_the_ring_is_noticed(writer):
    intake = Intake(writer.path, [], Seen())
    assert not intake.finished
    writer.close()
    assert intake.finished


@pytest.mark.parametrize(
    ("dtype", "corrected", "stored"),
    [
        ("u1", False, "u1"),
        ("u2", False, "u2"),
        ("u4", False, "f4"),
        ("f4", False, "f4"),
        ("u2", True, "f4"),
        ("i2", False, "i2"),
    ],
)
def test_frames_are_kept_small_where_that_loses_nothing(dtype, corrected, stored):
    run = RunStart(run="r", shape=(4, 4), dtype=np.dtype(dtype))
    assert stored_dtype(run, ["dark_flat"] if corrected else []) == np.dtype(stored)
