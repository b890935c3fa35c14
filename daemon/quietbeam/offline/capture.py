r"""The capture file: raw parts of a detector stream, exactly as they came.

Layout (``.qbcap``, little endian)::

    8 bytes   magic  b"QBCAP\x01\r\n"
    u32       length of the JSON text that follows
    bytes     JSON: what was captured, from where, when
    then per part:
    u64       nanoseconds since the first part
    u32       flags; bit 0: the part starts a ZMQ message; bit 1: more parts of it follow
    u32       CRC-32 of the part
    u64       length of the part
    bytes     the part

Every part is handed to the system at once.  A file that ends in the middle of
a record (a process was killed, a disk was full) is good up to there.
"""

from __future__ import annotations

import errno
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

from pydantic import BaseModel

from quietbeam import __version__
from quietbeam.core.errors import DataError

MAGIC = b"QBCAP\x01\r\n"
_LENGTH = struct.Struct("<I")
_RECORD = struct.Struct("<QIIQ")
_STARTS_MESSAGE, _MORE = 1, 2
_LONGEST_HEADER = 1 << 20
DECODING = {"run_timeout_s", "grace_s"}
"""Settings that all sources have and that say how a stream is decoded."""


@dataclass(frozen=True, slots=True)
class CapturedPart:
    """One part.

    Attributes:
        part: Its bytes.
        time_ns: Since the first part of the capture; never less than that of the part before.
        starts_message: It was the first part of its ZMQ message.
        more: It was not the last part of its ZMQ message.
    """

    part: bytes
    time_ns: int
    starts_message: bool
    more: bool = False


class CaptureFullError(OSError):
    """The capture is as large as it may be."""


class CaptureWriter:
    """Writes a capture file; a context manager.

    Args:
        path: Overwritten if it exists.
        about: Kept in the file; must survive JSON.
        max_bytes: The file never grows beyond.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], max_bytes: int | None = None) -> None:
        self.path = path
        self.parts = 0
        self._first_ns: int | None = None
        created = {"created": datetime.now(UTC).isoformat(), "version": __version__}
        text = json.dumps({**created, **about}).encode()
        self._file = path.open("wb")
        self._left = max_bytes
        self._append(MAGIC + _LENGTH.pack(len(text)) + text)

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
        self,
        part: bytes | memoryview,
        received_ns: int,
        *,
        starts_message: bool = True,
        more: bool = False,
    ) -> None:
        """Append one part, received at ``received_ns`` of any monotonic clock.

        Raises:
            CaptureFullError: The file would grow beyond ``max_bytes``.
            OSError: The disk is full, for example.
        """
        if self._first_ns is None:
            self._first_ns = received_ns
        since_ns = max(received_ns - self._first_ns, 0)
        flags = (_STARTS_MESSAGE if starts_message else 0) | (_MORE if more else 0)
        self._append(_RECORD.pack(since_ns, flags, zlib.crc32(part), len(part)), part)
        self.parts += 1

    def _append(self, *pieces: bytes | memoryview) -> None:
        """Write all or, where there is no room for it, nothing."""
        if self._left is not None:
            self._left -= sum(len(piece) for piece in pieces)
            if self._left < 0:
                raise CaptureFullError(errno.EFBIG, "the capture is as large as it may be")
        for piece in pieces:
            self._file.write(piece)
        self._file.flush()


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
        position, latest_ns = self._start, 0
        while True:
            header = self._file.read(_RECORD.size)
            if len(header) < _RECORD.size:
                self.truncated = bool(header)
                return
            time_ns, flags, crc, length = _RECORD.unpack(header)
            position += _RECORD.size
            if flags & ~(_STARTS_MESSAGE | _MORE):
                raise DataError(f"{self.path}: damaged at byte {position}: unknown flags {flags}")
            if length > self._size - position:
                self.truncated = True
                return
            part = self._file.read(length)
            if zlib.crc32(part) != crc:
                raise DataError(f"{self.path}: damaged at byte {position}: the checksum differs")
            position += length
            latest_ns = max(latest_ns, time_ns)
            starts, more = bool(flags & _STARTS_MESSAGE), bool(flags & _MORE)
            yield CapturedPart(part, latest_ns, starts, more)

    def between(self, from_s: float = 0.0, to_s: float | None = None) -> Iterator[CapturedPart]:
        """Give the parts of all whole messages that began in [from_s, to_s) since the first."""
        message: list[CapturedPart] = []
        for record in self:
            if record.starts_message:
                message = []
            message.append(record)
            if record.more:
                continue
            began_s = message[0].time_ns * 1e-9
            if to_s is not None and began_s >= to_s:
                return
            if began_s >= from_s:
                yield from message
            message = []

    def messages(
        self, from_s: float = 0.0, to_s: float | None = None
    ) -> Iterator[tuple[int, list[bytes]]]:
        """Give (time in ns, parts) of all whole ZMQ messages of ``between``."""
        parts: list[bytes] = []
        time_ns = 0
        for record in self.between(from_s, to_s):
            time_ns = time_ns if parts else record.time_ns
            parts.append(record.part)
            if not record.more:
                yield time_ns, parts
                parts = []

    def settings(self, source: type[BaseModel], shared: type[BaseModel]) -> dict[str, Any]:
        """Give the settings of the source it was captured with that say how to decode it.

        A capture may come from anywhere: what names files, sockets or limits
        is never taken from it.

        Args:
            source: The kind of source.
            shared: Its base class with what all sources have.
        """
        told = self.about.get("settings")
        known = {*DECODING, *source.model_fields} - (set(shared.model_fields) - DECODING)
        return {k: v for k, v in told.items() if k in known} if isinstance(told, dict) else {}


def is_capture(path: Path) -> bool:
    """Tell whether there is a file that begins as a capture does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


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
            about = json.loads(file.read(min(length, _LONGEST_HEADER)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: its header is damaged: {error}") from error
        if not isinstance(about, dict):
            raise DataError(
                f"{path}: its header is damaged: expected a JSON object, got {about!r:.40}"
            )
        yield Capture(path, file, about, file.tell())
