"""Views as the daemon sees them: met at their sockets, started where none lives, supervised."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from quietbeam import __version__
from quietbeam.config import Named
from quietbeam.core.errors import QuietbeamError
from quietbeam.core.plugin import SinkPlugin
from quietbeam.service.outputs import Totals
from quietbeam.service.supervise import Backoff, Child, Command, python_module
from quietbeam.service.view_socket import connect, pid_of, to_json

VIEW_PROCESS = python_module("quietbeam.service.view_process")
SILENT_S = 20.0
_RESTART_S = (0.2, 1, 2, 4, 8, 15, 30)
_MEET_S = 30.0
_LINE_BYTES = 1 << 20
_POLL_S = 0.05

CommandRunner = Callable[[str, Mapping[str, Any], str], Awaitable[Mapping[str, Any]]]

log = structlog.get_logger()


@dataclass(slots=True)
class Met:
    """A view process, ours or one that an earlier daemon started.

    Looks like an ``asyncio`` subprocess whose pipes are the two ways of its socket.
    """

    pid: int
    stdout: asyncio.StreamReader
    stdin: asyncio.StreamWriter | None
    ours: asyncio.subprocess.Process | None
    spared: bool = field(default=False)
    """It is left to the next daemon: whatever happens, it lives."""

    @property
    def returncode(self) -> int | None:
        """None while it lives; 0 where nobody can tell."""
        if self.ours is not None:
            return self.ours.returncode
        return None if _lives(self.pid) else 0

    async def wait(self) -> int:
        """Wait for its end, or until it is spared."""
        while (code := self.returncode) is None and not self.spared:
            await asyncio.sleep(_POLL_S)
        return 0 if code is None else code

    def kill(self) -> None:
        """End it at once, unless it is spared."""
        if not self.spared and self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)  # its socket names it: no other process can have it

    def leave(self) -> None:
        """Let it live and hang up."""
        self.spared = True
        if self.stdin is not None:
            self.stdin.close()


class View:
    """One view plugin in its own process.

    Args:
        name: Unique among the sinks; also its name as a reader of the rings.
        sink: Which plugin, with its settings.
        directory: The runtime directory, where it is met.
        rings: Paths of both rings.
        run: Carries out its commands.
        argv: The command; another one in tests.
    """

    def __init__(
        self,
        name: str,
        sink: Named[SinkPlugin],
        directory: Path,
        rings: Mapping[str, Path],
        run: CommandRunner,
        argv: Sequence[str] = VIEW_PROCESS,
    ) -> None:
        self.name, self.kind = name, sink.name
        self.status: dict[str, Any] = {"state": "off"}
        self.totals = Totals()
        self.dropped = Totals()
        self._directory, self._run = directory, run
        self._argv = (*argv, str(directory), name)
        settings = sink.plugin.model_dump(mode="json")
        identity = to_json([__version__, sink.name, settings])
        self._init: Command = {
            "type": "init",
            "kind": sink.name,
            "settings": settings,
            "rings": {kind: str(path) for kind, path in rings.items()},
            "identity": hashlib.sha256(identity).hexdigest(),
        }
        self._met: Met | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.child = Child(
            name,
            self._argv,
            greet=lambda: (self._init,),
            on_event=self._hear,
            backoff=Backoff(_RESTART_S, healthy_s=3.0),
            silent_s=SILENT_S,
            threads=1,
            spawn=self._meet,
        )

    def tell(self, snapshot: bytes) -> None:
        """Pass on the daemon's status (JSON); a view that does not listen misses it."""
        if self.child.up:
            self.child.send_line(b'{"type":"status","status":' + snapshot + b"}")

    async def leave(self) -> None:
        """Hang up and let the process live: the next daemon takes it over."""
        if self._met is not None:
            self._met.leave()
        await self.child.stop(1.0)

    def account(self) -> dict[str, Any]:
        """Describe the view for the status page."""
        return {
            "status": self.status,
            "kind": self.kind,
            "up": self.child.up,
            "given_total": self.totals.get("given"),
            "dropped_total": self.dropped.all(),
        }

    async def _meet(self, environment: Mapping[str, str]) -> Met:
        """Connect to the view that lives, else start one."""
        connection = self._knock()
        ours = None
        if connection is None:
            ours = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,  # what ends the daemon's group must not end it
            )
            connection = await self._knock_until_open(ours)
        else:
            log.info("view_taken_over", view=self.name, pid=pid_of(connection))
        if connection is None:
            reader = asyncio.StreamReader()
            reader.feed_eof()
            self._met = Met(ours.pid if ours else 0, reader, None, ours)
            return self._met
        connection.settimeout(0)
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=_LINE_BYTES)
        pid = ours.pid if ours is not None else pid_of(connection)
        self._met = Met(pid, reader, writer, ours)
        return self._met

    async def _knock_until_open(self, process: asyncio.subprocess.Process) -> socket.socket | None:
        deadline_s = time.monotonic() + _MEET_S
        while process.returncode is None and time.monotonic() < deadline_s:
            connection = self._knock()
            if connection is not None:
                return connection
            await asyncio.sleep(_POLL_S)
        return None

    def _knock(self) -> socket.socket | None:
        try:
            return connect(self._directory, self.name)
        except OSError:
            return None

    def _hear(self, event: dict[str, Any]) -> None:
        if event["type"] == "status":
            self.totals.update({"given": int(event["given"])})
            self.dropped.update({str(k): int(v) for k, v in event["dropped"].items()})
            self.status = {key: value for key, value in event.items() if key != "type"}
        elif event["type"] == "command":
            task = asyncio.get_running_loop().create_task(self._answer(event))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, event: Mapping[str, Any]) -> None:
        answer: dict[str, Any] = {"type": "answer", "id": event["id"]}
        try:
            answer["result"] = await self._run(event["name"], event["arguments"], self.name)
        except QuietbeamError as error:
            answer["error"] = str(error)
        except Exception as error:  # the client must not wait for ever
            log.exception("command_failed", view=self.name, command=event["name"])
            answer["error"] = f"it failed: {error!r}"
        self.child.send_line(to_json(answer))


def _lives(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in {"Z", "X"}
