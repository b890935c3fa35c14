"""Counts what came in, went out and was dropped, per stage; it must balance."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StageCount:
    """The account of one stage at one moment, in frames.

    ``received == sent + sum(dropped.values()) + in_flight`` holds by
    construction: ``in_flight`` is what is left, and must be 0 at rest.
    """

    received: int
    sent: int
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def in_flight(self) -> int:
        """Frames taken in and not yet accounted for."""
        return self.received - self.sent - sum(self.dropped.values())


class Ledger:
    """All accounts of one process.  Any thread may write; counting never fails."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._dropped: Counter[tuple[str, str]] = Counter()
        self._notes: Counter[tuple[str, str]] = Counter()

    def received(self, stage: str, frames: int = 1) -> None:
        """``frames`` came into ``stage``."""
        with self._lock:
            self._received[stage] += frames

    def sent(self, stage: str, frames: int = 1) -> None:
        """``frames`` left ``stage`` as they should."""
        with self._lock:
            self._sent[stage] += frames

    def dropped(self, stage: str, reason: str, frames: int = 1) -> None:
        """``frames`` were given up by ``stage``."""
        if frames:
            with self._lock:
                self._dropped[stage, reason] += frames

    def note(self, what: str, reason: str, count: int = 1) -> None:
        """Count something that is not a frame in the flow, e.g. a rejected message."""
        if count:
            with self._lock:
                self._notes[what, reason] += count

    def stages(self) -> dict[str, StageCount]:
        """Every stage's account, consistent at one moment."""
        with self._lock:
            names = set(self._received) | set(self._sent) | {stage for stage, _ in self._dropped}
            return {name: self._account(name) for name in sorted(names)}

    def notes(self, what: str) -> dict[str, int]:
        """Counts by reason of one kind of note."""
        with self._lock:
            return {reason: n for (kind, reason), n in self._notes.items() if kind == what}

    def _account(self, name: str) -> StageCount:
        dropped = {reason: n for (stage, reason), n in self._dropped.items() if stage == name}
        return StageCount(self._received[name], self._sent[name], dropped)
