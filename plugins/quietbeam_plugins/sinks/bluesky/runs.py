"""The ``bluesky_runs`` input: tells the daemon which bluesky run its frames belong to.

It runs as a view, in a process of its own: documents that are late, lost or
hostile cost the stream nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import structlog
import zmq
from pydantic import PositiveFloat, field_validator, model_validator

from quietbeam.core.errors import QuietbeamError
from quietbeam.core.events import RunEnd, RunStart
from quietbeam.core.plugin import Link, ViewSink
from quietbeam.offline import curve
from quietbeam_plugins.sinks.bluesky.joining import Join, Joiner
from quietbeam_plugins.sinks.bluesky.publisher import Encoding
from quietbeam_plugins.sinks.bluesky.reader import Reader, reading

_POLL_S = 0.05
_AGAIN_S = 1.0
_SHOWN = 8
_LONGEST = 8192


class BlueskyRuns(ViewSink):
    """Settings of the input."""

    address: str = "tcp://127.0.0.1:5568"
    """The ``--out-address`` of a ``bluesky-0MQ-proxy``."""
    prefix: str = ""
    """First word of the messages, as the RunEngine's ``Publisher`` has it."""
    encoding: Encoding = "pickle"
    """Read as plain data either way: no message can make code run here."""
    id_keys: tuple[str, ...] = ("series_id", "detector_series", "series")
    """Keys of a start document that may hold the detector's name of the series."""
    keep: tuple[str, ...] = ("scan_id", "sample", "plan_name")
    """What is copied from the start document besides its uid."""
    tolerance_s: PositiveFloat = 2.0
    """A series that starts so much before or after a run still belongs to it, by time."""
    silent_s: PositiveFloat = 600.0
    """Runs whose stop document was lost are over after so long without any document."""
    journal: Path | None = None
    """A file that every join is appended to as a line of JSON, those that came too late for
    the recording included."""
    curve_secret_key: Path | None = None
    """Our own NAME.key_secret, mode 0600: the connection is encrypted."""
    curve_server_key: Path | None = None
    """Public key of the proxy."""

    @field_validator("prefix")
    @classmethod
    def _one_word(cls, prefix: str) -> str:
        if " " in prefix or not prefix.isascii():
            raise ValueError(f"{prefix!r}: expected one word without a space")
        return prefix

    @model_validator(mode="after")
    def _keys_go_together(self) -> Self:
        if (self.curve_secret_key is None) != (self.curve_server_key is None):
            raise ValueError("curve_secret_key and curve_server_key go together")
        return self

    @property
    def raw_backlog(self) -> int:
        """No frames are wanted."""
        return 0

    @property
    def clean_backlog(self) -> int:
        """No frames are wanted."""
        return 0

    def serve(self, link: Link) -> None:
        """Join runs and series until told to stop.

        Raises:
            SinkError: The address or a key cannot be used.
        """
        with reading(self.address, self.prefix, self.encoding, self._secure) as reader:
            _Server(self, link, reader).run()

    def _secure(self, socket: zmq.Socket[bytes]) -> None:
        if self.curve_secret_key is not None and self.curve_server_key is not None:
            curve.become_client(socket, self.curve_secret_key, self.curve_server_key)


class _Server:
    def __init__(self, settings: BlueskyRuns, link: Link, reader: Reader) -> None:
        self._settings, self._link, self._reader = settings, link, reader
        self._joiner = Joiner(settings.id_keys, settings.tolerance_s)
        self._current = ""
        self._heard_s = time.monotonic()
        self._untold: dict[str, Any] | None = None
        self._told_uid = ""
        self._again_s = 0.0
        self._joins: list[dict[str, Any]] = []
        self._log = structlog.get_logger()

    def run(self) -> None:
        while not self._link.stopping:
            for item in self._link.poll(_POLL_S):
                self._series(item)
            self._documents()
            for join in self._joiner.news():
                self._joined(join)
            self._tell_daemon()
            self._link.tell(
                heard=self._reader.heard,
                refused=dict(self._reader.refused),
                open_runs=self._joiner.open_runs,
                joins=self._joins[-_SHOWN:],
            )

    def _series(self, item: Any) -> None:
        if isinstance(item, RunStart):
            self._current = item.run
            self._joiner.series(item.run, time.time())
            self._forget_last()
        elif isinstance(item, RunEnd) and item.run == self._current:
            self._current = ""

    def _documents(self) -> None:
        before = self._reader.heard
        for name, document in self._reader.documents():
            try:
                self._joiner.document(name, document)
            except (KeyError, TypeError, ValueError):
                self._reader.refuse("not_a_document")
        now = time.monotonic()
        if self._reader.heard != before:
            self._heard_s = now
        elif now - self._heard_s > self._settings.silent_s:
            self._heard_s = now
            closed = self._joiner.close_silent(time.time())
            if closed:
                self._log.warning("runs_without_stop", runs=closed)

    def _joined(self, join: Join) -> None:
        late = join.series != self._current
        line = {"series": join.series, "run_uid": join.run.uid, "by": join.by, "late": late}
        self._joins.append(line)
        self._log.info("run_joined", **line)
        if self._settings.journal is not None:
            with self._settings.journal.open("a", encoding="utf-8") as file:
                start = json.dumps(line | {"start": join.run.start}, default=str)
                file.write(start + "\n")
        if not late:
            self._untold = self._description(join)

    def _description(self, join: Join) -> dict[str, Any]:
        told = {key: join.run.start.get(key) for key in self._settings.keep}
        if len(json.dumps(told, default=str)) > _LONGEST:
            told = {"scan_id": join.run.start.get("scan_id")}
        return {"run_uid": join.run.uid, **told, "series": join.series, "joined_by": join.by}

    def _forget_last(self) -> None:
        """A new series does not inherit what was said of the one before."""
        told: Mapping[str, Any] = self._link.status().get("run_metadata") or {}
        ours = self._told_uid and told.get("run_uid") == self._told_uid
        self._untold = None
        if ours:
            nothing = dict.fromkeys((*self._settings.keep, "series", "joined_by"))
            self._untold = {"run_uid": "", **nothing}

    def _tell_daemon(self) -> None:
        if self._untold is None or time.monotonic() < self._again_s:
            return
        try:
            said = json.dumps(self._untold, default=str)
            self._link.command("describe_run", {"metadata": said})
        except QuietbeamError as error:  # it is away or busy; the run is still the same
            self._log.warning("run_not_told", reason=str(error))
            self._again_s = time.monotonic() + _AGAIN_S
            return
        self._told_uid, self._untold = str(self._untold["run_uid"]), None
