"""Messages that a source must refuse, each with exactly one ``Rejected``, and survive.

For authors of sources: send ``before(format)``, then the messages of one
case, then ``after(format)``, whose frame must be accepted.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import cbor2
import numpy as np
from numpy.typing import NDArray

from quietbeam.core.events import Frame, RejectReason, RunStart
from quietbeam.testing.hostile_facilities import CASES
from quietbeam.testing.simulators import compress
from quietbeam.testing.simulators.encoders import DectrisV1, DectrisV2, Encoder, Message
from quietbeam.testing.simulators.formats import encoder

SHAPE = (24, 32)
SERIES = 7
FORMATS = ("array-1.0", "dectris-v1", "dectris-v2", *CASES)
_LZ4_BOMB = b"\x1f\0\x01\0" + b"\xff" * 40_000 + b"\0"  # one byte, repeated 10 million times
_OLD_PICKLE = b"cposix\nsystem\n(S'true'\ntR."  # protocol 0 is text
_PICKLE = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93."
_UNIQUE = "01HRCJF83SA63WH8M5X1VBKFJM"
_OLDER = "01AAAAAAAAAAAAAAAAAAAAAAAA"


@dataclass(frozen=True, slots=True)
class HostileCase:
    """One bad message.

    Attributes:
        name: What is wrong, in words.
        format: One of ``FORMATS``.
        message: Its parts.
        reason: Why it must be refused.
    """

    name: str
    format: str
    message: Message
    reason: RejectReason

    def __str__(self) -> str:
        return f"{self.format}: {self.name}"


def corpus() -> list[HostileCase]:
    """Every case of every format."""
    builders = {"array-1.0": _array_cases, "dectris-v1": _v1_cases, "dectris-v2": _v2_cases}
    builders |= {form: partial(cases, after(form)[0]) for form, cases in CASES.items()}
    return [
        HostileCase(name, form, message, reason)
        for form, cases in builders.items()
        for name, reason, message in cases()
    ]


def pixels(number: int) -> NDArray[np.uint16]:
    """Give the image of a good frame: SHAPE, uint16."""
    return np.random.default_rng(number).poisson(9, SHAPE).astype(np.uint16)


def before(form: str) -> list[Message]:
    """A series that goes well so far: its header and the frames 0 and 1."""
    sending = _encoder(form)
    return [*sending.start(_run()), *_frames(sending, 0, 1)]


def after(form: str) -> list[Message]:
    """The good frame 2 of the same series."""
    sending = _encoder(form)
    sending.start(_run())
    _frames(sending, 0, 1)
    return _frames(sending, 2)


def _run() -> RunStart:
    return RunStart(run=_UNIQUE, shape=SHAPE, dtype=np.dtype("u2"), frames_expected=100)


def _encoder(form: str) -> Encoder:
    if form == "dectris-v1":
        return DectrisV1(series=SERIES)
    return DectrisV2(series=SERIES) if form == "dectris-v2" else encoder(form)


def _frames(encoder: Encoder, *numbers: int) -> list[Message]:
    return [
        message
        for n in numbers
        for message in encoder.frame(
            Frame(run=_UNIQUE, index=n, time_ns=n, received_ns=n, pixels=pixels(n))
        )
    ]


Cases = Iterator[tuple[str, RejectReason, Message]]


def _json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _changed(base: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Replace keys; a key set to ``...`` is left out."""
    return {key: value for key, value in {**base, **changes}.items() if value is not ...}


def _array(payload: bytes | None = None, **changes: Any) -> Message:
    base = {"htype": "array-1.0", "shape": list(SHAPE), "type": "uint16", "frame": 2}
    return [_json(**_changed(base, **changes)), pixels(2).tobytes() if payload is None else payload]


def _shape_twice() -> Message:
    header, payload = _array(shape=[8])
    return [b'{"shape":[24,32],' + header[1:], payload]


def _bomb(block_bytes: int) -> bytes:
    """One LZ4 block of 10 MB behind a header that promises no more than the image has."""
    size = pixels(2).nbytes
    header = size.to_bytes(8, "big") + block_bytes.to_bytes(4, "big")
    return header + len(_LZ4_BOMB).to_bytes(4, "big") + _LZ4_BOMB


def _nested(levels: int) -> list[Any]:
    return [] if levels == 1 else [_nested(levels - 1)]


def _array_cases() -> Cases:
    raw = pixels(2).tobytes()
    yield "an empty message", "malformed", [b""]
    yield "bytes without a header", "malformed", [raw]
    yield "a header cut off", "malformed", [b'{"htype":"array-1.0","shape":[24', raw]
    yield "a JSON list", "malformed", [b"[1, 2, 3]"]
    yield "a JSON number", "malformed", [b"17"]
    yield "a header that is not UTF-8", "malformed", [b'{"htype":"array-1.0\xff\xfe"}', raw]
    yield "a pickle", "unsafe", [_PICKLE]
    yield "an old pickle", "unsafe", [_OLD_PICKLE]
    yield "a pickle as data", "truncated", _array(_PICKLE)
    yield "a header in UTF-16", "malformed", [_array()[0].decode().encode("utf-16"), raw]
    yield "a header with half a character", "malformed", _array(x=float("nan"), y="\ud800")
    yield "1000 parts of rubbish", "malformed", [b"\xff"] * 1000
    yield "1000 empty parts", "malformed", [b""] * 1000
    yield "a header and 1000 parts of rubbish", "truncated", [_array()[0], *[b"\xff"] * 1000]
    yield "no shape", "shape", _array(shape=...)
    yield "no type", "dtype", _array(type=...)
    yield "no frame number", "malformed", _array(frame=...)
    yield "a negative frame number", "malformed", _array(frame=-1)
    yield "a frame number of 70 bits", "malformed", _array(frame=2**70)
    yield "a frame number with a fraction", "malformed", _array(frame=1.5)
    yield "a frame number that is true", "malformed", _array(frame=True)
    yield "a frame number of 5000 digits", "malformed", _array(frame=10**4000)
    yield "a frame number that is not a number", "malformed", _array(frame=float("nan"))
    yield "a frame number that is infinite", "malformed", _array(frame=float("-inf"))
    yield "too few bytes", "truncated", _array(raw[:-2])
    yield "too many bytes", "oversized", _array(raw + b"\0\0")
    yield "no bytes", "truncated", _array(b"")
    yield "a header without data", "truncated", _array()[:1]
    yield "a type of message nobody reads", "unknown_type", [_json(htype="bsr_m-1.1", pulse_id=1)]
    yield "an htype that is a number", "unknown_type", _array(htype=17)
    yield "a frame number seen before", "duplicate", _array(frame=1)
    yield "a header nested too deep", "malformed", [b'{"shape":' + b"[" * 50_000, raw]
    yield "a header nested 200 deep", "malformed", _array(x=_nested(200))
    yield "a header of 200 000 lists", "oversized", _array(x=[[]] * 200_000)
    yield "a header of 5 MB", "oversized", [_json(htype="array-1.0", x="x" * 5_000_000), raw]
    yield from _array_type_cases(raw)
    yield from _array_compressed_cases(raw)


def _array_type_cases(raw: bytes) -> Cases:
    yield "no axes", "shape", _array(shape=[])
    yield "a negative size", "shape", _array(shape=[-24, 32])
    yield "a size of zero", "shape", _array(shape=[0, 32])
    yield "a hundred images in one", "shape", _array(shape=[100, 24, 32])
    yield "three channels that are one", "truncated", _array(shape=[3, 24, 32])
    yield "three channels with two names", "shape", _array(shape=[3, 24, 32], channels=["a", "b"])
    yield "channels of one name", "malformed", _array(shape=[2, 24, 32], channels=["a", "a"])
    yield "names of channels that are none", "malformed", _array(shape=[2, 24, 32], channels=[1, 2])
    yield "a shape that is text", "shape", _array(shape="24x32")
    yield "a shape that is a map", "shape", _array(shape={"0": 24, "1": 32})
    yield "a shape of lists", "shape", _array(shape=[[24], [32]])
    yield "a shape of ten axes", "shape", _array(raw[:2], shape=[1] * 8 + [24, 32])
    yield "a shape twice, the last one wrong", "shape", _shape_twice()
    yield "sizes with fractions", "shape", _array(shape=[24.5, 32])
    yield "a size that is not a number", "shape", _array(shape=[float("nan"), 32])
    yield "a size that is infinite", "shape", _array(shape=[float("inf"), 32])
    yield "a size that is true", "shape", _array(shape=[True, 32])
    yield "a size of minus 2^62", "shape", _array(shape=[-(2**62), 32])
    yield "a size of 5000 digits", "shape", _array(shape=[10**4000, 32])
    yield "a shape of many axes", "shape", _array(shape=[2] * 10_000)
    yield "an image of 2^80 pixels", "oversized", _array(shape=[2**40, 2**40])
    yield "a Python object as dtype", "dtype", _array(type="object")
    yield "complex pixels", "dtype", _array(type="complex64")
    yield "a void dtype", "dtype", _array(type="|V8")
    yield "a dtype that is a number", "dtype", _array(type=16)
    yield "an endianness nobody has", "dtype", _array(endianness="middle")
    yield "an endianness that is a list", "dtype", _array(endianness=["little"])


def _array_compressed_cases(raw: bytes) -> Cases:
    packed, lz4 = compress.bslz4(pixels(2)), compress.lz4(pixels(2))
    deflated = zlib.compress(raw)
    bomb = zlib.compress(bytes(10_000_000))
    yield "a codec we do not have", "compression", _array(encoding="blosc")
    yield "lossy compression", "compression", _array(encoding="jpeg")
    yield "a codec that is a number", "compression", _array(encoding=3)
    yield "LZ4 that is rubbish", "compression", _array(b"\xff" * 99, encoding="lz4")
    yield "bslz4 that is rubbish", "compression", _array(b"\xff" * 99, encoding="bslz4")
    yield "bslz4 cut off", "compression", _array(packed[:-40], encoding="bslz4")
    yield "LZ4 cut off", "compression", _array(lz4[:-40], encoding="lz4")
    yield "bslz4 of nothing", "truncated", _array(b"", encoding="bslz4")
    huge = (2**40).to_bytes(8, "big")
    yield (
        "bslz4 that declares 2^40 bytes",
        "compression",
        _array(huge + packed[8:], encoding="bslz4"),
    )
    yield (
        "LZ4 that declares 2^62 bytes",
        "compression",
        _array((2**62).to_bytes(8, "big") + lz4[8:], encoding="lz4"),
    )
    yield "an LZ4 bomb", "compression", _array(_LZ4_BOMB, encoding="lz4")
    yield "an LZ4 bomb in bslz4", "compression", _array(_bomb(8192), encoding="bslz4")
    for size in (0, 1, 2**32 - 1):
        blob = packed[:8] + size.to_bytes(4, "big") + packed[12:]
        yield f"bslz4 of {size}-byte blocks", "compression", _array(blob, encoding="bslz4")
    yield "zlib that is rubbish", "compression", _array(b"rubbish!", encoding="zlib")
    yield "zlib cut off", "truncated", _array(deflated[:-100], encoding="zlib")
    yield "a zlib bomb", "oversized", _array(bomb, encoding="zlib")


def _v1(
    blob: bytes | None = None,
    first: Mapping[str, Any] | None = None,
    times: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Message:
    blob = pixels(2).tobytes() if blob is None else blob
    announcement = {"htype": "dimage-1.0", "series": SERIES, "frame": 2, "hash": ""}
    description = {"htype": "dimage_d-1.0", "shape": list(SHAPE[::-1]), "type": "uint16"}
    description |= {"encoding": "<", "size": len(blob)}
    clock = {"htype": "dconfig-1.0", "start_time": 1, "stop_time": 2, "real_time": 1}
    return [
        _json(**_changed(announcement, **(first or {}))),
        _json(**_changed(description, **changes)),
        blob,
        _json(**_changed(clock, **(times or {}))),
    ]


def _v1_cases() -> Cases:
    raw = pixels(2).tobytes()
    good = _v1()
    yield "rubbish", "malformed", [b"\xff\xfe\xfd"]
    yield "an empty message", "malformed", [b""]
    yield "JSON cut off", "malformed", [b'{"htype":"dimage-1.0","ser', *good[1:]]
    yield "a pickle", "unsafe", [_PICKLE]
    yield "an old pickle", "unsafe", [_OLD_PICKLE]
    yield "a pickle as data", "truncated", [*good[:2], _PICKLE, good[3]]
    yield "1000 parts of rubbish", "malformed", [b"\xff"] * 1000
    yield "JSON nested 200 deep", "malformed", _v1(first={"x": _nested(200)})
    yield "JSON of 200 000 lists", "oversized", _v1(first={"x": [[]] * 200_000})
    yield "an htype that is a list", "unknown_type", [_json(htype=["dimage-1.0"], series=SERIES)]
    yield "an htype that is a map", "unknown_type", [_json(htype={"dimage": 1}, series=SERIES)]
    yield "no series", "malformed", _v1(first={"series": ...})
    yield "a series of 70 bits", "malformed", _v1(first={"series": 2**70})
    yield "a series that is not a number", "malformed", _v1(first={"series": float("nan")})
    yield "a negative series", "malformed", _v1(first={"series": -7})
    yield "a series that is text", "malformed", _v1(first={"series": "seven"})
    yield "a frame of an older series", "foreign", _v1(first={"series": SERIES - 1})
    yield "no frame number", "malformed", _v1(first={"frame": ...})
    yield "a negative frame number", "malformed", _v1(first={"frame": -2})
    yield "a frame number of 64 bits", "malformed", _v1(first={"frame": 2**63})
    yield "a frame number seen before", "duplicate", _v1(first={"frame": 1})
    yield "an unknown type", "unknown_type", [_json(htype="dsurprise-1.0", series=SERIES)]
    yield "JSON of no type", "malformed", [_json(series=SERIES)]
    yield "no description", "truncated", [good[0]]
    yield "no data", "truncated", [good[0], good[1], good[3]]
    yield "a description without announcement", "no_run", good[1:]
    yield "two descriptions", "no_run", [good[0], good[1], *good[1:]]
    yield "times without an image", "no_run", good[3:]
    yield "a start time that is text", "malformed", _v1(times={"start_time": "noon"})
    yield "a negative start time", "malformed", _v1(times={"start_time": -1})
    yield "a start time of 70 bits", "malformed", _v1(times={"start_time": 2**70})
    yield "a header without series", "malformed", [_json(htype="dheader-1.0"), _json(nimages=1)]
    yield "the end of another series", "foreign", [_json(htype="dseries_end-1.0", series=99)]
    yield "an end without series", "malformed", [_json(htype="dseries_end-1.0")]
    yield "a size of zero", "shape", _v1(shape=[0, 24])
    yield "three images in one", "shape", _v1(shape=[32, 24, 3])
    yield "another shape than the run's", "shape", _v1(raw[:128], shape=[8, 8])
    yield "an image of 2^80 pixels", "shape", _v1(shape=[2**40, 2**40])
    yield "a Python object as dtype", "dtype", _v1(type="object")
    yield "another dtype than the run's", "dtype", _v1(raw * 2, type="uint32")
    yield "too few bytes", "truncated", _v1(raw[:-2])
    yield "too many bytes", "oversized", _v1(raw + b"\0\0")
    yield "no bytes", "truncated", _v1(b"")
    yield "fewer bytes than declared", "truncated", _v1(size=len(raw) + 5)
    yield "more bytes than declared", "oversized", _v1(size=len(raw) - 5)
    yield "a declared size that is negative", "malformed", _v1(size=-1)
    yield "a declared size of 64 bits", "malformed", _v1(size=2**63)
    yield from _v1_compressed_cases()


def _v1_compressed_cases() -> Cases:
    packed = compress.bslz4(pixels(2))
    yield "an unknown encoding", "compression", _v1(encoding="bs16-snappy<")
    yield "an encoding that is a number", "compression", _v1(encoding=16)
    yield "an encoding that is a list", "compression", _v1(encoding=["lz4<"])
    yield "an encoding of 5000 digits", "compression", _v1(encoding=f"bs{'9' * 5000}-lz4<")
    yield "bitshuffle without LZ4", "compression", _v1(encoding="bs16<")
    yield "bitshuffle of other bits", "compression", _v1(packed, encoding="bs32-lz4<")
    yield "LZ4 that is rubbish", "compression", _v1(b"\xff" * 99, encoding="lz4<")
    yield "an LZ4 bomb", "compression", _v1(_LZ4_BOMB, encoding="lz4<")
    yield "an LZ4 bomb in bslz4", "compression", _v1(_bomb(8192), encoding="bs16-lz4<")
    yield "bslz4 cut off", "compression", _v1(packed[:-40], encoding="bs16-lz4<")
    huge = (2**40).to_bytes(8, "big") + packed[8:]
    yield "bslz4 that declares 2^40 bytes", "compression", _v1(huge, encoding="bs16-lz4<")


def _v2(**changes: Any) -> Message:
    base = {
        "type": "image",
        "series_id": SERIES,
        "series_unique_id": _UNIQUE,
        "image_id": 2,
        "start_time": [2, 50_000_000],
        "data": {"threshold_1": _image()},
    }
    return [cbor2.dumps(cbor2.CBORTag(55799, _changed(base, **changes)))]


def _v2_start(**fields: Any) -> Message:
    ids = {"series_id": SERIES, "series_unique_id": _UNIQUE}
    return [cbor2.dumps({"type": "start", **ids, **fields})]


def _image(shape: Any = SHAPE, tag: int = 69, data: Any = None) -> cbor2.CBORTag:
    data = pixels(2).tobytes() if data is None else data
    shape = list(shape) if isinstance(shape, tuple) else shape
    return cbor2.CBORTag(40, [shape, cbor2.CBORTag(tag, data)])


def _data(shape: Any = SHAPE, tag: int = 69, data: Any = None) -> Message:
    return _v2(data={"threshold_1": _image(shape, tag, data)})


def _v2_cases() -> Cases:
    good = _v2()[0]
    ids = {"series_id": SERIES, "series_unique_id": _UNIQUE}
    yield "an empty message", "malformed", [b""]
    yield "rubbish", "malformed", [b"\xff\xfe\xfd"]
    yield "a pickle", "unsafe", [_PICKLE]
    yield "a message cut off", "truncated", [good[: len(good) // 2]]
    yield "bytes after the end", "malformed", [good + b"\0"]
    yield "two messages in one", "malformed", [good + good]
    yield "a key twice", "malformed", [b"\xa2" + 2 * (cbor2.dumps("type") + cbor2.dumps("end"))]
    yield "a key twice, in two spellings", "malformed", [b"\xa2\x64type\x00\x78\x04type\x00"]
    yield "a key in pieces", "malformed", [b"\xa1\x7f\x62ty\x62pe\xff\x63end"]
    yield "a key of a megabyte", "unknown_type", [cbor2.dumps({"x" * 1_000_000: 0})]
    yield "an old pickle", "unsafe", [_OLD_PICKLE]
    yield "no type", "unknown_type", _v2(type=...)
    yield "an unknown type", "unknown_type", _v2(type="calibration")
    yield "a type that is a list", "unknown_type", _v2(type=["image"])
    yield "no series", "malformed", _v2(series_id=...)
    yield "a negative series", "malformed", _v2(series_id=-1)
    yield "a series that is text", "malformed", _v2(series_id="seven")
    yield "a unique id that is a number", "malformed", _v2(series_unique_id=17)
    yield "a unique id of 1000 letters", "malformed", _v2(series_unique_id="x" * 1000)
    yield "a frame of an older series", "foreign", _v2(series_id=1, series_unique_id=_OLDER)
    yield "no frame number", "malformed", _v2(image_id=...)
    yield "a negative frame number", "malformed", _v2(image_id=-1)
    yield "a frame number of 64 bits", "malformed", _v2(image_id=2**64 - 1)
    yield "a frame number of 70 bits", "unsafe", _v2(image_id=2**70)
    yield "a frame number that is not a number", "malformed", _v2(image_id=float("nan"))
    yield "a frame number that is true", "malformed", _v2(image_id=True)
    yield "a frame number seen before", "duplicate", _v2(image_id=1)
    yield "a time with denominator zero", "malformed", _v2(start_time=[1, 0])
    yield "a time that is text", "malformed", _v2(start_time="noon")
    yield "a time of 146 billion years", "malformed", _v2(start_time=[2**62, 1])
    yield (
        "the end of another series",
        "foreign",
        [cbor2.dumps({"type": "end", "series_id": 1, "series_unique_id": _OLDER})],
    )
    yield "an end without series", "malformed", [cbor2.dumps({"type": "end"})]
    yield (
        "a start of an image without pixels",
        "shape",
        [cbor2.dumps({"type": "start", **ids, "image_size_x": 0, "image_size_y": 24})],
    )
    for what, channel in {"bytes": b"x", "a list": [1], "a number": 17}.items():
        start = {"type": "start", **ids, "channels": [channel]}
        yield f"a start of a channel that is {what}", "malformed", [cbor2.dumps(start)]
    yield from _v2_structure_cases()
    yield from _v2_data_cases()
    yield from _v2_compressed_cases()


def _v2_structure_cases() -> Cases:
    """Bombs against a CBOR decoder."""
    yield "lists 200 deep", "malformed", _v2(user_data=_nested(200))
    yield "a million nested lists", "malformed", [b"\xa1\x61x" + b"\x81" * 1_000_000]
    yield "a million nested tags", "malformed", [b"\xa1\x61x" + b"\xd8\x28" * 1_000_000]
    yield "a map of 2^40 entries", "truncated", [b"\xbb" + (2**40).to_bytes(8, "big")]
    yield "a list of 2^62 entries", "truncated", [b"\xa1\x61x\x9b" + (2**62).to_bytes(8, "big")]
    yield "bytes of 2^63", "truncated", [b"\xa1\x61x\x5b" + (2**63).to_bytes(8, "big")]
    yield "a list without an end", "truncated", [b"\xa1\x61x\x9f\x00\x00"]
    yield "a map without an end", "truncated", [b"\xbf\x61x\x00"]
    yield "a map that ends after a key", "truncated", [b"\xa1\x61x"]
    yield "text in pieces of bytes", "malformed", [b"\xa1\x61x\x7f\x41a\xff"]
    yield "bytes in 50 000 pieces", "unknown_type", [b"\xa1\x61x\x5f" + b"\x41a" * 50_000 + b"\xff"]
    yield "50 000 maps of one entry", "oversized", _v2(user_data=[{0: 0}] * 50_000)
    yield "a length nobody uses", "malformed", [b"\xa1\x61x\x1c"]
    yield "a tag of 64 bits", "unsafe", [b"\xa1\x61x\xdb" + b"\xff" * 8 + b"\x00"]
    yield "a break where none may be", "malformed", [b"\xa1\x61x\xff"]
    yield "text that is not UTF-8", "malformed", [b"\xa1\x64ty\xff\xfe\x00"]
    yield "a map as key", "malformed", [b"\xa1\xa1\x00\x00\x00"]
    yield "a regular expression", "unsafe", _v2(user_data=cbor2.CBORTag(35, "(a{999}){999}"))
    yield "a number of a million bits", "unsafe", _v2(user_data=2**1_000_000)
    yield "a reference to itself", "unsafe", _v2(user_data=cbor2.CBORTag(28, [1]))
    yield "a date that is none", "malformed", _v2(series_date=cbor2.CBORTag(0, "yesterday"))
    yield "200 000 items", "oversized", _v2(user_data=[0] * 200_000)


def _v2_data_cases() -> Cases:
    raw = pixels(2).tobytes()
    yield "no data", "malformed", _v2(data=...)
    yield "data without channels", "malformed", _v2(data={})
    yield "data that is a list", "malformed", _v2(data=[_image()])
    yield "another channel than announced", "malformed", _v2(data={"threshold_9": _image()})
    yield "a start with a channel twice", "malformed", _v2_start(channels=["a", "a"])
    yield "a start with channels of no name", "malformed", _v2_start(channels=[1, ""])
    yield (
        "a start with 1000 channels",
        "oversized",
        _v2_start(channels=[str(n) for n in range(1000)]),
    )
    yield "an image that is only bytes", "malformed", _v2(data={"threshold_1": raw})
    yield (
        "an image without its shape",
        "malformed",
        _v2(data={"threshold_1": cbor2.CBORTag(40, [cbor2.CBORTag(69, raw)])}),
    )
    yield (
        "an image that is no typed array",
        "dtype",
        _v2(data={"threshold_1": cbor2.CBORTag(40, [list(SHAPE), raw])}),
    )
    yield "data that is text", "malformed", _data(data="pixels")
    yield "pixels of 128 bits", "dtype", _data(tag=83)
    yield "another dtype than the run's", "dtype", _data(tag=70, data=raw * 2)
    yield "another shape than the run's", "shape", _data((8, 8), data=raw[:128])
    yield "a preview of 2 by 2", "preview", _data((2, 2), data=raw[:8])
    yield "a size of zero", "shape", _data((0, 32))
    yield "a negative size", "shape", _data((-24, 32))
    yield "three images in one", "shape", _data((3, 24, 32))
    yield "a shape that is text", "shape", _data("24x32")
    yield "an image of 2^80 pixels", "oversized", _data((2**40, 2**40))
    yield "too few bytes", "truncated", _data(data=raw[:-2])
    yield "too many bytes", "oversized", _data(data=raw + b"\0\0")


def _v2_compressed_cases() -> Cases:
    packed, raw = compress.bslz4(pixels(2)), pixels(2).tobytes()
    huge = (2**40).to_bytes(8, "big") + packed[8:]

    def coded(*value: Any) -> Message:
        return _data(data=cbor2.CBORTag(56500, list(value)))

    yield "an algorithm that is a list", "compression", coded(["bslz4"], 2, packed)
    yield "an algorithm that is a map", "compression", coded({"bslz4": 1}, 2, packed)
    yield "compression of what is compressed", "malformed", coded("lz4", 0, _image())
    yield "elements of a size that is text", "compression", coded("bslz4", "2", packed)
    yield "an LZ4 bomb", "compression", coded("lz4", 0, _bomb(len(raw)))
    yield "an LZ4 bomb in bslz4", "compression", coded("bslz4", 2, _bomb(8192))
    zstd = compress.bszstd(pixels(2))
    yield "bszstd cut off", "compression", coded("bszstd", 2, zstd[:-40])
    yield "bszstd without a header", "oversized", coded("bszstd", 2, zstd[12:])
    yield "bslz4 that is called bszstd", "compression", coded("bszstd", 2, packed)
    yield "bszstd that declares 2^40 bytes", "oversized", coded("bszstd", 2, huge)
    for name in ("trpx", "zlib", "", "bslz4\0"):
        yield f"algorithm {name!r} of 2^40 bytes", "compression", coded(name, 2, huge)
    yield "an algorithm that is a number", "compression", coded(1, 2, packed)
    yield "elements of another size", "compression", coded("bslz4", 4, packed)
    yield "compression without a blob", "malformed", coded("bslz4", 2)
    yield "a blob that is text", "malformed", coded("bslz4", 2, "blob")
    yield "bslz4 cut off", "compression", coded("bslz4", 2, packed[:-40])
    yield "bslz4 of nothing", "truncated", coded("bslz4", 2, b"")
    yield "bslz4 that declares 2^40 bytes", "oversized", coded("bslz4", 2, huge)
    little = (64).to_bytes(8, "big") + packed[8:]
    yield "bslz4 that declares too few bytes", "truncated", coded("bslz4", 2, little)
    yield "LZ4 that is rubbish", "compression", coded("lz4", 0, packed[:12] + b"\xff" * 50)
