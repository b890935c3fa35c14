"""What a view reads of the two rings: nothing cleaned comes before what it was made of."""

import itertools

import pytest

from helpers.recordings import frame, result, run_start, two_rings
from quietbeam import Frame, Result, RunStart
from quietbeam.core import records
from quietbeam.service.view_link import ViewLink

FRAMES = 40


@pytest.fixture
def rings(tmp_path):
    with two_rings(tmp_path) as (raw, clean):
        yield raw, clean


def attached(rings, backlog=FRAMES):
    link = ViewLink("view", backlog, backlog)
    raw, clean = rings
    link.attached(lambda _message: None, {"raw": str(raw.path), "clean": str(clean.path)})
    link.poll(0.0)
    return link


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
