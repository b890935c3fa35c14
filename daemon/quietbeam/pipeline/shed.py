"""Decides what is given up so that the rest keeps up: display first, denoising last.

Raw frames are not in this list: they are safe before the denoiser sees them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import structlog

Burden = Literal["display", "training", "analyses", "denoising"]

LIMITS: dict[Burden, float] = {
    "display": 0.5,
    "training": 0.75,  # the minor alarm of areaDetector's queues
    "analyses": 0.9,
    "denoising": 1.0,  # beyond it the oldest frames that wait are passed over
}
"""In the order of giving up: how full the denoiser's backlog may be before."""

RECORDER_FULL = 0.8
"""How much of the raw ring may wait for a recorder: that counts as a full backlog (1.0).

What is left of the ring is the recorder's, so that denoising is given up before
raw frames are lost.
"""

STATES = ("normal", *LIMITS)
"""Each names the last burden given up; all before it are given up as well."""

_CALM_FILL = 0.25
_CALM_S = 2.0
_STEP_S = 1.0


class Shed:
    """The state of giving up, with hysteresis on the backlog of the denoiser.

    A burden is given up as soon as the backlog is beyond its limit, and never
    before those that come first.  All is well again once the backlog has been
    below a quarter for 2 s: then the burdens are taken up in reverse order, one
    each second, so that none of them brings the overload back unnoticed.

    Written by the denoise thread; read by any.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[str], None] = lambda _state: None
        self.episodes: dict[str, int] = dict.fromkeys(LIMITS, 0)
        self._level = 0
        self._since_unix_s: dict[str, float] = {}
        self._next_s: float | None = None
        self._log = structlog.get_logger(stage="shed")

    @property
    def state(self) -> str:
        """One of ``STATES``."""
        return STATES[self._level]

    def gives_up(self, burden: Burden) -> bool:
        """Tell whether ``burden`` is given up now."""
        return self._level >= STATES.index(burden)

    def update(self, fill: float, now_s: float) -> None:
        """Take how full the backlog is (1: as much as may wait) at ``now_s``, monotonic."""
        if fill >= _CALM_FILL:
            self._next_s = None
        elif self._next_s is None:
            self._next_s = now_s + _CALM_S
        while self._level < len(LIMITS) and fill > LIMITS[_burden(self._level + 1)]:
            self._give_up(fill)
        if self._level and self._next_s is not None and now_s >= self._next_s:
            self._next_s = now_s + _STEP_S
            self._take_up(fill)

    def account(self) -> dict[str, Any]:
        """Describe it for the status page."""
        return {
            "state": self.state,
            "since_unix_s": dict(self._since_unix_s),
            "episodes": dict(self.episodes),
        }

    def _give_up(self, fill: float) -> None:
        self._level += 1
        burden = _burden(self._level)
        self.episodes[burden] += 1
        self._since_unix_s[burden] = time.time()
        self._log.warning("given_up", what=burden, why="overload", backlog_fill=round(fill, 2))
        self.on_change(self.state)

    def _take_up(self, fill: float) -> None:
        burden = _burden(self._level)
        self._level -= 1
        self._since_unix_s.pop(burden, None)
        self._log.info("taken_up", what=burden, backlog_fill=round(fill, 2))
        self.on_change(self.state)


def _burden(level: int) -> Burden:
    return tuple(LIMITS)[level - 1]
