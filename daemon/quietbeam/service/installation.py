"""The files of a system service: what ``quietbeam install-service`` writes, and why.

The texts are those of ``deploy``; a site's choices become drop-ins.  Nothing is
started, no user is made: a package, an administrator or a test does that.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from itertools import takewhile
from pathlib import Path

import quietbeam
from quietbeam.core.errors import ConfigError

UNIT = "quietbeam.service"
_PROGRAM = "/opt/quietbeam/bin/quietbeam"
_CONFIG = "/etc/quietbeam/quietbeam.toml"
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - by ProtectHome=, PrivateTmp=


@dataclass(frozen=True, slots=True)
class Choices:
    """What a site decides.

    Attributes:
        program: The ``quietbeam`` that the service runs, as an absolute path.
        config: Its configuration.
        networks: Networks it may speak with, besides this computer.
        data: Directories it may write recordings to.
        cpus: Cores it is bound to, as ``2-15``; empty for all.
        gpu: Prepare the device nodes of an NVIDIA GPU.
        views: Let processes that serve clients outlive a crash of the daemon.
    """

    program: Path
    config: Path = Path(_CONFIG)
    networks: tuple[str, ...] = ()
    data: tuple[Path, ...] = ()
    cpus: str = ""
    gpu: bool = False
    views: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """One file.

    Attributes:
        path: Where it belongs, from the root of the system.
        text: Its content.
        why: What it is for, in one line.
        mode: Its permissions.
        of_site: The site may have changed it: it is never overwritten.
    """

    path: Path
    text: str
    why: str
    mode: int = 0o644
    of_site: bool = False


def deploy_directory() -> Path:
    """Give the folder ``deploy`` of the source tree, or of the installed package.

    Raises:
        ConfigError: This installation has none.
    """
    source = Path(quietbeam.__file__).parents[2] / "deploy"
    if (source / UNIT).is_file():
        return source
    try:
        listed = files("quietbeam") or []
    except PackageNotFoundError:
        listed = []
    for file in listed:
        if file.name == UNIT:
            return Path(str(file.locate())).resolve().parent
    raise ConfigError("this installation holds no deploy/quietbeam.service; install the wheel anew")


def own_program() -> Path:
    """Give the ``quietbeam`` of the environment that runs now."""
    return Path(sys.prefix) / "bin" / "quietbeam"


def items(choices: Choices, unit_directory: Path = Path("/etc/systemd/system")) -> list[Item]:
    """Give every file of the service, in the order a reader understands them.

    Raises:
        ConfigError: The choices can never work together with the unit.
    """
    _refuse(choices)
    deploy = deploy_directory()
    drop_ins = unit_directory / f"{UNIT}.d"
    made = [
        Item(unit_directory / UNIT, _unit(deploy, choices), "how the service runs and what it may"),
        Item(Path("/etc/sysusers.d/quietbeam.conf"), _of(deploy, "sysusers.d/quietbeam.conf"),
             "the user `quietbeam`, for systemd-sysusers"),
        Item(Path("/etc/tmpfiles.d/quietbeam.conf"), _of(deploy, "tmpfiles.d/quietbeam.conf"),
             "its directories, for systemd-tmpfiles"),
        Item(Path("/etc/quietbeam/secrets/web-token"), secrets.token_urlsafe(32) + "\n",
             "the control token; read by root alone", 0o600, of_site=True),
    ]  # fmt: skip
    named = dict(_drop_ins(deploy, choices))
    return made + [
        Item(drop_ins / name, text, _first_words(text), of_site=True)
        for name, text in named.items()
    ]


def write(item: Item, root: Path) -> str:
    """Write one file under ``root``; give what was done with it, in one word.

    Raises:
        ConfigError: It cannot be written.
    """
    path = root / item.path.relative_to("/")
    try:
        before = path.read_text() if path.exists() else None
        if before is not None and (item.of_site or before == item.text):
            return "kept" if item.of_site else "unchanged"
        private = item.mode & 0o077 == 0
        path.parent.mkdir(mode=0o700 if private else 0o755, parents=True, exist_ok=True)
        path.touch(mode=item.mode)
        path.chmod(item.mode)  # whatever the umask
        path.write_text(item.text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}; run as root, or give --root DIRECTORY"
        ) from error
    return "written" if before is None else "replaced"


def _refuse(choices: Choices) -> None:
    for name, path in (("--program", choices.program), ("--config", choices.config)):
        if not path.is_absolute() or re.search(r"\s", str(path)):
            raise ConfigError(f"{name} {path}: expected an absolute path without spaces")
        hidden = next((h for h in _HIDDEN if path.is_relative_to(h)), None)
        if hidden is not None:
            raise ConfigError(
                f"{name} {path}: the service cannot see {hidden} (ProtectHome=, PrivateTmp=); "
                "install into /opt/quietbeam: python3 -m venv /opt/quietbeam"
            )
    for path in choices.data:
        if not path.is_absolute() or re.search(r"\s", str(path)):
            raise ConfigError(f"--data {path}: expected an absolute path without spaces")
    for network in choices.networks:
        _refuse_network(network)
    if choices.cpus and not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", choices.cpus):
        raise ConfigError(f"--cpus {choices.cpus}: expected cores, e.g. 2-15 or 2,3,8-11")


def _refuse_network(network: str) -> None:
    try:
        ipaddress.ip_network(network)
    except ValueError as error:
        raise ConfigError(f"--network {network}: {error}; expected e.g. 172.23.0.0/16") from error


def _unit(deploy: Path, choices: Choices) -> str:
    text = _of(deploy, UNIT)
    return text.replace(_PROGRAM, str(choices.program)).replace(_CONFIG, str(choices.config))


def _drop_ins(deploy: Path, choices: Choices) -> Iterator[tuple[str, str]]:
    def example(name: str) -> str:
        return _of(deploy, f"{UNIT}.d/{name}.conf")

    yield "credentials.conf", example("credentials")
    if choices.networks:
        allowed = "\n".join(f"IPAddressAllow={network}" for network in choices.networks)
        yield "network.conf", _with(example("network"), "IPAddressAllow=", allowed)
    if choices.data:
        paths = "\n".join(f"ReadWritePaths={path}" for path in choices.data)
        yield "data.conf", _with(example("data"), "ReadWritePaths=", paths)
    if choices.cpus:
        yield "cpus.conf", _with(example("cpus"), "CPUAffinity=", f"CPUAffinity={choices.cpus}")
    if choices.gpu:
        yield "gpu.conf", example("gpu")
    if choices.views:
        yield "views.conf", example("views")


def _with(text: str, key: str, lines: str) -> str:
    """Put ``lines`` in the place of the example's line ``key...``."""
    return "\n".join(lines if line.startswith(key) else line for line in text.splitlines()) + "\n"


def _first_words(text: str) -> str:
    """Give the first clause of the comment that stands first."""
    comment = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    return re.split(r"[.;:]\s", comment.replace("#", "").replace("\n", " "))[0].strip()


def _of(deploy: Path, name: str) -> str:
    return (deploy / name).read_text()
