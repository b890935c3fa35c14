"""Noise calibration and variance stabilisation: counts in, unit noise out, and back.

The noise of a detector pixel is taken as ``variance = gain * mean + offset_variance``
(photon transfer; Janesick 2007).  The generalised Anscombe transform makes it
one everywhere (Starck, Murtagh & Bijaoui 1998, eq. 6.6), and its exact unbiased
inverse maps the *mean* of the transformed data back to the mean of the counts
(Mäkitalo & Foi, IEEE Trans. Image Process. 22, 91, 2013).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy

Float = NDArray[np.float32]

_SAMPLE_PIXELS = 65_536  # enough for 0.1 % on the gain; bounds memory for large detectors
_BINS = 24
_IMPULSE_SD, _IMPULSE_SHARE = 6.0, 0.01
_TABLE_SIZE = 4096  # points of the inverse, evenly spaced in stabilised units
_TABLE_ELECTRONS = 150.0  # above this the asymptotic inverse is exact to 1e-5


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """``variance = gain * mean + offset_variance``, in counts.

    Attributes:
        gain: Counts per photon, >= 0; 0 means purely signal-independent noise.
        offset_variance: Counts squared; negative when the data carry a pedestal.
        impulsive: Outliers too frequent for this model: averages are biased and
            no quality figure made from squares can be trusted.
    """

    gain: float
    offset_variance: float
    impulsive: bool = False

    def variance(self, mean: NDArray[np.floating]) -> NDArray[np.floating]:
        """Noise variance at ``mean``, counts squared, never negative."""
        return np.maximum(self.gain * mean + self.offset_variance, 0)


class PhotonTransfer:
    """Fits the noise model to a few frames of a scene that may move slowly.

    The variance comes from second temporal differences
    ``y[t-1] - 2 y[t] + y[t+1]`` (variance 6 sigma^2), which cancel any linear
    change in time; pixels are binned by their mean.
    """

    def __init__(self) -> None:
        self._samples: list[Float] = []
        self._pick: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, pixels: Float, valid: NDArray[np.bool_]) -> None:
        """Take one corrected frame, both (h, w)."""
        if self._pick is None:
            step = max(1, pixels.size // _SAMPLE_PIXELS)
            self._pick = np.arange(0, pixels.size, step)
        sample = pixels.reshape(-1)[self._pick].astype(np.float32)
        sample[~valid.reshape(-1)[self._pick]] = np.nan
        self._samples.append(sample)

    def fit(self) -> NoiseModel:
        """Give the model; with fewer than two frames noise is taken as Poisson of gain one."""
        if len(self._samples) < 2:
            return NoiseModel(gain=1.0, offset_variance=0.0)
        stack = np.stack(self._samples)
        stack = stack[:, np.isfinite(stack).all(0)]
        if stack.shape[1] < 2:
            return NoiseModel(gain=1.0, offset_variance=0.0)
        mean = stack.mean(0)
        first = np.diff(stack, axis=0)
        impulsive = is_impulsive(stack)
        if len(stack) > 2:
            second = np.diff(first, axis=0)
            squares, spread = second**2 / 6, second / np.sqrt(6)
        else:
            squares, spread = first**2 / 2, first / np.sqrt(2)
        gain, offset = _fit_line(mean, squares, spread, robust=impulsive)
        return NoiseModel(gain, offset, impulsive)


def is_impulsive(frames: NDArray[np.floating] | NDArray[np.integer]) -> bool:
    """Tell whether more than 1 % of the pixels are outliers in time.

    Such noise has no zero mean: averages are biased and every figure made from
    squares is wrong, by 2 dB and more.  A pixel is an outlier when it differs
    by more than six robust standard deviations (of pixels about as bright) from
    the median of the two frames before and the two after it; of fewer than five
    frames, from the frame before.  An edge that passes lies between the frames
    around it and is none; nor is a single count among none.

    Args:
        frames: (t, ...), consecutive, any real dtype; NaN is left out.
            Integers (of any dtype) are taken for counts.

    Returns:
        False where there are fewer than two frames.
    """
    y = np.asarray(frames, np.float32).reshape(len(frames), -1)
    y = y[:, np.isfinite(y).any(0)]
    if len(y) < 2 or not y.size:
        return False
    if len(y) < 5:
        level, measured = y[:-1], y[1:]
    else:
        level = np.median([y[i : len(y) - 4 + i] for i in (0, 1, 3, 4)], axis=0)
        measured = y[2:-2]
    apart = np.abs(measured - level)
    known = np.isfinite(apart)
    return _outlier_share(apart[known], level[known], _quantum(y)) > _IMPULSE_SHARE


def _outlier_share(apart: Float, level: Float, quantum: float) -> float:
    outliers = 0
    for part in _bins(level):
        scale = max(float(np.median(apart[part])) / 0.6745, quantum)
        # Where most do not differ at all, the plain deviation is all there is.
        scale = scale or float(apart[part].std())
        outliers += int((apart[part] > _IMPULSE_SD * scale).sum())
    return outliers / max(apart.size, 1)


def _quantum(stack: Float) -> float:
    """1 for integer data, else 0."""
    sample = stack[0, :4096]
    sample = sample[np.isfinite(sample)]
    return 1.0 if np.array_equal(sample, np.rint(sample)) else 0.0


def _bins(mean: Float) -> list[NDArray[np.intp]]:
    order = np.argsort(mean, kind="stable")
    return [part for part in np.array_split(order, _BINS) if part.size]


def _fit_line(
    mean: NDArray[np.floating],
    squares: NDArray[np.floating],
    spread: NDArray[np.floating],
    *,
    robust: bool,
) -> tuple[float, float]:
    """Weighted least squares of variance on mean over bins: (gain, offset variance)."""
    parts = _bins(mean)
    x = np.array([mean[part].mean() for part in parts], np.float64)
    if robust:
        y = np.array([(np.median(np.abs(spread[:, p])) / 0.6745) ** 2 for p in parts], np.float64)
    else:
        y = np.array([squares[:, part].mean() for part in parts], np.float64)
    y = np.maximum(y, max(0.05 * float(y.mean()), 1e-30))  # no bin is trusted without limit
    if np.ptp(x) < 1e-6 * max(1.0, float(np.abs(x).max())):  # one level only
        return _flat(float(y.mean()), float(x.mean()))
    gain, offset = np.polyfit(x, y, 1, w=1 / y)
    residual = np.abs(gain * x + offset - y) / y
    keep = residual <= 3 * np.median(residual) + 1e-9  # moving edges inflate single bins
    if keep.sum() >= 4 and np.ptp(x[keep]) > 0.5 * np.ptp(x):
        gain, offset = np.polyfit(x[keep], y[keep], 1, w=1 / y[keep])
    if gain * np.ptp(x) < 0.02 * y.mean():  # falling or level: signal-independent noise
        return 0.0, float(np.average(y, weights=1 / y))
    return float(gain), float(offset)


def _flat(variance: float, mean: float) -> tuple[float, float]:
    """One level cannot tell gain from offset: Poisson if it looks like it, else constant."""
    return (variance / mean, 0.0) if mean > 0 and 0.5 < variance / mean < 2 else (0.0, variance)


class Stabiliser:
    """Maps counts to unit noise and back for one noise model.

    All methods take and give float32 arrays of any one shape.
    """

    def __init__(self, noise: NoiseModel) -> None:
        self.noise = noise
        self._gain = noise.gain
        if noise.gain <= 0:
            self._sigma = np.float32(np.sqrt(max(noise.offset_variance, 1e-30)))
            return
        # A negative offset variance is a pedestal: var = gain * (mean - pedestal).
        self._pedestal = np.float32(max(0.0, -noise.offset_variance / noise.gain))
        self._read = max(0.0, noise.offset_variance) / noise.gain**2  # electrons squared
        z, electrons = _mean_table(self._read)
        grid = np.linspace(z[0], z[-1], _TABLE_SIZE)
        counts = np.interp(grid, z, electrons) * noise.gain + self._pedestal
        self._counts = _Table(grid, counts)

    def forward(self, x: Float) -> Float:
        """Counts to stabilised units: noise of unit variance."""
        if self._gain <= 0:
            return np.asarray(x / self._sigma, np.float32)
        electrons = (x - self._pedestal) / np.float32(self._gain)
        shifted = electrons + np.float32(0.375 + self._read)
        return np.asarray(2 * np.sqrt(np.maximum(shifted, 0)), np.float32)

    def inverse(self, z: Float) -> Float:
        """Mean in stabilised units to mean counts, without bias."""
        return self.inverse_and_slope(z)[0]

    def inverse_and_slope(self, z: Float) -> tuple[Float, Float]:
        """Give mean counts, and their derivative, which carries a s.d. back to counts."""
        if self._gain <= 0:
            return np.asarray(z * self._sigma, np.float32), np.full_like(z, self._sigma)
        high = z > self._counts.last
        if high.all():
            return self._bright(z)
        # below zero signal straight on: sums of background stay unbiased
        counts, slope = self._counts(z)
        if high.any():
            counts[high], slope[high] = self._bright(z[high])
        return counts, slope

    def _bright(self, z: Float) -> tuple[Float, Float]:
        gain = np.float32(self._gain)
        return _asymptotic(z, self._read) * gain + self._pedestal, z * (gain / 2)


Stabilisers = Mapping[str, Sequence[Stabiliser]]
"""By run: one for each channel."""


class _Table:
    """A function on an even grid, linear between its points and beyond its ends."""

    def __init__(self, grid: NDArray[np.float64], values: NDArray[np.float64]) -> None:
        self.first, self.last = float(grid[0]), float(grid[-1])
        self._per_unit = np.float32((len(grid) - 1) / (grid[-1] - grid[0]))
        self._values = values.astype(np.float32)
        self._steps = np.append(np.diff(values), values[-1] - values[-2]).astype(np.float32)

    def __call__(self, x: Float) -> tuple[Float, Float]:
        """Give the values and their derivative."""
        place = (x - np.float32(self.first)) * self._per_unit
        index = np.clip(place, 0, len(self._values) - 1).astype(np.intp)
        step = self._steps.take(index)
        place -= index
        place *= step
        place += self._values.take(index)
        step *= self._per_unit
        return place, step


def _mean_table(read: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(E[z | electrons], electrons) by summing over Poisson and integrating over Gauss."""
    electrons = np.linspace(0, np.sqrt(_TABLE_ELECTRONS), 400) ** 2
    counts = np.arange(int(_TABLE_ELECTRONS + 9 * np.sqrt(_TABLE_ELECTRONS)) + 8)
    nodes = np.linspace(-6, 6, 241)
    weights = np.exp(-(nodes**2) / 2)
    weights /= weights.sum()
    inside = counts[:, None] + np.sqrt(read) * nodes + 0.375 + read
    transformed = (2 * np.sqrt(np.maximum(inside, 0))) @ weights
    logarithm = xlogy(counts, electrons[:, None]) - electrons[:, None] - gammaln(counts + 1)
    mean = np.exp(logarithm) @ transformed
    return mean, electrons


def _asymptotic(z: Float, read: float) -> Float:
    """Closed form for many electrons (Mäkitalo & Foi 2013, eq. 10)."""
    root = float(np.sqrt(1.5))
    u = 1 / z
    small = ((5 * root / 8 * u - 11 / 8) * u + root / 4) * u
    return np.asarray(z * z / 4 + small - np.float32(0.125 + read), np.float32)
