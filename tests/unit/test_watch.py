"""Alarms: raised when something is wrong with the stream, cleared when it is over."""

import numpy as np
import pytest
from structlog.testing import capture_logs

from quietbeam.core.events import Rejected, RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.pipeline.alarms import Alarms
from quietbeam.pipeline.watch import Watch


class Stream:
    """A source's events, as ingest passes them to ledger and watch."""

    def __init__(self):
        self.alarms, self.ledger = Alarms(), Ledger()
        self.watch = Watch(self.alarms)

    def start(self, run="a", **told):
        start = RunStart(run=run, shape=(4, 6), dtype=np.dtype("u2"), **told)
        self.ledger.begin(run, expected=start.frames_expected, first=start.first_index)
        self.watch.start(start)

    def frames(self, *numbers):
        for number in numbers:
            self.ledger.came(number)
            self.watch.frame(number)

    def end(self, reason="completed", frames_sent=None):
        self.watch.end(self.ledger.end(reason, frames_sent=frames_sent))

    @property
    def active(self):
        return set(self.alarms.active())


@pytest.mark.parametrize("readers", [2, 3, 5])
def test_a_stable_stride_means_that_others_take_frames_until_they_are_gone(readers):
    stream = Stream()
    stream.start()
    stream.frames(*range(100))
    assert stream.active == set()
    stream.frames(*range(100, 100 + 16 * readers, readers))
    assert stream.active == {"regular_gaps"}
    alarm = stream.alarms.active()["regular_gaps"]
    assert f"one frame of {readers}" in alarm["message"]
    assert f"{readers - 1} other client" in alarm["message"]
    stream.end("aborted")
    assert stream.active == {"regular_gaps"}  # nothing shows that they are gone
    stream.start("b")
    stream.frames(*range(17))
    assert stream.active == set()
    assert stream.alarms.raised()["regular_gaps"] == 1


def test_one_frame_more_or_less_does_not_hide_the_pattern():
    stream = Stream()
    stream.start()
    stream.frames(*range(0, 20, 2), *range(19, 60, 2))
    assert stream.active == {"regular_gaps"}


@pytest.mark.parametrize("lost", [0.05, 0.3, 0.5])
def test_frames_lost_at_random_are_no_pattern(lost):
    stream = Stream()
    stream.start()
    kept = np.random.default_rng(1).random(20_000) > lost
    stream.frames(*np.flatnonzero(kept).tolist())
    assert stream.active == set()
    assert stream.alarms.raised()["regular_gaps"] == 0


def test_frames_out_of_order_and_a_single_gap_are_no_pattern():
    stream = Stream()
    stream.start()
    swapped = [number ^ 1 for number in range(200)]
    stream.frames(*swapped, *range(500, 600))
    assert stream.active == set()


def test_a_stream_of_refusals_is_told_until_a_frame_comes():
    stream = Stream()
    stream.start()
    dummy = Rejected(reason="preview", detail="2 by 2")
    halves = Rejected(reason="truncated", detail="frame 3: its data never came")
    for _ in range(20):
        stream.watch.refused(dummy)
    for _ in range(15):
        stream.watch.refused(halves)
    stream.frames(0)
    for _ in range(15):
        stream.watch.refused(halves)
    assert stream.active == set()
    stream.watch.refused(halves)
    assert stream.active == {"all_refused"}
    assert "truncated: frame 3" in stream.alarms.active()["all_refused"]["message"]
    stream.frames(1)
    assert stream.active == set()


def test_an_end_that_never_came_is_told_until_a_run_ends_as_it_should():
    stream = Stream()
    stream.start()
    stream.frames(0, 1, 2)
    stream.end("lost")
    assert stream.active == {"end_missing"}
    assert "last frame was 2" in stream.alarms.active()["end_missing"]["message"]
    stream.start("b")
    assert stream.active == {"end_missing"}
    stream.end("completed")
    assert stream.active == set()


@pytest.mark.parametrize(
    ("expected", "sent", "differs"),
    [(3, None, False), (4, None, True), (100, 3, False), (3, 5, True), (None, None, False)],
)
def test_the_count_of_the_producer_is_compared_at_the_end(expected, sent, differs):
    stream = Stream()
    stream.start(frames_expected=expected)
    stream.frames(0, 1, 2)
    assert stream.active == set()
    stream.end(frames_sent=sent)
    assert stream.active == ({"count_differs"} if differs else set())
    if differs:
        assert (
            f"{sent or expected} frames, 3 came"
            in (stream.alarms.active()["count_differs"]["message"])
        )
    stream.start("b", frames_expected=1)
    stream.frames(0)
    stream.end()
    assert stream.active == set()


def test_an_aborted_run_need_not_be_whole():
    stream = Stream()
    stream.start(frames_expected=1000)
    stream.frames(0)
    stream.end("aborted")
    assert stream.active == set()


def test_a_run_joined_late_is_told_while_it_goes_on():
    stream = Stream()
    stream.start(first_index=0)
    stream.frames(17, 18)
    assert stream.active == {"joined_late"}
    assert stream.ledger.run()["missing_ranges"] == [[0, 16]]
    stream.end()
    assert stream.active == set()


def test_a_first_frame_that_was_only_overtaken_clears_the_alarm():
    stream = Stream()
    stream.start(first_index=0)
    stream.frames(1, 0)
    assert stream.active == set()
    stream.start("b")  # a format that does not tell where it begins
    stream.frames(5321)
    assert stream.active == set()


def test_an_alarm_is_logged_when_it_is_raised_and_when_it_is_over_and_only_then():
    with capture_logs() as logs:
        stream = Stream()
        stream.start(first_index=0)
        stream.frames(*range(3, 30))
        stream.end()
    said = [(entry["event"], entry["alarm"], entry["log_level"]) for entry in logs]
    assert said == [
        ("alarm_raised", "joined_late", "warning"),
        ("alarm_cleared", "joined_late", "info"),
    ]
