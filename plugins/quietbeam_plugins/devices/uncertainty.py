"""How sure a mean of measurements is, when the errors of successive frames are not independent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FEW = 8


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of the error of a metric measured on single frames.

    Attributes:
        frame_sd: S.d. of the error on one frame, in the metric's unit.
        correlation: Of the errors of successive frames, 0 to 1: 0 for raw
            frames; clean ones share most of what they were made from.
    """

    frame_sd: float
    correlation: float = 0.0

    def __post_init__(self) -> None:
        if not (self.frame_sd >= 0 and 0 <= self.correlation <= 1):
            raise ValueError(f"{self}: expected frame_sd >= 0 and a correlation from 0 to 1")

    def sd_of_mean(self, frames: int) -> float:
        """Give the s.d. of the mean of so many successive frames.

        With errors that form an AR(1) process of correlation rho,
        var = s² / n · (1 + 2 Σ_{k<n} (1 - k/n) rho^k).
        """
        lags = np.arange(1, frames)
        inflation = 1 + 2 * float(((1 - lags / frames) * self.correlation**lags).sum())
        return self.frame_sd * math.sqrt(inflation / frames)


def calibrate(
    values: NDArray[np.floating], later_raw: NDArray[np.floating], lag: int = 0
) -> Calibration:
    """Measure the error of a metric without knowing the truth.

    A raw frame that an estimate has not seen differs from it by the errors of
    both, which are independent: E[(c_t - r_u)²] = var(c) + var(r), and for two
    such frames u ≠ v, E[(c_t - r_u)(c_{t+1} - r_v)] = cov(c_t, c_{t+1}).
    var(r) is half the mean squared difference of successive raw values.  What
    the scene changes meanwhile counts as error: the figure is on the safe side.

    Args:
        values: (n, m), the metric on successive clean frames, at m places.
        later_raw: (n, m), the same metric on the raw frames of the same
            numbers; linear in the pixels, or the raw one is biased.
        lag: Frames after its own that an estimate of the denoiser uses.

    Raises:
        ValueError: Too few frames.
    """
    n = len(values) - lag - 3
    if n < _FEW or values.shape != later_raw.shape:
        raise ValueError(
            f"{values.shape}, {later_raw.shape}: expected two equal shapes, {_FEW + lag + 3} frames"
        )
    values, raw = np.asarray(values, float), np.asarray(later_raw, float)
    unseen = lag + 1
    first = values[:n] - raw[unseen : unseen + n]
    second = values[1 : n + 1] - raw[unseen + 1 : unseen + 1 + n]
    raw_variance = float((np.diff(raw, axis=0) ** 2).mean() / 2)
    variance = max(float((first**2).mean()) - raw_variance, 0.0)
    covariance = float((first * second).mean())
    correlation = covariance / variance if variance else 1.0
    return Calibration(math.sqrt(variance), min(max(correlation, 0.0), 1.0))


def sd_from_scatter(values: Sequence[float]) -> float:
    """Give the s.d. of the mean of successive values, from how they scatter.

    The integrated autocorrelation time is summed up to where it exceeds a
    fifth of the lag (Sokal, Monte Carlo Methods in Statistical Mechanics, 1989,
    section 3); infinite for fewer than 8 values, which cannot tell.
    """
    x = np.asarray(values, float)
    n = len(x)
    if n < _FEW:
        return math.inf
    centred = x - x.mean()
    variance = float(centred @ centred) / (n - 1)
    if not variance > 0:
        return 0.0
    tau = 1.0
    for lag in range(1, n // 2):
        tau += 2 * float(centred[:-lag] @ centred[lag:]) / ((n - lag) * variance)
        if lag >= 5 * tau:
            break
    return math.sqrt(variance * max(tau, 1.0) / n)
