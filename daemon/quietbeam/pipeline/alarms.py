"""What is wrong with the stream now: raised once, cleared when it is over."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import structlog

AlarmName = Literal[
    "regular_gaps",  # frames are missing in a stable pattern: another client takes them
    "all_refused",  # message after message is refused, and no frame comes
    "end_missing",  # the newest run ended without its end
    "count_differs",  # the producer's count of the newest run is not ours
    "engine_lost",  # the network's engine failed while in use; the classical denoiser stands in
    "joined_late",  # the first frame of the run going on is not its first
]
"""A closed list, so that it can label a metric."""

ALARMS: tuple[AlarmName, ...] = get_args(AlarmName)


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that is wrong: in which run, since when, and in words."""

    run: str
    message: str
    since_unix_s: float


class Alarms:
    """The alarms of one daemon.  Written by one thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: dict[AlarmName, Alarm] = {}
        self._raised: Counter[str] = Counter()
        self._log = structlog.get_logger()

    def is_active(self, name: AlarmName) -> bool:
        """It was raised and is not over."""
        return name in self._active

    def report(self, name: AlarmName, run: str, message: str) -> None:
        """Raise it; one that is active only takes the newest words."""
        with self._lock:
            before = self._active.get(name)
            self._raised[name] += before is None
            since_s = time.time() if before is None else before.since_unix_s
            self._active[name] = Alarm(run, message, since_s)
        if before is None:
            self._log.warning("alarm_raised", alarm=name, run=run, message=message)

    def clear(self, name: AlarmName) -> None:
        """It is over; nothing happens if it was not active."""
        if name not in self._active:
            return
        with self._lock:
            before = self._active.pop(name, None)
        if before is not None:
            self._log.info("alarm_cleared", alarm=name, run=before.run)

    def active(self) -> dict[str, dict[str, Any]]:
        """Everything that is wrong now, as JSON."""
        with self._lock:
            return {name: asdict(alarm) for name, alarm in self._active.items()}

    def raised(self) -> Mapping[str, int]:
        """How often each was raised."""
        with self._lock:
            return {name: self._raised[name] for name in ALARMS}
