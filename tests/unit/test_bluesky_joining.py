"""Which run frames belong to: by name, else by time, in whatever order the news come."""

import pytest

from quietbeam_plugins.sinks.bluesky.joining import Joiner


def start(uid, time, **more):
    return {"uid": uid, "time": time, "scan_id": 1, **more}


def stop(uid, time):
    return {"run_start": uid, "time": time, "uid": "x"}


@pytest.fixture
def joiner():
    return Joiner(("series_id",), tolerance_s=2.0)


def told(joiner):
    return [(join.series, join.run.uid, join.by) for join in joiner.news()]


def test_a_series_that_starts_during_a_run_belongs_to_it(joiner):
    joiner.document("start", start("a", 100.0))
    joiner.series("s1", 105.0)
    assert told(joiner) == [("s1", "a", "time")]
    assert told(joiner) == []


def test_a_document_may_come_after_the_frames(joiner):
    joiner.series("s1", 105.0)
    assert told(joiner) == []
    joiner.document("start", start("a", 104.0))
    joiner.document("stop", stop("a", 104.5))
    assert told(joiner) == [("s1", "a", "time")]


def test_a_series_outside_every_run_belongs_to_none(joiner):
    joiner.document("start", start("a", 100.0))
    joiner.document("stop", stop("a", 110.0))
    joiner.series("before", 97.0)
    joiner.series("after", 113.0)
    assert told(joiner) == []


def test_a_name_that_both_know_is_better_than_the_time(joiner):
    joiner.document("start", start("by_time", 100.0))
    joiner.series("scan_0042", 105.0)
    assert told(joiner) == [("scan_0042", "by_time", "time")]
    joiner.document("start", start("by_name", 90.0, series_id="scan_0042"))
    assert told(joiner) == [("scan_0042", "by_name", "id")]


def test_a_file_that_a_resource_points_at_names_the_series(joiner):
    joiner.document("start", start("a", 10.0))
    joiner.series("scan_0042", 500_000.0)
    joiner.document("stop", stop("a", 20.0))
    uri = "file://localhost/data/scan_0042_master.h5"
    joiner.document("stream_resource", {"run_start": "a", "uri": uri})
    assert told(joiner) == [("scan_0042", "a", "id")]


def test_a_longer_name_of_another_series_is_no_match(joiner):
    joiner.document("start", start("a", 10.0))
    joiner.document("stop", stop("a", 20.0))
    joiner.series("scan_004", 500_000.0)
    joiner.document("resource", {"run_start": "a", "resource_path": "data/scan_0042.h5"})
    assert told(joiner) == []


def test_of_runs_that_overlap_the_newest_has_the_series_and_keeps_it(joiner):
    joiner.document("start", start("outer", 100.0))
    joiner.document("start", start("inner", 101.0))
    joiner.series("s1", 101.5)
    assert told(joiner) == [("s1", "inner", "time")]
    joiner.document("start", start("later", 102.0))
    assert told(joiner) == []


def test_a_run_whose_stop_was_lost_ends_when_nothing_is_heard(joiner):
    joiner.document("start", start("a", 100.0))
    assert joiner.open_runs == 1
    assert joiner.close_silent(200.0) == 1
    assert joiner.open_runs == 0
    joiner.series("s1", 300.0)
    assert told(joiner) == []


def test_nonsense_is_an_error_and_changes_nothing(joiner):
    for document in ({}, {"uid": "a", "time": "soon"}, {"uid": "a", "time": None}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            joiner.document("start", document)
    joiner.series("s1", 0.0)
    assert told(joiner) == []
    assert joiner.open_runs == 0


def test_memory_is_bounded(joiner):
    for number in range(1000):
        joiner.document("start", start(f"run{number}", float(number * 100)))
        joiner.series(f"series{number}", number * 100 + 1.0)
        list(joiner.news())
    assert joiner.open_runs <= 64
    assert joiner.of("series0") is None
    assert joiner.of("series999").run.uid == "run999"
