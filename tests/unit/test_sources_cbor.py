"""CBOR maps of detectors: long byte strings are not copied, all else is as cbor2 says."""

from collections.abc import Mapping

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietbeam_plugins.sources.cbor import plain, read_map
from quietbeam_plugins.sources.payload import RefusedError

LONG = bytes(range(256)) * 40


def copied(value):
    """Turn views back into bytes, so that both can be compared."""
    match value:
        case memoryview():
            return bytes(value)
        case cbor2.CBORTag():
            return value.tag, copied(value.value)
        case Mapping():
            return {key: copied(item) for key, item in value.items()}
        case list() | tuple():
            return [copied(item) for item in value]
    return value


def test_a_long_byte_string_is_a_view_of_the_message_wherever_it_stands():
    value = {"a": LONG, "b": [1, cbor2.CBORTag(40, [[2, 3], cbor2.CBORTag(64, LONG)])], "c": "x"}
    part = cbor2.dumps(value)
    found = read_map(part)
    assert copied(found) == copied(value)
    whole = np.frombuffer(part, "u1")
    for view in (found["a"], found["b"][1].value[1].value):
        assert np.shares_memory(np.frombuffer(view, "u1"), whole)


def test_a_byte_string_in_pieces_is_put_together():
    pieces = b"\x5f" + cbor2.dumps(LONG) + cbor2.dumps(b"12") + cbor2.dumps(LONG) + b"\xff"
    part = b"\xa2" + cbor2.dumps("a") + pieces + cbor2.dumps("b") + cbor2.dumps(LONG)
    assert copied(read_map(part)) == {"a": LONG + b"12" + LONG, "b": LONG}


@pytest.mark.parametrize("value", [0, 1, 2**40, -1, "x", LONG])
def test_a_message_cannot_say_by_itself_that_something_was_cut_out(value):
    part = cbor2.dumps({"a": cbor2.CBORTag(65531, value), "b": LONG})
    with pytest.raises(RefusedError) as refused:
        read_map(part)
    assert refused.value.event.reason == "unsafe"


def test_long_bytes_become_a_note_where_json_is_kept():
    assert plain(read_map(cbor2.dumps({"user_data": LONG}))) == {"user_data": "<10240 bytes>"}


VALUES = st.recursive(
    st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.text(max_size=9)
    | st.binary(max_size=9)
    | st.sampled_from([LONG, LONG[:4096], LONG[:4095]]),
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.dictionaries(st.text(max_size=9), inside, max_size=4)
        | inside.map(lambda value: cbor2.CBORTag(56500, value))
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=9), VALUES, max_size=5))
@settings(max_examples=60, deadline=None)
def test_every_map_is_read_as_it_was_written(value):
    assert copied(read_map(cbor2.dumps(value))) == copied(value)
