"""A daemon whose epics sink serves on free ports of loopback, and clients that find only it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from helpers.daemons import RunningDaemon, config_text, free_port, started
from helpers.waiting import until

PREFIX = "BL99-DEN:DEN1:"


@dataclass(frozen=True)
class Ports:
    """Where an IOC of a test serves; none of them is the default of anything."""

    ca: int = field(default_factory=free_port)
    pva: int = field(default_factory=free_port)
    image: int = field(default_factory=free_port)
    broadcast: int = field(default_factory=lambda: free_port(socket.SOCK_DGRAM))
    repeater: int = field(default_factory=lambda: free_port(socket.SOCK_DGRAM))

    def environment(self) -> dict[str, str]:
        """Give what makes a client find this IOC and no other."""
        return {
            "EPICS_CA_ADDR_LIST": f"127.0.0.1:{self.ca}",
            "EPICS_CA_AUTO_ADDR_LIST": "NO",
            "EPICS_CA_REPEATER_PORT": str(self.repeater),
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_ADDR_LIST": "127.0.0.1",
            "EPICS_PVA_BROADCAST_PORT": str(self.broadcast),
            "EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{self.pva} 127.0.0.1:{self.image}",
        }


class Ioc:
    """The daemon, its ports, and a way to run client programs."""

    def __init__(self, daemon: RunningDaemon, ports: Ports) -> None:
        self.daemon, self.ports = daemon, ports

    def run(
        self, *argv: str, timeout_s: float = 20.0, user: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a client program to its end."""
        return subprocess.run(
            [str(part) for part in argv],
            env={**os.environ, **self.ports.environment(), **(user or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def python(self, code: str, *arguments: str, timeout_s: float = 60.0) -> str:
        """Run a client in Python; give what it prints, fail if it fails."""
        done = self.run(sys.executable, "-c", code, *arguments, timeout_s=timeout_s)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


@contextmanager
def serving(
    directory: Path,
    *,
    ports: Ports | None = None,
    settings: str = "",
    more: str = "[trainer]\nenabled = false",
    sinks: str = "",
) -> Iterator[Ioc]:
    """Start a daemon with the sink and wait until it serves."""
    port, ports = free_port(), ports or Ports()
    sink = f"""
[[sinks]]
kind = "epics"
prefix = "{PREFIX}"
ca_port = {ports.ca}
pva_port = {ports.pva}
image_port = {ports.image}
pva_broadcast_port = {ports.broadcast}
{settings}
{sinks}"""
    with started(directory, config_text(directory, port, sinks=sink, more=more), port) as daemon:
        ioc = Ioc(daemon, ports)
        try:
            daemon.wait_for(
                lambda s: s["state"] == "running" and s["views"]["epics.0"]["up"], 60.0, "a view"
            )
            until(lambda: daemon.events("epics_serves"), 40, "the IOC")
            yield ioc
        finally:
            _end_view(daemon)


def _end_view(daemon: RunningDaemon) -> None:
    """Have the view go where the daemon was killed by a test."""
    if daemon.process.poll() is None:
        daemon.stop()
        return
    for path in (daemon.directory / "run" / "views").glob("*.lock"):
        for process in _holders(path):
            os.kill(process, 15)


def _holders(path: Path) -> Sequence[int]:
    inode = path.stat().st_ino
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(line[4]) for line in lines if line[5].endswith(f":{inode}") and line[4] != "-1"]
