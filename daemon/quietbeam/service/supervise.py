"""Child processes spoken to in JSON lines: started, watched, restarted with back-off.

stdin carries commands, stdout events, stderr logs.  A child that dies is
counted and started again; nothing else notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import structlog

Command = Mapping[str, Any]
State = Literal["stopped", "starting", "running", "waiting"]

RESTART_REASONS = ("exit", "signal", "config", "silent", "spawn")
"""Why a child was started again: it ended, a signal killed it, it refused its
configuration, it said nothing for too long, or it could not be started."""

_LINE_BYTES = 1 << 20
_PENDING_BYTES = 1 << 20
_EX_CONFIG = 78
_TERMINATE_S = 1.0
_LAST_WORDS_S = 5.0

_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep: the cores belong to inference
    "KMP_BLOCKTIME": "0",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

log = structlog.get_logger()


def python_module(name: str) -> tuple[str, ...]:
    """Give the command that runs a module with this interpreter."""
    return (sys.executable, "-m", name)


@dataclass(slots=True)
class Backoff:
    """Seconds to wait before the next start: longer each time, short again once it held.

    Attributes:
        delays_s: Waits in order; the last one repeats.
        healthy_s: A child that lived this long starts again at the first delay.
    """

    delays_s: Sequence[float] = (1, 2, 4, 8, 16, 30)
    healthy_s: float = 10.0
    _next: int = 0

    def after(self, lived_s: float) -> float:
        """Give the wait after a child that lived ``lived_s``."""
        if lived_s >= self.healthy_s:
            self._next = 0
        delay = self.delays_s[min(self._next, len(self.delays_s) - 1)]
        self._next += 1
        return delay


class Process(Protocol):
    """What is supervised: an ``asyncio`` subprocess, or something like it."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    @property
    def returncode(self) -> int | None:
        """None while it lives."""
        ...

    @property
    def stdin(self) -> asyncio.StreamWriter | None:
        """Takes commands."""
        ...

    @property
    def stdout(self) -> asyncio.StreamReader | None:
        """Gives events."""
        ...

    async def wait(self) -> int:
        """Wait for its end; give the exit code."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class Child:
    """One supervised process.  All methods belong to the asyncio thread.

    Args:
        name: For logs and metrics.
        argv: The command.
        greet: Gives the commands every new process is told first.
        on_event: Called with every event, a JSON object with a text ``type``.
        backoff: Waits between a death and the next start.
        silent_s: Killed after this long without an event, or None.
        oom_score_adj: Added for the kernel's out-of-memory choice (0 to 1000).
        threads: For the numerical libraries of the child, or None.
        spawn: Gives the process for an environment, instead of starting ``argv`` with pipes.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        greet: Callable[[], Iterable[Command]] = tuple,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        backoff: Backoff | None = None,
        silent_s: float | None = None,
        oom_score_adj: int = 0,
        threads: int | None = None,
        spawn: Callable[[Mapping[str, str]], Awaitable[Process]] | None = None,
    ) -> None:
        self.name = name
        self.state: State = "stopped"
        self.restarts: Counter[str] = Counter(dict.fromkeys(RESTART_REASONS, 0))
        self.garbled = 0
        """Lines on stdout that were no event."""
        self.exit_code: int | None = None
        """Of the last process that ended."""
        self._argv = tuple(argv)
        self._greet, self._on_event = greet, on_event
        self._backoff = Backoff() if backoff is None else backoff
        self._silent_s, self._oom_score_adj, self._threads = silent_s, oom_score_adj, threads
        self._spawner = self._start_with_pipes if spawn is None else spawn
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self._heard_s = 0.0
        self._ended = 0  # processes that came to their end, or were never started

    @property
    def pid(self) -> int | None:
        """Of the living process, or None."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def up(self) -> bool:
        """The process lives and has said that it is ready."""
        return self.state == "running"

    @property
    def silence_s(self) -> float:
        """Time since the last event, or since the start."""
        return time.monotonic() - self._heard_s if self._heard_s else 0.0

    def account(self) -> dict[str, Any]:
        """Describe the child for the status page."""
        return {
            "state": self.state,
            "pid": self.pid,
            "restarts": dict(self.restarts),
            "silence_s": round(self.silence_s, 3),
            "exit_code": self.exit_code,
            "garbled": self.garbled,
        }

    def start(self) -> None:
        """Start the process and keep it running; a second call does nothing."""
        if self._task is None or self._task.done():
            self._stopping.clear()
            self._task = asyncio.get_running_loop().create_task(self._supervise(), name=self.name)

    def send(self, command: Command) -> bool:
        """Tell the child something; False if it is not there or does not listen."""
        return self.send_line(json.dumps(command).encode())

    def send_line(self, line: bytes) -> bool:
        """Tell the child something that is JSON already; as ``send``."""
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing():
            return False
        if process.stdin.transport.get_write_buffer_size() > _PENDING_BYTES:
            return False
        process.stdin.write(line + b"\n")
        return True

    async def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the child says ``ready``; False if it ends first or takes too long."""
        ended_before = self._ended
        deadline_s = time.monotonic() + timeout_s
        while not self._ready.is_set() and self._ended == ended_before:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ready.wait(), min(left_s, 0.05))
        return self._ready.is_set()

    async def stop(self, timeout_s: float) -> bool:
        """Ask the child to drain and end; False if it had to be killed.

        Safe without a start, and twice.
        """
        self._stopping.set()
        task = self._task
        if task is None:
            return True
        self.send({"type": "stop"})
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            log.error("child_killed", child=self.name, pid=self.pid, waited_s=round(timeout_s, 1))
            self.kill()
            await asyncio.wait({task}, timeout=_TERMINATE_S)
        self._task = None
        return bool(done)

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _supervise(self) -> None:
        try:
            while not self._stopping.is_set():
                begun = time.monotonic()
                reason = await self._live_once()
                if self._stopping.is_set():
                    break
                self.restarts[reason] += 1
                delay_s = self._backoff.after(time.monotonic() - begun)
                self.state = "waiting"
                log.warning(
                    "child_died",
                    child=self.name,
                    reason=reason,
                    exit_code=self.exit_code,
                    restart_in_s=delay_s,
                )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay_s)
        finally:
            self.state = "stopped"
            self.kill()

    async def _live_once(self) -> str:
        """Start a process, serve it to its end, and say why it ended."""
        self.state = "starting"
        self._ready.clear()
        self._heard_s = time.monotonic()
        try:
            process = await self._spawn()
        except OSError as error:
            self._ended += 1
            log.error("child_not_started", child=self.name, error=str(error))  # noqa: TRY400
            self.exit_code = -1
            return "spawn"
        self._process = process
        self._adjust_oom_score(process.pid)
        for command in self._greet():
            self.send(command)
        silent = await self._serve(process)
        self.exit_code = await process.wait()
        self._ready.clear()
        self._ended += 1
        return _reason(self.exit_code, silent=silent)

    async def _spawn(self) -> Process:
        """Start a process; one that appears while we are cancelled is not left behind."""
        starting = asyncio.ensure_future(self._spawner(self._environment()))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            (await starting).kill()
            raise

    async def _start_with_pipes(self, environment: Mapping[str, str]) -> Process:
        return await asyncio.create_subprocess_exec(
            *self._argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            env=dict(environment),
        )

    async def _serve(self, process: Process) -> bool:
        """Read events until the process ends; True if it was killed for its silence."""
        reader = asyncio.ensure_future(self._read(process))
        ended = asyncio.ensure_future(process.wait())
        silent = False
        try:
            while not (silent or reader.done() or ended.done()):
                await asyncio.wait({reader, ended}, timeout=0.5, return_when="FIRST_COMPLETED")
                silent = self._silent_s is not None and self.silence_s > self._silent_s
            if silent:
                self.kill()
            # What was said before the death is heard; a grandchild may hold the pipe open.
            await asyncio.wait({reader, ended}, timeout=_LAST_WORDS_S)
        finally:
            reader.cancel()
            ended.cancel()
            self.kill()
        return silent

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than any event: what is buffered was thrown away
                self.garbled += 1
                continue
            if not line:
                return
            self._hear(line)

    def _hear(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind = event["type"]
            if not isinstance(kind, str):
                raise TypeError("type is no text")
        except (ValueError, TypeError, KeyError):
            self.garbled += 1
            if self.garbled == 1:
                log.warning("child_garbled", child=self.name, line=line[:200].decode("latin-1"))
            return
        self._heard_s = time.monotonic()
        if kind == "ready":
            self.state = "running"
            self._ready.set()
            log.info("child_ready", child=self.name, pid=self.pid)
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except (KeyError, TypeError, ValueError) as error:
            self.garbled += 1
            log.warning("child_event_refused", child=self.name, event_type=kind, error=repr(error))

    def _environment(self) -> dict[str, str]:
        threads = {} if self._threads is None else _thread_limits(self._threads)
        return {**os.environ, **_ENVIRONMENT, **threads}

    def _adjust_oom_score(self, pid: int) -> None:
        if self._oom_score_adj:
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/oom_score_adj").write_text(str(self._oom_score_adj))


def _thread_limits(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def _reason(exit_code: int, *, silent: bool) -> str:
    if silent:
        return "silent"
    if exit_code == _EX_CONFIG:
        return "config"
    return "signal" if exit_code < 0 and -exit_code in set(signal.valid_signals()) else "exit"
