"""Whether this machine lets a configuration work: looked at before anything starts."""

from __future__ import annotations

import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quietbeam.config import Config, Named
from quietbeam.core.errors import ConfigError, QuietbeamError
from quietbeam.core.plugin import DenoiserPlugin, Plugin
from quietbeam.service.http import listen
from quietbeam.service.rings import choose_directory
from quietbeam.service.runtime import directory_for, holder_of

_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:]+):(?P<port>\d+)")
_INPUTS = {"file", "dark", "flat", "mask"}
"""Settings of sources and corrections that name a file, or ``FILE:/DATASET``."""
_KEYS = {"curve_secret_key", "curve_server_key", "curve_clients"}


def environment(config: Config) -> list[str]:
    """Give everything on this machine that would keep ``config`` from working, in words.

    Ports and the runtime directory are not looked at where a daemon of this
    very configuration holds them: a check before a reload must be possible.
    """
    findings = [*_runtime(config), *_rings(config), *_denoisers(config)]
    findings += readable_secrets(config)
    if _running(config) is None:
        findings += _ports(config)
    for table, named in _plugins(config):
        findings += [f"{config.path}: [{table}] {problem}" for problem in _paths(table, named)]
    return findings


def readable_secrets(config: Config) -> Iterator[str]:
    """Name the secret keys that others than their owner may read: they are secret no more."""
    for table, named in _plugins(config):
        key = getattr(named.plugin, "curve_secret_key", None)
        if key is None or not Path(key).exists():
            continue
        mode = stat.S_IMODE(Path(key).stat().st_mode)
        if mode & 0o077:
            yield (
                f"{config.path}: [{table}] curve_secret_key: others may read this secret key, "
                f"{key} has mode {mode:04o}, expected 0600; make a new pair, and `chmod 600` it"
            )


def _running(config: Config) -> int | None:
    return holder_of(directory_for(config.name, config.service.runtime_directory))


def _runtime(config: Config) -> Iterator[str]:
    directory = directory_for(config.name, config.service.runtime_directory)
    if not _can_write(directory):
        yield f"{config.path}: [service] runtime_directory: {directory} cannot be written"
    if config.trainer.checkpoint_directory and not _can_write(config.trainer.checkpoint_directory):
        yield (
            f"{config.path}: [trainer] checkpoint_directory: "
            f"{config.trainer.checkpoint_directory} cannot be written"
        )


def _rings(config: Config) -> Iterator[str]:
    wanted = (config.rings.raw_mib + config.rings.clean_mib) << 20
    directory = directory_for(config.name, config.service.runtime_directory)
    try:
        choose_directory(wanted, _existing(directory))
    except ConfigError as error:
        yield f"{config.path}: {error}"


def _denoisers(config: Config) -> Iterator[str]:
    others = (("[trainer] classical", named) for named in config.alternatives)
    for where, named in (("[denoiser]", config.denoiser), ("[fallback]", config.fallback), *others):
        try:
            _build(named)
        except (QuietbeamError, ImportError, ValueError, RuntimeError) as error:
            yield f"{config.path}: {where} {named.name} cannot be built: {error}"


def _build(named: Named[DenoiserPlugin]) -> None:
    named.plugin.build()


def _ports(config: Config) -> Iterator[str]:
    try:
        listen(config.service.http).close()
    except ConfigError as error:
        yield f"{config.path}: {error}"
    for table, named in _plugins(config):
        address = getattr(named.plugin, "address", None)
        if isinstance(address, str) and _binds(table, named.plugin):
            problem = _bind(address)
            if problem:
                yield f"{config.path}: [{table}] address = {address!r}: {problem}"


def _binds(table: str, plugin: Plugin) -> bool:
    return bool(getattr(plugin, "bind", table.startswith("sinks")))


def _bind(address: str) -> str | None:
    match = _TCP.fullmatch(address)
    if match is None or match["port"] == "0":
        return None
    host = match["host"].strip("[]").replace("*", "0.0.0.0")  # noqa: S104 - as zmq reads it
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(match["port"])))
        except OSError as error:
            return f"cannot listen there: {error.strerror or error}"
    return None


def _plugins(config: Config) -> Iterator[tuple[str, Named[Any]]]:
    yield "source", config.source
    for table in ("corrections", "analyses", "sinks"):
        for number, named in enumerate(getattr(config, table), 1):
            yield f"{table} #{number} {named.name}", named


def _paths(table: str, named: Named[Any]) -> Iterator[str]:
    for key in type(named.plugin).model_fields:
        value = getattr(named.plugin, key)
        if not isinstance(value, (Path, str)):
            continue
        if key.endswith("directory") and not _can_write(Path(value)):
            yield f"{key}: {value} cannot be written"
        elif _is_input(table, key) and not _can_read(str(value)):
            yield f"{key}: {value} does not exist or cannot be read"


def _is_input(table: str, key: str) -> bool:
    return key in _KEYS or (key in _INPUTS and not table.startswith("sinks"))


def _can_read(text: str) -> bool:
    """Tell whether a file, or the file of ``FILE:/DATASET``, is there."""
    return any(os.access(path, os.R_OK) for path in (text, text.rpartition(":/")[0]) if path)


def _can_write(directory: Path) -> bool:
    """Try it, in the nearest directory that exists: rights alone do not tell (root, /proc)."""
    try:
        with tempfile.TemporaryFile(dir=_existing(directory)):
            return True
    except OSError:
        return False


def _existing(directory: Path) -> Path:
    """Give the directory, or the nearest one above it that exists."""
    path = directory.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
