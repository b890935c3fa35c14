"""A shared-memory ring: one writer, many readers, nobody waits for anybody.

The ring is a file in memory-backed storage, mapped by every process.  Records
of any size follow each other in a circular area of bytes; an index of the
newest records says where each starts.  The writer overwrites the oldest
without asking.  A reader that is overrun knows exactly how many frames it has
lost, because the index counts frames, not bytes.

Layout: header (64 x u64) | readers (32 x 48 x u64) | index (n x 4 x u64) | bytes.
Every shared number is one aligned u64, written after what it vouches for; this
relies on the total store order of x86-64 (on others a torn record would be
possible, so the index entry is checked again after the copy).
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core import ring_memory as mem
from quietbeam.core.encoding import Kind, Record, decode, encode
from quietbeam.core.errors import QuietbeamError
from quietbeam.core.ring_memory import Entry, Mapping, claim_row, pinned_path, read_pinned

__all__ = [
    "Kind",
    "ReaderCount",
    "Record",
    "RingReader",
    "RingWriter",
    "create",
    "decode",
    "encode",
    "pinned_path",
]


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


def create(path: Path, capacity_bytes: int, entries: int = 8192) -> RingWriter:
    """Make a ring file, replacing a stale one, and give its writer."""
    capacity = -(-capacity_bytes // mem.ALIGN) * mem.ALIGN
    size = (mem.HEADER + mem.READERS * mem.READER_WORDS + entries * mem.ENTRY_WORDS) * 8 + capacity
    path.unlink(missing_ok=True)
    pinned_path(path).unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        file.truncate(size)
        words = np.zeros(mem.HEADER, np.uint64)
        words[[mem.H_MAGIC, mem.H_CAPACITY, mem.H_INDEX, mem.H_PID]] = (
            mem.MAGIC,
            capacity,
            entries,
            os.getpid(),
        )
        file.write(words.tobytes())
    return RingWriter(path)


_DEAD_NS = 5_000_000_000
"""A reader that has not read for so long does not live: nothing helps it to keep up."""
_HEAD_ROOM = 1024
"""Bytes kept free before a place that is lent, for the head of its record."""


@dataclass(slots=True)
class _Loan:
    """A place in the ring whose bytes somebody else fills in.

    ``holder`` is what every view of the lent array has as its base, and lives as long as they.
    """

    start: int
    size: int
    address: int
    holder: weakref.ref[Any]


class RingWriter:
    """The one writer.  Used by one thread."""

    def __init__(self, path: Path) -> None:
        self._m = Mapping(path)
        self.path = path
        self._head, self._frames = self._m.end()
        self._position = int(self._m.header[mem.H_RESERVED])
        self._pinned: deque[bytes] = deque(read_pinned(path), maxlen=mem.PINNED)
        self._loan: _Loan | None = None
        self._usual = 0
        self._rows: dict[str, int] = {}

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
        if kind == Kind.FRAME:
            self._usual = arrays[0].nbytes if len(arrays) == 1 else 0
            if (start := self._lent_start(pieces, arrays)) is not None:
                return self._publish(kind, start, self._copy_in(start, pieces[:2], pieces[2:]))
        length = sum(len(piece) for piece in pieces)
        if length > self._m.capacity // 2:
            raise QuietbeamError(
                f"a record of {length} bytes does not fit a ring of {self._m.capacity} bytes "
                "at least twice; make the ring larger ([rings] in the configuration)"
            )
        if kind == Kind.START:
            self._pin(pieces)
        start = self._reserve(length)
        return self._publish(kind, start, self._copy_in(start, pieces))

    def lend(self, size: int) -> NDArray[np.uint8] | None:
        """Lend the place of the next frame: ``write`` then finds its array there already.

        Only a frame as large as the last one gets a place, and only if none is
        lent: what is lent costs readers the oldest records, whether it is
        written in the end or not.
        """
        loan = self._loan
        if not size or size != self._usual or _room(size) > self._m.capacity // 2:
            return None
        if loan is not None and loan.holder() is not None:
            return None
        if loan is not None and loan.size == size and self._position == loan.start + _room(size):
            start = loan.start  # given back unused: lend it again
        else:
            start = self._reserve(_room(size))
        at = start % self._m.capacity + _HEAD_ROOM
        lent = np.frombuffer(self._m.data[at : at + size], np.uint8)
        self._loan = _Loan(start, size, lent.ctypes.data, weakref.ref(lent.base))
        return lent

    def close(self) -> None:
        """Say that nothing more will come; what is in the ring can still be read."""
        self._m.header[mem.H_CLOSED] = 1

    def unlink(self) -> None:
        """Remove the file; processes that have it mapped keep it."""
        self.path.unlink(missing_ok=True)
        pinned_path(self.path).unlink(missing_ok=True)

    def readers(self) -> list[ReaderCount]:
        """The accounts of all readers that ever attached."""
        rows = [row for row in range(mem.READERS) if self._m.readers[row, mem.R_USED]]
        return [_account(self._m, row) for row in rows]

    def pressure_on(self, reader: str) -> float:
        """How close a reader that lives is to losing frames; 0 if it does not.

        Args:
            reader: Its name.  See ``RingReader.pressure``.
        """
        row = self._rows.get(reader)
        if row is None:
            names = (self._m.reader_name(row) for row in range(mem.READERS))
            row = next((row for row, name in enumerate(names) if name == reader), None)
            if row is None or not self._m.readers[row, mem.R_USED]:
                return 0.0
            self._rows[reader] = row
        age_ns = time.monotonic_ns() - int(self._m.readers[row, mem.R_BEAT])
        return self._m.pressure(row) if age_ns < _DEAD_NS else 0.0

    def _lent_start(
        self, pieces: Sequence[bytes | memoryview], arrays: Sequence[NDArray[Any]]
    ) -> int | None:
        """Tell where the record begins whose array fills the place that was lent."""
        loan, head = self._loan, sum(len(piece) for piece in pieces[:2])
        if loan is None or len(arrays) != 1 or head > _HEAD_ROOM:
            return None
        array = arrays[0]
        in_place = array.flags.c_contiguous and array.nbytes == loan.size
        if not in_place or array.ctypes.data != loan.address:
            return None
        self._loan = None
        return loan.start + _HEAD_ROOM - head

    def _copy_in(
        self,
        start: int,
        pieces: Sequence[bytes | memoryview],
        there: Sequence[bytes | memoryview] = (),
    ) -> int:
        """Copy the pieces of a record, and give its length with those that are there already."""
        at = start % self._m.capacity
        for piece in pieces:
            self._m.data[at : at + len(piece)] = piece
            at += len(piece)
        return sum(len(piece) for piece in (*pieces, *there))

    def _reserve(self, length: int) -> int:
        start = -(-self._position // mem.ALIGN) * mem.ALIGN
        left = self._m.capacity - start % self._m.capacity
        if left < length:  # a record never wraps: it starts again at the front
            start += left
        self._position = start + length
        self._m.header[mem.H_RESERVED] = self._position  # before the bytes: readers check it after
        return start

    def _publish(self, kind: Kind, start: int, length: int) -> int:
        seq = self._head
        entry = self._m.index[seq % self._m.entries]
        entry[mem.I_SEQ] = 0
        entry[mem.I_START], entry[mem.I_FRAMES] = start, self._frames
        entry[mem.I_LENGTH] = length | int(kind) << mem.KIND_SHIFT
        entry[mem.I_SEQ] = seq + 1
        self._head += 1
        if kind == Kind.FRAME:
            self._frames += 1
            self._m.header[mem.H_FRAMES] = self._frames
        self._m.header[mem.H_HEAD] = self._head
        return seq

    def _pin(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Keep the last few START records, newest first."""
        self._pinned.appendleft(b"".join(pieces))
        target = pinned_path(self.path)
        temporary = target.with_name(target.name + ".new")
        with temporary.open("wb") as file:
            for record in self._pinned:
                file.write(mem.LENGTH.pack(len(record)) + record)
        temporary.replace(target)


class RingReader:
    """One reader with its own place in the ring.  Used by one thread.

    A reader is known by its name.  Attaching again under the same name takes
    up the account; with ``resume`` at the last acknowledged record, otherwise
    at the newest, the frames between being counted as lost.  A new reader
    begins at the newest record or, with ``from_first``, accounts for all that
    was ever written.

    Attributes:
        resumed: It took up the account of an earlier reader, at its last ``ack``.
    """

    def __init__(
        self, path: Path, name: str, *, resume: bool = False, from_first: bool = False
    ) -> None:
        self._m = Mapping(path)
        self.path = path
        self._row = claim_row(self._m, name)
        self._me = self._m.readers[self._row]
        known = bool(self._me[mem.R_USED])
        self.resumed = known and resume
        if not known:
            self._me[mem.R_CURSOR], self._me[mem.R_BASE] = (0, 0) if from_first else self._m.end()
            self.ack()
        elif resume:
            self._me[mem.ACCOUNT] = self._acked()[: self._account().size]
        else:
            self._lose_until(*self._m.end())
        self._before_last = self._account()
        self._me[mem.R_PID] = os.getpid()
        self._me[mem.R_USED] = 1
        self.beat()

    @property
    def lost(self) -> int:
        """Frames overwritten before this reader came to them."""
        return int(self._me[mem.R_LOST])

    @property
    def backlog(self) -> int:
        """Records written and not yet read (some may already be overwritten)."""
        return int(self._m.header[mem.H_HEAD]) - int(self._me[mem.R_CURSOR])

    @property
    def finished(self) -> bool:
        """The writer has closed the ring and everything was read."""
        return bool(self._m.header[mem.H_CLOSED]) and self.backlog == 0

    @property
    def pressure(self) -> float:
        """How much of what the ring can hold waits to be read: 1 is about to be lost."""
        return self._m.pressure(self._row)

    @property
    def kept(self) -> tuple[int, ...]:
        """The eight numbers that the last ``ack`` kept, 0 at first."""
        return tuple(int(word) for word in self._acked()[self._account().size :])

    def beat(self) -> None:
        """Show that this reader lives."""
        self._me[mem.R_BEAT] = time.monotonic_ns()

    def read(self, timeout_s: float = 0.1, poll_s: float = 0.001) -> Record | None:
        """Give the next record as a copy, or None if none came in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.beat()
            closed = bool(self._m.header[mem.H_CLOSED])  # before looking: the last may come with it
            while self.backlog > 0:
                if (record := self._take()) is not None:
                    return record
            if closed or time.monotonic() >= deadline:
                return None
            time.sleep(poll_s)

    def skip_frame(self) -> bool:
        """Pass over the next record without copying it, if it is a frame; counted."""
        cursor = int(self._me[mem.R_CURSOR])
        entry = self._whole_entry(cursor)
        if self.backlog <= 0 or entry is None or entry.kind != Kind.FRAME:
            return False
        self._before_last = self._account()
        self._me[mem.R_SKIPPED] += np.uint64(1)
        self._me[mem.R_CURSOR] = cursor + 1
        return True

    def ack(self, kept: Sequence[int] = (), *, without_last: bool = False) -> None:
        """All that was read is safe: after a crash, resume behind it.

        Args:
            kept: Up to eight counts to keep with it, for ``kept``: they are
                always those of the acknowledgement one resumes at.
            without_last: All but the newest record.
        """
        account = self._before_last if without_last else self._account()
        acks = int(self._me[mem.R_ACKS])
        slot = mem.SLOTS[(acks + 1) % 2]
        self._me[slot : slot + account.size] = account
        numbers = np.zeros(mem.KEPT, np.uint64)
        numbers[: len(kept)] = kept
        self._me[slot + account.size : slot + account.size + mem.KEPT] = numbers
        self._me[mem.R_ACKS] = acks + 1  # one word: a kill leaves the old or the new, never half

    def pinned(self, run: str | None = None) -> Record | None:
        """The newest START record (of ``run``), also when the ring has overwritten it.

        Only the last few are kept.
        """
        records = (decode(-1, data) for data in read_pinned(self.path))
        return next((r for r in records if run is None or r.meta["run"] == run), None)

    def _account(self) -> NDArray[np.uint64]:
        return self._me[mem.ACCOUNT].copy()

    def _acked(self) -> NDArray[np.uint64]:
        slot = mem.SLOTS[int(self._me[mem.R_ACKS]) % 2]
        return self._me[slot : slot + mem.SLOTS[1] - mem.SLOTS[0]]

    def _take(self) -> Record | None:
        cursor = int(self._me[mem.R_CURSOR])
        entry = self._whole_entry(cursor)
        data = None if entry is None else self._copy(entry)
        if data is None or self._whole_entry(cursor) != entry:  # overwritten, perhaps meanwhile
            self._skip_overwritten(cursor)
            return None
        record = decode(cursor, data)
        self._before_last = self._account()
        if record.kind == Kind.FRAME:
            self._me[mem.R_READ] += np.uint64(1)
        self._me[mem.R_CURSOR] = cursor + 1
        return record

    def _whole_entry(self, seq: int) -> Entry | None:
        entry = self._m.entry(seq)
        return entry if entry is not None and self._m.whole(entry) else None

    def _copy(self, entry: Entry) -> bytearray:
        at = entry.start % self._m.capacity
        return bytearray(self._m.data[at : at + entry.length])

    def _skip_overwritten(self, cursor: int) -> None:
        """Move to the oldest whole record, with room so as not to be overrun at once."""
        head, frames = self._m.end()
        low, high = max(cursor + 1, head - self._m.entries + 1), head
        while low < high:  # the oldest whole one: older ones never are
            middle = (low + high) // 2
            if self._whole_entry(middle) is None:
                low = middle + 1
            else:
                high = middle
        target = low + (head - low) // 8
        entry = self._m.entry(target) if target < head else None
        if entry is None:  # all gone, or gone meanwhile
            self._lose_until(head, frames)
        else:
            self._lose_until(target, entry.frames)

    def _lose_until(self, seq: int, frames_before: int) -> None:
        """Move on to ``seq``; what lies between is lost, counted in frames."""
        words = [int(self._me[i]) for i in (mem.R_BASE, mem.R_READ, mem.R_LOST, mem.R_SKIPPED)]
        self._me[mem.R_LOST] += np.uint64(frames_before - sum(words))
        self._me[mem.R_CURSOR] = seq


def _room(size: int) -> int:
    """Give what a place for ``size`` bytes takes, with the head and the padding of its record."""
    return _HEAD_ROOM + size + mem.ALIGN


def _account(mapping: Mapping, row: int) -> ReaderCount:
    words = [int(word) for word in mapping.readers[row]]
    acked = mem.SLOTS[words[mem.R_ACKS] % 2]
    done = words[mem.R_READ] + words[mem.R_LOST] + words[mem.R_SKIPPED]
    return ReaderCount(
        name=mapping.reader_name(row),
        read=words[mem.R_READ],
        lost=words[mem.R_LOST],
        skipped=words[mem.R_SKIPPED],
        in_flight=int(mapping.header[mem.H_FRAMES]) - words[mem.R_BASE] - done,
        acked_frames=words[acked + mem.R_READ - mem.R_CURSOR],
        heartbeat_age_s=(time.monotonic_ns() - words[mem.R_BEAT]) / 1e9,
    )
