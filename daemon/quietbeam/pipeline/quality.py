"""The live quality figure: how good is the clean frame, without knowing the truth."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.result import MetricSpec
from quietbeam.model.clean import Estimate, overstated
from quietbeam.model.correlation import NoiseCorrelation
from quietbeam.model.correlation_meter import CorrelationMeter
from quietbeam.model.stabilise import Stabiliser
from quietbeam.pipeline.noise_scale import NoiseScale

Float = NDArray[np.float32]

_AXES = {
    "rows": "Correlation of the noise at 1 px along a row",
    "columns": "Correlation of the noise at 1 px along a column",
    "line": "Correlation of the noise at 8 to 11 px along a row: scan lines",
    "column_line": "Correlation of the noise at 8 to 11 px along a column",
    "time": "Correlation of the noise from one frame to the next",
    "fixed": "Power of a pixel-fine pattern that stays in place, over that of the noise",
}

SPECS = {
    "quality.psnr_estimated_db": MetricSpec(
        "dB", "Estimated PSNR of the clean frames", uncertainty="quality.psnr_error_db"
    ),
    "quality.psnr_error_db": MetricSpec("dB", "Standard error of the estimated PSNR"),
    "quality.psnr_raw_db": MetricSpec("dB", "Estimated PSNR of the raw frames"),
    "quality.trusted": MetricSpec(
        "", "1 where the noise is zero-mean and independent in time, so that the figures hold"
    ),
    "quality.peak": MetricSpec("count", "Signal range that the PSNR figures refer to"),
    "quality.noise_sd": MetricSpec("count", "Standard deviation of the raw noise"),
    "quality.chi2": MetricSpec("", "Mean squared blind residual over its predicted variance"),
    **{f"quality.correlation_{axis}": MetricSpec("", text) for axis, text in _AXES.items()},
}

_CHI2_FRAMES = 200
_PEAK_EVERY = 16
_LOOK_EVERY = 8
_DB = 10 / np.log(10)  # decibels of a relative error
_TARGET = 0.15 / _DB  # relative s.e. of the mean squared error: more frames are not averaged
_STEP = 0.5 / _DB  # a new version of the same network: its error may be another by this much
_JUMP_SD = 4.0  # an innovation beyond this is a change of the scene, not chance
_DRIFT, _DRIFT_SD = 0.1, 4.5  # and so is a mean of the last ten or so beyond this


class LiveQuality:
    """Stein's unbiased risk estimate over the last frames (Stein 1981).

    For an estimate x of y = truth + noise whose pixel depends on its own y
    with weight w: ``MSE = mean((y - x)^2) - mean(s^2) + 2 mean(w s^2)``.  A
    blind estimate has w = 0.

    This holds for noise of zero mean that no other frame tells of.  Impulses
    and noise that is correlated in time are found, and ``quality.trusted`` is 0
    then: with correlation the noise power can still be told (it is corrected),
    but what share of the noise the estimate has taken over cannot.
    """

    def __init__(self, stabiliser: Stabiliser) -> None:
        self._stabiliser = stabiliser
        self._noise = NoiseScale()
        self._risk = _Risk()
        self._meter = CorrelationMeter()
        self._chi2: deque[float] = deque(maxlen=_CHI2_FRAMES)
        self._peak = 0.0
        self._seen = 0
        self._live: tuple[object, int] | None = None
        self.correlation = NoiseCorrelation()

    @property
    def chi2(self) -> float:
        """Mean squared blind residual over its predicted variance; 1 before the first frame."""
        return float(np.mean(self._chi2)) if self._chi2 else 1.0

    @property
    def trusted(self) -> bool:
        """The noise looks zero-mean and independent from frame to frame."""
        return not (self._stabiliser.noise.impulsive or self.correlation.in_time)

    @property
    def message(self) -> str | None:
        """What an operator should know of the noise, in plain words; None where it is white."""
        impulses = "the noise has outliers: the estimated PSNR is not to be trusted"
        said = (impulses,) if self._stabiliser.noise.impulsive else ()
        return "; ".join((*said, *self.correlation.sentences())) or None

    @property
    def overstated(self) -> float:
        """How many times larger the predicted s.d. is than the measured error; 1 if not known."""
        scale = self._noise.scale(self.correlation)
        if not self.trusted or scale is None:
            return 1.0
        return overstated(self._risk.error(scale), self._risk.deviation, self._risk.told)

    def update(
        self,
        estimate: Estimate,
        clean: Float,
        denoiser: object,
        version: int = 0,
        *,
        sd: Float | None = None,
    ) -> dict[str, float]:
        """Take one clean frame (h, w) in counts, and its predicted s.d.; give figures of ``SPECS``.

        Another ``denoiser`` (any object with equality) starts the averages
        anew; another ``version`` of the same makes the older frames count less.
        """
        self._follow(denoiser, version)
        prepared = estimate.prepared
        self._look(estimate)
        model = np.asarray(self._stabiliser.noise.variance(clean), np.float32)
        self._noise.add(prepared.position, prepared.pixels, prepared.valid, model)
        self._measure_residual(estimate, clean, model, sd)
        if self._seen % _PEAK_EVERY == 0:
            self._measure_peak(clean[prepared.valid])
        self._seen += 1
        return self._figures()

    def _follow(self, denoiser: object, version: int) -> None:
        live = (denoiser, version)
        if self._live is None or self._live[0] != denoiser:
            self._risk = _Risk()
            self._chi2.clear()
        elif self._live != live:
            self._risk.loosen()
        self._live = live

    def _look(self, estimate: Estimate) -> None:
        prepared = estimate.prepared
        self._meter.add(prepared.position, prepared.z, prepared.valid)
        if self._seen % _LOOK_EVERY == 0:
            self.correlation = self._meter.result()

    def _measure_residual(
        self, estimate: Estimate, clean: Float, model: Float, sd: Float | None
    ) -> None:
        prepared, valid = estimate.prepared, estimate.prepared.valid
        if not valid.any():
            return
        use = ... if valid.all() else valid  # an index of what is valid
        blind = (prepared.z - estimate.blind) ** 2 / (1 + estimate.blind_variance)
        self._chi2.append(float(blind[use].mean()))
        scale = self._noise.scale(self.correlation)
        if scale is None:
            return
        squares = ((prepared.pixels - clean) ** 2)[use]
        # Of Gaussian noise E r^4 = 3 s^4 and the variance of r^2 is 2 s^4.
        chance = 2 / 3 * float((squares**2).mean()) / squares.size * self.correlation.alike
        told = 0.0 if sd is None else (sd[use] ** 2).mean()
        means = (squares.mean(), model[use].mean(), (estimate.weight * model)[use].mean(), told)
        self._risk.add(np.array(means, np.float64), scale, chance)

    def _measure_peak(self, clean: Float) -> None:
        if clean.size:
            sample = clean[:: max(1, clean.size // 16_384)]
            low, high = np.percentile(sample, (0.5, 99.5))
            self._peak = float(high - low)

    def _systematic(self) -> float:
        """Error of the mean squared error, over the noise power, that no averaging removes."""
        shared = abs(self.correlation.time[0]) - 3 * self.correlation.time_error
        taken = 2 * shared if shared > 0 else 0.0  # at most so much noise was learned
        return float(np.hypot(taken, self._noise.motion(self.correlation)[1]))

    def _figures(self) -> dict[str, float]:
        scale = self._noise.scale(self.correlation)
        if scale is None or not self._risk.known:
            return dict.fromkeys(SPECS, float("nan"))
        noise = self._risk.noise(scale)
        error = self._risk.error(scale)
        found = self.correlation
        spread = np.hypot(self._risk.deviation, noise * self._systematic())
        # An error smaller than its own standard error cannot be told from that.
        error = max(error, float(spread), 1e-4 * noise)
        return {
            "quality.psnr_estimated_db": _decibels(self._peak, error),
            "quality.psnr_error_db": float(_DB * spread / error) if error else float("nan"),
            "quality.psnr_raw_db": _decibels(self._peak, noise),
            "quality.trusted": float(self.trusted),
            "quality.peak": self._peak,
            "quality.noise_sd": float(np.sqrt(noise)),
            "quality.chi2": self.chi2,
            **{f"quality.correlation_{axis}": r for axis, r in found.figures().items()},
        }


class _Risk:
    """Mean squared residual, noise and own share of the noise: averages as long as they need be.

    A scalar Kalman filter whose state is the estimate's mean squared error.
    What is known of it is forgotten down to the target, 0.15 dB: large frames
    follow a change within a few, small ones are averaged over many.  A jump,
    or a run of surprises to one side, opens it.
    """

    def __init__(self) -> None:
        # squared residual, modelled noise, its own share in x, predicted squared error
        self._means = np.zeros(4)
        self._variance = float("inf")
        self._mse = 0.0
        self._drift = 0.0  # mean of the newest surprises

    @property
    def known(self) -> bool:
        """At least one frame has come."""
        return np.isfinite(self._variance)

    @property
    def deviation(self) -> float:
        """Standard error of the mean squared error, counts squared."""
        return float(np.sqrt(self._variance))

    @property
    def told(self) -> float:
        """Mean squared error as predicted, counts squared; 0 if it is not known."""
        return float(self._means[3])

    def noise(self, scale: float) -> float:
        """Give the mean noise power, counts squared."""
        return float(self._means[1] * scale)

    def error(self, scale: float) -> float:
        """Give the mean squared error, counts squared; below 0 by chance."""
        return float(self._means[0] - scale * (self._means[1] - 2 * self._means[2]))

    def add(self, means: NDArray[np.float64], scale: float, chance: float) -> None:
        """Take one frame's means; ``chance`` is the variance of its mean squared residual."""
        if not self.known:
            self._means, self._variance = means, chance
            return
        now = float(means[0] - scale * (means[1] - 2 * means[2]))
        before = self.error(scale)
        self._variance = max(self._variance, (_TARGET * before) ** 2)
        surprise = (now - before) ** 2
        self._drift += _DRIFT * (now - before - self._drift)
        if surprise > _JUMP_SD**2 * (self._variance + chance):
            self._variance += surprise
        elif self._drift**2 > _DRIFT_SD**2 * (self._variance + _DRIFT / 2 * chance):
            self._variance += self._drift**2
            self._drift = 0.0
        gain = self._variance / max(self._variance + chance, 1e-300)
        self._means = self._means + gain * (means - self._means)
        self._variance *= 1 - gain
        self._mse = self.error(scale)

    def loosen(self) -> None:
        """Another version of the network: what is known counts as a guess."""
        if self.known:
            self._variance += (_STEP * self._mse) ** 2


def _decibels(peak: float, error: float) -> float:
    return float(10 * np.log10(peak**2 / error)) if peak > 0 and error > 0 else float("nan")
