"""How two rings become runs of one recording sink; the process around it is tested elsewhere."""

import json
import time
from contextlib import contextmanager

import pytest

from helpers.recordings import (
    feed,
    frame,
    pixels,
    result,
    run_end,
    run_start,
    two_rings,
    whole_run,
)
from quietbeam import ConfigError
from quietbeam.core import records
from quietbeam.core.plugin import SinkPlugin
from quietbeam.offline.recording import Recording
from quietbeam.offline.superblock import session_of
from quietbeam.registry import find
from quietbeam.service import sink_process
from quietbeam.service.sink_driver import Driver, Lane


class Lines:
    """A recording sink that is no recorder: it only does what every one must."""

    def __init__(self):
        self.lines = []
        self.flushed = 0

    def start(self, run):
        self.lines.append(f"start {run.run}")

    def raw(self, frame):
        self.lines.append(f"raw {frame.index}")

    def write(self, result):
        self.lines.append(f"clean {result.index}")

    def flush(self):
        self.flushed = len(self.lines)

    def stop(self, end):
        assert self.flushed == len(self.lines), "stopped before everything was flushed"
        self.lines.append(f"stop {end.run} {end.reason}")


def new_driver(rings, sink, *, finished=None, unwanted=(), **more):
    raw, clean = (
        Lane(ring.path, "recorder", unwanted=kind in unwanted)
        for ring, kind in zip(rings, ("raw", "clean"), strict=True)
    )
    more = {"flush_interval_s": 0.05, "session": session_of(rings[0].path)} | more
    told = [] if finished is None else finished
    return Driver(sink, raw, clean, finished=told.append, **more)


def settle(driver):
    while driver.step():
        pass
    driver.flush()


@pytest.fixture
def rings(tmp_path):
    with two_rings(tmp_path, mib=4) as both:
        yield both


@pytest.fixture
def files(tmp_path):
    directory = tmp_path / "files"
    directory.mkdir()
    return directory


@contextmanager
def recorder(files, **settings):
    with find("sinks", "hdf5", SinkPlugin)(
        directory=files, reserve_bytes=0, **settings
    ).open() as sink:
        yield sink


def test_a_run_is_handed_over_whole_and_ended_once(rings):
    sink = Lines()
    driver = new_driver(rings, sink)
    feed(rings, whole_run(2))
    settle(driver)
    assert sink.lines[0] == "start 7"
    assert sorted(sink.lines[1:5]) == ["clean 0", "clean 1", "raw 0", "raw 1"]
    assert sink.lines[5:] == ["stop 7 completed"]
    status = driver.status()
    assert (status["raw_written"], status["clean_written"], status["unflushed"]) == (2, 2, 0)
    assert status["state"] == "idle"


def put_all(ring, item_filter, runs, count=5):
    for run in runs:
        for item in whole_run(count, run):
            if item_filter(item):
                records.put(ring, item)


def not_result(item):
    return not hasattr(item, "clean")


def not_frame(item):
    return not hasattr(item, "pixels")


@pytest.mark.parametrize("ahead", ["raw", "clean"])
def test_frames_of_the_ring_that_lags_still_go_into_their_own_run(rings, ahead):
    sink = Lines()
    driver = new_driver(rings, sink)
    order = [(rings[0], not_result), (rings[1], not_frame)]
    for ring, kind in order if ahead == "raw" else order[::-1]:
        put_all(ring, kind, ("1", "2"))
        settle(driver)
    starts = [line for line in sink.lines if line.startswith(("start", "stop"))]
    assert starts == ["start 1", "stop 1 completed", "start 2", "stop 2 completed"]
    assert len(sink.lines) == 4 + 2 * 2 * 5


def test_nothing_that_waits_is_acknowledged(rings):
    sink = Lines()
    driver = new_driver(rings, sink)
    put_all(rings[0], not_result, ("1", "2"))
    settle(driver)
    assert rings[0].readers()[0].acked_frames == 5
    again = new_driver(rings, Lines())
    put_all(rings[1], not_frame, ("1", "2"))
    settle(again)
    assert again.sink.lines[0] == "start 1"
    assert "stop 1 completed" in again.sink.lines
    assert sum(line.startswith("raw") for line in again.sink.lines) == 5


def test_a_run_whose_cleaned_frames_never_end_is_closed_after_a_while(rings):
    sink = Lines()
    driver = new_driver(rings, sink, settle_s=0.1)
    feed(rings, list(whole_run(2, "1"))[:-1])
    records.put(rings[0], run_end("1"))
    settle(driver)
    assert not any(line.startswith("stop") for line in sink.lines)
    time.sleep(0.12)
    settle(driver)
    assert sink.lines[-1] == "stop 1 completed"
    records.put(rings[1], result(2, "1"))  # too late
    records.put(rings[1], run_end("1"))
    feed(rings, whole_run(1, "2"))
    settle(driver)
    assert driver.status()["dropped"] == {"clean_late": 1}
    assert sink.lines[-1] == "stop 2 completed"


def test_raw_frames_are_never_lost_for_waiting_on_cleaned_ones(rings):
    sink = Lines()
    driver = new_driver(rings, sink, settle_s=1000)
    feed(rings, list(whole_run(1, "1"))[:-1])
    records.put(rings[0], run_end("1"))
    big = (256, 256)
    records.put(rings[0], run_start("2", big))
    for index in range(60):  # many times what the ring can hold
        records.put(rings[0], frame(index, "2", big))
        settle(driver)
    assert driver.status()["dropped"] == {}
    assert driver.status()["raw_written"] == 61


def test_lost_ends_do_not_merge_two_runs(rings):
    sink = Lines()
    driver = new_driver(rings, sink)
    feed(rings, list(whole_run(2, "1"))[:-1])
    feed(rings, whole_run(2, "2"))
    settle(driver)
    ends = [line for line in sink.lines if line.startswith("stop")]
    assert ends == ["stop 1 lost", "stop 2 completed"]


def test_stopping_drains_what_the_rings_hold(rings, files):
    finished = []
    with recorder(files) as sink:
        driver = new_driver(rings, sink, finished=finished)
        feed(rings, list(whole_run(300))[:-1])  # no end: the daemon is going down
        for ring in rings:
            ring.close()
        driver.stop()
        while not driver.done:
            driver.step()
    (told,) = finished
    assert (told["raw"], told["clean"], told["reason"]) == (300, 300, "lost")


def test_stopping_with_rings_that_stay_open_ends_after_a_moment_of_silence(rings):
    driver = new_driver(rings, Lines())
    feed(rings, list(whole_run(3))[:-1])
    driver.stop()
    began = time.monotonic()
    while not driver.done:
        driver.step()
    assert 0.4 < time.monotonic() - began < 5
    assert driver.sink.lines[-1] == "stop 7 lost"


def test_a_run_that_begins_while_recording_is_off_is_counted_and_not_recorded(rings, files):
    finished = []
    with recorder(files) as sink:
        driver = new_driver(rings, sink, finished=finished)
        driver.record(on=False)
        assert driver.status()["state"] == "off"
        feed(rings, whole_run(6, "1"))
        settle(driver)
        assert driver.status()["dropped"] == {"recording_off": 6, "clean_recording_off": 6}
        driver.record(on=True)
        feed(rings, whole_run(4, "2"))
        settle(driver)
    assert [told["raw"] for told in finished] == [4]
    (path,) = files.iterdir()
    with Recording(path) as recording:
        assert recording.run == "2"


def test_switching_off_completes_the_file_and_on_begins_another_in_the_same_run(rings, files):
    finished = []
    items = list(whole_run(9))
    with recorder(files) as sink:
        driver = new_driver(rings, sink, finished=finished)
        for part, on in ((items[:7], False), (items[7:13], True), (items[13:], True)):
            feed(rings, part)
            settle(driver)
            driver.record(on=on)
        assert driver.status()["dropped"] == {"recording_off": 3, "clean_recording_off": 3}
    first, second = finished
    assert (first["raw"], first["reason"]) == (3, "aborted")
    assert (second["raw"], second["reason"]) == (3, "completed")
    with Recording(second["file"]) as recording:
        assert recording.column("raw/frame_id").tolist() == [6, 7, 8]


def test_notes_are_kept_with_the_recording(rings, files):
    finished = []
    items = list(whole_run(3))
    with recorder(files) as sink:
        driver = new_driver(rings, sink, finished=finished)
        feed(rings, items[:-1])
        settle(driver)
        driver.note(json.dumps({"action": "reject", "reason": "worse"}))
        driver.note(json.dumps({"action": "promote", "version": 2, "sha256": "aa"}))
        feed(rings, items[-1:])
        settle(driver)
    with Recording(finished[0]["file"]) as recording:
        actions = [d["action"] for d in recording.provenance.decisions]
        assert actions == ["reject", "promote"]
        assert recording.provenance.weights[0].version == 2


def test_frames_overwritten_in_the_ring_are_counted_and_written_as_missing(rings, files):
    finished = []
    items = list(whole_run(400, shape=(128, 128)))
    with recorder(files) as sink:
        driver = new_driver(rings, sink, finished=finished)
        feed(rings, items[:11])
        settle(driver)
        feed(rings, items[11:])  # while the recorder does nothing
        settle(driver)
        status = driver.status()
    lost = status["dropped"]["overrun"]
    assert lost > 0
    assert status["raw_written"] + lost == 400
    assert status["clean_written"] + status["dropped"]["clean_overrun"] == 400
    with Recording(finished[0]["file"]) as recording:
        gaps = recording.missing
        assert (gaps[:, 1] - gaps[:, 0] + 1).sum() == lost == finished[0]["missing"]
        assert recording.provenance.counts["overrun"] == lost


def test_raw_alone_passes_over_cleaned_frames_and_counts_them(rings, files):
    finished = []
    with recorder(files, clean=False) as sink:
        driver = new_driver(rings, sink, finished=finished, unwanted={"clean"})
        feed(rings, whole_run(5))
        settle(driver)
    assert (finished[0]["raw"], finished[0]["clean"]) == (5, 0)
    (count,) = rings[1].readers()
    assert (count.read, count.skipped, count.in_flight) == (0, 5, 0)


def test_counts_go_on_where_an_earlier_process_had_them(rings, files):
    items = list(whole_run(8))
    for part, total in ((items[:7], 3), (items[7:], 8)):
        with recorder(files) as sink:
            driver = new_driver(rings, sink)
            feed(rings, part)
            settle(driver)
            assert driver.status()["raw_written"] == total


def test_pixels_arrive_as_they_were_sent(rings, files):
    finished = []
    with recorder(files) as sink:
        driver = new_driver(rings, sink, finished=finished)
        feed(rings, whole_run(3))
        settle(driver)
    with Recording(finished[0]["file"]) as recording:
        for row in range(3):
            assert (recording.raw[row] == pixels(row)).all()


@pytest.mark.parametrize(
    ("kind", "wrong", "told"),
    [
        ("nothing", {}, "no sinks plugin 'nothing'"),
        ("hdf5", {"directroy": "x"}, "directroy"),
        ("zmq", {}, "process of its own"),
    ],
)
def test_what_cannot_be_a_recorder_is_refused_by_name(kind, wrong, told):
    with pytest.raises(ConfigError, match=told):
        sink_process._plugin({"kind": kind, "settings": wrong})
