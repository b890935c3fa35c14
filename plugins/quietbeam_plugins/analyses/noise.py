"""The noise of the measured frames: photon transfer and spatial correlation, while they come."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quietbeam import Observation
from quietbeam_plugins.analyses.uncertainty import autocorrelation, correlation_area

Pixels = NDArray[np.float32]

_BINS = 16
_MEMORY = 0.7
_SIDE = 256


class PhotonTransferWatch:
    """Fits ``variance = gain * mean + offset`` to differences of successive measured frames.

    Half the squared difference of two frames has the variance of the noise as its mean
    (Janesick 2007); pixels are grouped by their clean level.  A scene that moves adds to it.

    Args:
        every: Frames from one fit to the next.
    """

    def __init__(self, every: int) -> None:
        self._every = max(2, every)
        self._seen = 0
        self._before: Pixels | None = None
        self._fit: NDArray[np.float64] | None = None
        self._rho: NDArray[np.float64] | None = None

    def add(self, seen: Observation) -> dict[str, float]:
        """Take a frame; now and then give the figures."""
        place = self._seen % self._every
        self._seen += 1
        part = _middle(seen.corrected.shape)
        if place == 0:
            self._before = np.where(seen.valid, seen.corrected, np.nan)[part].astype(np.float32)
        if place != 1 or self._before is None:
            return {}
        difference = np.where(seen.valid, seen.corrected, np.nan)[part] - self._before
        self._before = None
        return self._figures(difference, seen.clean[part])

    def _figures(self, difference: Pixels, level: Pixels) -> dict[str, float]:
        known = np.isfinite(difference) & np.isfinite(level)
        if known.sum() < 4 * _BINS:
            return {}
        gain, offset = fit_photon_transfer(difference[known], level[known])
        fit = np.array([gain, offset])
        self._fit = fit if self._fit is None else _MEMORY * self._fit + (1 - _MEMORY) * fit
        spread = np.float32(difference[known].std() or 1)
        z = np.where(known, np.clip(difference / spread, -4, 4), 0).astype(np.float32)
        rho = autocorrelation(z - z.mean(), 6)
        out = {"noise_gain": float(self._fit[0]), "noise_offset": float(self._fit[1])}
        if rho is not None:
            self._rho = rho if self._rho is None else _MEMORY * self._rho + (1 - _MEMORY) * rho
            out["noise_area"] = correlation_area(self._rho)
        return out


def fit_photon_transfer(difference: Pixels, level: Pixels) -> tuple[float, float]:
    """Give (gain, offset variance) from differences of two frames and the level, flat arrays."""
    order = np.argsort(level)
    groups = np.array_split(order, _BINS)
    mean = np.array([level[g].mean() for g in groups], np.float64)
    variance = np.array([difference[g].var() / 2 for g in groups], np.float64)
    if np.ptp(mean) < 1e-6 * max(abs(mean).max(), 1e-30):
        return 0.0, float(variance.mean())
    weight = 1 / np.maximum(variance, 1e-12 * variance.max() + 1e-30)  # var(s^2) ~ s^4
    gain, offset = np.polyfit(mean, variance, 1, w=weight)
    return float(gain), float(offset)


def _middle(shape: tuple[int, ...]) -> tuple[slice, slice]:
    h, w = shape
    top, left = max(0, (h - _SIDE) // 2), max(0, (w - _SIDE) // 2)
    return slice(top, top + _SIDE), slice(left, left + _SIDE)
