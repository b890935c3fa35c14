"""Log events as entries of systemd's journal, each value a field of its own.

The protocol is one datagram of ``FIELD=value`` lines to journald's socket
(systemd.io/JOURNAL_NATIVE_PROTOCOL).  ``journalctl -u quietbeam EVENT=disk_full``
then finds what happened, and ``-o json`` gives every value.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Mapping
from typing import Any

SOCKET = "/run/systemd/journal/socket"
MESSAGE_IDS = {
    "daemon_ready": "7a40ac9e7d5c4bb1a2a9e3d5c1f06b11",
    "daemon_stopped": "0f6f2f8a4d0c4a6d9a53c3c2e8d7b512",
    "run_started": "c5c0f1a6f2a44f5f8f0f0a8a1f6e9d13",
    "run_ended": "3f0f86f6a4f14c3c9d6f5b0be2d4a714",
    "given_up": "9b1c7a52d8e3460fb6b6a2c04e7f3815",
    "alarm_raised": "5e1c6a0bd25d4f3b8b7a3fd1f0a45c27",
    "recorder_failed": "d2a9f7b36c8e4e0f9a1b5c4d3e2f1a60",
}
"""Of the events that sites watch for; ``journalctl MESSAGE_ID=...`` finds them at any wording."""

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Syslog's numbers for structlog's levels."""

_RESERVED = {"MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER", "EVENT"}
_HIDDEN = ("event", "level", "timestamp")  # the journal has fields of its own for them


def goes_to_journal(descriptor: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether what is written to ``descriptor`` ends in the journal (systemd.exec(5))."""
    told = environment.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return told == f"{found.st_dev}:{found.st_ino}"


def entry(method: str, event: Mapping[str, Any]) -> bytes:
    """Give the datagram of one event."""
    name = str(event.get("event", ""))
    values = {key: value for key, value in event.items() if key not in _HIDDEN}
    fields = {
        "MESSAGE": " ".join([name, *(f"{k}={_text(v)}" for k, v in values.items())]),
        "PRIORITY": str(PRIORITIES.get(method, 6)),
        "SYSLOG_IDENTIFIER": "quietbeam",
        "EVENT": name,
    }
    if name in MESSAGE_IDS:
        fields["MESSAGE_ID"] = MESSAGE_IDS[name]
    fields |= {_field(key): _text(value) for key, value in values.items()}
    return b"".join(_line(key, value) for key, value in fields.items())


class Journal:
    """Sends entries; never waits and never fails.

    Args:
        address: Of journald's socket; empty for the usual one.
    """

    def __init__(self, address: str = "") -> None:
        self._address = address or SOCKET

    def send(self, method: str, event: Mapping[str, Any]) -> bool:
        """Send one event; False where journald is not there, or it is too long for a datagram."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(0)
                out.sendto(entry(method, event), self._address)
        except OSError:
            return False
        return True


def _field(key: str) -> str:
    """Give a name that journald takes: capitals, digits, ``_``; no more than 64."""
    name = re.sub(r"[^A-Z0-9_]", "_", key.upper()).lstrip("_")[:60] or "VALUE"
    name = f"N_{name}" if name[0].isdigit() else name
    return f"{name}_" if name in _RESERVED else name


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _line(key: str, value: str) -> bytes:
    content = value.encode(errors="replace")
    if b"\n" in content:  # a length instead of a line's end
        return key.encode() + b"\n" + struct.pack("<Q", len(content)) + content + b"\n"
    return key.encode() + b"=" + content + b"\n"
