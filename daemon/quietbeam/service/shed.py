"""Decides when training has to rest so that denoising keeps up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Shed:
    """Hysteresis on how full the denoiser's backlog is.

    Training rests as soon as the backlog is three quarters full (the minor
    alarm of areaDetector's queues) and goes on once it has been below one
    quarter for ``calm_s``.
    """

    high: float = 0.75
    low: float = 0.25
    calm_s: float = 5.0
    active: bool = False
    _calm_since_s: float | None = None

    def update(self, fill: float, now_s: float) -> bool:
        """Take the fill (0 to 1) at ``now_s`` and give whether training must rest."""
        if fill >= self.high:
            self.active, self._calm_since_s = True, None
        elif fill >= self.low:
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        if self._calm_since_s is not None and now_s - self._calm_since_s >= self.calm_s:
            self.active = False
        return self.active
