"""The ``bluesky`` output: its settings, and its loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator

from quietbeam.core.errors import SinkError
from quietbeam.core.events import RunEnd, RunStart
from quietbeam.core.plugin import Link, ViewSink
from quietbeam.core.result import Result
from quietbeam_plugins.sinks.bluesky.publisher import Encoding, Publisher, publishing

if TYPE_CHECKING:
    from quietbeam_plugins.sinks.bluesky.run import PublishedRun

_POLL_S = 0.05
_LAST_WAIT_S = 4.0  # for a recording to be completed, once the daemon stops
_DEAD_S = 10.0  # without a word from the daemon: its run is over


class Bluesky(ViewSink):
    """Settings of the documents."""

    address: str = "tcp://127.0.0.1:5567"
    """The ``--in-address`` of a ``bluesky-0MQ-proxy``; with ``bind``, where dispatchers connect."""
    bind: bool = False
    prefix: str = "quietbeam"
    """First word of every message; dispatchers select by it."""
    encoding: Encoding = "pickle"
    """``pickle`` is what a ``RemoteDispatcher`` expects; ``json`` is for one with
    ``deserializer=json.loads``, which no message can make run code."""
    sidecar: Path | None = None
    """Folder for all documents, a JSON file per run, and for the lasting names of the
    recordings; None takes ``bluesky`` beside the recording."""
    recorder: str | None = None
    """Name of the output whose files are pointed at, as ``hdf5.0``; None takes the first."""
    events_hz: NonNegativeFloat = 10.0
    """Scalar metrics as events, at most so many a second; all of them are in the recording."""
    settle_s: PositiveFloat = 30.0
    """How long the end of a run waits for its recording to be complete."""
    connect_s: NonNegativeFloat = Field(default=2.0)
    """How long the first document waits for a consumer."""
    curve_secret_key: Path | None = None
    """Our own NAME.key_secret, mode 0600: the connection is encrypted."""
    curve_server_key: Path | None = None
    """Public key of the proxy we connect to."""
    curve_clients: Path | None = None
    """With ``bind``: directory with the public key of every dispatcher that may connect."""

    @field_validator("prefix")
    @classmethod
    def _one_word(cls, prefix: str) -> str:
        if not prefix or " " in prefix or not prefix.isascii():
            raise ValueError(f"{prefix!r}: expected one word without a space")
        return prefix

    @model_validator(mode="after")
    def _keys_go_together(self) -> Self:
        other = self.curve_clients if self.bind else self.curve_server_key
        unused = self.curve_server_key if self.bind else self.curve_clients
        if (self.curve_secret_key is None) != (other is None) or unused is not None:
            needed = "curve_clients" if self.bind else "curve_server_key"
            raise ValueError(f"bind = {self.bind}: curve_secret_key and {needed} go together")
        return self

    @property
    def raw_backlog(self) -> int:
        """Raw frames are read from the recording."""
        return 0

    def serve(self, link: Link) -> None:
        """Publish run after run.

        Raises:
            SinkError: The address or a key cannot be used, or event-model is not installed.
        """
        try:
            import event_model  # noqa: F401
        except ImportError as error:
            raise SinkError("bluesky output: pip install 'quietbeam[bluesky]'") from error
        with publishing(
            self.address,
            self.prefix,
            self.encoding,
            bind=self.bind,
            secret_key=self.curve_secret_key,
            server_key=self.curve_server_key,
            clients=self.curve_clients,
        ) as publisher:
            publisher.wait_for_consumer(self.connect_s)
            _Server(self, publisher, link).serve()


class _Server:
    """Hands what the daemon says to the run it belongs to."""

    def __init__(self, settings: Bluesky, publisher: Publisher, link: Link) -> None:
        self._settings, self._publisher, self._link = settings, publisher, link
        self._runs: list[PublishedRun] = []
        self._heard_s = time.monotonic()

    def serve(self) -> None:
        try:
            while not self._link.stopping:
                self._step(_POLL_S)
            deadline_s = time.monotonic() + _LAST_WAIT_S
            while self._runs and time.monotonic() < deadline_s:
                if not self._step(0.0):  # nothing more is said: not the end of a run either
                    self._end_all()
                    time.sleep(_POLL_S)
        finally:
            for run in self._runs:
                run.close()

    def _step(self, timeout_s: float) -> int:
        """Do what there is to do; give how many items came."""
        items = self._link.poll(timeout_s)
        for item in items:
            match item:
                case RunStart():
                    self._begin(item)
                case Result():
                    self._of(item.run, lambda run, result=item: run.result(result))
                case RunEnd():
                    self._of(item.run, lambda run, end=item: run.end(end))
                case _:
                    pass
        self._notice_death()
        status = self._link.status()
        for run in list(self._runs):
            run.look(status)
            if run.over:
                run.close()
                self._runs.remove(run)
        return len(items)

    def _end_all(self) -> None:
        for run in self._runs:
            run.end(RunEnd(run=run.name, reason="lost"))

    def _begin(self, start: RunStart) -> None:
        from quietbeam_plugins.sinks.bluesky.run import PublishedRun

        self._end_all()
        settings = self._settings
        self._runs.append(
            PublishedRun(
                start,
                self._publisher.send,
                recorder=settings.recorder,
                folder=settings.sidecar,
                events_hz=settings.events_hz,
                settle_s=settings.settle_s,
            )
        )

    def _of(self, name: str, act: Callable[[PublishedRun], None]) -> None:
        for run in self._runs[-1:]:
            if run.name == name:
                act(run)

    def _notice_death(self) -> None:
        now = time.monotonic()
        if self._link.connected:
            self._heard_s = now
        elif now - self._heard_s > _DEAD_S:
            self._end_all()
