"""Every error quietbeam raises on purpose, with the exit code it gives the process.

A message says what was got, what was expected, and what to do.
"""

from __future__ import annotations


class QuietbeamError(Exception):
    """Base class: catch this to catch only our own errors."""

    exit_code = 1


class ConfigError(QuietbeamError):
    """The configuration can never work; starting again will not help."""

    exit_code = 78  # EX_CONFIG; systemd: RestartPreventExitStatus=78


class SourceError(QuietbeamError):
    """A source failed; it may be opened again."""


class DataError(QuietbeamError):
    """A file or array given by the user cannot be read as image series."""

    exit_code = 65  # EX_DATAERR


class EngineError(QuietbeamError):
    """A denoiser could not be built, loaded or run; the old weights stay."""


class SinkError(QuietbeamError):
    """An output failed; that output alone is opened again."""
