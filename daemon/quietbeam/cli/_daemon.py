"""Runs a real daemon in a process of its own, for the commands that show or measure one."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quietbeam.core.errors import QuietbeamError

_READY_S = 60
_DRAIN_S = 20


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(config: Path, url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the daemon and wait until it takes frames; on leaving it drains and must end well.

    Args:
        config: Its configuration.
        url: Where it answers, ``http://127.0.0.1:PORT``.
        log: What it writes goes here.

    Raises:
        QuietbeamError: It does not become ready, or does not end well.
    """
    with log.open("wb") as output:
        command = [sys.executable, "-m", "quietbeam", "run", str(config)]
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            _wait_ready(url, process, log)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(_DRAIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
    if code != 0:
        raise QuietbeamError(f"the daemon ended with code {code}; see {log}")


def _wait_ready(url: str, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and daemon.poll() is None:
        if read(f"{url}/readyz") is not None:
            return
        time.sleep(0.2)
    raise QuietbeamError(f"the daemon did not become ready; see {log}")


def read(url: str) -> bytes | None:
    """What is at ``url``; None if it cannot be read now, or is no success."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, OSError):
        return None


def status(url: str) -> dict[str, Any] | None:
    """The daemon's status page; None if it does not answer now."""
    page = read(f"{url}/api/v1/status")
    return None if page is None else json.loads(page)
