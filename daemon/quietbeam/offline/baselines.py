"""Classical filters to compare with: each maps a video (t, h, w) to a video of the same shape.

Plain numpy, tuned with the truth (an oracle no experiment has), so that what
beats them beats anything they could do.  The classical denoisers that run live
are plugins; these are their reference.  All take finite float32 and give float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median_filter, uniform_filter1d

from quietbeam.offline.quality import noise_variance, psnr

Video = NDArray[np.float32]


def raw(video: Video) -> Video:
    """Nothing at all."""
    return video


def running_mean(video: Video, frames: int = 7) -> Video:
    """Mean of ``frames`` frames centred on each; mirrored at the ends."""
    return np.asarray(uniform_filter1d(video, frames, axis=0, mode="reflect"), np.float32)


def causal_mean(video: Video, frames: int = 7) -> Video:
    """Mean of the newest ``frames`` frames, fewer at the start."""
    total = np.cumsum(video, axis=0, dtype=np.float64)
    total[frames:] -= total[:-frames].copy()
    count = np.minimum(np.arange(1, len(video) + 1), frames)
    return (total / count[:, None, None]).astype(np.float32)


def spatial_filter(video: Video, blur_px: float = 0.0, median_px: int = 1) -> Video:
    """Frame-by-frame median of a square, then Gaussian; 1 and 0 leave them out."""
    if median_px > 1:
        video = median_filter(video, (1, median_px, median_px), mode="nearest")
    if blur_px > 0:
        video = np.asarray(
            gaussian_filter(video, (0, blur_px, blur_px), mode="nearest"), np.float32
        )
    return np.asarray(video, np.float32)


def ema(video: Video, rate: float = 0.2, blur_px: float = 0.0, median_px: int = 1) -> Video:
    """Exponential mean in time over spatially filtered frames; starts as a plain mean.

    With ``blur_px`` this is the causal space-time filter.
    """
    frames = spatial_filter(video, blur_px, median_px)
    out = np.empty_like(frames)
    state = np.zeros_like(frames[0])
    for i, frame in enumerate(frames):
        state += np.float32(max(rate, 1 / (i + 1))) * (frame - state)
        out[i] = state
    return out


def kalman(
    video: Video, process: float = 0.02, gate_sd: float = 4.0, blur_px: float = 0.0
) -> Video:
    """Random-walk Kalman filter of every pixel, with innovation gating.

    The measurement variance of a pixel follows its level (a line through
    temporal differences), the variance of the walk per frame is ``process``
    times that.  An innovation beyond ``gate_sd`` is ignored once; a second one
    in a row on the same side restarts the pixel.
    """
    frames = spatial_filter(video, blur_px)
    gain, offset = _variance_line(frames)
    state = frames[0].copy()
    r = np.maximum(gain * state + offset, 1e-12)
    p, last = r.copy(), np.zeros_like(state)
    out = np.empty_like(frames)
    out[0] = state
    for i, frame in enumerate(frames[1:], 1):
        r = np.maximum(gain * state + offset, 1e-12)
        p = p + np.float32(process) * r
        innovation = frame - state
        outlier = innovation**2 > gate_sd**2 * (p + r)
        side = np.sign(innovation) * outlier
        again = outlier & (side == last)
        weight = np.where(again, 1, np.where(outlier, 0, p / (p + r))).astype(np.float32)
        state = state + weight * innovation
        p = np.where(again, r, (1 - weight) * p).astype(np.float32)
        last = np.where(again, 0, side).astype(np.float32)
        out[i] = state
    return out


def _variance_line(video: Video) -> tuple[np.float32, np.float32]:
    """(gain, offset) of noise variance against mean; level where that is not rising."""
    if len(video) < 3:
        return np.float32(0), np.float32(noise_variance(video) if len(video) > 1 else 1)
    squares = (np.diff(video, n=2, axis=0) ** 2).mean(0).ravel() / 6
    level = video.mean(0).ravel()
    parts = np.array_split(np.argsort(level), min(16, level.size))
    x = np.array([level[part].mean() for part in parts])
    y = np.array([squares[part].mean() for part in parts])
    if np.ptp(x) < 1e-9 * max(1, np.abs(x).max()):
        return np.float32(0), np.float32(y.mean())
    gain, offset = np.polyfit(x, y, 1)
    if gain <= 0:
        return np.float32(0), np.float32(y.mean())
    return np.float32(gain), np.float32(offset)


def gaussian_3d(video: Video, frames: float = 3.0, blur_px: float = 1.0) -> Video:
    """Gaussian in time (s.d. ``frames``) and space (s.d. ``blur_px``)."""
    out = gaussian_filter(video, (frames, blur_px, blur_px), mode="reflect")
    return np.asarray(out, np.float32)


def median_3d(video: Video, frames: int = 5, size_px: int = 3) -> Video:
    """Median of ``frames`` x ``size_px`` x ``size_px`` pixels centred on each."""
    return median_filter(video, (frames, size_px, size_px), mode="reflect")


def causal_median(video: Video, frames: int = 5, size_px: int = 1) -> Video:
    """Median of the newest ``frames`` frames and ``size_px`` x ``size_px`` pixels."""
    size = (frames, size_px, size_px)
    origin: Any = ((frames - 1) // 2, 0, 0)  # the stubs know one number only
    return median_filter(video, size, mode="nearest", origin=origin)


def causal_svd(video: Video, frames: int = 16, rank: int = 2, blur_px: float = 0.0) -> Video:
    """Newest frame of the newest ``frames`` frames reduced to ``rank`` components."""
    smooth = spatial_filter(video, blur_px)
    flat = smooth.reshape(len(smooth), -1)
    out = np.empty_like(flat)
    for i in range(len(flat)):
        block = flat[max(0, i + 1 - frames) : i + 1]
        _, vectors = np.linalg.eigh((block @ block.T).astype(np.float64))
        basis = vectors[:, -rank:]
        out[i] = (basis[-1] @ basis.T).astype(np.float32) @ block
    return out.reshape(video.shape)


def svd(video: Video) -> Video:
    """Singular values of the whole video, cut at the optimal hard threshold.

    Gavish & Donoho, IEEE Trans. Inf. Theory 60, 5040 (2014), eq. 5: unknown noise.
    """
    flat = video.reshape(len(video), -1).astype(np.float64)
    mean = flat.mean(0)
    u, s, vt = np.linalg.svd(flat - mean, full_matrices=False)
    beta = min(flat.shape) / max(flat.shape)
    cut = (0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43) * float(np.median(s))
    kept = s > cut
    low_rank = (u[:, kept] * s[kept]) @ vt[kept] + mean
    return low_rank.reshape(video.shape).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Baseline:
    """A filter and the settings it is tried with.

    Attributes:
        settings: Keyword arguments, one mapping for each trial.
        causal: It never looks at later frames.
    """

    filter: Callable[..., Video]
    settings: tuple[Mapping[str, Any], ...] = ({},)
    causal: bool = True


def settings_grid(**axes: Iterable[Any]) -> tuple[Mapping[str, Any], ...]:
    """Give every combination of the values of some settings."""
    return tuple(dict(zip(axes, values, strict=True)) for values in product(*axes.values()))


_RATES = (0.03, 0.06, 0.1, 0.15, 0.25, 0.4, 0.7)
_BLURS = (0.0, 0.7, 1.0, 1.5)

BASELINES: Mapping[str, Baseline] = {
    "raw": Baseline(raw),
    "spatial": Baseline(
        spatial_filter, settings_grid(blur_px=(0.0, 0.5, 0.8, 1.2, 1.8), median_px=(1, 3, 5))
    ),
    "causal mean": Baseline(causal_mean, settings_grid(frames=(3, 5, 7, 11, 15))),
    "ema": Baseline(ema, settings_grid(rate=_RATES)),
    "blurred ema": Baseline(ema, settings_grid(rate=_RATES, blur_px=_BLURS[1:])),
    "median ema": Baseline(ema, settings_grid(rate=_RATES, blur_px=(0.0, 0.7), median_px=(3,))),
    "kalman": Baseline(kalman, settings_grid(process=(3e-3, 0.01, 0.03, 0.1, 0.3), blur_px=_BLURS)),
    "causal median": Baseline(causal_median, settings_grid(frames=(3, 5, 7), size_px=(1, 3))),
    "causal svd": Baseline(
        causal_svd, settings_grid(frames=(16, 32), rank=(1, 2), blur_px=_BLURS[::2])
    ),
    "running mean": Baseline(running_mean, settings_grid(frames=(3, 5, 7, 11, 15)), causal=False),
    "gaussian 3d": Baseline(
        gaussian_3d,
        settings_grid(frames=(1.0, 2.0, 3.0, 5.0), blur_px=(0.5, 0.8, 1.2, 1.6)),
        causal=False,
    ),
    "median 3d": Baseline(median_3d, settings_grid(frames=(5, 7), size_px=(1, 3)), causal=False),
    "svd": Baseline(svd, causal=False),
}
"""By name; ``raw`` included, as the one to beat."""

SINGLE_IMAGE = ("raw", "spatial")
"""Those that look at one frame only."""


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """The best of some filters, by PSNR against the truth.

    Attributes:
        name: In ``BASELINES``, or of the other filters that were tuned.
        psnr: dB, over the frames that were scored.
        clean: (t, h, w) float32, all frames.
    """

    name: str
    settings: Mapping[str, Any]
    psnr: float
    clean: Video


def tune(
    name: str,
    noisy: Video,
    truth: Video,
    *,
    peak: float | None = None,
    settle: int = 0,
    among: Mapping[str, Baseline] = BASELINES,
) -> Tuned:
    """Try every setting of the filter ``name`` of ``among``; else as ``best_causal``."""
    span = _peak(truth, peak)
    best: Tuned | None = None
    for settings in among[name].settings:
        clean = among[name].filter(np.asarray(noisy, np.float32), **settings)
        score = psnr(clean[settle:], truth[settle:], span)
        if best is None or score > best.psnr:
            best = Tuned(name, settings, score, clean)
    assert best is not None, "every filter has at least one setting"  # noqa: S101
    return best


def best_causal(noisy: Video, truth: Video, *, peak: float | None = None, settle: int = 0) -> Tuned:
    """Give the best causal filter with its best settings: tuned with the truth.

    Args:
        noisy: (t, h, w), finite.
        truth: (t, h, w), without noise, same units.
        peak: For the PSNR; None takes the span of ``truth``.
        settle: First frames not scored: every causal filter starts from nothing.
    """
    return _best(
        (name for name, one in BASELINES.items() if one.causal), noisy, truth, peak, settle
    )


def best_classical(
    noisy: Video, truth: Video, *, peak: float | None = None, settle: int = 0
) -> Tuned:
    """As ``best_causal``, among all filters, those that see the whole video too."""
    return _best(BASELINES, noisy, truth, peak, settle)


def _best(
    names: Iterable[str], noisy: Video, truth: Video, peak: float | None, settle: int
) -> Tuned:
    tuned = (tune(name, noisy, truth, peak=peak, settle=settle) for name in names)
    return max(tuned, key=lambda one: one.psnr)


def _peak(truth: Video, peak: float | None) -> float:
    return float(np.ptp(truth)) if peak is None else peak
