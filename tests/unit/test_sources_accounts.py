"""Whatever happens to the parts of two series, through the real decoders into the real ledger:

runs are well formed, two series never mix in one, and every account adds up.
"""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import PrivateAttr

from quietbeam.core import records, ring
from quietbeam.core.events import Frame, Rejected, RunEnd, RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.plugin import SourcePlugin
from quietbeam.pipeline.alarms import Alarms
from quietbeam.pipeline.ingest import Ingest
from quietbeam.testing.simulators import encoder, simulated_run
from quietbeam_plugins.sources.array import Array
from quietbeam_plugins.sources.dectris import Dectris

SECOND = 1_000_000_000
FRAMES = 5
NAMED = ("dectris-v1", "dectris-v2")
"""Every message names its series: nothing that happens to messages can mix them up."""
NAMELESS = ("dectris-v1-flat", "array-1.0", "adzmq")
"""What a part or message belongs to is told by its place only: here another shape tells."""


def pixels(series, number, shape):
    """Say in the first two pixels which image this is."""
    image = np.zeros(shape, "u2")
    image[0, :2] = series, number
    return image


def series_messages(form, encoding, series):
    """Give the messages of one series, headers and ends with them."""
    shape = (4, 6) if form in NAMED else (4, 6 + series)
    run = simulated_run(pixels(series, 0, shape), FRAMES, 100.0, f"{series}")
    made = list(encoding.start(run))
    for number in range(FRAMES):
        frame = Frame(
            run=run.run,
            index=number,
            time_ns=number,
            received_ns=0,
            pixels=pixels(series, number, shape),
        )
        made += encoding.frame(frame)
    return made + encoding.end(RunEnd(run=run.run, reason="completed"))


def two_series(form):
    encoding = encoder(form)
    return [series_messages(form, encoding, series) for series in (1, 2)]


def damaged(draw, messages, *, shuffle):
    """Shuffle, drop, repeat and truncate."""
    left = list(draw(st.permutations(messages))) if shuffle else list(messages)
    if not shuffle:  # neighbours overtake each other
        for at in draw(st.lists(st.integers(0, len(left) - 2), max_size=3)):
            left[at : at + 2] = reversed(left[at : at + 2])
    out = []
    for message in left:
        kind = draw(st.sampled_from(["whole"] * 8 + ["dropped", "twice", "fewer parts", "cut"]))
        match kind:
            case "dropped":
                continue
            case "twice":
                out += [message, message]
            case "fewer parts":
                out.append(message[: draw(st.integers(1, len(message)))])
            case "cut":
                part = draw(st.integers(0, len(message) - 1))
                size = draw(st.integers(0, len(message[part]) - 1))
                out.append([*message[:part], message[part][:size], *message[part + 1 :]])
            case _:
                out.append(message)
    return out


@st.composite
def streams(draw, form):
    """Two series, however they come; formats without names keep the order of the series."""
    first, second = two_series(form)
    if form in NAMED:
        return damaged(draw, [*first, *second], shuffle=True)
    return [
        message
        for messages in (first, second)
        for message in damaged(draw, messages, shuffle=form != "dectris-v1-flat")
    ]


def decoder(form):
    source = Dectris if form.startswith("dectris") else Array
    return source(address="tcp://127.0.0.1:1", run_timeout_s=2.0).decoder()


def decoded(form, messages, pauses_s):
    running, now_ns, events = decoder(form), 0, []
    for message, pause_s in itertools.zip_longest(messages, pauses_s[: len(messages)]):
        now_ns += round((pause_s or 0.01) * SECOND)
        for number, part in enumerate(message):
            events += running.feed(part, now_ns, starts_message=number == 0)
        events += running.idle(now_ns)
    return [*events, *running.finish()]


class Script(SourcePlugin):
    """Gives the events it was given."""

    _events: list = PrivateAttr(default_factory=list)

    @contextmanager
    def open(self):
        yield iter(self._events)


def taken_in(events, path):
    """Pass the events through ingest; give its ledger and what is in the ring."""
    source, ledger, writer = Script(), Ledger(), ring.create(path, 1 << 18)
    source._events = events
    reader = ring.RingReader(path, "test", from_first=True)
    Ingest(source, writer, ledger, lambda _run: {}, Alarms()).body()
    runs, passed_on = records.RunReader(reader), []
    while not reader.finished:
        passed_on += runs.poll(0)
    assert reader.lost == 0
    writer.unlink()
    return ledger, passed_on


def assert_runs(events, form):
    """(RunStart Frame* RunEnd)*, each of one series."""
    run, names, numbers, series = None, set(), set(), set()
    for event in events:
        match event:
            case RunStart():
                assert run is None
                assert event.run not in names
                names.add(event.run)
                run, numbers, series = event, set(), set()
            case Frame():
                assert run is not None
                assert event.run == run.run
                assert event.index not in numbers
                numbers.add(event.index)
                origin, number = event.pixels[0, :2].tolist()
                series.add(origin)
                assert len(series) == 1, "two series in one run"
                # flattened, an image whose own announcement was lost takes the one before
                assert number == event.index or form == "dectris-v1-flat"
            case RunEnd():
                assert event.run == run.run
                run = None
    assert run is None


def assert_accounts(ledger, events, passed_on):
    """Compare the running accounts with a plain count over all events."""
    frames = [event for event in events if isinstance(event, Frame)]
    refused = [event for event in events if isinstance(event, Rejected)]
    source, stage = ledger.source(), ledger.stages().get("ingest")
    assert source.received == len(frames)
    assert sum(source.rejected.values()) == len(refused)
    assert source.duplicate == sum(
        event.reason == "duplicate" and event.index is not None for event in refused
    )
    assert source.foreign == sum(
        event.reason == "foreign" and event.index is not None for event in refused
    )
    if frames:
        assert (stage.received, stage.in_flight) == (len(frames), 0)
        assert stage.sent + sum(stage.dropped.values()) == len(frames)
        assert stage.sent == sum(isinstance(item, records.Record) for item in passed_on)
    accounts = {account["run"]: account for account in ledger.runs_over()}
    starts = [event for event in events if isinstance(event, RunStart)]
    late = missing = 0
    for start in starts[-20:]:
        numbers = [frame.index for frame in frames if frame.run == start.run]
        begin = start.first_index
        begin = min(numbers, default=0) if begin is None else begin
        absent = sorted(set(range(begin, max(numbers, default=-1) + 1)) - set(numbers))
        account = accounts[start.run]
        ranges = account["missing_ranges"]
        assert [n for a, b in ranges for n in range(a, b + 1)] == absent
        overtaken = [n for at, n in enumerate(numbers) if n < max(numbers[:at], default=-1)]
        told = account["source"]
        assert (told["received"], told["missing"]) == (len(numbers), len(absent))
        assert told["late"] == len(overtaken)
        assert account["reason"] is not None
        late, missing = late + len(overtaken), missing + len(absent)
    if len(starts) <= 20:
        assert (source.late, source.missing) == (late, missing)
    ends = [item for item in passed_on if isinstance(item, RunEnd)]
    assert [end.run for end in ends] == [start.run for start in starts]
    assert all(end.account["source"]["received"] >= 0 for end in ends)


@pytest.mark.parametrize("form", [*NAMED, *NAMELESS])
def test_two_whole_series_are_two_whole_runs(form, tmp_path):
    events = decoded(form, [m for messages in two_series(form) for m in messages], [])
    assert [type(event) for event in events] == 2 * [RunStart, *FRAMES * [Frame], RunEnd]
    ledger, _ = taken_in(events, tmp_path / "ring")
    assert ledger.source().as_dict() == {
        "received": 2 * FRAMES, "late": 0, "missing": 0, "duplicate": 0, "foreign": 0,
        "after_end": 0, "rejected": {},
    }  # fmt: skip


@pytest.mark.parametrize("form", [*NAMED, *NAMELESS])
def test_no_damage_mixes_two_series_or_unbalances_the_ledger(form, tmp_path_factory):
    path = tmp_path_factory.mktemp("rings") / "ring"

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def holds(data):
        messages = data.draw(streams(form))
        pauses_s = data.draw(st.lists(st.sampled_from([0.01] * 6 + [0.3, 3.0]), max_size=30))
        events = decoded(form, messages, pauses_s)
        assert_runs(events, form)
        ledger, passed_on = taken_in(events, path)
        assert_accounts(ledger, events, passed_on)

    holds()


@pytest.mark.parametrize("form", NAMED)
def test_two_series_that_interleave_stay_apart_and_the_older_ones_frames_are_foreign(form):
    first, second = two_series(form)
    mixed = [m for pair in zip(first[2:], second[:-2], strict=True) for m in pair]
    events = decoded(form, [*first[:2], *mixed, *second[-2:]], [])
    assert_runs(events, form)
    foreign = [event for event in events if isinstance(event, Rejected)]
    assert {event.reason for event in foreign} == {"foreign"}
    kept = [event.pixels[0, 0] for event in events if isinstance(event, Frame)]
    assert kept.count(2) == FRAMES  # the newer series is whole
    assert sum(isinstance(event, RunStart) for event in events) == 2


@pytest.mark.parametrize("ours", [0, 1])
def test_a_client_that_takes_every_other_part_of_a_flattened_stream_is_told(ours, tmp_path):
    run = simulated_run(pixels(1, 0, (4, 6)), 40, 100.0)
    encoding = encoder("dectris-v1-flat")
    messages = encoding.start(run)
    for number in range(40):
        image = pixels(1, number, (4, 6))
        messages += encoding.frame(
            Frame(run=run.run, index=number, time_ns=0, received_ns=0, pixels=image)
        )
    source, alarms, writer = Script(), Alarms(), ring.create(tmp_path / "ring", 1 << 18)
    source._events = decoded("dectris-v1-flat", messages[ours::2], [])
    Ingest(source, writer, Ledger(), lambda _run: {}, alarms).body()
    assert set(alarms.active()) == {"all_refused"}
