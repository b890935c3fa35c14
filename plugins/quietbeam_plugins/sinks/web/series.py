"""Time series of a viewer's regions, over all that is kept and then frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from quietbeam_plugins.sinks.web.entries import Entry, Pictures
from quietbeam_plugins.sinks.web.messages import Region
from quietbeam_plugins.sinks.web.regions import measured

_AT_ONCE = 120
"""Frames measured for one region in one tick: a long history comes in several pieces."""
_MOST = 300
"""Points of a finished file: evenly spaced frames, since all of them would have to be read."""
_FIELDS = ("raw_mean", "raw_std", "clean_mean", "clean_std", "clean_sem")


class SeriesFeed:
    """Remembers how far each region has been measured.  Used by one viewer."""

    def __init__(self, pictures: Pictures) -> None:
        self.channel: str | None = None
        self._pictures = pictures
        self._regions: tuple[Region, ...] = ()
        self._done: dict[tuple[object, ...], int] = {}

    def follow(self, regions: tuple[Region, ...]) -> None:
        """Measure these from now on; one that has not changed goes on where it was."""
        self._regions = regions

    def new(self) -> Sequence[dict[str, Any]]:
        """Give the ``series`` messages due now; costs milliseconds, any thread."""
        regions, channel = self._regions, self.channel
        keys = {(r.id, channel, *r.geometry): r for r in regions}
        self._done = {key: done for key, done in self._done.items() if key in keys}
        messages = (self._one(key, region, channel) for key, region in keys.items())
        return [message for message in messages if message is not None]

    def _one(
        self, key: tuple[object, ...], region: Region, channel: str | None
    ) -> dict[str, Any] | None:
        reset = key not in self._done
        ids = self._thinned(self._pictures.ids(self._done.get(key, -1)))[:_AT_ONCE]
        if not ids:
            return None
        self._done[key] = ids[-1]
        rows = [_row(entry, region, channel) for entry in self._entries(ids)]
        columns = {name: [row[name] for row in rows] for name in ("id", "time_s", *_FIELDS)}
        return {"type": "series", "region": region.id, "reset": reset, **columns}

    def _thinned(self, ids: Sequence[int]) -> Sequence[int]:
        if self._pictures.live:
            return ids
        every = max(1, -(-self._pictures.span()["frames"] // _MOST))
        return [number for number in ids if number % every == 0]

    def _entries(self, ids: Sequence[int]) -> Iterator[Entry]:
        for number in ids:
            entry = self._pictures.get(number)
            if entry is not None and entry.id == number:
                yield entry


def _row(entry: Entry, region: Region, channel: str | None) -> dict[str, Any]:
    found = measured(entry, region, channel)
    raw, clean = found["raw"] or {}, found["clean"] or {}
    return {
        "id": entry.id,
        "time_s": entry.time_s,
        "raw_mean": raw.get("mean"),
        "raw_std": raw.get("std"),
        "clean_mean": clean.get("mean"),
        "clean_std": clean.get("std"),
        "clean_sem": found["clean_sem"],
    }
