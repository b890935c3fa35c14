"""Every malformed message is refused once, for the right reason, and changes nothing."""

import tracemalloc

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.sources import source
from quietbeam.core.events import Frame, Rejected, RunEnd, RunStart
from quietbeam.testing import hostile

CORPUS = hostile.corpus()
SECOND = 1_000_000_000


def decoder(form):
    return source(form, address="tcp://127.0.0.1:1", max_frame_bytes=1 << 20).decoder()


def feed(running, messages, now_ns=0):
    return [
        event
        for message in messages
        for number, part in enumerate(message)
        for event in running.feed(part, now_ns, starts_message=number == 0)
    ]


def settled(running, messages):
    """What a message gives once it is clear that nothing more belongs to it."""
    return [*feed(running, messages), *running.idle(SECOND // 100)]


def test_the_corpus_is_large_and_its_names_are_unique():
    names = [str(case) for case in CORPUS]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("case", CORPUS, ids=str)
def test_a_hostile_message_is_refused_once_and_the_next_frame_is_accepted(case):
    running = decoder(case.format)
    good = settled(running, hostile.before(case.format))
    assert [type(event) for event in good] == [RunStart, Frame, Frame]

    bad = settled(running, [case.message])
    accepted = settled(running, hostile.after(case.format))

    refused = [event for event in [*bad, *accepted] if isinstance(event, Rejected)]
    assert [event.reason for event in refused] == [case.reason], refused
    assert refused[0].detail
    frames = [event for event in [*bad, *accepted] if not isinstance(event, Rejected)]
    assert [(type(event), event.run, event.index) for event in frames] == [(Frame, good[0].run, 2)]
    np.testing.assert_array_equal(frames[0].pixels, hostile.pixels(2))


@pytest.mark.parametrize("case", CORPUS, ids=str)
def test_a_hostile_message_before_any_run_starts_none(case):
    running = decoder(case.format)
    events = [*feed(running, [case.message]), *running.finish()]
    kinds = {type(event) for event in events}
    needs_a_run = {"duplicate", "foreign", "shape", "dtype", "preview"}
    if case.reason in needs_a_run or "announced" in case.name:
        assert kinds - {Rejected} in (set(), {RunStart, Frame, RunEnd})  # alone it may be good
    else:
        assert kinds == {Rejected}


def test_the_whole_corpus_allocates_next_to_nothing():
    cases = [case for case in CORPUS if "2^" in case.name or "bomb" in case.name]
    assert len(cases) >= 10
    tracemalloc.start()
    try:
        for case in cases:
            feed(decoder(case.format), [case.message])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("kind", ["start", "image", "end"])
def test_stream_v2_cut_off_at_any_byte_is_refused_once(kind):
    start, image, _ = (message[0] for message in hostile.before("dectris-v2"))
    ids = {"series_id": hostile.SERIES, "series_unique_id": "01HRCJF83SA63WH8M5X1VBKFJM"}
    message = {"start": start, "image": image, "end": cbor2.dumps({"type": "end", **ids})}[kind]
    running = decoder("dectris-v2")
    feed(running, hostile.before("dectris-v2"))
    for size in range(len(message)):
        events = feed(running, [[message[:size]]])
        assert [type(event) for event in events] == [Rejected], size
        assert events[0].reason in {"truncated", "malformed"}, size
    assert [type(e) for e in feed(running, hostile.after("dectris-v2"))] == [Frame]


def damaged(draw, form):
    message = list(draw(st.sampled_from([*hostile.before(form), *hostile.after(form)])))
    for _ in range(draw(st.integers(1, 4))):
        number = draw(st.integers(0, len(message) - 1))
        part = bytearray(message[number])
        at = draw(st.integers(0, max(len(part) - 1, 0)))
        match draw(st.sampled_from(["flip", "cut", "insert", "drop", "repeat"])):
            case "flip" if part:
                part[at] ^= draw(st.integers(1, 255))
            case "cut":
                del part[at:]
            case "insert":
                part[at:at] = draw(st.binary(max_size=9))
            case "drop" if len(message) > 1:
                del message[number]
                continue
            case "repeat":
                message.insert(number, bytes(part))
        message[number] = bytes(part)
    return message


@given(data=st.data(), form=st.sampled_from(hostile.FORMATS), flat=st.booleans())
@settings(max_examples=150, deadline=None)
def test_random_damage_never_breaks_the_grammar(data, form, flat):
    running = decoder(form)
    messages = [*hostile.before(form), damaged(data.draw, form), *hostile.after(form)]
    if flat:
        messages = [[part] for message in messages for part in message]
    events = [*settled(running, messages), *running.finish()]
    open_run = None
    for event in events:
        if isinstance(event, RunStart):
            assert open_run is None
            open_run = event
        elif isinstance(event, Frame):
            assert (event.run, event.pixels.shape) == (open_run.run, open_run.shape)
            assert event.pixels.dtype == open_run.dtype
        elif isinstance(event, RunEnd):
            assert event.run == open_run.run
            open_run = None
    assert open_run is None
