"""The trainer's own process: ``python -m quietbeam.trainer.process``.

Commands are JSON lines on stdin, events are JSON lines on stdout, logs go to
stderr.  The first command is ``init``; the process ends at ``stop`` or when
stdin ends.  It runs only when nobody else wants the processor, and is the
first to go when memory runs out.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from quietbeam.core.errors import QuietbeamError

if TYPE_CHECKING:
    from quietbeam.model.stabilise import NoiseModel
    from quietbeam.trainer.session import Session

log = structlog.get_logger()

Message = dict[str, Any]
Commands = queue.SimpleQueue[Message]
_STOP: Message = {"type": "stop"}
_LEAVE_S = 2.5  # the daemon kills a child that takes longer than four seconds
_NICE = 10
"""While starting: at idle priority the import of torch alone can take a minute."""


def main() -> int:
    """Serve until told to stop; give the exit code."""
    events = _claim_stdout()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    os.nice(_NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")
    # Threads of OpenMP that spin while they wait slow everybody; read when torch is imported.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    commands: Commands = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin, commands), daemon=True).start()

    def emit(event: Message) -> None:
        events.write(json.dumps(event, allow_nan=False) + "\n")
        events.flush()

    try:
        return _serve(commands, emit)
    except QuietbeamError as error:
        log.critical("trainer_failed", reason=str(error))
        return error.exit_code
    except BrokenPipeError:  # the daemon is gone
        return 1


def _serve(commands: Commands, emit: Callable[[Message], None]) -> int:
    first = commands.get()
    if first["type"] != "init":
        if first != _STOP:
            log.error("trainer_failed", reason=f"expected init, got {first['type']!r}")
        return int(first != _STOP)
    session = _begin(first, emit)
    _give_way()
    try:
        while not session.finished:
            while not commands.empty():
                command = commands.get()
                if command["type"] == "stop":
                    return 0
                _obey(session, command)
            session.tick()
        return 0
    finally:
        session.close()


def _begin(init: Message, emit: Callable[[Message], None]) -> Session:
    import torch

    from quietbeam.config import parse
    from quietbeam.trainer.session import Places, Session

    config = parse(init["config_text"], Path(init["config"]))
    torch.set_num_threads(config.trainer.threads)
    places = Places(Path(init["raw_ring"]), Path(init["checkpoints"]), Path(init["cache"]))
    return Session(config, places, emit)


def _obey(session: Session, command: Message) -> None:
    """Do what one command says; a command that makes no sense is named and left."""
    try:
        match command["type"]:
            case "calibration":
                of_each = command.get("channels") or [command]
                session.calibrate(str(command["run"]), *map(_noise, of_each))
            case "live":
                session.set_live(int(command["version"]), command.get("fallback"))
            case "freeze" | "resume" as kind:
                session.freeze(frozen=kind == "freeze")
            case "reset":
                session.reset()
            case "checkpoint":
                session.save()
            case other:
                log.warning("unknown_command", command=other)
    except (KeyError, TypeError, ValueError) as error:
        log.warning("bad_command", command=command, reason=repr(error))


def _noise(said: Message) -> NoiseModel:
    from quietbeam.model.stabilise import NoiseModel

    gain, offset = float(said["gain"]), float(said["offset_variance"])
    return NoiseModel(gain, offset, bool(said["impulsive"]))


def _listen(stream: TextIO, commands: Commands) -> None:
    """Read commands until the daemon hangs up."""
    for line in stream:
        try:
            command = json.loads(line)
            kind = command["type"]
        except (ValueError, KeyError, TypeError) as error:
            log.warning("bad_command", line=line[:200], reason=repr(error))
            continue
        commands.put(command)
        if kind == "stop":
            _leave_in_time()
            return
    commands.put(_STOP)


def _leave_in_time() -> None:
    """End even in the middle of a long round: what is on disk is whole at any moment."""
    timer = threading.Timer(_LEAVE_S, os._exit, (0,))
    timer.daemon = True
    timer.start()


def _claim_stdout() -> TextIO:
    """Keep stdout for events alone; what libraries print there goes to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def _give_way() -> None:
    """From now on use only processor time that is left over; every thread has its own say."""
    try:
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        os.nice(19)


if __name__ == "__main__":
    sys.exit(main())
