"""What is wrong with a configuration on this machine, each with its mend: ``quietbeam doctor``."""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quietbeam.config import Config, load
from quietbeam.core.errors import ConfigError
from quietbeam.service.checks import environment
from quietbeam.service.runtime import directory_for, holder_of

_EVERYWHERE = ("0.0.0.0", "*", "[::]", "::")  # noqa: S104 - what is looked for
_NOT_FOR_HDF5 = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        name: Of the kind of fault; one word that stays.
        what: What was found, naming file, table and key.
        mend: What to do.
    """

    name: str
    what: str
    mend: str


_MENDS = (
    ("runtime_directory", r"runtime_directory",
     "give it to the user of the service, or choose another [service] runtime_directory"),
    ("port_taken", r"cannot listen there",
     "`ss -ltnp` names who listens there; stop it, or choose another port"),
    ("shared_memory", r"shared memory|\[rings\]|rings",
     "make [rings] smaller, or enlarge it: mount -o remount,size=4G /dev/shm"),
    ("not_writable", r"cannot be written",
     "install -d -o quietbeam DIRECTORY, and quietbeam install-service --data DIRECTORY"),
    ("input_missing", r"does not exist or cannot be read",
     "correct the path, or let the user of the service read the file"),
    ("denoiser", r"cannot be built",
     "choose settings that fit together, or install what is missing (quietbeam plugins)"),
    ("secret_readable", r"others may read this secret key",
     "chmod 600 the file; the key has to be made anew"),
)  # fmt: skip


def diagnose(path: Path) -> list[Finding]:
    """Give everything that is wrong with the configuration at ``path``, most basic first."""
    found = list(_file(path))
    try:
        config = load(path)
    except ConfigError as error:
        mend = f"correct the key named; `quietbeam check {path}` tells when it is right"
        return found + [Finding("configuration", line, mend) for line in str(error).splitlines()]
    looks: tuple[Callable[[Config], Iterator[Finding]], ...] = (
        _other_daemon, _surroundings, _exposed, _recordings,
    )  # fmt: skip
    return found + [finding for look in looks for finding in look(config)]


def _file(path: Path) -> Iterator[Finding]:
    if path.exists() and path.stat().st_mode & stat.S_IWOTH:
        yield Finding(
            "config_writable",
            f"{path}: anybody may change it",
            f"chmod 644 {path}; chown root {path}",
        )


def _other_daemon(config: Config) -> Iterator[Finding]:
    directory = directory_for(config.name, config.service.runtime_directory)
    holder = holder_of(directory)
    if holder is not None:
        yield Finding(
            "already_running",
            f"{directory}: the daemon with process id {holder} holds it",
            "nothing, if that is the one you mean; else stop it, or give this one another name",
        )


def _surroundings(config: Config) -> Iterator[Finding]:
    for text in environment(config):
        named = ((name, mend) for name, pattern, mend in _MENDS if re.search(pattern, text))
        name, mend = next(named, ("surroundings", "see `quietbeam check --help`"))
        yield Finding(name, text, mend)


def _exposed(config: Config) -> Iterator[Finding]:
    host = config.service.http.rpartition(":")[0]
    if host in _EVERYWHERE:
        yield Finding(
            "open_http",
            f"[service] http = {config.service.http!r}: everybody on the network can read",
            "127.0.0.1:9469, or the address in the control network, and IPAddressAllow= for it",
        )
    for where, plugin in _plugins(config):
        address = str(getattr(plugin, "address", ""))
        unlocked = getattr(plugin, "curve_secret_key", "none needed") is None
        if unlocked and address.removeprefix("tcp://").rpartition(":")[0] in _EVERYWHERE:
            yield Finding(
                "open_output",
                f"{where} address = {address!r}: anybody may subscribe, unencrypted",
                "name one interface, or set curve_secret_key and curve_clients",
            )


def _recordings(config: Config) -> Iterator[Finding]:
    for where, plugin in _plugins(config):
        directory = getattr(plugin, "directory", None)
        if directory is None or not Path(directory).is_dir():
            continue
        kind = filesystem_of(Path(directory))
        if kind in _NOT_FOR_HDF5:
            yield Finding(
                "network_disk",
                f"{where} directory: {directory} is on {kind}, which cannot be read while written",
                "record on a local disk, GPFS or Lustre, and copy finished files",
            )
        free, reserve = shutil.disk_usage(directory).free, getattr(plugin, "reserve_bytes", 0) or 0
        if free < reserve:
            yield Finding(
                "disk_full",
                f"{where} directory: {free} bytes free, and {reserve} are kept in reserve",
                "move finished recordings away; recording goes on by itself",
            )


def filesystem_of(directory: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Name the type of the file system that holds ``directory``."""
    real, best, kind = directory.resolve(), "", ""
    for line in mounts.read_text().splitlines():
        point, found = (word.replace("\\040", " ") for word in line.split()[1:3])
        if real.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, found
    return kind


def _plugins(config: Config) -> Iterator[tuple[str, Any]]:
    yield "[source]", config.source.plugin
    for number, named in enumerate(config.sinks, 1):
        yield f"[[sinks]] #{number} {named.name}", named.plugin
