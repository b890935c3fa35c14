"""A latched measurement: the mean of N frames that arrived after it was asked for."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from quietbeam import Result

Outcome = Literal["Done", "Timeout", "Failed"]


@dataclass(slots=True)
class Measurement:
    """What was measured; of no frames where it failed."""

    state: str = "Idle"
    count: int = 0
    first_id: int = 0
    last_id: int = 0
    time_s: float = 0.0
    model_version: int = 0
    generation: int = 0
    means: dict[str, float] = field(default_factory=dict)
    image: np.ndarray | None = None
    """(h, w) float32, mean of the frames measured."""
    last: Result | None = None


class Snap:
    """Armed by a client's put in one thread, fed with frames in another."""

    def __init__(self) -> None:
        self.latest = Measurement()
        self.serial = 0
        """Measurements that have ended, whatever the outcome."""
        self._lock = threading.Lock()
        self._armed: _Armed | None = None

    def value(self, name: str) -> Any:
        """Give a field of the latest measurement, for ``snap:`` sources."""
        states = ("Idle", "Armed", "Done", "Timeout", "Failed")
        if name == "serial":
            return self.serial
        if name == "state":
            return states.index("Armed" if self._armed is not None else self.latest.state)
        return getattr(self.latest, name)

    def metric(self, name: str) -> float:
        """Give the mean of a metric over the latest measurement; NaN if it failed."""
        return self.latest.means.get(name, math.nan)

    async def measure(self, frames: int, timeout_s: float, generation: int) -> Measurement:
        """Wait for ``frames`` frames that arrive from now on, and latch what they show."""
        armed = _Armed(frames, time.monotonic_ns(), asyncio.get_running_loop())
        with self._lock:
            self._armed = armed
        try:
            outcome = await asyncio.wait_for(armed.done, timeout_s)
        except TimeoutError:
            outcome = "Timeout"
        with self._lock:
            self._armed = None
            self.latest = armed.measured(outcome, generation)
            self.serial += 1
        return self.latest

    def add(self, result: Result) -> None:
        """Take one cleaned frame."""
        with self._lock:
            if self._armed is not None:
                self._armed.add(result)

    def fail(self) -> None:
        """The daemon is gone: what waits will never come."""
        with self._lock:
            if self._armed is not None:
                self._armed.end("Failed")


class _Armed:
    def __init__(self, frames: int, asked_ns: int, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[Outcome] = loop.create_future()
        self._wanted, self._asked_ns, self._loop = frames, asked_ns, loop
        self._results = 0
        self._first = self._last = None
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._image: np.ndarray | None = None
        self._first: Result | None
        self._last: Result | None

    def add(self, result: Result) -> None:
        if self._results >= self._wanted or result.received_ns <= self._asked_ns:
            return
        if self._image is not None and self._image.shape != result.clean.shape:
            return  # another run has begun: only frames of one shape have a mean
        self._results += 1
        self._first = self._first or result
        self._last = result
        for name, value in result.metrics.items():
            if np.ndim(value) == 0:
                self._sums[name].append(float(value))
        whole = result.clean.astype(np.float64)
        self._image = whole if self._image is None else self._image + whole
        if self._results == self._wanted:
            self.end("Done")

    def end(self, outcome: Outcome) -> None:
        self._loop.call_soon_threadsafe(self._set, outcome)

    def _set(self, outcome: Outcome) -> None:
        if not self.done.done():
            self.done.set_result(outcome)

    def measured(self, outcome: Outcome, generation: int) -> Measurement:
        first, last, image = self._first, self._last, self._image
        if outcome != "Done" or first is None or last is None or image is None:
            return Measurement(state=outcome, generation=generation)
        return Measurement(
            state=outcome,
            count=self._results,
            first_id=first.index,
            last_id=last.index,
            time_s=last.time_ns / 1e9,
            model_version=last.model_version,
            generation=generation,
            means={name: float(np.mean(values)) for name, values in self._sums.items()},
            image=(image / self._results).astype(np.float32),
            last=last,
        )
