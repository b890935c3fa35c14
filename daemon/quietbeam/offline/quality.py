"""Figures of image quality, with the truth and without it.

Videos are (t, h, w), any real dtype; NaN marks pixels that mean nothing and
are left out.  Nothing here knows how a video was denoised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

from quietbeam.model.stabilise import is_impulsive

Video = NDArray[np.floating]

_SSIM_SIGMA_PX = 1.5
_SSIM_RADIUS_PX = 5  # an 11 x 11 window, as in the original


def mse(estimate: Video, truth: Video) -> float:
    """Mean squared difference over pixels finite in both; NaN where there are none."""
    squares = (np.asarray(estimate, np.float64) - truth) ** 2
    finite = np.isfinite(squares)
    return float(squares[finite].mean()) if finite.any() else float("nan")


def psnr(estimate: Video, truth: Video, peak: float) -> float:
    """Peak signal-to-noise ratio in dB: ``10 log10(peak^2 / mse)``; infinite when equal."""
    return to_db(mse(estimate, truth), peak)


def to_db(mean_square: float, peak: float) -> float:
    """Give ``10 log10(peak^2 / mean_square)``: infinite at 0, NaN below it."""
    if mean_square == 0:
        return float("inf")
    return float(10 * np.log10(peak**2 / mean_square)) if mean_square > 0 else float("nan")


def ssim(estimate: Video, truth: Video, peak: float) -> float:
    """Structural similarity of two images (h, w), or the mean over the frames of two videos.

    Wang, Bovik, Sheikh & Simoncelli, IEEE Trans. Image Process. 13, 600 (2004),
    eq. 13: Gaussian window of 11 x 11 pixels and sigma 1.5, K1 = 0.01,
    K2 = 0.03; the outer 5 pixels are left out where the image is large enough.
    """
    if estimate.ndim == 3:
        return float(np.mean([ssim(x, y, peak) for x, y in zip(estimate, truth, strict=True)]))
    x, y = np.asarray(estimate, np.float64), np.asarray(truth, np.float64)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mx, my = _window(x), _window(y)
    vx, vy = _window(x * x) - mx**2, _window(y * y) - my**2
    vxy = _window(x * y) - mx * my
    index = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    r = _SSIM_RADIUS_PX
    inner = index[r:-r, r:-r] if min(index.shape) > 2 * r else index
    return float(np.nanmean(inner))


def _window(image: NDArray[np.float64]) -> NDArray[np.float64]:
    return gaussian_filter(image, _SSIM_SIGMA_PX, radius=_SSIM_RADIUS_PX)


def noise_variance(video: Video) -> float:
    """Mean noise variance from second temporal differences, unit of the data squared.

    ``y[t-1] - 2 y[t] + y[t+1]`` has variance 6 sigma^2 for noise that is
    independent from frame to frame, and cancels any linear change of the scene.
    Two frames give the first difference (2 sigma^2), which counts every change
    as noise; one frame gives NaN.
    """
    y = np.asarray(video, np.float64)
    if len(y) < 2:
        return float("nan")
    squares = np.diff(y, n=2, axis=0) ** 2 / 6 if len(y) > 2 else np.diff(y, axis=0) ** 2 / 2
    finite = np.isfinite(squares)
    return float(squares[finite].mean()) if finite.any() else float("nan")


@dataclass(frozen=True, slots=True)
class BlindQuality:
    """Quality of an estimate, measured without the truth.

    Attributes:
        mse: Of the estimate about the truth, estimated; may come out negative
            when it is far below the noise.
        noise: Noise variance of the measured data.
        standard_error: Of ``mse``, from the spread over frames.
        trusted: The noise looks zero-mean; False with impulses.
    """

    mse: float
    noise: float
    standard_error: float
    trusted: bool

    def psnr(self, peak: float) -> float:
        """Estimated PSNR in dB of the estimate; NaN where ``mse`` is not positive."""
        return to_db(self.mse, peak)

    def raw_psnr(self, peak: float) -> float:
        """Estimated PSNR in dB of the measured data."""
        return to_db(self.noise, peak)


def blind_quality(measured: Video, blind: Video, noise: float | None = None) -> BlindQuality:
    """Estimate the quality of a *blind* estimate from the data alone.

    ``E[(y - f)^2] = E[(x - f)^2] + sigma^2`` where f of a pixel does not depend
    on that pixel of y and the noise has zero mean (uMSE; Marcos Morales et al.,
    ICML 2023, arXiv 2210.05553).  For an estimate that has seen the pixel the
    result is too good; give the blind one.

    Args:
        measured: (t, h, w).
        blind: (t, h, w), estimates of the same frames.
        noise: Variance of the noise, if known (1 in stabilised units); else
            from temporal differences of ``measured``.
    """
    variance = noise_variance(measured) if noise is None else noise
    squares = (np.asarray(measured, np.float64) - blind) ** 2
    frames = np.nanmean(squares, axis=(1, 2))
    spread = frames.std(ddof=1) / np.sqrt(len(frames)) if len(frames) > 1 else float("nan")
    trusted = not is_impulsive(measured)
    return BlindQuality(mse(measured, blind) - variance, variance, float(spread), trusted)


def local_sd(video: Video) -> NDArray[np.float32]:
    """Standard deviation in the 3 x 3 x 3 neighbourhood of every pixel: dynamic variability.

    The source paper's figure 5b.  (t, h, w) float32; at the borders the
    neighbourhood is mirrored.  NaN spreads to its neighbours.
    """
    y = np.asarray(video, np.float64)
    y = y - np.nanmean(y)  # squares of large offsets would eat the digits
    mean = uniform_filter(y, 3, mode="reflect")
    squares = uniform_filter(y * y, 3, mode="reflect")
    return np.sqrt(np.maximum(squares - mean**2, 0)).astype(np.float32)


def local_sd_ratio(clean: Video, raw: Video) -> float:
    """Mean local standard deviation of ``clean`` over that of ``raw``; below 1 is smoother."""
    sd_clean, sd_raw = local_sd(_holes_filled(clean)), local_sd(_holes_filled(raw))
    denominator = float(sd_raw.mean())
    return float(sd_clean.mean()) / denominator if denominator > 0 else float("nan")


def _holes_filled(video: Video) -> Video:
    y = np.asarray(video, np.float64)
    finite = np.isfinite(y)
    return y if finite.all() else np.where(finite, y, y[finite].mean() if finite.any() else 0)


@dataclass(frozen=True, slots=True)
class Whiteness:
    """Lag-1 autocorrelations of a residual; 0 for white noise, positive where structure was lost.

    Attributes:
        x: Along rows.
        y: Along columns.
        t: From frame to frame.
        standard_error: Of each, for white noise.
    """

    x: float
    y: float
    t: float
    standard_error: float


def whiteness(residual: Video) -> Whiteness:
    """Measure how white ``residual`` (t, h, w), measured minus estimate, is.

    The mean is taken out once; one frame has t = NaN.  Divide by the local
    noise s.d. first (or use stabilised units), else bright pixels dominate.
    """
    r = np.asarray(residual, np.float64)
    r = r - np.nanmean(r)
    variance = float(np.nanmean(r * r))

    def lag(a: Video, b: Video) -> float:
        product = a * b
        return float(np.nanmean(product)) / variance if product.size and variance else float("nan")

    count = int(np.isfinite(r).sum())
    return Whiteness(
        x=lag(r[:, :, 1:], r[:, :, :-1]),
        y=lag(r[:, 1:], r[:, :-1]),
        t=lag(r[1:], r[:-1]),
        standard_error=float(1 / np.sqrt(count)) if count else float("nan"),
    )
