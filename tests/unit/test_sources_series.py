"""The series state machine: whatever comes, runs are well-formed and nothing is counted twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietbeam.core.events import Frame, Rejected, RunEnd, RunStart
from quietbeam_plugins.sources.series import SeriesMachine

SECOND = 1_000_000_000
PIXELS = np.zeros((4, 6), "u2")


def start(run="a", shape=(4, 6), dtype="u2", **told):
    return RunStart(run=run, shape=shape, dtype=np.dtype(dtype), **told)


class Stream:
    """Drives a machine and keeps what it gave."""

    def __init__(self, **settings):
        self.machine = SeriesMachine(**settings)
        self.events = []

    def begin(self, number=1, now_s=0.0, **told):
        told.setdefault("run", f"run{number}")
        self._keep(self.machine.begin(("", number), start(**told), round(now_s * SECOND)))

    def announce(self, number=1):
        self._keep(self.machine.announce(("", number)))

    def frame(self, number, series=1, now_s=0.0, pixels=PIXELS):
        now_ns = round(now_s * SECOND)
        describe = lambda: start(f"run{series}", pixels.shape, pixels.dtype)  # noqa: E731
        events = self.machine.frame(
            ("", series), number, pixels, time_ns=0, received_ns=now_ns, describe=describe
        )
        self._keep(events)

    def end(self, number=1, now_s=0.0, frames_sent=None):
        self._keep(self.machine.end(("", number), round(now_s * SECOND), frames_sent))

    def tick(self, now_s):
        self._keep(self.machine.tick(round(now_s * SECOND)))

    def finish(self):
        self._keep(self.machine.finish())

    def _keep(self, events):
        self.events.extend(events)

    @property
    def story(self):
        """Short words: start:NAME, frame numbers, end:REASON, !REASON."""
        words = []
        for event in self.events:
            match event:
                case RunStart():
                    words.append(f"start:{event.run}")
                case Frame():
                    words.append(event.index)
                case RunEnd():
                    words.append(f"end:{event.reason}")
                case Rejected():
                    words.append(f"!{event.reason}")
        return words


def test_a_whole_series_is_one_completed_run():
    stream = Stream()
    stream.begin(frames_expected=2)
    stream.frame(0)
    stream.frame(1)
    stream.end()
    assert stream.story == ["start:run1", 0, 1, "end:completed"]


def test_joining_in_the_middle_makes_a_start_from_the_first_frame():
    stream = Stream()
    stream.frame(17)
    assert stream.story == ["start:run1", 17]
    assert stream.events[0].shape == (4, 6)


def test_an_end_that_overtook_the_last_frames_waits_for_them():
    stream = Stream(grace_s=0.25)
    stream.begin(frames_expected=3)
    stream.frame(0)
    stream.end(now_s=1.0)
    stream.frame(2, now_s=1.1)
    stream.frame(1, now_s=1.2)
    assert stream.story == ["start:run1", 0, 2, 1, "end:completed"]


def test_an_early_end_settles_after_the_grace_and_what_comes_later_is_foreign():
    stream = Stream(grace_s=0.25)
    stream.begin(frames_expected=100)
    stream.frame(0)
    stream.end(now_s=1.0)
    stream.tick(1.2)
    assert stream.story == ["start:run1", 0]
    stream.frame(1, now_s=1.3)
    assert stream.story == ["start:run1", 0, "end:completed", "!foreign"]


def test_frames_of_an_aborted_run_are_foreign_to_the_next():
    stream = Stream()
    stream.begin(1)
    stream.frame(0)
    stream.begin(2)
    stream.frame(1, series=1)
    stream.frame(0, series=2)
    stream.end(1)
    assert stream.story == [
        *("start:run1", 0, "end:aborted"),
        *("start:run2", "!foreign", 0, "!foreign"),
    ]


def test_leftovers_of_a_run_that_was_never_seen_do_not_end_the_one_going_on():
    stream = Stream()
    stream.begin(8)
    stream.frame(500, series=7)
    stream.frame(0, series=8)
    assert stream.story == ["start:run8", "!foreign", 0]


def test_a_new_series_whose_header_was_missed_ends_the_old_one():
    stream = Stream()
    stream.begin(1)
    stream.frame(0)
    stream.frame(3, series=2)
    assert stream.story == ["start:run1", 0, "end:lost", "start:run2", 3]


def test_a_run_without_an_end_is_lost_after_a_pause_and_goes_on_if_frames_do():
    stream = Stream(run_timeout_s=2.0)
    stream.begin(1, frame_time_s=0.1, energy_kev=12.0)
    stream.frame(0, now_s=0.0)
    stream.tick(1.9)
    stream.tick(2.1)
    stream.frame(1, now_s=9.0)
    stream.frame(0, now_s=9.0)
    assert stream.story == ["start:run1", 0, "end:lost", "start:run1-2", 1, "!duplicate"]
    assert stream.events[3].energy_kev == 12.0


@pytest.mark.parametrize(
    ("told", "pauses_s", "timeout_s"),
    [
        ({"frame_time_s": 0.05}, [0.05], 5.0),
        ({"frame_time_s": 1.0}, [1.0], 20.0),
        ({}, [0.1, 3.0, 0.1], 60.0),
    ],
)
def test_the_timeout_follows_from_the_frame_time_or_the_longest_pause(told, pauses_s, timeout_s):
    stream = Stream()
    stream.begin(1, **told)
    now_s = 0.0
    for number, pause_s in enumerate([0.0, *pauses_s]):
        now_s += pause_s
        stream.frame(number, now_s=now_s)
    stream.tick(now_s + 0.99 * timeout_s)
    assert "end:lost" not in stream.story
    stream.tick(now_s + 1.01 * timeout_s)
    assert stream.story[-1] == "end:lost"


def test_an_armed_detector_may_wait_minutes_for_its_trigger():
    stream = Stream()
    stream.begin(1, frame_time_s=0.01)
    stream.tick(300.0)
    stream.frame(0, now_s=300.0)
    assert stream.story == ["start:run1", 0]


def test_foreign_frames_do_not_keep_a_run_alive():
    stream = Stream(run_timeout_s=2.0)
    stream.begin(8)
    stream.frame(0, series=8)
    for tenth in range(25):
        stream.frame(tenth, series=3, now_s=tenth / 10)
    assert stream.story[2:22] == ["!foreign"] * 20
    assert "end:lost" in stream.story


def test_another_shape_or_dtype_is_refused_within_a_run_and_fine_in_the_next():
    stream = Stream()
    stream.begin(1)
    stream.frame(0, pixels=np.zeros((4, 7), "u2"))
    stream.frame(1, pixels=np.zeros((4, 6), "u4"))
    stream.frame(2)
    stream.end(1)
    stream.tick(1.0)
    stream.begin(2, shape=(2, 2), dtype="u4")
    stream.frame(0, series=2, pixels=np.zeros((2, 2), "u4"))
    assert stream.story == [
        *("start:run1", "!shape", "!dtype", 2, "end:completed"),
        *("start:run2", 0),
    ]


def test_the_number_of_announced_frames_is_never_waited_for():
    stream = Stream()
    stream.begin(1, frames_expected=1)
    stream.frame(0)
    stream.frame(1)
    stream.frame(2)
    stream.end(1)
    stream.tick(1.0)
    assert stream.story == ["start:run1", 0, 1, 2, "end:completed"]


def test_an_end_without_a_run_is_refused_but_not_that_of_an_empty_series():
    stream = Stream()
    stream.end(4)
    stream.announce(5)
    stream.end(5)
    stream.begin(6)
    stream.end(6)
    stream.end(6)
    stream.tick(1.0)
    assert stream.story == ["!no_run", "start:run6", "!duplicate", "end:completed"]


def test_an_announced_series_starts_with_its_first_frame_and_refuses_older_ones():
    stream = Stream()
    stream.announce(5)
    stream.frame(9, series=4)
    stream.frame(0, series=5)
    stream.announce(5)
    assert stream.story == ["!foreign", "start:run5", 0, "end:aborted"]


def test_a_repeated_header_is_refused_but_a_restarted_detector_starts_a_run():
    stream = Stream()
    stream.begin(1)
    stream.begin(1)
    stream.frame(0)
    stream.begin(1)
    stream.frame(0)
    assert stream.story == ["start:run1", "!duplicate", 0, "end:aborted", "start:run1-2", 0]


def test_a_header_that_its_frames_overtook_is_refused():
    stream = Stream()
    stream.frame(1)
    stream.begin(1)
    stream.frame(0)
    assert stream.story == ["start:run1", 1, "!duplicate", 0]


def test_frames_of_a_new_series_whose_header_was_missed_complete_one_that_has_its_end():
    stream = Stream(grace_s=0.25)
    stream.begin(1, frames_expected=9)
    stream.frame(0)
    stream.end(1, now_s=1.0)
    stream.frame(5, series=2, now_s=1.1)
    assert stream.story == ["start:run1", 0, "end:completed", "start:run2", 5]


def test_the_count_told_with_the_end_settles_the_run_and_goes_along():
    stream = Stream()
    stream.begin(1, frames_expected=100_000)
    stream.frame(0)
    stream.end(1, now_s=1.0, frames_sent=2)
    assert stream.story == ["start:run1", 0]
    stream.frame(1, now_s=1.1)
    assert stream.story == ["start:run1", 0, 1, "end:completed"]
    assert stream.events[-1].frames_sent == 2


def test_the_rest_of_a_run_given_up_too_early_begins_where_that_one_ended():
    stream = Stream(run_timeout_s=2.0)
    stream.begin(1, frames_expected=10, first_index=0)
    for number in (0, 1, 3):
        stream.frame(number)
    stream.tick(2.1)
    stream.frame(4, now_s=9.0)
    rest = stream.events[-2]
    assert (rest.run, rest.first_index, rest.frames_expected) == ("run1-2", 4, 6)
    stream.end(1, now_s=9.0, frames_sent=5)
    assert stream.story[-2:] == [4, "end:completed"]
    assert stream.events[-1].frames_sent == 1


def test_what_comes_after_its_end_or_twice_says_which_frame_of_which_run_it_is():
    stream = Stream()
    stream.begin(1, frames_expected=1)
    stream.frame(0)
    stream.frame(0)
    stream.end(1)
    stream.frame(1)
    stream.frame(7, series=0)
    stream.end(1)
    refused = [e for e in stream.events if isinstance(e, Rejected)]
    assert [(e.reason, e.run, e.index) for e in refused[:2]] == [
        ("duplicate", "run1", 0),
        ("foreign", "run1", 1),
    ]
    assert (refused[-1].reason, refused[-1].index) == ("foreign", None)  # an end is no frame


def test_an_announced_series_that_never_comes_does_not_shut_out_a_restarted_detector():
    stream = Stream()
    stream.announce(57)
    for tenth in range(70):
        stream.frame(tenth, series=1, now_s=tenth / 10)
    assert stream.story[:50] == ["!foreign"] * 50
    start = stream.story.index("start:run1")
    assert 50 <= start <= 52
    assert stream.story[start + 1 :] == list(range(start, 70))


def test_the_end_of_the_stream_settles_the_run():
    stream = Stream()
    stream.finish()
    stream.begin(1)
    stream.finish()
    assert stream.story == ["start:run1", "end:lost"]


SHAPES = st.sampled_from([(4, 6), (4, 6), (4, 6), (2, 2)])
ACTIONS = st.one_of(
    st.tuples(st.just("begin"), st.integers(0, 3), SHAPES),
    st.tuples(st.just("announce"), st.integers(0, 3), SHAPES),
    st.tuples(st.just("frame"), st.integers(0, 3), SHAPES),
    st.tuples(st.just("frame"), st.integers(0, 3), SHAPES),
    st.tuples(st.just("end"), st.integers(0, 3), SHAPES),
    st.tuples(st.just("pause"), st.integers(0, 3), SHAPES),
    st.tuples(st.just("restart"), st.integers(0, 3), SHAPES),
)


def act(stream, kind, series, shape, now_s, number):
    """Do one thing to the machine."""
    match kind:
        case "begin":
            stream.begin(series, now_s=now_s, shape=shape)
        case "announce":
            stream.announce(series)
        case "frame":
            stream.frame(number, series, now_s, np.zeros(shape, "u2"))
        case "end":
            stream.end(series, now_s)
        case "pause":
            stream.tick(now_s + series)
        case "restart":
            stream.events.extend(stream.machine.restart())


def assert_grammar(events):
    """(RunStart Frame* RunEnd)*, with unique names and numbers."""
    run, names, numbers = None, set(), set()
    for event in events:
        match event:
            case RunStart():
                assert run is None
                assert event.run not in names
                run, numbers = event, set()
                names.add(event.run)
            case Frame():
                assert run is not None
                assert (event.run, event.pixels.shape) == (run.run, run.shape)
                assert event.index not in numbers
                numbers.add(event.index)
            case RunEnd():
                assert run is not None
                assert event.run == run.run
                run = None
    assert run is None


@given(actions=st.lists(st.tuples(ACTIONS, st.integers(0, 8)), max_size=60))
@settings(max_examples=400, deadline=None)
def test_the_grammar_of_events_always_holds(actions):
    stream = Stream(run_timeout_s=2.0)
    now_s, offered = 0.0, 0
    for (kind, series, shape), number in actions:
        now_s += series + 0.01 if kind == "pause" else 0.01
        offered += kind == "frame"
        act(stream, kind, series, shape, now_s, number)
    stream.finish()

    assert_grammar(stream.events)
    refused = [e for e in stream.events if isinstance(e, Rejected) and e.detail.startswith("frame")]
    assert {event.reason for event in refused} <= {"shape", "foreign", "duplicate"}
    assert len([e for e in stream.events if isinstance(e, Frame)]) + len(refused) == offered
