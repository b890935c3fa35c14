"""Events and results through a ring, and the grammar of runs whatever was lost."""

import dataclasses

import numpy as np
import pytest

from helpers.recordings import frame, pixels, result, run_end, run_start
from quietbeam import RunEnd, RunStart
from quietbeam.core import records
from quietbeam.core.ring import Kind, Record, RingReader, create


@pytest.fixture
def ring(tmp_path):
    return create(tmp_path / "ring", 128 * 1024, entries=64)


def items(reader):
    got = []
    while True:
        found = list(reader.poll(0))
        if not found and reader.ring.backlog == 0:
            return got
        got += found


def shown(found):
    return [
        item.run
        if isinstance(item, RunStart)
        else item.reason
        if isinstance(item, RunEnd)
        else item.meta["index"]
        for item in found
    ]


def is_grammatical(found):
    """(RunStart Frame* RunEnd)*, the last run may be open."""
    inside = None
    for item in found:
        if isinstance(item, RunStart):
            assert inside is None
            inside = item.run
        elif isinstance(item, RunEnd):
            assert inside == item.run
            inside = None
        else:
            assert inside == item.meta["run"]


def test_a_run_start_survives_the_ring(ring):
    reader = RingReader(ring.path, "a")
    mask = np.eye(32, 48, dtype=bool)
    given = run_start(
        "x/1",
        mask=mask,
        frame_time_s=0.1,
        exposure_s=0.05,
        frames_expected=7,
        pixel_size_m=75e-6,
        energy_kev=12.4,
        distance_m=2.0,
        nodata=65535.0,
        saturation=60000.0,
    )
    records.put(ring, given)
    got = records.run_start(reader.read(0))
    for name in RunStart.__slots__:
        if name != "mask":
            assert getattr(got, name) == getattr(given, name), name
    np.testing.assert_array_equal(got.mask, mask)
    records.put(ring, run_start())
    assert records.run_start(reader.read(0)).mask is None


def test_frames_and_results_survive_the_ring(ring):
    reader = RingReader(ring.path, "a")
    records.put(ring, frame(5))
    given = result(6, version=2, denoiser="quiet")
    records.put(ring, given)
    got = records.frame(reader.read(0))
    np.testing.assert_array_equal(got.pixels, pixels(5))
    assert (got.run, got.index, got.time_ns) == ("7", 5, frame(5).time_ns)
    back = records.result(reader.read(0))
    np.testing.assert_array_equal(back.clean, given.clean)
    np.testing.assert_array_equal(back.sd, given.sd)
    assert (back.model_version, back.denoiser, back.latency_s) == (2, "quiet", 0.01)
    assert back.metrics["quality.psnr_db"] == given.metrics["quality.psnr_db"]
    np.testing.assert_array_equal(
        back.metrics["statistics.profile"], given.metrics["statistics.profile"]
    )


def test_maps_survive_the_ring_beside_arrays(ring):
    reader = RingReader(ring.path, "a")
    maps = {"optical.phase": pixels(3).astype(np.uint8), "stxm.share": np.full((32, 48), 0.5, "f4")}
    given = dataclasses.replace(result(6), maps=maps)
    records.put(ring, given)
    back = records.result(reader.read(0))
    assert list(back.maps) == list(maps)
    for name, image in maps.items():
        np.testing.assert_array_equal(back.maps[name], image)
        assert back.maps[name].dtype == image.dtype
    np.testing.assert_array_equal(
        back.metrics["statistics.profile"], given.metrics["statistics.profile"]
    )


def test_whole_runs_come_as_they_were_written(ring):
    reader = records.RunReader(RingReader(ring.path, "a"))
    for run in ("1", "2"):
        records.put(ring, run_start(run))
        for index in range(3):
            records.put(ring, frame(index, run))
        records.put(ring, run_end(run))
    assert shown(items(reader)) == ["1", 0, 1, 2, "completed", "2", 0, 1, 2, "completed"]


def test_a_reader_that_comes_late_gets_the_start_before_the_first_frame(ring):
    records.put(ring, run_start("1"))
    records.put(ring, frame(0, "1"))
    reader = records.RunReader(RingReader(ring.path, "a"))
    records.put(ring, frame(1, "1"))
    records.put(ring, run_end("1"))
    found = items(reader)
    assert shown(found) == ["1", 1, "completed"]
    assert found[0].shape == (32, 48)


def test_the_end_of_a_run_one_never_saw_is_not_told(ring):
    records.put(ring, run_start("1"))
    reader = records.RunReader(RingReader(ring.path, "a"))
    records.put(ring, run_end("1"))
    assert items(reader) == []


def test_a_reader_that_resumes_before_the_end_still_learns_of_it(ring):
    first = RingReader(ring.path, "a")
    records.put(ring, run_start("1"))
    records.put(ring, frame(0, "1"))
    assert shown(items(records.RunReader(first))) == ["1", 0]
    first.ack()
    records.put(ring, run_end("1"))
    again = records.RunReader(RingReader(ring.path, "a", resume=True))
    assert shown(items(again)) == ["1", "completed"]


def test_a_reader_that_resumes_in_an_older_run_gets_that_runs_start(ring):
    first = RingReader(ring.path, "a")
    records.put(ring, run_start("1", exposure_s=0.5))
    records.put(ring, frame(0, "1"))
    items(records.RunReader(first))
    first.ack()
    records.put(ring, frame(1, "1"))
    records.put(ring, run_end("1"))
    records.put(ring, run_start("2"))
    records.put(ring, frame(0, "2"))
    again = records.RunReader(RingReader(ring.path, "a", resume=True))
    found = items(again)
    assert shown(found) == ["1", 1, "completed", "2", 0]
    assert found[0].exposure_s == 0.5
    assert again.orphans == 0


def test_a_run_that_starts_twice_without_an_end_is_lost_the_first_time(ring):
    reader = records.RunReader(RingReader(ring.path, "a"))
    for _ in range(2):
        records.put(ring, run_start("1"))
        records.put(ring, frame(0, "1"))
    assert shown(items(reader)) == ["1", 0, "lost", "1", 0]


def test_frames_without_any_known_start_are_counted_and_kept_back(ring):
    reader = records.RunReader(RingReader(ring.path, "a"))
    records.put(ring, frame(0, "nobody knows"))
    assert items(reader) == []
    assert reader.orphans == 1


@pytest.mark.parametrize("seed", range(4))
def test_the_grammar_holds_however_much_is_lost(tmp_path, seed):
    ring = create(tmp_path / "small", 48 * 1024, entries=64)
    rng = np.random.default_rng(seed)
    ring_reader = RingReader(ring.path, "a")
    reader = records.RunReader(ring_reader)
    found, written = [], 0
    for run in range(40):
        records.put(ring, run_start(str(run)))
        for index in range(int(rng.integers(0, 12))):
            records.put(ring, frame(index, str(run)))
            written += 1
            if rng.random() < 0.2:
                found += reader.poll(0)
        records.put(ring, run_end(str(run)))
        if rng.random() < 0.2:
            found += items(reader)
    found += items(reader)
    is_grammatical(found)
    frames = sum(isinstance(item, Record) and item.kind is Kind.FRAME for item in found)
    assert frames + reader.orphans + ring_reader.lost == written
    assert ring_reader.lost > 0
