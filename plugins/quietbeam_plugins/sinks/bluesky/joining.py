"""Which bluesky run a series of frames belongs to: by a name both know, else by time.

Documents come out of band: before the frames, after them, or never.  So every
series and every run is kept for a while, and each news may join a pair; a join
by time is replaced by one by name.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

By = Literal["id", "time"]

_KEPT = 64
_LEAST_NAME = 4  # shorter names stand in paths by chance


@dataclass(slots=True)
class Run:
    """One bluesky run as its documents tell it.

    Attributes:
        uid: Its one safe name; a scan number repeats.
        start: The start document.
        began_s: Unix time, of the control system's clock.
        ended_s: Of its stop document; None while it goes on.
        names: What the detector's series may be called.
        files: Last parts of the paths its resources point at.
    """

    uid: str
    start: Mapping[str, Any]
    began_s: float
    ended_s: float | None = None
    names: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    def knows(self, series: str) -> bool:
        """The run names ``series``, itself or in the name of a file."""
        if series in self.names:
            return True
        whole = re.compile(rf"(?<![0-9A-Za-z]){re.escape(series)}(?![0-9A-Za-z])")
        return len(series) >= _LEAST_NAME and any(whole.search(name) for name in self.files)

    def holds(self, at_s: float, tolerance_s: float) -> bool:
        """The run goes on at ``at_s``, Unix time, give or take ``tolerance_s``."""
        if at_s < self.began_s - tolerance_s:
            return False
        return self.ended_s is None or at_s <= self.ended_s + tolerance_s


@dataclass(frozen=True, slots=True)
class Join:
    """A series and the run it belongs to."""

    series: str
    run: Run
    by: By


class Joiner:
    """Takes documents and series as they come.

    Args:
        id_keys: Keys of a start document that may hold the name of the series.
        tolerance_s: Between the clocks of detector's and control system's computers.
    """

    def __init__(self, id_keys: Sequence[str], tolerance_s: float) -> None:
        self._id_keys, self._tolerance_s = tuple(id_keys), tolerance_s
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._series: OrderedDict[str, float] = OrderedDict()
        self._joined: dict[str, Join] = {}

    @property
    def open_runs(self) -> int:
        """Runs without a stop document."""
        return sum(run.ended_s is None for run in self._runs.values())

    def series(self, name: str, began_s: float) -> None:
        """Take the start of a series, at ``began_s`` Unix time."""
        self._series[name] = began_s
        _forget(self._series)

    def document(self, name: str, document: Mapping[str, Any]) -> None:
        """Take one document; those that say nothing of a run's identity are passed over.

        Raises:
            KeyError, TypeError, ValueError: It is not what bluesky sends.
        """
        match name:
            case "start":
                self._start(document)
            case "stop":
                run = self._runs.get(str(document["run_start"]))
                if run is not None:
                    run.ended_s = float(document["time"])
            case "resource" | "stream_resource":
                self._resource(document)
            case _:
                pass

    def close_silent(self, now_s: float) -> int:
        """End runs whose stop document has not come: give how many."""
        silent = [run for run in self._runs.values() if run.ended_s is None]
        for run in silent:
            run.ended_s = now_s
        return len(silent)

    def news(self) -> Iterator[Join]:
        """Give every join that is new, or better than the one given before."""
        for name, began_s in self._series.items():
            found, known = self._find(name, began_s), self._joined.get(name)
            if found is not None and (
                known is None or (known.run, known.by) != (found.run, found.by)
            ):
                self._joined[name] = found
                yield found
        for name in [name for name in self._joined if name not in self._series]:
            del self._joined[name]

    def of(self, series: str) -> Join | None:
        """Give what is known of a series."""
        return self._joined.get(series)

    def _find(self, series: str, began_s: float) -> Join | None:
        newest_first = list(reversed(self._runs.values()))
        for run in newest_first:
            if run.knows(series):
                return Join(series, run, "id")
        known = self._joined.get(series)
        if known is not None:
            return known  # another run by time alone is no better than the first
        for run in newest_first:
            if run.holds(began_s, self._tolerance_s):
                return Join(series, run, "time")
        return None

    def _start(self, document: Mapping[str, Any]) -> None:
        run = Run(str(document["uid"]), dict(document), float(document["time"]))
        run.names = {str(document[key]) for key in self._id_keys if key in document}
        self._runs[run.uid] = run
        _forget(self._runs)

    def _resource(self, document: Mapping[str, Any]) -> None:
        run = self._runs.get(str(document["run_start"]))
        path = document.get("uri") or document.get("resource_path")
        if run is not None and path:
            run.files.add(PurePosixPath(str(path)).name)


def _forget(kept: OrderedDict[str, Any]) -> None:
    while len(kept) > _KEPT:
        kept.popitem(last=False)
