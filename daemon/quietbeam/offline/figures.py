"""Figures of a cleaned recording that need no truth, from a part of it that fits in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from quietbeam.model.clean import Estimate
from quietbeam.model.correlation import NoiseCorrelation
from quietbeam.model.stabilise import NoiseModel
from quietbeam.offline.calibrated import CalibratedSeries
from quietbeam.offline.judge import Verdict
from quietbeam.offline.quality import Whiteness, local_sd_ratio, to_db, whiteness


class Estimated(TypedDict):
    """See ``Figures``."""

    psnr_raw_db: float
    psnr_clean_db: float
    psnr_error_db: float
    peak: float
    trusted: bool


_FRAMES = 64
_SIDE_PX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Quality without the truth; NaN where it cannot be known.

    Attributes:
        psnr_raw_db: Estimated PSNR of the corrected frames.
        psnr_clean_db: Estimated PSNR of the cleaned frames, on guards; where the
            error cannot be told from none, that of a thousandth of the noise.
        psnr_error_db: Standard error of ``psnr_clean_db``, from the spread over guards.
        peak: What the PSNRs refer to: span of the cleaned frames, counts.
        trusted: The noise looks zero-mean and independent from frame to frame, so that
            the PSNRs hold; else they are NaN.
        local_sd_ratio: Mean 3 x 3 x 3 standard deviation, cleaned over raw.
        residual_x: Lag-1 correlation of measured minus cleaned, along rows.
        residual_y: Along columns.
        residual_t: From frame to frame.
        residual_error: Standard error of these for white noise.
        residual_variance: Of measured minus cleaned, stabilised units; at most 1 is expected.
        noise_correlation: Of the measured frames: rows, columns, line, column_line, time, fixed
            (see ``NoiseCorrelation``).
        notes: What one should know of the noise, in plain words.
    """

    psnr_raw_db: float
    psnr_clean_db: float
    psnr_error_db: float
    peak: float
    trusted: bool
    local_sd_ratio: float
    residual_x: float
    residual_y: float
    residual_t: float
    residual_error: float
    residual_variance: float
    noise_correlation: dict[str, float]
    notes: tuple[str, ...]


class Sample:
    """The middle of a recording: at most 64 frames of 256 x 256 pixels."""

    def __init__(self, recording: CalibratedSeries) -> None:
        self._noise, self._correlation = recording.noise, recording.correlation
        total, (h, w) = len(recording), recording.shape
        self._count = min(total, _FRAMES)
        self._first = (total - self._count) // 2
        top, left = max(0, (h - _SIDE_PX) // 2), max(0, (w - _SIDE_PX) // 2)
        self._part = np.s_[top : top + _SIDE_PX, left : left + _SIDE_PX]
        self._raw: list[NDArray[np.float32]] = []
        self._clean: list[NDArray[np.float32]] = []
        self._residual: list[NDArray[np.float32]] = []

    def add(self, estimate: Estimate, clean: NDArray[np.float32]) -> None:
        """Take the next frame, if it belongs to the sample."""
        prepared = estimate.prepared
        if not 0 <= prepared.position - self._first < self._count:
            return
        bad = ~prepared.valid[self._part] | ~np.isfinite(clean[self._part])
        nan = np.float32(np.nan)
        for values, kept in (
            (prepared.pixels, self._raw),
            (clean, self._clean),
            (prepared.z - estimate.z, self._residual),
        ):
            kept.append(np.where(bad, nan, values[self._part]).astype(np.float32))

    def figures(self, verdict: Verdict | None) -> Figures:
        """Give the figures; ``verdict`` is that of the denoiser on guards."""
        raw, clean = np.stack(self._raw), np.stack(self._clean)
        residual = np.stack(self._residual)
        finite = np.isfinite(residual)
        variance = float(residual[finite].var()) if finite.any() else float("nan")
        white = whiteness(residual) if variance > 0 else _no_whiteness()
        return Figures(
            **estimated(self._noise, verdict, self._correlation),
            local_sd_ratio=local_sd_ratio(clean, raw),
            residual_x=white.x,
            residual_y=white.y,
            residual_t=white.t,
            residual_error=white.standard_error,
            residual_variance=variance,
            noise_correlation=self._correlation.figures(),
            notes=self._correlation.sentences(),
        )


def _no_whiteness() -> Whiteness:
    nan = float("nan")
    return Whiteness(nan, nan, nan, nan)


def estimated(
    noise: NoiseModel, verdict: Verdict | None, correlation: NoiseCorrelation | None = None
) -> Estimated:
    """Give the estimated PSNRs: all that is known before the frames are cleaned."""
    trusted = not noise.impulsive and (noise.gain > 0 or noise.offset_variance > 0)
    trusted = trusted and not (correlation is not None and correlation.in_time)
    raw = clean = error = peak = float("nan")
    if verdict is not None:
        peak = verdict.peak
        if trusted and peak > 0 and np.isfinite(verdict.mse).any():
            variance, mse = float(np.nanmean(verdict.noise)), float(np.nanmean(verdict.mse))
            raw = to_db(variance, peak)
            # An error of a thousandth of the noise is as small as can be told.
            clean = to_db(max(mse, 1e-3 * variance), peak)
            spread = float(np.nanstd(verdict.mse)) / np.sqrt(np.isfinite(verdict.mse).sum())
            error = float(10 / np.log(10) * spread / max(mse, 1e-3 * variance))
    return {
        "psnr_raw_db": raw,
        "psnr_clean_db": clean,
        "psnr_error_db": error,
        "peak": peak,
        "trusted": trusted,
    }
