"""Bad messages in the formats of single facilities; see ``hostile``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from quietbeam.core.events import RejectReason
from quietbeam.testing.simulators.encoders import Message, json_bytes

Cases = Iterator[tuple[str, RejectReason, Message]]

_PICKLE = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93."


def _json_cases(good: Message, *, number: str, dtype: str, wide: Any) -> Cases:
    """What any JSON header followed by data can get wrong.

    Args:
        good: A message that would be accepted.
        number: Key of the frame number.
        dtype: Key of the dtype.
        wide: Its value for 4-byte pixels; None where another dtype begins another run.
    """

    def changed(changes: Mapping[str, Any], blob: bytes = good[1]) -> Message:
        header = {**json.loads(good[0]), **changes}
        kept = {key: value for key, value in header.items() if value is not ...}
        return [json_bytes(**kept), blob]

    yield "rubbish", "malformed", [b"\xff\xfe\xfd"]
    yield "an empty message", "malformed", [b""]
    yield "a header cut off", "malformed", [good[0][:-9], good[1]]
    yield "a JSON list", "malformed", [b"[1, 2, 3]"]
    yield "a pickle", "unsafe", [_PICKLE]
    yield "a pickle of contrast", "unsafe", [b"\x80\x04}(X\x06status X\x09heartbeat u."]
    yield "a pickle of protocol 0", "unsafe", [b"(dp0\nVstatus\np1\nVheartbeat\np2\ns."]
    yield "an event of bluesky", "unsafe", [b"raw event \x80\x05}q\x00."]
    yield "data of OnDA", "unsafe", [b"ondadata", _PICKLE]
    yield "numbers of msgpack_numpy", "unsafe", [b"\x81\xa3abc\x83\xc4\x02nd\xc3\xc4\x04type"]
    yield "no frame number", "malformed", changed({number: ...})
    yield "a negative frame number", "malformed", changed({number: -2})
    yield "a frame number of 70 bits", "malformed", changed({number: 2**70})
    yield "a frame number seen before", "duplicate", changed({number: 1})
    yield (
        "a Python object as dtype",
        "malformed" if dtype == "bitmode" else "dtype",
        changed({dtype: "object"}),
    )
    if wide is not None:
        yield "another dtype than the run's", "dtype", changed({dtype: wide}, 2 * good[1])
    yield "no shape", "shape", changed({"shape": ...})
    yield "a size of zero", "shape", changed({"shape": [0, 32]})
    yield "a shape of many axes", "shape", changed({"shape": [2] * 100})
    yield "a shape that is text", "shape", changed({"shape": "24x32"})
    yield "an image of 2^80 pixels", "oversized", changed({"shape": [2**40, 2**40]})
    yield "too few bytes", "truncated", changed({}, good[1][:-2])
    yield "too many bytes", "oversized", changed({}, good[1] + b"\0\0")
    yield "no bytes", "truncated", changed({}, b"")
    yield "a header without data", "truncated", good[:1]


def _stins_cases(good: Message) -> Cases:
    header = json.loads(good[0])
    yield from _json_cases(good, number="frame", dtype="type", wide="uint32")
    yield "an unknown type", "unknown_type", [json_bytes(**{**header, "htype": "surprise"})]
    yield "a type that is a list", "unknown_type", [json_bytes(**{**header, "htype": ["image"]})]
    yield "an unknown codec", "compression", [json_bytes(**{**header, "compression": "x"}), good[1]]
    yield "a frame to discard", "preview", [json_bytes(**{**header, "discard": True}), good[1]]
    many = json_bytes(**{**header, "shape": [2**40, 24, 32]})
    yield "2^40 thresholds", "shape", [many, good[1]]


def _odin_cases(good: Message) -> Cases:
    header = json.loads(good[0])
    yield from _json_cases(good, number="frame_num", dtype="dtype", wide=None)
    yield "blosc", "compression", [json_bytes(**{**header, "compression": "blosc"}), good[1]]
    yield "another dataset", "foreign", [json_bytes(**{**header, "dataset": "sum"}), good[1]]


def _sls_cases(good: Message) -> Cases:
    header = json.loads(good[0])
    yield from _json_cases(good, number="frameNumber", dtype="bitmode", wide=32)
    yield "12 bits", "dtype", [json_bytes(**{**header, "bitmode": 12}), good[1]]
    yield "no module there", "shape", [json_bytes(**{**header, "row": 2}), good[1]]
    yield "no grid", "shape", [json_bytes(**{**header, "detshape": None}), good[1]]
    yield "2^40 modules", "shape", [json_bytes(**{**header, "detshape": [1, 2**40]}), good[1]]


def _karabo_cases(good: Message) -> Cases:
    import msgpack

    first, values, *_, last, data = good
    last_header, first_header = msgpack.unpackb(last), msgpack.unpackb(first)

    def pack(header: Mapping[str, Any], **changes: Any) -> bytes:
        changed = {**header, **changes}
        return bytes(msgpack.packb({k: v for k, v in changed.items() if v is not ...}) or b"")

    def array(blob: bytes = data, **changes: Any) -> Message:
        return [first, values, pack(last_header, **changes), blob]

    def train(number: Any) -> Message:
        metadata = {**first_header["metadata"], "timestamp.tid": number}
        return [pack(first_header, metadata=metadata), values, last, data]

    yield "rubbish", "malformed", [b"\xff\xfe\xfd"]
    yield "an empty message", "malformed", [b""]
    yield "a pickle", "unsafe", [_PICKLE]
    yield "a pickle of karabo", "unsafe", [b"\x80\x04}(\x8c\x06source\x8c\x01a\x8c\x07contentu."]
    yield "version 1.0", "unsafe", [pack({"a/b/c": {"x": 1, "metadata": {}}})]
    numpy = {"a/b/c": {"x": {b"nd": True, b"type": "<u2", b"kind": b"", b"data": b"12"}}}
    yield "version 1.0 with numbers", "unsafe", [pack(numpy)]
    yield "a header cut off", "malformed", [first[:-5], values]
    yield "bytes after a header", "malformed", [first + b"\0", values]
    yield "a million nested lists", "malformed", [b"\x91" * 1_000_000]
    yield "a list of 2^32 entries", "malformed", [b"\xdd\xff\xff\xff\xff"]
    yield "a header of 5 MB", "oversized", [pack(first_header, more="x" * 5_000_000), values]
    yield "a list", "malformed", [b"\x93\x01\x02\x03"]
    yield "no source", "malformed", [pack(first_header, source=...), values]
    yield "content nobody knows", "unknown_type", [pack(first_header, content="image"), values]
    yield "content that is a list", "unknown_type", [pack(first_header, content=["array"]), values]
    yield "a header without data", "truncated", good[:-1]
    yield "a train seen before", "duplicate", train(first_header["metadata"]["timestamp.tid"] - 1)
    yield "no train", "malformed", train(None)
    yield "a train of 64 bits", "malformed", train(2**64 - 1)
    yield "a Python object as dtype", "dtype", array(dtype="object")
    yield "no shape", "shape", array(shape=...)
    yield "a size of zero", "shape", array(shape=[1, 1, 0, 32])
    yield "five axes", "shape", array(shape=[1, 1, 1, 24, 32])
    yield "an image of 2^80 pixels", "oversized", array(shape=[1, 1, 2**40, 2**40])
    yield "too few bytes", "truncated", array(data[:-2])
    yield "too many bytes", "oversized", array(data + b"\0\0")


CASES: Mapping[str, Callable[[Message], Cases]] = {
    "stins": _stins_cases,
    "xspress3": partial(_json_cases, number="frame", dtype="type", wide="uint32"),
    "odin": _odin_cases,
    "sls": _sls_cases,
    "karabo": _karabo_cases,
}
"""By format: given a message that would be accepted, (name, reason, message) of bad ones."""
