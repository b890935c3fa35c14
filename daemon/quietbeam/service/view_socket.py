"""Where a view process is met: one Unix socket per view in the runtime directory.

JSON lines both ways.  The view listens and outlives the daemon, the daemon
connects; whoever holds the lock beside the socket is the view.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from quietbeam.service.runtime import safe_name

_VIEWS = "views"


def to_json(content: Any) -> bytes:
    """Write JSON that knows NumPy numbers and writes NaN as null."""
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(content, default=str, option=options)


def lock(directory: Path, name: str) -> int | None:
    """Become the view ``name``: give the descriptor that holds the lock, or None if one lives."""
    home = directory / _VIEWS
    home.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(home / f"{safe_name(name)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def listen(directory: Path, name: str) -> socket.socket:
    """Listen for daemons; only the holder of the lock may call this."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short(directory / _VIEWS, f"{safe_name(name)}.socket") as path:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        listener.bind(path)
    listener.listen(4)
    return listener


def connect(directory: Path, name: str) -> socket.socket:
    """Connect to a living view.

    Raises:
        OSError: There is none.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(directory / _VIEWS, f"{safe_name(name)}.socket") as path:
            client.connect(path)
    except OSError:
        client.close()
        raise
    return client


def pid_of(connection: socket.socket) -> int:
    """Give the process at the other end."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", found)[0])


@contextlib.contextmanager
def _short(directory: Path, name: str) -> Iterator[str]:
    """Give a path that fits into the 107 bytes of a socket's address, however deep it lies."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)
