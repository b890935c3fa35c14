"""Reads one CBOR map of a detector, after making sure that reading it is harmless.

cbor2 accepts trailing rubbish and repeated keys, and some of its tags build
objects (tag 35 compiles a regular expression).  So the bytes are walked first:
lengths, depth and tags are checked before anything is allocated.  Long byte
strings, the pixels, are never given to cbor2, which copies them several times:
they become views of the message.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import datetime
from math import isfinite
from typing import Any

import cbor2

from quietbeam_plugins.sources.payload import Bytes, RefusedError, refuse_pickle

SELF_DESCRIBED = b"\xd9\xd9\xf7"
COMPRESSED = 56500
ROW_MAJOR, COLUMN_MAJOR = 40, 1040
_TAGS = {0, 1, ROW_MAJOR, COLUMN_MAJOR, 55799, COMPRESSED, *range(64, 88)} - {76}
_MAX_DEPTH = 32
_MAX_ITEMS = 100_000
_LENGTHS = {24: struct.Struct(">B"), 25: struct.Struct(">H")}
_LENGTHS |= {26: struct.Struct(">I"), 27: struct.Struct(">Q")}
_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_INDEFINITE = -1
_LONG_BYTES = 4096
_CUT = 65531  # a tag that detectors do not use: refused where a message has it
_INDEFINITE_INFO = 31
_BREAK = 0xFF


def is_cbor_map(part: Bytes) -> bool:
    """Tell whether a part starts as a CBOR map does, with or without self-description."""
    start = bytes(part[:4])
    if start[:3] == SELF_DESCRIBED:
        start = start[3:]
    return bool(start) and start[0] >> 5 == _MAP


def read_map(part: Bytes) -> Mapping[str, Any]:
    """Give a CBOR map; tags that are not dates stay ``CBORTag``, long byte strings are views.

    Raises:
        RefusedError: Not exactly one well-formed and harmless map.
    """
    if not is_cbor_map(part):
        refuse_pickle(part)
    long = check(part)
    try:
        # No tag_hook: its signature changed in cbor2 6, and nothing here needs one.
        message = cbor2.loads(_without(part, long))
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RefusedError("malformed", f"CBOR: {error!r:.200}") from None
    if not isinstance(message, Mapping):
        raise RefusedError("malformed", f"CBOR {type(message).__name__}, expected a map")
    return _put_back(message, [memoryview(part)[where] for _, where in long]) if long else message


def _without(part: Bytes, long: list[tuple[int, slice]]) -> bytes:
    """Put the number of each long byte string, tagged, in its place."""
    pieces: list[Bytes] = []
    at, view = 0, memoryview(part)
    for number, (start, content) in enumerate(long):
        pieces += [view[at:start], cbor2.dumps(cbor2.CBORTag(_CUT, number))]
        at = content.stop
    return b"".join([*pieces, view[at:]])


def _put_back(value: Any, long: list[memoryview]) -> Any:
    match value:
        case cbor2.CBORTag(tag=tag, value=inside):
            found = long[inside] if tag == _CUT else cbor2.CBORTag(tag, _put_back(inside, long))
        case Mapping():
            found = {key: _put_back(item, long) for key, item in value.items()}
        case list() | tuple():
            found = [_put_back(item, long) for item in value]
        case _:
            found = value
    return found


def check(part: Bytes) -> list[tuple[int, slice]]:
    """Walk one CBOR item and nothing after it.

    Returns:
        Of every long byte string: where it starts, and where its content is.

    Raises:
        RefusedError: It promises more bytes than there are, is nested too
            deep, repeats a key, has a tag no detector needs, or is followed
            by something.
    """
    walk = _Walk(part)
    end = walk.item()
    if end != len(part):
        raise RefusedError("malformed", f"{len(part) - end} bytes after the end of the CBOR map")
    return walk.long


class _Walk:
    """Steps over items without building them."""

    def __init__(self, part: Bytes) -> None:
        self._part = part
        self._at = 0
        self._items = 0
        self._in_string = False
        self.long: list[tuple[int, slice]] = []

    def item(self) -> int:
        """Step over one item with all it contains; give where it ends."""
        open_counts = [1]  # items still to come, for each level; negative until a break
        keys: set[bytes] = set()
        while open_counts:
            left = open_counts[-1]
            if left == 0:
                open_counts.pop()
                continue
            if left < 0 and self._is_break():
                open_counts.pop()
                continue
            if left > 0:
                open_counts[-1] -= 1
            at = self._at
            inside = self._head()
            if len(open_counts) == 2 and left % 2 == 0:  # a key of the outermost map
                self._note_key(bytes(self._part[at : self._at]), keys)
            if inside:
                # A self-described map counts as the outermost level, not its tag.
                if inside == 1 and len(open_counts) == 1:
                    open_counts[-1] += 1
                else:
                    open_counts.append(inside)
            if len(open_counts) > _MAX_DEPTH:
                raise RefusedError("malformed", f"nested deeper than {_MAX_DEPTH}")
        return self._at

    @staticmethod
    def _note_key(coded: bytes, keys: set[bytes]) -> None:
        major, info = coded[0] >> 5, coded[0] & 31
        if major != _TEXT or info == _INDEFINITE_INFO:
            raise RefusedError("malformed", f"key that is no text: {coded[:40]!r}")
        # Only the letters count: their number may be spelled in several ways.
        key = coded[1 + (_LENGTHS[info].size if info in _LENGTHS else 0) :]
        if key in keys:
            raise RefusedError("malformed", f"repeated key: {key[:40]!r}")
        keys.add(key)

    def _is_break(self) -> bool:
        if self._byte(self._at) != _BREAK:
            return False
        self._at += 1
        self._in_string = False
        return True

    def _head(self) -> int:
        """Step over one head, and over the content of a string; give the items inside."""
        self._items += 1
        if self._items > _MAX_ITEMS:
            raise RefusedError("oversized", f"more than {_MAX_ITEMS} items in one message")
        start, first = self._at, self._byte(self._at)
        self._at += 1
        major, info = first >> 5, first & 31
        length = self._length(major, info)
        if major in {_BYTES, _TEXT}:
            inside = self._string(length)
            if major == _BYTES and length >= _LONG_BYTES and not self._in_string:
                self.long.append((start, slice(self._at - length, self._at)))
            return inside
        if major == _ARRAY:
            return self._bounded(length)
        if major == _MAP:
            return length if length < 0 else self._bounded(2 * length)
        if major == _TAG:
            if length not in _TAGS:
                raise RefusedError("unsafe", f"tag {length}: not one that detectors use")
            return 1
        return 0

    def _length(self, major: int, info: int) -> int:
        if info < 24:
            return info
        if info in _LENGTHS:
            form = _LENGTHS[info]
            self._need(form.size)
            self._at += form.size
            return form.unpack_from(self._part, self._at - form.size)[0]
        if info == _INDEFINITE_INFO and major in {_BYTES, _TEXT, _ARRAY, _MAP}:
            return _INDEFINITE
        raise RefusedError("malformed", f"CBOR head {major}/{info} at byte {self._at - 1}")

    def _string(self, length: int) -> int:
        if length == _INDEFINITE:
            self._in_string = True  # made of pieces, which cbor2 puts together
            return _INDEFINITE
        self._need(length)
        self._at += length
        return 0

    def _bounded(self, items: int) -> int:
        self._need(max(items, 0))  # every item takes a byte at least
        return items

    def _need(self, size: int) -> None:
        if size > len(self._part) - self._at:
            left = len(self._part) - self._at
            raise RefusedError("truncated", f"CBOR promises {size} more bytes, {left} are left")

    def _byte(self, at: int) -> int:
        self._need(1)
        return self._part[at]


def plain(value: Any) -> Any:
    """Turn what CBOR gives into what JSON can hold; arrays of pixels become a note."""
    match value:
        case Mapping():
            found: Any = {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            found = [plain(item) for item in value]
        case datetime():
            found = value.isoformat()
        case bytes() | memoryview():
            found = f"<{len(value)} bytes>"
        case float():
            found = value if isfinite(value) else None
        case int() if not -(2**63) <= value < 2**63:
            found = str(value)
        case str() | bool() | int() | None:
            found = value
        case cbor2.CBORTag():
            found = f"<tag {value.tag}>"
        case _:
            found = repr(value)[:200]
    return found
