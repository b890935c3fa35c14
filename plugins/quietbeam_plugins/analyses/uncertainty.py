r"""How sure a number from many clean pixels is: their errors are not independent.

A denoiser shares each photon among neighbours in space and time, so the error of the mean of
n pixels does not fall as 1/sqrt(n).  With the s.d. s of the pixels and the correlation rho(D) of
their errors at the displacement D::

    Var(mean) = (1/n^2) sum_i sum_j s_i s_j rho(r_i - r_j) ~ <s^2> area / n,
    area = sum_D rho(D)         (the *correlation area* in pixels; 1 for white noise)

rho is measured from second differences of clean frames, x(t-L) - 2 x(t) + x(t+L), all brought to
one brightness: they hold no scene that stands still or changes evenly.  What changes otherwise
adds to it, so that the error is overstated rather than understated.  Until the first is there, all
pixels count as one (area = n).  An error that stays for much longer than L (a fixed pattern) is not
seen.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from quietbeam_plugins.analyses.regions import known_mean
from quietbeam_plugins.analyses.untyped import fft

Pixels = NDArray[np.float32]

TEMPORAL_LAGS = (1, 2, 4, 8)
"""Frames apart at which the temporal correlation of clean errors is measured."""

_CLIP = 4.0  # s.d.: moving edges must not pass for correlated noise
_REACH = 12  # pixels: no denoiser here is correlated further at a level that counts
_SIDE = 256  # pixels of the middle that are looked at
_SAMPLES = 4096
_ENOUGH = 1 << 15  # pixels to know a mean variance
_MEMORY = 0.8  # of the running averages
_RECENT = 9  # areas, of which the median counts


class ErrorCorrelation:
    """Measures the correlation of the errors of clean frames, while they come.

    Args:
        lag: Frames from one of the three to the next.

    Attributes:
        area_px: Correlation area; None until it was measured.
        temporal: (4,) correlation at ``TEMPORAL_LAGS``, from ``1 - <(x_t - x_{t-k})^2> / 2 s^2``:
            it holds where the stated s.d. does, and the scene stands still.
    """

    def __init__(self, lag: int = 4) -> None:
        self._lag = lag
        self._seen = 0
        self._kept: deque[tuple[Pixels, Pixels]] = deque(maxlen=3)
        self._samples: deque[tuple[Pixels, Pixels]] = deque(maxlen=max(TEMPORAL_LAGS) + 1)
        self._areas: deque[float] = deque(maxlen=_RECENT)
        self.area_px: float | None = None
        self.temporal = np.full(len(TEMPORAL_LAGS), np.nan)

    def add(self, clean: Pixels, sd: Pixels) -> None:
        """Take the next clean frame and its s.d., (h, w) each; NaN where bad."""
        self._add_samples(clean, sd)
        if self._seen % self._lag == 0:
            self._kept.append((_middle(clean).copy(), _middle(sd).copy()))
            if len(self._kept) == 3:
                self._compare()
        self._seen += 1

    def _compare(self) -> None:
        (before, sd_0), (now, sd_1), (after, sd_2) = self._kept
        with np.errstate(invalid="ignore", divide="ignore"):
            bent = _levelled(before, now) + _levelled(after, now) - 2 * now
            z = bent / np.sqrt(sd_0**2 + 4 * sd_1**2 + sd_2**2)
        known = np.isfinite(z)
        if known.sum() < z.size // 10:
            return
        z = np.where(known, np.clip(z - np.median(z[known]), -_CLIP, _CLIP), 0)
        rho = autocorrelation(z.astype(np.float32), _REACH)
        if rho is None:
            return
        # what changes of a sudden spoils a few of them: the median does not care
        self._areas.append(correlation_area(rho))
        self.area_px = float(np.median(self._areas))

    def _add_samples(self, clean: Pixels, sd: Pixels) -> None:
        step = max(1, clean.size // _SAMPLES)
        self._samples.append((clean.ravel()[::step].copy(), sd.ravel()[::step].copy()))
        newest, spread = self._samples[-1]
        for number, lag in enumerate(TEMPORAL_LAGS):
            if len(self._samples) > lag:
                old, old_spread = self._samples[-1 - lag]
                told = known_mean(spread**2 + old_spread**2)
                if not told > 0:
                    continue
                rho = float(np.clip(1 - known_mean((newest - old) ** 2) / told, -1, 1))
                last = self.temporal[number]
                self.temporal[number] = (
                    rho if np.isnan(last) else _MEMORY * last + (1 - _MEMORY) * rho
                )

    def mean_sd(self, sd: NDArray[np.floating]) -> float:
        """Give the s.d. of the mean over pixels with these s.d., any shape; NaN ones left out."""
        step = max(1, sd.size // _ENOUGH)
        variance = known_mean(np.square(sd.ravel()[::step]))
        pixels = sd.size if step > 1 else int(np.isfinite(sd).sum())
        return float(np.sqrt(variance * self.shared(pixels)))

    def shared(self, pixels: int | NDArray[np.floating]) -> NDArray[np.float64]:
        """Give ``area / n``, at most 1: what averaging n neighbours leaves of the variance."""
        n = np.maximum(np.asarray(pixels, np.float64), 1)
        return np.minimum(n if self.area_px is None else self.area_px, n) / n

    def shared_in_time(self, frames: int) -> float:
        """Give what averaging successive frames leaves of the variance, 1/frames to 1.

        ``(1 + 2 sum_k (1 - k/n) rho(k)) / n`` with rho interpolated between the lags and
        falling to 0 beyond; 1 while nothing was measured.
        """
        if frames < 2 or np.isnan(self.temporal[0]):
            return 1.0
        known = np.isfinite(self.temporal)
        lags = np.r_[0, np.array(TEMPORAL_LAGS)[known], 2 * max(TEMPORAL_LAGS)]
        rho = np.interp(
            np.arange(1, frames), lags, np.r_[1, np.maximum(self.temporal[known], 0), 0]
        )
        k = np.arange(1, frames)
        return float(np.clip((1 + 2 * np.sum((1 - k / frames) * rho)) / frames, 1 / frames, 1))


def autocorrelation(image: Pixels, reach: int) -> NDArray[np.float64] | None:
    """Give rho(D) for displacements up to ``reach`` in both directions, (2r+1, 2r+1).

    By Wiener-Khinchin, padded so that the borders do not meet.  None for a flat image.
    """
    h, w = image.shape
    reach = min(reach, h - 1, w - 1)
    shape = tuple(fft.next_fast_len(n + reach, real=True) for n in (h, w))
    power = np.abs(fft.rfft2(image, shape)) ** 2
    full = fft.irfft2(power, shape)
    d = np.arange(-reach, reach + 1)
    found = full[np.ix_(d, d)] / np.outer(h - np.abs(d), w - np.abs(d))
    if not found[reach, reach] > 0:
        return None
    return found / found[reach, reach]


def correlation_area(rho: NDArray[np.float64]) -> float:
    """Sum rho outwards, ring by ring, until the rings are no more positive; at least 1 pixel."""
    reach = rho.shape[0] // 2
    d = np.arange(-reach, reach + 1)
    ring = np.maximum(*np.abs(np.meshgrid(d, d)))
    total = 1.0
    for radius in range(1, reach + 1):
        added = float(rho[ring == radius].sum())
        if added <= 0:
            break
        total += added
    return total


def _levelled(image: Pixels, reference: Pixels) -> Pixels:
    """Bring ``image`` to the brightness of ``reference``: the beam is no error of the pixels."""
    level, wanted = known_mean(image), known_mean(reference)
    return image * np.float32(wanted / level) if level > 0 and wanted > 0 else image


def _middle(image: Pixels) -> Pixels:
    h, w = image.shape
    top, left = max(0, (h - _SIDE) // 2), max(0, (w - _SIDE) // 2)
    return image[top : top + _SIDE, left : left + _SIDE]
