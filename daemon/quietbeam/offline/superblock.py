"""Two small things HDF5 leaves to us: is a file being written, and was its writer killed.

A writer that dies leaves "consistency flags" in the superblock; while they
stand only SWMR readers may open the file.  Clearing them is what
``h5clear -s`` does.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quietbeam.core.errors import DataError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FLAGS_AT, _CHECKSUM_AT = 11, 44  # in a version 2 or 3 superblock with 8-byte offsets
_LOCK_AT = 1 << 62  # a byte no file has; HDF5's own locks are of another kind (flock)


def lookup3(data: bytes) -> int:
    """Give Jenkins' 32-bit hash (lookup3.c, 2006, ``hashlittle``), as HDF5 uses it."""
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask

    def rotate(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & mask

    while len(data) > 12:
        x, y, z = struct.unpack("<3I", data[:12])
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
        a, c = ((a - c) & mask) ^ rotate(c, 4), (c + b) & mask
        b, a = ((b - a) & mask) ^ rotate(a, 6), (a + c) & mask
        c, b = ((c - b) & mask) ^ rotate(b, 8), (b + a) & mask
        a, c = ((a - c) & mask) ^ rotate(c, 16), (c + b) & mask
        b, a = ((b - a) & mask) ^ rotate(a, 19), (a + c) & mask
        c, b = ((c - b) & mask) ^ rotate(b, 4), (b + a) & mask
        data = data[12:]
    if not data:
        return c
    x, y, z = struct.unpack("<3I", data.ljust(12, b"\0"))
    a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
    for first, k in ((0, 14), (1, 11), (2, 25), (0, 16), (1, 4), (2, 14), (0, 24)):
        # the final mixing: c ^= b; c -= rot(b, k), then a from c, b from a, and round again
        if first == 0:
            c = ((c ^ b) - rotate(b, k)) & mask
        elif first == 1:
            a = ((a ^ c) - rotate(c, k)) & mask
        else:
            b = ((b ^ a) - rotate(a, k)) & mask
    return c


def clear_consistency_flags(path: Path) -> bool:
    """Let ``path`` be opened again after its writer was killed; True if it was needed.

    Nobody may be writing the file: hold ``writer_lock``.

    Raises:
        DataError: Not an HDF5 file of the kind that can be written in SWMR mode.
    """
    with path.open("r+b") as file:
        block = bytearray(file.read(_CHECKSUM_AT + 4))
        if len(block) < _CHECKSUM_AT + 4 or not block.startswith(SIGNATURE):
            raise DataError(f"{path}: not an HDF5 file, or nothing but its beginning")
        version, offset_size = block[8], block[9]
        if version != 3 or offset_size != 8:
            raise DataError(
                f"{path}: HDF5 superblock version {version}, expected 3: not written by quietbeam"
            )
        if lookup3(bytes(block[:_CHECKSUM_AT])) != _checksum(block):
            raise DataError(f"{path}: the checksum of the superblock is wrong: the file is damaged")
        if block[_FLAGS_AT] == 0:
            return False
        block[_FLAGS_AT] = 0
        block[_CHECKSUM_AT:] = struct.pack("<I", lookup3(bytes(block[:_CHECKSUM_AT])))
        file.seek(0)
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return True


def _checksum(block: bytes | bytearray) -> int:
    return struct.unpack_from("<I", block, _CHECKSUM_AT)[0]


def lock(descriptor: int) -> bool:
    """Take the writer's lock; False if another holds it.  It goes with the descriptor."""
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _LOCK_AT, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextmanager
def writer_lock(path: Path) -> Iterator[int]:
    """Be the only writer of ``path``; gives the descriptor that holds the lock.

    Raises:
        DataError: Somebody else is writing it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not lock(descriptor):
            raise DataError(f"{path}: is being written at this moment; stop the recording first")
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Somebody is writing ``path`` at this moment."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return not lock(descriptor)
    finally:
        os.close(descriptor)


def session_of(ring: Path) -> str:
    """Name the live daemon that owns ``ring``, so that an unfinished file tells whose it is."""
    return f"{socket.gethostname()}:{ring.stat().st_ino}:{ring}"


def session_is_over(session: str) -> bool:
    """The daemon of ``session`` ran on this host and its ring is gone."""
    host, _, rest = session.partition(":")
    inode, _, ring = rest.partition(":")
    if host != socket.gethostname() or not ring:
        return False
    try:
        return str(Path(ring).stat().st_ino) != inode
    except FileNotFoundError:
        return True
