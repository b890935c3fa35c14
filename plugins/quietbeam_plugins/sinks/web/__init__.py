"""The live view in a browser: raw and clean, honest about freshness, uncertainty and loss."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from quietbeam.core.plugin import Link, ViewSink

__all__ = ["Web"]

_BACKLOG = 256


class Web(ViewSink):
    """Settings of the live view; it runs in a process of its own and only ever looks."""

    address: str = "127.0.0.1:8080"
    """HOST:PORT; port 0: a free one.  0.0.0.0 serves the whole network: then use TLS or a proxy."""
    root_path: str = ""
    """Prefix under which a reverse proxy serves the page, e.g. /beamline/quietbeam."""
    recordings: Path | None = None
    """Directory whose recordings are listed: that of the hdf5 sink."""
    reading: Literal["open", "credential"] = "open"
    """Whether looking needs the daemon's control token too; changing anything always does."""
    hosts: tuple[str, ...] = ()
    """Further names under which the page is reached, besides IP addresses and this machine's."""
    origins: tuple[str, ...] = ()
    """Foreign pages that may connect, e.g. https://portal.example.org."""
    frame_ancestors: str = "'none'"
    """Which pages may show it in a frame, as in Content-Security-Policy."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    audit_log: Path | None = None
    """JSON lines of every write and login, besides the daemon's log."""
    buffer_mib: int = Field(default=512, ge=16, le=65536)
    """Recent frames kept for scrubbing and series."""
    max_viewers: int = Field(default=64, ge=1, le=1000)
    address_file: Path | None = None
    """The page's address is written there, for programs that start the daemon with port 0."""

    @property
    def raw_backlog(self) -> int:
        """Raw frames wait here for their cleaned ones; more than cleaned ones, which come later."""
        return _BACKLOG

    @field_validator("root_path")
    @classmethod
    def _is_prefix(cls, value: str) -> str:
        value = value.rstrip("/")
        if value and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", value):
            raise ValueError("expected a path such as /beamline/quietbeam")
        return value

    @field_validator("frame_ancestors")
    @classmethod
    def _is_one_directive(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9':/.*\- ]+", value):
            raise ValueError("expected sources as in CSP, e.g. 'self' https://portal.example.org")
        return value

    @model_validator(mode="after")
    def _has_whole_certificate(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: give both or none")
        return self

    def serve(self, link: Link) -> None:
        """Serve viewers until the daemon stops.

        Raises:
            ConfigError: The address cannot be listened on, or the certificate not be read.
        """
        from quietbeam_plugins.sinks.web.serve import serve

        serve(self, link)
