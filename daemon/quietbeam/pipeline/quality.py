"""The live quality figure: how good is the clean frame, without knowing the truth."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.result import MetricSpec
from quietbeam.model.clean import Estimate
from quietbeam.model.stabilise import Stabiliser

Float = NDArray[np.float32]

SPECS = {
    "quality.psnr_estimated_db": MetricSpec("dB", "Estimated PSNR of the clean frames"),
    "quality.psnr_raw_db": MetricSpec("dB", "Estimated PSNR of the raw frames"),
    "quality.trusted": MetricSpec("", "1 where the noise is zero-mean, so that the figures hold"),
    "quality.peak": MetricSpec("count", "Signal range that the PSNR figures refer to"),
    "quality.noise_sd": MetricSpec("count", "Standard deviation of the raw noise"),
    "quality.chi2": MetricSpec("", "Mean squared blind residual over its predicted variance"),
}

_WINDOW = 200  # frames the figures are averaged over
_PEAK_EVERY = 16


class LiveQuality:
    """Stein's unbiased risk estimate over the last frames (Stein 1981).

    For an estimate x of y = truth + noise whose pixel depends on its own y
    with weight w: ``MSE = mean((y - x)^2) - mean(s^2) + 2 mean(w s^2)``.  A
    blind estimate has w = 0.  The noise power ``mean(s^2)`` must be right to a
    part in a thousand, where a clean frame has a hundredth of the noise: the
    fitted model tells how it follows the signal, and its scale is measured
    over the whole run by second temporal differences.
    """

    def __init__(self, stabiliser: Stabiliser) -> None:
        self._stabiliser = stabiliser
        self._residuals: deque[tuple[float, float, float]] = deque(maxlen=_WINDOW)
        self._measured = self._modelled = 0.0  # noise power, summed over the run
        self._chi2: deque[float] = deque(maxlen=_WINDOW)
        self._last: list[tuple[int, Float, NDArray[np.bool_]]] = []
        self._peak = 0.0
        self._seen = 0
        self._denoiser: object = None

    @property
    def chi2(self) -> float:
        """Mean squared blind residual over its predicted variance; 1 before the first frame."""
        return float(np.mean(self._chi2)) if self._chi2 else 1.0

    def update(self, estimate: Estimate, clean: Float, denoiser: object) -> dict[str, float]:
        """Take one clean frame (h, w) in counts; give the figures of ``SPECS``.

        A change of ``denoiser`` (any object with equality) starts the averages anew.
        """
        if denoiser != self._denoiser:
            self._denoiser = denoiser
            self._residuals.clear()
            self._chi2.clear()
        prepared = estimate.prepared
        self._measure_noise(prepared.position, prepared.pixels, prepared.valid, clean)
        self._measure_residual(estimate, clean)
        if self._seen % _PEAK_EVERY == 0:
            self._measure_peak(clean[prepared.valid])
        self._seen += 1
        return self._figures()

    def _measure_noise(
        self, position: int, pixels: Float, valid: NDArray[np.bool_], clean: Float
    ) -> None:
        self._last = [*self._last, (position, pixels, valid)][-3:]
        if len(self._last) < 3 or self._last[-1][0] - self._last[0][0] != 2:
            return
        (_, a, va), (_, b, vb), (_, c, vc) = self._last
        use = va & vb & vc
        if use.any():
            second = (a - 2 * b + c)[use]
            self._measured += float(np.mean(second**2, dtype=np.float64)) / 6
            self._modelled += self._model_noise(clean[use])

    def _model_noise(self, clean: Float) -> float:
        return float(np.mean(self._stabiliser.noise.variance(clean), dtype=np.float64))

    def _measure_residual(self, estimate: Estimate, clean: Float) -> None:
        prepared = estimate.prepared
        valid = prepared.valid
        if not valid.any():
            return
        residual = (prepared.pixels - clean)[valid]
        noise = self._stabiliser.noise.variance(clean[valid])
        own = float(np.mean(estimate.weight[valid] * noise, dtype=np.float64))
        power = float(np.mean(residual**2, dtype=np.float64))
        self._residuals.append((power, own, self._model_noise(clean[valid])))
        blind = (prepared.z - estimate.blind)[valid] ** 2 / (1 + estimate.blind_variance[valid])
        self._chi2.append(float(np.mean(blind, dtype=np.float64)))

    def _measure_peak(self, clean: Float) -> None:
        if clean.size:
            sample = clean[:: max(1, clean.size // 16_384)]
            low, high = np.percentile(sample, (0.5, 99.5))
            self._peak = float(high - low)

    def _figures(self) -> dict[str, float]:
        if not self._modelled or not self._residuals:
            return dict.fromkeys(SPECS, float("nan"))
        scale = self._measured / self._modelled
        power, own, modelled = np.mean(self._residuals, axis=0)
        noise, own = float(modelled) * scale, float(own) * scale
        floor = 1e-4 * noise  # an estimate cannot be told from perfect below this
        error = max(float(power) - noise + 2 * own, floor)
        return {
            "quality.psnr_estimated_db": _decibels(self._peak, error),
            "quality.psnr_raw_db": _decibels(self._peak, noise),
            "quality.trusted": 0.0 if self._stabiliser.noise.impulsive else 1.0,
            "quality.peak": self._peak,
            "quality.noise_sd": float(np.sqrt(noise)),
            "quality.chi2": float(np.mean(self._chi2)),
        }


def _decibels(peak: float, error: float) -> float:
    return float(10 * np.log10(peak**2 / error)) if peak > 0 and error > 0 else float("nan")
