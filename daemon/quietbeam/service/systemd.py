"""Tells systemd how the service is: READY, STATUS, WATCHDOG, RELOADING, STOPPING.

The protocol is one datagram of ``KEY=value`` lines to the socket named by
``NOTIFY_SOCKET`` (sd_notify(3)); without that variable nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Sends notifications; never fails, because a service must run without systemd too."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        self._address = variables.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(variables)
        """Time within which a ping is expected, or None."""
        self.last_ping_s: float | None = None
        """Unix time of the last ping, or None."""

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is complete."""
        self._send(READY="1", STATUS=status)

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(STATUS=text)

    def ping(self) -> None:
        """Everything critical is alive."""
        self.last_ping_s = time.time()
        self._send(WATCHDOG="1")

    def reloading(self) -> None:
        """A reload begins; ``ready`` ends it."""
        self._send(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))

    def stopping(self, status: str) -> None:
        """Draining begins."""
        self._send(STOPPING="1", STATUS=status)

    def _send(self, **fields: str) -> None:
        if not self._address:
            return
        lines = "\n".join(f"{key}={value}" for key, value in fields.items())
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(0)
                out.sendto(lines.encode(), address)
        except OSError:
            return


def _watchdog_s(variables: Mapping[str, str]) -> float | None:
    meant_for = variables.get("WATCHDOG_PID")
    if meant_for and meant_for != str(os.getpid()):
        return None
    microseconds = variables.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() else None
