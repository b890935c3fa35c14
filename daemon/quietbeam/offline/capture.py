r"""The capture file: raw parts of a detector stream, exactly as they came.

Layout (``.qbcap``, little endian)::

    8 bytes   magic  b"QBCAP\x01\r\n"
    u32       length of the JSON text that follows
    bytes     JSON: what was captured, from where, when
    then per part:
    u64       nanoseconds since the first part
    u32       flags; bit 0: the part starts a ZMQ message
    u32       CRC-32 of the part
    u64       length of the part
    bytes     the part

A file that ends in the middle of a record (a process was killed, a disk was
full) is good up to there.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

from quietbeam.core.errors import DataError

MAGIC = b"QBCAP\x01\r\n"
_LENGTH = struct.Struct("<I")
_RECORD = struct.Struct("<QIIQ")
_STARTS_MESSAGE = 1


@dataclass(frozen=True, slots=True)
class CapturedPart:
    """One part.

    Attributes:
        part: Its bytes.
        time_ns: Since the first part of the capture.
        starts_message: It was the first part of its ZMQ message.
    """

    part: bytes
    time_ns: int
    starts_message: bool


class CaptureWriter:
    """Writes a capture file; a context manager.

    Args:
        path: Overwritten if it exists.
        about: Kept in the file; must survive JSON.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.parts = 0
        self._first_ns: int | None = None
        text = json.dumps({"created": datetime.now(UTC).isoformat(), **about}).encode()
        self._file = path.open("wb")
        self._file.write(MAGIC + _LENGTH.pack(len(text)) + text)
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is buffered.

        Raises:
            OSError: The disk is full, for example.
        """
        self._file.close()

    def write(
        self, part: bytes | memoryview, received_ns: int, *, starts_message: bool = True
    ) -> None:
        """Append one part, received at ``received_ns`` of any monotonic clock.

        Raises:
            OSError: The disk is full, for example.
        """
        if self._first_ns is None:
            self._first_ns = received_ns
        since_ns = max(received_ns - self._first_ns, 0)
        flags = _STARTS_MESSAGE if starts_message else 0
        self._file.write(_RECORD.pack(since_ns, flags, zlib.crc32(part), len(part)))
        self._file.write(part)
        self.parts += 1


class Capture:
    """An open capture file; iterating reads it from the start, part by part.

    Attributes:
        about: What its writer noted.
        truncated: The last iteration met the end of the file inside a record.
    """

    def __init__(self, path: Path, file: BinaryIO, about: Mapping[str, Any], start: int) -> None:
        self.path = path
        self.about = about
        self.truncated = False
        self._file = file
        self._start = start
        self._size = path.stat().st_size

    def __iter__(self) -> Iterator[CapturedPart]:
        """Give every whole part.

        Raises:
            DataError: The file is damaged in its middle.
        """
        self._file.seek(self._start)
        position = self._start
        while True:
            header = self._file.read(_RECORD.size)
            if len(header) < _RECORD.size:
                self.truncated = bool(header)
                return
            time_ns, flags, crc, length = _RECORD.unpack(header)
            position += _RECORD.size
            if flags & ~_STARTS_MESSAGE:
                raise DataError(f"{self.path}: damaged at byte {position}: unknown flags {flags}")
            if length > self._size - position:
                self.truncated = True
                return
            part = self._file.read(length)
            if zlib.crc32(part) != crc:
                raise DataError(f"{self.path}: damaged at byte {position}: the checksum differs")
            position += length
            yield CapturedPart(part, time_ns, bool(flags & _STARTS_MESSAGE))

    def messages(self) -> Iterator[tuple[int, list[bytes]]]:
        """Give (time in ns, parts) of every ZMQ message."""
        parts: list[bytes] = []
        time_ns = 0
        for record in self:
            if record.starts_message and parts:
                yield time_ns, parts
                parts = []
            if not parts:
                time_ns = record.time_ns
            parts.append(record.part)
        if parts:
            yield time_ns, parts


@contextmanager
def read_capture(path: Path) -> Iterator[Capture]:
    """Open a capture file.

    Raises:
        DataError: It is missing or is no capture file.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        if file.read(len(MAGIC)) != MAGIC:
            raise DataError(f"{path}: not a capture file; `quietbeam capture` writes them")
        length = _LENGTH.unpack(file.read(_LENGTH.size).ljust(_LENGTH.size, b"\0"))[0]
        try:
            about = json.loads(file.read(min(length, 1 << 20)))
        except ValueError as error:
            raise DataError(f"{path}: its header is damaged: {error}") from error
        yield Capture(path, file, about, file.tell())
