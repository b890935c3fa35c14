"""The audit log: every write and every login, who, from where, what, and what came of it."""

from __future__ import annotations

import time
from pathlib import Path

import orjson
import structlog

_SHOWN = 2000


class Audit:
    """Writes to the daemon's log and, where one is named, to a file of JSON lines.

    Args:
        path: Appended to; None: the log alone.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._log = structlog.get_logger().bind(sink="web")

    def write(self, who: str, client: str, what: str, body: bytes, outcome: str) -> None:
        """Keep one entry; ``body`` never holds a credential (that of a login is not given)."""
        entry = {
            "who": who,
            "client": client,
            "what": what,
            "body": body[:_SHOWN].decode(errors="replace"),
            "outcome": outcome[:_SHOWN],
        }
        self._log.info("web_audit", **entry)
        if self._path is None:
            return
        try:
            with self._path.open("ab") as file:
                file.write(orjson.dumps({"unix_time_s": time.time(), **entry}) + b"\n")
        except OSError as error:
            self._log.error("audit_not_written", path=str(self._path), error=str(error))
