"""Python's own serialisation, for data only: what goes out, and what is refused coming in."""

import datetime as dt
import importlib
import os
import pathlib
from collections import OrderedDict, deque
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietbeam.offline.plain_objects import RefusedError, decode, encode

python = importlib.import_module("pickle")  # Python's own writer and reader: the other side

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
PLAIN = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)
DOCUMENT = {
    "uid": "3f",
    "time": 1.7e9,
    "scan_id": 12,
    "sample": {"name": "NMC", "Ω": [1, 2.5, None, True]},
    "big": 1 << 70,
    "shape": (512, 512),
}


@given(PLAIN)
def test_what_is_written_is_what_python_itself_reads(value):
    assert python.loads(encode(value)) == value


@given(PLAIN, st.integers(3, 5))
def test_what_python_writes_is_read_back(value, protocol):
    assert decode(python.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_document_with_numpy_inside_is_read(protocol):
    sent = DOCUMENT | {
        "motor": np.float64(2.5),
        "count": np.int32(7),
        "flag": np.bool_(True),
        "ordered": OrderedDict(a=1),
        "queue": deque([1, 2], 5),
    }
    got = decode(python.dumps(sent, protocol=protocol))
    assert (got["motor"], got["count"], got["flag"]) == (2.5, 7, True)
    assert (got["ordered"], got["queue"]) == ({"a": 1}, [1, 2])


@pytest.mark.parametrize("dtype", ["<f4", ">u2", "i8", "S3"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_come_back_equal(dtype, protocol):
    for array in (
        np.arange(6).astype(dtype).reshape(2, 3),
        np.asfortranarray(np.arange(6).astype(dtype).reshape(2, 3)),
    ):
        got = decode(python.dumps({"a": array}, protocol=protocol))["a"]
        np.testing.assert_array_equal(got, array)


class Poison:
    def __init__(self, function, *arguments):
        self.what = (function, arguments)

    def __reduce__(self):
        return self.what


POISONED = {
    "a command": Poison(os.system, "touch trap"),
    "code": Poison(eval, "open('trap', 'w')"),
    "an import": Poison(__import__, "antigravity"),
    "a deeper command": {"start": [Poison(os.system, "touch trap")]},
    "a path": pathlib.PurePosixPath("/etc/passwd"),
    "a date": dt.datetime(2026, 1, 1),
    "an object array": np.array([Poison(os.system, "touch trap")], object),
    "a class": os.PathLike,
}


@pytest.mark.parametrize("name", POISONED)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_poison_is_refused_and_not_run(name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = python.dumps(POISONED[name], protocol=protocol)
    with pytest.raises(RefusedError):
        decode(message)
    assert not list(tmp_path.iterdir())


HOSTILE = {
    "nothing": b"",
    "no end": b"\x80\x04}",
    "an empty stack": b"\x80\x04.",
    "not these bytes at all": b"hello",
    "a list in itself": b"\x80\x03]q\x00h\x00a.",
    "a dictionary in itself": b"\x80\x03}q\x00X\x01\x00\x00\x00ah\x00s.",
    "a lone mark": b"\x80\x03(.",
    "an unhashable key": b"\x80\x03}]]s.",
    "a bare name": b"\x80\x03cnumpy\ndtype\n.",
    "a call of data": b"\x80\x03X\x01\x00\x00\x00a)R.",
    "a number too long": b"\x80\x03\x8b\xff\xff\xff\x7f.",
    "state of a list": b"\x80\x03]}b.",
    "an extension": b"\x80\x03\x82\x01.",
    "a persistent id": b"\x80\x03X\x01\x00\x00\x00aQ.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused(name):
    with pytest.raises(RefusedError):
        decode(HOSTILE[name])


def test_a_few_bytes_that_unfold_into_billions_are_refused():
    layers = b"".join(b"](" + b"h\x00" * 10 + b"eq\x00" for _ in range(20))
    with pytest.raises(RefusedError, match="unfolds"):
        decode(b"\x80\x03]q\x00" + layers + b".")


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused_and_never_raise_anything_else(noise):
    with suppress(RefusedError):
        decode(b"\x80\x04" + noise)


@given(st.data())
def test_damaged_documents_are_read_or_refused(data):
    message = bytearray(python.dumps(DOCUMENT | {"x": np.float64(1)}, protocol=4))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with suppress(RefusedError):
        decode(bytes(message))


def test_only_plain_data_are_written():
    with pytest.raises(TypeError, match="ndarray"):
        encode({"image": np.zeros(3)})
