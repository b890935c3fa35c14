"""What the metric strips show: means over half a second, for an hour, and marks."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

_STEP_S = 0.5
_POINTS = 7200
_EVENTS = 200

EventKind = Literal["run_start", "run_end", "promote", "demote", "annotation"]


class History:
    """Scalar metrics against the time of day.  Written by one thread, read by any."""

    def __init__(self) -> None:
        self._points: deque[tuple[int, float, dict[str, float]]] = deque(maxlen=_POINTS)
        self._events: deque[tuple[int, dict[str, Any]]] = deque(maxlen=_EVENTS)
        self._sums: dict[str, tuple[float, int]] = {}
        self._from_s = 0.0
        self._number = 0

    def add(self, metrics: Mapping[str, Any], unix_s: float) -> None:
        """Take the metrics of one frame."""
        if self._sums and not 0 <= unix_s - self._from_s < _STEP_S:
            self.flush()
        if not self._sums:
            self._from_s = unix_s
        for name, value in metrics.items():
            if np.ndim(value) == 0 and math.isfinite(value):
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + float(value), count + 1)

    def flush(self) -> None:
        """Close the present half second."""
        if self._sums:
            self._number += 1
            means = {name: total / count for name, (total, count) in self._sums.items()}
            self._points.append((self._number, self._from_s, means))
            self._sums = {}

    def mark(self, kind: EventKind, text: str) -> None:
        """Something happened now."""
        now = time.time()
        event = {"kind": kind, "time_s": now, "unix_time_s": now, "text": text}
        self._number += 1
        self._events.append((self._number, event))

    def since(self, number: int, names: tuple[str, ...] | None = None) -> dict[str, Any] | None:
        """Give what came after ``number`` (0: all), or None if nothing did.

        Keys: ``number`` (to ask again with), ``time_s``, ``values`` by name, ``events``.
        """
        points = [p for p in list(self._points) if p[0] > number]
        events = [event for n, event in list(self._events) if n > number]
        if number > 0 and not points and not events:
            return None
        wanted = names
        if wanted is None:
            wanted = tuple(dict.fromkeys(name for _, _, means in points for name in means))
        return {
            "number": self._number,
            "time_s": [t for _, t, _ in points],
            "values": {name: [means.get(name) for _, _, means in points] for name in wanted},
            "events": events,
        }
