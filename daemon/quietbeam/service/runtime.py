"""The daemon's private directory: lock, control token, address, checkpoints."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path
from types import TracebackType

from quietbeam.core.errors import ConfigError

_LOCK, _TOKEN, _ADDRESS = "lock", "control-token", "address"
_GENERATION = "generation"
_TOKEN_CHARACTERS = 20
CREDENTIAL = "web-token"
"""Name of the control token among the credentials of systemd."""


def directory_for(name: str, configured: Path | None) -> Path:
    """Give the runtime directory of the daemon ``name``; makes nothing.

    A configured one, else that of systemd, else a private one per user and
    name, so that ``quietbeam control`` finds it again.
    """
    if configured is not None:
        return configured
    from_systemd = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if from_systemd:
        return Path(from_systemd)
    per_user = os.environ.get("XDG_RUNTIME_DIR")
    parent = Path(per_user) if per_user else Path(tempfile.gettempdir())
    return parent / f"quietbeam-{os.getuid()}-{safe_name(name)}"


def safe_name(name: str) -> str:
    """Give ``name`` with only letters, digits, ``_``, ``.`` and ``-``."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:80] or "unnamed"


def read_address(directory: Path) -> str:
    """Give the URL of the daemon that uses ``directory``.

    Raises:
        ConfigError: There is none.
    """
    try:
        return (directory / _ADDRESS).read_text().strip()
    except OSError as error:
        raise ConfigError(
            f"no daemon is running for {directory} ({error.strerror}); start it with "
            "`quietbeam run`, or give --url and --token-file"
        ) from error


def holder_of(directory: Path) -> int | None:
    """Give the process id of the daemon that holds ``directory``, or None."""
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32).decode(errors="replace").strip()
        return int(text) if text.isdigit() else 0
    else:
        return None
    finally:
        os.close(descriptor)


def token_path(directory: Path) -> Path:
    """Where the control token lies."""
    return directory / _TOKEN


class RuntimeDirectory:
    """Holds the directory for one daemon; a second one is refused.

    Raises:
        ConfigError: Another daemon holds it, it belongs to someone else, or it
            cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = ""
        self.generation = 0
        """Which daemon of this directory it is: one more at every start."""
        self._lock: int | None = None

    def __enter__(self) -> RuntimeDirectory:
        _make_private(self.path)
        self._lock = _lock(self.path / _LOCK)
        self.token = _credential() or secrets.token_urlsafe(32)
        _write_private(token_path(self.path), self.token + "\n")
        self.generation = _last_generation(self.path) + 1
        _write_private(self.path / _GENERATION, f"{self.generation}\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in (_TOKEN, _ADDRESS):
            (self.path / name).unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def publish_address(self, url: str) -> None:
        """Write down where the daemon is reached."""
        _write_private(self.path / _ADDRESS, url + "\n")


def _last_generation(path: Path) -> int:
    """Give the number of the daemon before; 0 where there was none or it cannot be read."""
    try:
        return int((path / _GENERATION).read_text())
    except (OSError, ValueError):
        return 0


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"[service] runtime_directory: {path} cannot be made: {error.strerror}"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(
            f"[service] runtime_directory: {path} is not a directory of this user; "
            "remove it or choose another"
        )
    if found.st_mode & 0o077:
        path.chmod(0o700)
    if not os.access(path, os.W_OK):
        raise ConfigError(f"[service] runtime_directory: {path} is not writable")


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise ConfigError(
            f"another daemon (pid {holder}) holds {path.parent}; stop it, or give this one "
            "another name or another [service] runtime_directory"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, replacing it in one step."""
    temporary = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def _credential() -> str:
    """Give the token that systemd's LoadCredential=web-token handed over, or nothing.

    Raises:
        ConfigError: There is one, but it cannot be read or is easily guessed.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory) / CREDENTIAL if directory else None
    if path is None or not path.exists():
        return ""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the credential {path} cannot be read: {error}") from error
    if len(token) < _TOKEN_CHARACTERS or not (token.isascii() and token.isprintable()):
        raise ConfigError(
            f"the credential {path} is no good token: {len(token)} characters, expected at least "
            f"{_TOKEN_CHARACTERS} printable ASCII ones; `openssl rand -base64 32` makes one"
        )
    return token
