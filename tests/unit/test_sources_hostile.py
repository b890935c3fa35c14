"""Every malformed message is refused once, for the right reason, and changes nothing."""

import json
import re
import time
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import get_args

import cbor2
import msgpack
import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from helpers.sources import feed
from helpers.survival import FORMATS, assert_survives, decoder, settled
from quietbeam.core.events import Frame, Rejected, RejectReason, RunEnd, RunStart
from quietbeam.testing import hostile
from quietbeam.testing.hostile_damage import bits_turned, cut_off, small_series
from quietbeam.testing.simulators import UNCOMPRESSED

CORPUS = hostile.corpus()
GENEROUS_S = 1.0
"""A message takes microseconds; a hang takes for ever."""


def test_the_corpus_is_large_and_its_names_are_unique():
    names = [str(case) for case in CORPUS]
    assert len(set(names)) == len(names) >= 200
    assert {case.reason for case in CORPUS} == set(get_args(RejectReason))
    assert len(get_args(RejectReason)) <= 12


@pytest.mark.parametrize("case", CORPUS, ids=str)
def test_a_hostile_message_is_refused_once_and_the_next_frame_is_accepted(case):
    running = decoder(case.format)
    good = settled(running, hostile.before(case.format))
    assert [type(event) for event in good] == [RunStart, Frame, Frame]

    began_s = time.thread_time()
    bad = settled(running, [case.message])
    assert time.thread_time() - began_s < GENEROUS_S
    accepted = settled(running, hostile.after(case.format))

    refused = [event for event in [*bad, *accepted] if isinstance(event, Rejected)]
    assert [event.reason for event in refused] == [case.reason], refused
    assert 0 < len(refused[0].detail) < 500
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


def resident_bytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def test_the_whole_corpus_takes_next_to_no_memory():
    """Of the process, at its peak: libraries allocate beside Python."""
    for case in CORPUS[::10]:
        feed(decoder(case.format), [case.message])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_bytes("VmRSS")
    for case in CORPUS:
        feed(decoder(case.format), [case.message])
    assert resident_bytes("VmHWM") - before < 20_000_000


def test_bombs_allocate_next_to_nothing():
    bombs = [case for case in CORPUS if re.search(r"2\^|bomb|000 |million|MB", case.name)]
    assert len(bombs) >= 40
    tracemalloc.start()
    try:
        for case in bombs:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            feed(decoder(case.format), [case.message])
            assert tracemalloc.get_traced_memory()[1] - before < 20_000_000, case
    finally:
        tracemalloc.stop()


COMPRESSED = [
    (form, compression)
    for form in FORMATS
    for compression in (("none",) if form in UNCOMPRESSED else ("none", "lz4", "bslz4"))
]
SOME_OR_ALL = [7, pytest.param(1, marks=pytest.mark.slow)]
"""Every so many-th damage: all of them in the slow tests."""


@pytest.mark.parametrize("every", SOME_OR_ALL)
@pytest.mark.parametrize(("form", "compression"), COMPRESSED)
def test_a_message_cut_off_at_any_byte_gives_no_frame_and_harms_none(form, compression, every):
    needed = {"xspress3": (0, 1), "karabo": (0, 2, 3)}.get(form, (0, 1, 2))
    for kind, message in small_series(form, compression).items():
        running = decoder(form)
        for damaged in islice(cut_off(message), 0, None, every):
            events = [*settled(running, [damaged]), *running.finish()]
            assert sum(isinstance(event, Rejected) for event in events) <= 2
            # times and such that come after the data, or beside them, are no part of the frame
            whole = kind == "frame" and all(
                damaged[n : n + 1] == message[n : n + 1] for n in needed
            )
            assert whole or not any(isinstance(event, Frame) for event in events)
        for damaged in islice(cut_off(message), 0, None, 11 * every):
            assert_survives(form, damaged)


@pytest.mark.parametrize("every", SOME_OR_ALL)
@pytest.mark.parametrize(("form", "compression"), COMPRESSED)
def test_a_message_with_any_bit_turned_harms_no_other(form, compression, every):
    messages = small_series(form, compression)
    for message in messages.values() if compression == "none" else [messages["frame"]]:
        for damaged in islice(bits_turned(message), 0, None, every):
            assert_survives(form, damaged)


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


def header_v1(*more, **config):
    return [hostile._json(htype="dheader-1.0", series=9), hostile._json(**config), *more]


def start_v2(**content):
    sizes = {"image_size_x": 32, "image_size_y": 24, "image_dtype": "uint16"}
    return [cbor2.dumps({"type": "start", "series_id": 9, **sizes, **content})]


HEADERS = {
    "a mask of 2^80 pixels": header_v1(
        hostile._json(htype="dpixelmask-1.0", shape=[2**40, 2**40], type="uint32"), b"1234"
    ),
    "a flat field without shape": header_v1(hostile._json(htype="dflatfield-1.0"), b"1234"),
    "absurd sizes": header_v1(x_pixels_in_detector=-1, y_pixels_in_detector=2**70),
    "absurd numbers": header_v1(nimages=2**62, ntrigger=2**62, count_time=[], photon_energy="x"),
    "a config nested deep": header_v1(config=hostile._nested(31)),
    "an appendix that is no text": header_v1(b"\xff\xfe\x00" * 99_999, b"\xff"),
    "a name that is a path": start_v2(series_unique_id="../../etc/\0/x"),
    "data as user data": start_v2(user_data={b"\xff": [b"\0" * 999, {1: cbor2.CBORTag(64, b"")}]}),
    "a mask that is text": start_v2(pixel_mask={"threshold_1": "mask"}),
    "a mask of 2^80 pixels in CBOR": start_v2(pixel_mask={"x": hostile._image((2**40, 2**40))}),
    "lists as numbers": start_v2(frame_time=[], count_time={}, detector_translation=[{}, {}, {}]),
    "numbers beyond all bounds": start_v2(number_of_images=2**63, incident_energy=float("inf")),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("flat", [False, True])
def test_a_strange_header_costs_no_more_than_what_it_describes(name, flat):
    message = HEADERS[name]
    form = "dectris-v1" if message[0][:1] == b"{" else "dectris-v2"
    assert_survives(form, message, flat=flat)


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


@given(data=st.data(), form=st.sampled_from(FORMATS), flat=st.booleans())
@settings(max_examples=100, deadline=None)
def test_random_damage_never_breaks_the_grammar(data, form, flat):
    assert_survives(form, damaged(data.draw, form), flat=flat)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=9), inside),
    max_leaves=12,
)


def changed(form, changes):
    """A good message of one frame, with other values in fields of its header."""
    if form in BUILD:
        return BUILD[form](**changes)
    header, *more = hostile.after(form)[0]
    fields = msgpack.unpackb(header) if form == "karabo" else json.loads(header)
    keys = list(fields)
    fields |= {keys[int(number) % len(keys)]: value for number, value in changes.items()}
    try:
        coded = msgpack.packb(fields) if form == "karabo" else json.dumps(fields).encode()
    except OverflowError:  # msgpack has no such number
        reject()
    return [coded, *more]


BUILD = {"array-1.0": hostile._array, "dectris-v1": hostile._v1, "dectris-v2": hostile._v2}
KEYS = {
    "array-1.0": ["htype", "shape", "type", "frame", "encoding", "endianness", "timeStamp"],
    "dectris-v1": ["htype", "series", "frame", "shape", "type", "encoding", "size", "start_time"],
    "dectris-v2": ["type", "series_id", "image_id", "data", "start_time", "channels"],
}
ANY_KEYS = [str(number) for number in range(16)]


VALUES = [None, True, -1, 2**63, 1e308, "", "\0", [], [[]], {}, {"": {}}]
"""One of every kind of JSON, and those that cannot be hashed, compared or counted."""


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("form", FORMATS)
def test_one_value_of_every_kind_in_every_field_is_survived(form, value):
    for key in KEYS.get(form, ANY_KEYS):
        if form == "dectris-v1":
            message = changed(form, {"first": {key: value}, "times": {key: value}, key: value})
        else:
            message = changed(form, {key: value})
        assert_survives(form, message)


@given(data=st.data(), form=st.sampled_from(FORMATS), flat=st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_value_in_any_field_is_survived(data, form, flat):
    keys = st.sampled_from(KEYS.get(form, ANY_KEYS))
    changes = data.draw(st.dictionaries(keys, JSON, min_size=1, max_size=3))
    if form == "dectris-v1":
        changes = {"first": changes, "times": changes, **changes}
    assert_survives(form, changed(form, changes), mid_run=data.draw(st.booleans()), flat=flat)


@given(
    parts=st.lists(st.binary(max_size=200), max_size=5),
    form=st.sampled_from(FORMATS),
    mid_run=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_survived(parts, form, mid_run):
    assert_survives(form, parts, mid_run=mid_run)
