"""Sinks in a process of their own: the recorder, above all."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from quietbeam.config import Named
from quietbeam.core.plugin import SinkPlugin
from quietbeam.service.supervise import Backoff, Child, Command, python_module

SINK_PROCESS = python_module("quietbeam.service.sink_process")
SILENT_S = 20.0
"""A recorder reports every second; after this long it is taken for hung."""

_OVER_ALL_LIVES = ("raw_written", "clean_written")  # kept in the ring over restarts
_OF_ONE_LIFE = ("synced", "bytes")
_RESTART_S = (0.2, 1, 2, 4, 8, 15, 30)  # the first at once: raw recording comes first

log = structlog.get_logger()


class Totals:
    """Adds up counters that start again from zero whenever their process does."""

    def __init__(self) -> None:
        self._base: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def update(self, counts: Mapping[str, int]) -> None:
        """Take the newest readings; one that fell has started again."""
        for name, value in counts.items():
            last = self._last.get(name, 0)
            if value < last:
                self._base[name] = self._base.get(name, 0) + last
            self._last[name] = value

    def get(self, name: str) -> int:
        """Give the sum over all lives."""
        return self._base.get(name, 0) + self._last.get(name, 0)

    def all(self) -> dict[str, int]:
        """Give every sum."""
        return {name: self.get(name) for name in self._last}


class OutputProcess:
    """One sink plugin, run by ``quietbeam.service.sink_process`` and supervised.

    Args:
        name: Unique among the sinks; also its name as a reader of the rings.
        sink: Which plugin, with its settings.
        raw_ring: Path of the raw ring.
        clean_ring: Path of the clean ring.
        argv: The command; another one in tests.
    """

    def __init__(
        self,
        name: str,
        sink: Named[SinkPlugin],
        raw_ring: Path,
        clean_ring: Path,
        argv: Sequence[str] = SINK_PROCESS,
    ) -> None:
        self.name = name
        self.kind = sink.name
        self.status: dict[str, Any] = {"state": "off"}
        self.totals = Totals()
        self.written: dict[str, int] = dict.fromkeys(_OVER_ALL_LIVES, 0)
        self.dropped: dict[str, int] = {}
        self.finished: deque[dict[str, Any]] = deque(maxlen=20)
        self._init: Command = {
            "type": "init",
            "raw_ring": str(raw_ring),
            "clean_ring": str(clean_ring),
            "name": name,
            "kind": sink.name,
            "settings": sink.plugin.model_dump(mode="json"),
        }
        self._record: bool | None = None
        self.child = Child(
            name,
            argv,
            greet=self._greet,
            on_event=self._hear,
            backoff=Backoff(_RESTART_S, healthy_s=3.0),
            silent_s=SILENT_S,
            threads=1,
        )

    @property
    def writable(self) -> bool:
        """It is up and neither failed nor out of disk."""
        return self.child.up and self.status.get("state") not in {"failed", "disk_full"}

    def record(self, *, on: bool) -> None:
        """Start or stop recording; kept over a restart of the process."""
        self._record = on
        self.child.send({"type": "record", "on": on})

    def note(self, content: Mapping[str, Any]) -> None:
        """Keep something with the recording, e.g. a decision of the gate."""
        text = json.dumps({"unix_time_s": time.time(), **content}, default=str)
        self.child.send({"type": "note", "text": text})

    def account(self) -> dict[str, Any]:
        """Describe the output for the status page."""
        return {
            "status": self.status,
            "kind": self.kind,
            "up": self.child.up,
            "totals": {**self.written, **self.totals.all()},
            "dropped_total": dict(self.dropped),
            "finished": list(self.finished),
        }

    def _greet(self) -> Iterable[Command]:
        yield self._init
        if self._record is not None:
            yield {"type": "record", "on": self._record}

    def _hear(self, event: dict[str, Any]) -> None:
        if event["type"] == "status":
            self._take_status(event)
        elif event["type"] == "finished":
            finished = {key: value for key, value in event.items() if key != "type"}
            self.finished.append(finished)
            log.info("recording_finished", output=self.name, **finished)

    def _take_status(self, event: dict[str, Any]) -> None:
        self.totals.update({name: int(event.get(name) or 0) for name in _OF_ONE_LIFE})
        _raise_to(self.written, {name: event.get(name) or 0 for name in _OVER_ALL_LIVES})
        _raise_to(self.dropped, event.get("dropped") or {})
        before, now = self.status.get("state"), event.get("state")
        self.status = {key: value for key, value in event.items() if key != "type"}
        if now == before:
            return
        speak = log.error if now in {"failed", "disk_full"} else log.info
        speak("output_state", output=self.name, state=now, before=before, file=event.get("file"))


def _raise_to(counts: dict[str, int], now: Mapping[str, Any]) -> None:
    """Take newer readings; a crash may take back a little that was not yet acknowledged."""
    for name, value in now.items():
        counts[name] = max(counts.get(name, 0), int(value))
