"""One output in its own process: ``python -m quietbeam.service.sink_process``.

Commands are JSON lines on stdin, events are JSON lines on stdout, logs go to
stderr.  The first command is ``init``; at ``stop``, or when stdin ends, the
rings are read to their end and the process exits 0.  A process that is killed
is followed by another that resumes at what was acknowledged.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

import structlog
from pydantic import ValidationError

from quietbeam.core.errors import ConfigError, QuietbeamError
from quietbeam.core.plugin import SinkPlugin
from quietbeam.offline.superblock import session_of
from quietbeam.registry import find
from quietbeam.service import logs
from quietbeam.service.sink_driver import Driver, Lane

_IDLE_S = 0.003
_STATUS_S = 1.0
_STOP: Mapping[str, Any] = {"type": "stop"}

Commands = queue.SimpleQueue[Mapping[str, Any]]


def main() -> int:
    """Serve until told to stop; give the exit code."""
    events = Events(_claim_stdout())
    logs.configure("json", stream=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGINT):  # the daemon decides when: by stdin
        signal.signal(number, signal.SIG_IGN)
    commands: Commands = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin, commands), daemon=True).start()
    first = commands.get()
    if first["type"] != "init":
        return int(first["type"] != "stop")
    try:
        plugin = _plugin(first)
        lanes = _lanes(first, plugin)
    except QuietbeamError as error:
        structlog.get_logger().critical("output_refused", reason=str(error))
        return error.exit_code
    with plugin.open() as sink:
        driver = Driver(
            sink,  # type: ignore[arg-type]  # own_process says that it is a RecordingSink
            *lanes,
            session=session_of(Path(first["raw_ring"])),
            flush_interval_s=getattr(plugin, "flush_interval_s", 0.5),
            flush_frames=getattr(plugin, "flush_frames", 100),
            finished=lambda told: events.emit({"type": "finished", **told}),
        )
        try:
            _serve(driver, commands, events)
        except Exception as error:  # noqa: BLE001 - whatever it is: start afresh
            _die(driver, events, error)
    return 0


class Events:
    """Events for the daemon.  When it is gone nobody hears them, and the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told: Mapping[str, Any] = {}
        self._told_s = 0.0

    def emit(self, event: Mapping[str, Any]) -> None:
        """Write one event."""
        try:
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return

    def status_if_due(self, driver: Driver) -> None:
        """Tell the status every second, and at once when the state or the file changes."""
        now = time.monotonic()
        status = driver.status()
        changed = any(status[key] != self._told.get(key) for key in ("state", "file"))
        if changed or now - self._told_s >= _STATUS_S:
            self.emit(status)
            self._told, self._told_s = status, now


def _serve(driver: Driver, commands: Commands, events: Events) -> None:
    events.emit({"type": "ready"})
    looked_s = 0.0
    while not driver.done:
        while not commands.empty():
            _obey(driver, commands.get())
        moved = driver.step()
        now = time.monotonic()
        if now - looked_s > 0.05:
            looked_s = now
            events.status_if_due(driver)
        if not moved:
            time.sleep(_IDLE_S)
    driver.flush()
    events.emit(driver.status())


def _obey(driver: Driver, command: Mapping[str, Any]) -> None:
    match command["type"]:
        case "record":
            driver.record(on=bool(command["on"]))
        case "note":
            driver.note(str(command["text"]))
        case "stop":
            driver.stop()
        case other:
            structlog.get_logger().warning("unknown_command", got=str(other))


def _plugin(init: Mapping[str, Any]) -> SinkPlugin:
    cls = find("sinks", init["kind"], SinkPlugin)
    if not cls.own_process:
        raise ConfigError(f"sink {init['kind']!r} does not run in a process of its own")
    try:
        return cls.model_validate(init["settings"])
    except ValidationError as error:
        raise ConfigError(f"sink {init['kind']!r}: {error}") from error


def _lanes(init: Mapping[str, Any], plugin: SinkPlugin) -> tuple[Lane, Lane]:
    raw, clean = (
        Lane(Path(init[f"{kind}_ring"]), init["name"], unwanted=not getattr(plugin, kind, True))
        for kind in ("raw", "clean")
    )
    return raw, clean


def _die(driver: Driver, events: Events, error: Exception) -> NoReturn:
    """End at once: a file that failed must not be touched again (HDF5 may crash in close)."""
    structlog.get_logger().critical("output_failed", error=str(error), kind=type(error).__name__)
    events.emit({**driver.status(), "state": "failed"})
    sys.stderr.flush()
    os._exit(error.exit_code if isinstance(error, QuietbeamError) else 1)


def _listen(stream: TextIO, commands: Commands) -> None:
    for line in stream:
        command = _parsed(line)
        if command is None:
            structlog.get_logger().warning("malformed_command", got=line[:200])
        else:
            commands.put(command)
    commands.put(_STOP)


def _parsed(line: str) -> Mapping[str, Any] | None:
    try:
        command = json.loads(line)
    except json.JSONDecodeError:
        return None
    known = isinstance(command, dict) and isinstance(command.get("type"), str)
    return command if known else None


def _claim_stdout() -> TextIO:
    """Keep stdout for events; what anything else prints goes to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return events


if __name__ == "__main__":
    sys.exit(main())
