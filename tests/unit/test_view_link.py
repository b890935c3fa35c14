"""What a view reads of the two rings: nothing cleaned comes before what it was made of."""

import itertools

import pytest

from helpers.recordings import frame, result, run_end, run_start, two_rings
from quietbeam import Frame, Result, RunEnd, RunStart
from quietbeam.core import records
from quietbeam.service.view_link import ViewLink

FRAMES = 40


@pytest.fixture
def rings(tmp_path):
    with two_rings(tmp_path) as (raw, clean):
        yield raw, clean


def attached(rings, backlog=FRAMES):
    link = ViewLink("view", backlog, backlog)
    attach(link, rings)
    link.poll(0.0)
    return link


def attach(link, rings):
    raw, clean = rings
    link.attached(lambda _message: None, {"raw": str(raw.path), "clean": str(clean.path)})


def short_run(rings, name):
    """A run of one frame, on both rings."""
    for ring, item in zip(rings, (frame(0, name), result(0, name)), strict=True):
        for event in (run_start(name), item, run_end(name)):
            records.put(ring, event)


class Racing:
    """A lane after whose reading the daemon publishes a frame and at once its cleaned one."""

    def __init__(self, lane, publish):
        self._lane, self._publish = lane, publish

    def take(self):
        yield from list(self._lane.take())
        self._publish()


def test_a_cleaned_frame_never_comes_before_its_raw_one_however_they_race(rings):
    link, (raw, clean) = attached(rings), rings
    numbers = itertools.count()

    def publish():
        index = next(numbers)
        records.put(raw, frame(index))
        records.put(clean, result(index))

    for ring in rings:
        records.put(ring, run_start())
    link._lanes = {kind: Racing(lane, publish) for kind, lane in link._lanes.items()}
    seen, cleaned = set(), []
    while len(cleaned) < FRAMES:
        for item in link.poll(1.0):
            if isinstance(item, Frame):
                seen.add(item.index)
            elif isinstance(item, Result):
                assert item.index in seen
                cleaned.append(item.index)
    assert cleaned == list(range(len(cleaned)))


def test_a_run_begins_once_and_before_its_frames_though_both_rings_tell_of_it(rings):
    link, (raw, clean) = attached(rings), rings
    for ring in (raw, clean):
        records.put(ring, run_start())
    records.put(raw, frame(0))
    records.put(clean, result(0))
    assert [type(item) for item in link.poll(1.0)] == [RunStart, Frame, Result]


def test_a_run_that_is_over_before_the_view_first_looks_is_given_whole(rings):
    link = ViewLink("view", raw_backlog=0, clean_backlog=8)
    attach(link, rings)
    short_run(rings, "brief")
    given = [(type(item), item.run) for item in [*link.poll(1.0), *link.poll(0.0)]]
    assert given == [(RunStart, "brief"), (Result, "brief"), (RunEnd, "brief")]


def test_nothing_of_the_next_daemon_is_missed_while_the_view_is_busy(rings, tmp_path):
    link = attached(rings, backlog=8)
    link.left()
    (tmp_path / "next").mkdir()
    with two_rings(tmp_path / "next") as following:
        attach(link, following)
        short_run(following, "after")
        kinds = [type(item) for item in [*link.poll(1.0), *link.poll(0.0)]]
    assert kinds == [RunStart, Frame, Result, RunEnd]
