"""The bytes of a ring: where each word lies, and how to read them while they change."""

from __future__ import annotations

import fcntl
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.encoding import Kind
from quietbeam.core.errors import QuietbeamError

MAGIC = 0x5142_5249_4E47_0002
HEADER, READERS, READER_WORDS, ENTRY_WORDS = 64, 32, 48, 4
# header words
H_MAGIC, H_CAPACITY, H_INDEX, H_RESERVED, H_HEAD, H_FRAMES, H_CLOSED, H_PID = range(8)
# reader words; two slots for the acknowledged account, used in turn; the name comes last
R_USED, R_PID, R_BEAT, R_BASE, R_CURSOR, R_READ, R_LOST, R_SKIPPED, R_ACKS = range(9)
ACCOUNT = slice(R_CURSOR, R_SKIPPED + 1)  # what an acknowledgement keeps a copy of
KEPT = 8
SLOTS = (16, 28)
NAME_WORD, NAME_BYTES = 40, 64
# index words; the kind stands in the top byte of the length
I_SEQ, I_START, I_LENGTH, I_FRAMES = range(4)
KIND_SHIFT = 56
ALIGN = 64
PINNED = 4
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index says of one record."""

    start: int
    length: int
    kind: int
    frames: int  # before this record

    @property
    def frames_after(self) -> int:
        """Frames up to and with this record."""
        return self.frames + (self.kind == Kind.FRAME)


class Mapping:
    """A ring file, mapped, and its typed views."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        words = np.frombuffer(self._map, np.uint64, HEADER)
        if words[H_MAGIC] != MAGIC:
            raise QuietbeamError(f"{path} is not a quietbeam ring of this version")
        self.header = words
        self.capacity, self.entries = int(words[H_CAPACITY]), int(words[H_INDEX])
        offset = HEADER * 8
        self.readers = self._words(offset, (READERS, READER_WORDS))
        offset += READERS * READER_WORDS * 8
        self.index = self._words(offset, (self.entries, ENTRY_WORDS))
        offset += self.entries * ENTRY_WORDS * 8
        self.size = offset + self.capacity
        self.data = memoryview(self._map)[offset : self.size]

    def _words(self, offset: int, shape: tuple[int, int]) -> NDArray[np.uint64]:
        return np.frombuffer(self._map, np.uint64, shape[0] * shape[1], offset).reshape(shape)

    def entry(self, seq: int) -> Entry | None:
        """What the index says of record ``seq``, if it still says anything."""
        words = self.index[seq % self.entries]
        start, length, frames = (int(words[i]) for i in (I_START, I_LENGTH, I_FRAMES))
        # the number is cleared before and set after the rest is changed: so look at it last
        if seq < 0 or int(words[I_SEQ]) != seq + 1:
            return None
        return Entry(start, length & ((1 << KIND_SHIFT) - 1), length >> KIND_SHIFT, frames)

    def whole(self, entry: Entry) -> bool:
        """No byte of the record has been given to a newer one."""
        return int(self.header[H_RESERVED]) - entry.start <= self.capacity

    def end(self) -> tuple[int, int]:
        """(records, frames) written, both of the same moment."""
        while (head := int(self.header[H_HEAD])) > 0:
            if (last := self.entry(head - 1)) is not None:
                return head, last.frames_after
        return 0, 0

    def pressure(self, row: int) -> float:
        """How much of what fits the ring waits for the reader in ``row``: 1 is about to be lost."""
        cursor, head = int(self.readers[row, R_CURSOR]), int(self.header[H_HEAD])
        if cursor >= head:
            return 0.0
        entry = self.entry(cursor)
        if entry is None:
            return 1.0
        waiting = int(self.header[H_RESERVED]) - entry.start
        return min(1.0, max(waiting / self.capacity, (head - cursor) / self.entries))

    def reader_name(self, row: int) -> str:
        """Name of the reader in ``row``, "" if none."""
        raw = self.readers[row, NAME_WORD:].tobytes()[:NAME_BYTES]
        return raw.rstrip(b"\0").decode()


def pinned_path(path: Path) -> Path:
    """Where the last START record is kept beside the ring, whatever is overwritten."""
    return path.with_name(path.name + ".start")


def read_pinned(path: Path) -> list[bytes]:
    """Give the last START records of the ring ``path``, newest first, encoded."""
    try:
        data = pinned_path(path).read_bytes()
    except FileNotFoundError:
        return []
    records, at = [], 0
    while at < len(data):
        (length,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        records.append(data[at : at + length])
        at += length
    return records


def claim_row(mapping: Mapping, name: str) -> int:
    """Give the row of ``name``, or a free one with the name written in.

    Raises:
        QuietbeamError: The name is too long, or all places are taken.
    """
    encoded = name.encode()
    if not 0 < len(encoded) <= NAME_BYTES:
        raise QuietbeamError(f"reader name {name!r}: expected 1 to {NAME_BYTES} bytes")
    with mapping.path.open("r+b") as file:
        # two processes must not take the same row; the lock goes when the file is closed
        fcntl.lockf(file, fcntl.LOCK_EX, 1, mapping.size)
        taken = [mapping.reader_name(row) for row in range(READERS)]
        if name in taken:
            return taken.index(name)
        if "" not in taken:
            raise QuietbeamError(f"{mapping.path} has {READERS} readers; no place for {name!r}")
        row = taken.index("")
        padded = encoded.ljust(NAME_BYTES, b"\0")
        mapping.readers[row, NAME_WORD:] = np.frombuffer(padded, np.uint64)
        return row
