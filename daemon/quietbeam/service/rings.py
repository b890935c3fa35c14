"""Where the two shared-memory rings lie; what dead daemons left is taken away."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import structlog

from quietbeam.core.errors import ConfigError
from quietbeam.core.ring import RingWriter, create, pinned_path
from quietbeam.service.runtime import safe_name

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the kernel's shared memory, not a temporary file
_NAME = re.compile(r"quietbeam-.+-(?P<pid>\d+)\.(raw|clean)$")

log = structlog.get_logger()


@contextmanager
def open_rings(
    name: str, raw_bytes: int, clean_bytes: int, fallback: Path, shared: Path = SHARED_MEMORY
) -> Generator[tuple[RingWriter, RingWriter]]:
    """Give the raw and the clean ring; on exit both are closed and removed.

    Their memory is claimed at once: writing to a ring can never fail later.

    Raises:
        ConfigError: There is not enough memory for both.
    """
    directory = choose_directory(raw_bytes + clean_bytes, fallback, shared)
    reclaim(directory)
    prefix = f"quietbeam-{safe_name(name)}-{os.getpid()}"
    with ExitStack() as stack:
        raw = stack.enter_context(_ring(directory / f"{prefix}.raw", raw_bytes))
        clean = stack.enter_context(_ring(directory / f"{prefix}.clean", clean_bytes))
        yield raw, clean


def choose_directory(wanted_bytes: int, fallback: Path, shared: Path = SHARED_MEMORY) -> Path:
    """Give the shared memory if both rings fit into it, else ``fallback``.

    Raises:
        ConfigError: They fit nowhere.
    """
    sizes = []
    for directory in (shared, fallback):
        free = shutil.disk_usage(directory).free if directory.is_dir() else 0
        if free > wanted_bytes and os.access(directory, os.W_OK):
            return directory
        sizes.append(f"{directory} has {free / 2**20:.0f} MiB free")
    raise ConfigError(
        f"[rings] raw_mib + clean_mib need {wanted_bytes / 2**20:.0f} MiB, but "
        f"{' and '.join(sizes)}; make the rings smaller or the shared memory larger"
    )


def reclaim(directory: Path) -> list[Path]:
    """Remove the rings of daemons that are no more, and name them."""
    gone = []
    for path in directory.glob("quietbeam-*"):
        match = _NAME.fullmatch(path.name)
        if match and not _alive(int(match["pid"])) and _unlocked(path):
            for stale in (path, pinned_path(path)):
                stale.unlink(missing_ok=True)
            gone.append(path)
    if gone:
        log.info("stale_rings_removed", rings=[str(path) for path in gone])
    return gone


@contextmanager
def _ring(path: Path, capacity_bytes: int) -> Generator[RingWriter]:
    ring = create(path, capacity_bytes)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _claim(descriptor, path)
        yield ring
    finally:
        ring.close()
        ring.unlink()
        os.close(descriptor)


def _claim(descriptor: int, path: Path) -> None:
    """Have the pages now: a store into a page that cannot be had kills the process."""
    try:
        os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
    except OSError as error:
        raise ConfigError(
            f"[rings] no memory for {path.name}: {error.strerror}; make the rings smaller"
        ) from error


def _alive(pid: int) -> bool:
    with suppress(PermissionError):  # it lives and is not ours
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def _unlocked(path: Path) -> bool:
    """Tell whether no process holds it: process ids mean nothing across containers."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
