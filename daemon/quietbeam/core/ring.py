"""A shared-memory ring: one writer, many readers, nobody waits for anybody.

The ring is a file in memory-backed storage, mapped by every process.  Records
of any size follow each other in a circular area of bytes; an index of the
newest records says where each starts.  The writer overwrites the oldest
without asking.  A reader that is overrun knows exactly how many frames it has
lost, because the index counts frames, not bytes.

Layout: header (64 x u64) | readers (32 x 24 x u64) | index (n x 4 x u64) | bytes.
Every shared number is one aligned u64, written after what it vouches for; this
relies on the total store order of x86-64 (on others a torn record would be
possible, so the index entry is checked again after the copy).
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.errors import QuietbeamError

MAGIC = 0x5142_5249_4E47_0001
_HEADER, _READERS, _READER_WORDS, _ENTRY_WORDS = 64, 32, 24, 4
# header words
_H_MAGIC, _H_CAPACITY, _H_INDEX, _H_RESERVED, _H_HEAD, _H_FRAMES, _H_CLOSED, _H_PID = range(8)
# reader words; the name takes the last 8 (64 bytes of UTF-8)
_R_USED, _R_PID, _R_BEAT, _R_BASE, _R_CURSOR, _R_READ, _R_LOST, _R_SKIPPED = range(8)
_ACCOUNT = slice(_R_CURSOR, _R_SKIPPED + 1)  # what an acknowledgement keeps a copy of
_ACKED = slice(8, 12)
_NAME_WORD, _NAME_BYTES = 16, 64
# index words
_I_SEQ, _I_START, _I_LENGTH, _I_FRAMES = range(4)
_ALIGN = 64


class Kind(IntEnum):
    """What a record is; only ``FRAME`` records count in the accounts."""

    START = 1
    FRAME = 2
    END = 3


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One record, copied out of the ring."""

    seq: int
    kind: Kind
    meta: dict[str, Any]
    arrays: tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class ReaderCount:
    """One reader's account, in frames; ``written = read + lost + skipped + in_flight``."""

    name: str
    read: int
    lost: int
    skipped: int
    in_flight: int
    acked_frames: int
    heartbeat_age_s: float


def encode(
    kind: Kind, meta: dict[str, Any], arrays: Sequence[NDArray[Any]]
) -> list[bytes | memoryview]:
    """Give the pieces of a record: a JSON head with dtypes and shapes, then the arrays."""
    described = [[a.dtype.str, list(a.shape)] for a in arrays]
    head = json.dumps({"m": meta, "a": described}).encode()
    pieces: list[bytes | memoryview] = [struct.pack("<II", int(kind), len(head)), head]
    pieces += [memoryview(np.ascontiguousarray(a)).cast("B") for a in arrays if a.size]
    return pieces


def decode(seq: int, data: bytes | bytearray) -> Record:
    """Read back what ``encode`` gave; arrays are views of ``data``."""
    kind, length = struct.unpack_from("<II", data)
    head = json.loads(bytes(data[8 : 8 + length]))
    arrays, offset = [], 8 + length
    for dtype_text, shape in head["a"]:
        dtype = np.dtype(dtype_text)
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(data, dtype, count, offset).reshape(shape))
        offset += count * dtype.itemsize
    return Record(seq, Kind(kind), head["m"], tuple(arrays))


class _Mapping:
    """The mapped file and its typed views."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        words = np.frombuffer(self._map, np.uint64, _HEADER)
        if words[_H_MAGIC] != MAGIC:
            raise QuietbeamError(f"{path} is not a quietbeam ring of this version")
        self.header = words
        self.capacity, self.entries = int(words[_H_CAPACITY]), int(words[_H_INDEX])
        offset = _HEADER * 8
        self.readers = self._words(offset, (_READERS, _READER_WORDS))
        offset += _READERS * _READER_WORDS * 8
        self.index = self._words(offset, (self.entries, _ENTRY_WORDS))
        offset += self.entries * _ENTRY_WORDS * 8
        self.data = memoryview(self._map)[offset : offset + self.capacity]

    def _words(self, offset: int, shape: tuple[int, int]) -> NDArray[np.uint64]:
        return np.frombuffer(self._map, np.uint64, shape[0] * shape[1], offset).reshape(shape)

    def reader_name(self, row: int) -> str:
        raw = self.readers[row, _NAME_WORD:].tobytes()[:_NAME_BYTES]
        return raw.rstrip(b"\0").decode()


def create(path: Path, capacity_bytes: int, entries: int = 8192) -> RingWriter:
    """Make a ring file, replacing a stale one, and give its writer."""
    capacity = -(-capacity_bytes // _ALIGN) * _ALIGN
    size = (_HEADER + _READERS * _READER_WORDS + entries * _ENTRY_WORDS) * 8 + capacity
    path.unlink(missing_ok=True)
    pinned_path(path).unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        file.truncate(size)
        words = np.zeros(_HEADER, np.uint64)
        words[[_H_MAGIC, _H_CAPACITY, _H_INDEX, _H_PID]] = MAGIC, capacity, entries, os.getpid()
        file.write(words.tobytes())
    return RingWriter(path)


def pinned_path(path: Path) -> Path:
    """Where the last START record is kept beside the ring, whatever is overwritten."""
    return path.with_name(path.name + ".start")


class RingWriter:
    """The one writer.  Used by one thread."""

    def __init__(self, path: Path) -> None:
        self._m = _Mapping(path)
        self.path = path
        header = self._m.header
        self._head, self._frames = int(header[_H_HEAD]), int(header[_H_FRAMES])
        self._position = int(header[_H_RESERVED])

    @property
    def frames(self) -> int:
        """Frames written so far."""
        return self._frames

    def write(self, kind: Kind, meta: dict[str, Any], *arrays: NDArray[Any]) -> int:
        """Append one record and give its number.

        Raises:
            QuietbeamError: The record is larger than half the ring.
        """
        pieces = encode(kind, meta, arrays)
        length = sum(len(piece) for piece in pieces)
        if length > self._m.capacity // 2:
            raise QuietbeamError(
                f"a record of {length} bytes does not fit a ring of {self._m.capacity} bytes "
                "at least twice; make the ring larger ([rings] in the configuration)"
            )
        if kind == Kind.START:
            self._pin(pieces)
        start = self._reserve(length)
        at = start % self._m.capacity
        for piece in pieces:
            self._m.data[at : at + len(piece)] = piece
            at += len(piece)
        return self._publish(kind, start, length)

    def close(self) -> None:
        """Say that nothing more will come; what is in the ring can still be read."""
        self._m.header[_H_CLOSED] = 1

    def unlink(self) -> None:
        """Remove the file; processes that have it mapped keep it."""
        self.path.unlink(missing_ok=True)
        pinned_path(self.path).unlink(missing_ok=True)

    def readers(self) -> list[ReaderCount]:
        """The accounts of all readers that ever attached."""
        rows = [row for row in range(_READERS) if self._m.readers[row, _R_USED]]
        return [_account(self._m, row) for row in rows]

    def _reserve(self, length: int) -> int:
        start = -(-self._position // _ALIGN) * _ALIGN
        left = self._m.capacity - start % self._m.capacity
        if left < length:  # a record never wraps: it starts again at the front
            start += left
        self._position = start + length
        self._m.header[_H_RESERVED] = self._position  # before the bytes: readers check it after
        return start

    def _publish(self, kind: Kind, start: int, length: int) -> int:
        seq = self._head
        entry = self._m.index[seq % self._m.entries]
        entry[_I_SEQ] = 0
        entry[_I_START], entry[_I_LENGTH], entry[_I_FRAMES] = start, length, self._frames
        entry[_I_SEQ] = seq + 1
        self._head += 1
        if kind == Kind.FRAME:
            self._frames += 1
            self._m.header[_H_FRAMES] = self._frames
        self._m.header[_H_HEAD] = self._head
        return seq

    def _pin(self, pieces: Sequence[bytes | memoryview]) -> None:
        target = pinned_path(self.path)
        temporary = target.with_name(target.name + ".new")
        with temporary.open("wb") as file:
            file.writelines(pieces)
        temporary.replace(target)


class RingReader:
    """One reader with its own place in the ring.  Used by one thread.

    A reader is known by its name.  Attaching again under the same name takes
    up the account; with ``resume`` at the last acknowledged record, otherwise
    at the newest, the frames between being counted as lost.
    """

    def __init__(self, path: Path, name: str, *, resume: bool = False) -> None:
        self._m = _Mapping(path)
        self.path = path
        self._me = self._m.readers[_claim(self._m, name)]
        if not self._me[_R_USED]:
            self._me[_R_CURSOR] = self._m.header[_H_HEAD]
            self._me[_R_BASE] = self._m.header[_H_FRAMES]
            self._me[_ACKED] = self._me[_ACCOUNT]
        elif resume:
            self._me[_ACCOUNT] = self._me[_ACKED]
        else:
            self._lose_until(int(self._m.header[_H_HEAD]))
        self._me[_R_PID] = os.getpid()
        self._me[_R_USED] = 1
        self.beat()

    @property
    def lost(self) -> int:
        """Frames overwritten before this reader came to them."""
        return int(self._me[_R_LOST])

    @property
    def backlog(self) -> int:
        """Records written and not yet read (some may already be overwritten)."""
        return int(self._m.header[_H_HEAD]) - int(self._me[_R_CURSOR])

    @property
    def finished(self) -> bool:
        """The writer has closed the ring and everything was read."""
        return bool(self._m.header[_H_CLOSED]) and self.backlog == 0

    def beat(self) -> None:
        """Show that this reader lives."""
        self._me[_R_BEAT] = time.monotonic_ns()

    def read(self, timeout_s: float = 0.1, poll_s: float = 0.001) -> Record | None:
        """Give the next record as a copy, or None if none came in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.beat()
            while self.backlog > 0:
                if (record := self._take()) is not None:
                    return record
            if time.monotonic() >= deadline or self._m.header[_H_CLOSED]:
                return None
            time.sleep(poll_s)

    def skip_frame(self) -> bool:
        """Pass over the next record without copying it, if it is a frame; counted."""
        cursor = int(self._me[_R_CURSOR])
        entry = self._entry(cursor)
        if self.backlog <= 0 or entry is None or self._kind(entry) != Kind.FRAME:
            return False
        self._me[_R_SKIPPED] += np.uint64(1)
        self._me[_R_CURSOR] = cursor + 1
        return True

    def ack(self) -> None:
        """All that was read is safe: after a crash, resume behind it."""
        self._me[_ACKED] = self._me[_ACCOUNT]

    def pinned(self) -> Record | None:
        """The newest START record, also when the ring has overwritten it."""
        try:
            return decode(-1, pinned_path(self.path).read_bytes())
        except FileNotFoundError:
            return None

    def _take(self) -> Record | None:
        cursor = int(self._me[_R_CURSOR])
        entry = self._entry(cursor)
        data = None if entry is None else self._copy(entry)
        if data is None or self._entry(cursor) is None:  # overwritten, perhaps while copying
            self._lose_until(self._oldest(cursor))
            return None
        record = decode(cursor, data)
        if record.kind == Kind.FRAME:
            self._me[_R_READ] += np.uint64(1)
        self._me[_R_CURSOR] = cursor + 1
        return record

    def _entry(self, seq: int) -> tuple[int, int, int] | None:
        """(start, length, frames before) of a record that is still whole."""
        words = [int(word) for word in self._m.index[seq % self._m.entries]]
        whole = words[_I_SEQ] == seq + 1 and self._whole(words[_I_START])
        return (words[_I_START], words[_I_LENGTH], words[_I_FRAMES]) if whole else None

    def _whole(self, start: int) -> bool:
        return int(self._m.header[_H_RESERVED]) - start <= self._m.capacity

    def _copy(self, entry: tuple[int, int, int]) -> bytearray | None:
        start, length, _ = entry
        at = start % self._m.capacity
        data = bytearray(self._m.data[at : at + length])
        return data if self._whole(start) else None

    def _kind(self, entry: tuple[int, int, int]) -> int:
        at = entry[0] % self._m.capacity
        return int(struct.unpack("<I", self._m.data[at : at + 4])[0])

    def _oldest(self, cursor: int) -> int:
        """The oldest whole record after ``cursor``, with room so as not to be overrun at once."""
        head = int(self._m.header[_H_HEAD])
        first = max(cursor + 1, head - self._m.entries + 1)
        oldest = next((seq for seq in range(first, head) if self._entry(seq)), head)
        return oldest + (head - oldest) // 8

    def _lose_until(self, seq: int) -> None:
        """Move on to ``seq``; what lies between is lost, counted in frames."""
        head = int(self._m.header[_H_HEAD])
        entry = self._entry(seq) if seq < head else None
        before = int(self._m.header[_H_FRAMES]) if entry is None else entry[2]
        known = int(
            self._me[_R_BASE] + self._me[_R_READ] + self._me[_R_LOST] + self._me[_R_SKIPPED]
        )
        self._me[_R_LOST] += np.uint64(max(0, before - known))
        self._me[_R_CURSOR] = seq


def _claim(mapping: _Mapping, name: str) -> int:
    """Give the row of ``name``, or a free one with the name written in."""
    encoded = name.encode()[:_NAME_BYTES]
    rows = range(_READERS)
    for row in rows:
        if mapping.readers[row, _R_USED] and mapping.reader_name(row) == name:
            return row
    for row in rows:
        if not mapping.readers[row, _NAME_WORD]:
            padded = encoded.ljust(_NAME_BYTES, b"\0")
            mapping.readers[row, _NAME_WORD:] = np.frombuffer(padded, np.uint64)
            return row
    raise QuietbeamError(f"{mapping.path} has {_READERS} readers already; {name!r} found no place")


def _account(mapping: _Mapping, row: int) -> ReaderCount:
    words = [int(word) for word in mapping.readers[row]]
    done = words[_R_READ] + words[_R_LOST] + words[_R_SKIPPED]
    return ReaderCount(
        name=mapping.reader_name(row),
        read=words[_R_READ],
        lost=words[_R_LOST],
        skipped=words[_R_SKIPPED],
        in_flight=int(mapping.header[_H_FRAMES]) - words[_R_BASE] - done,
        acked_frames=words[_ACKED][1],
        heartbeat_age_s=(time.monotonic_ns() - words[_R_BEAT]) / 1e9,
    )
