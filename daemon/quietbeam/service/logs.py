"""Sets up structlog; the only place that touches the standard library's logging.

An event is a constant snake_case phrase, values are keys.  Nothing is logged
per frame.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

from quietbeam.service.journal import PRIORITIES, Journal, goes_to_journal

LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


def configure(
    log: LogFormat = "auto", level: LogLevel = "info", stream: TextIO | None = None
) -> None:
    """Send every log line to ``stream`` (default stdout) from now on; may be called again.

    ``auto`` writes for people on a terminal, fields into systemd's journal where
    that is what reads the stream, and JSON lines otherwise.  A child process,
    whose stdout is its protocol, passes ``sys.stderr``.
    """
    target = _SafeStream(sys.stdout if stream is None else stream)
    structlog.configure(
        processors=[*_processors(), *_last_processors(log, target)],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(file=target),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    _forward_standard_logging()


class _SafeStream:
    """A text stream that never fails: a closed pipe must not end a thread that logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty()
        self.is_journal = _reaches_journal(stream)

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            return

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return


def _processors() -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _last_processors(log: LogFormat, target: _SafeStream) -> list[structlog.typing.Processor]:
    if log == "console" or (log == "auto" and target.is_terminal):
        return _console(target)
    line = _json(with_priority=target.is_journal)
    return [*line[:1], _ToJournal(), *line[1:]] if log == "auto" and target.is_journal else line


def _reaches_journal(stream: TextIO) -> bool:
    try:
        return goes_to_journal(stream.fileno())
    except (OSError, ValueError):  # not a file
        return False


def _console(target: _SafeStream) -> list[structlog.typing.Processor]:
    return [structlog.dev.ConsoleRenderer(colors=target.is_terminal)]


def _json(*, with_priority: bool) -> list[structlog.typing.Processor]:
    last: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str),
    ]
    return [*last, _with_priority] if with_priority else last


class _ToJournal:
    """Sends an event as an entry with fields; what cannot be sent goes on as a line."""

    def __init__(self) -> None:
        self._journal = Journal()

    def __call__(
        self, _: Any, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if self._journal.send(method, event):
            raise structlog.DropEvent
        return event


def _with_priority(_: Any, method: str, line: Any) -> str:
    """Prefix a rendered line with its syslog priority, as journald reads it."""
    return f"<{PRIORITIES.get(method, 6)}>{line}"


class _Forward(logging.Handler):
    """Hands what libraries log by the standard way to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        event: MutableMapping[str, Any] = {
            "library": record.name,
            "detail": record.getMessage(),
            "exc_info": record.exc_info,
        }
        log = structlog.get_logger()
        if record.levelno >= logging.ERROR:
            log.error("library_error", **event)
        else:
            log.warning("library_warning", **event)


def _forward_standard_logging() -> None:
    root = logging.getLogger()  # noqa: TID251 - the one place
    root.handlers = [_Forward(level=logging.WARNING)]
    root.setLevel(logging.WARNING)
