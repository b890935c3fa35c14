"""Figures of an estimate that only the truth can give; nothing here knows how it was made.

Videos are (t, h, w), any real dtype, in the same units; NaN is left out of
``bias_sd`` and ``coverage``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quietbeam.offline.quality import mse

Video = NDArray[np.floating]

_FRONT_REACH_PX = 8.0
_FRONT_STEP_PX = 0.25
_ENDS = 8  # samples at either end of a profile that give its levels


def temporal_lag(estimate: Video, truth: Video, reach: int = 8) -> float:
    """Frames by which ``estimate`` trails (positive) or leads the truth.

    The shift for which the mean squared error against the truth, interpolated
    linearly in time, is smallest: exact in every interval between two frames.
    A loss of contrast counts too: where contrast grows in time, it looks like lag.

    Args:
        estimate: What was made of the noisy video.
        truth: Without noise.
        reach: Largest shift that is tried, frames; less for short videos.

    Returns:
        Within ``-reach`` to ``reach``; NaN where the truth does not change or
        has fewer than 4 frames.
    """
    total = len(truth)
    reach = min(reach, (total - 1) // 3)
    y, x = np.asarray(estimate, np.float64), np.asarray(truth, np.float64)
    core = y[reach : total - reach]
    best, lag = np.inf, np.nan
    for shift in range(-reach, reach):
        now = x[reach - shift : total - reach - shift]
        before = x[reach - shift - 1 : total - reach - shift - 1]
        change, missing = before - now, core - now
        norm = float(np.vdot(change, change))
        if norm <= 1e-12 * change.size:
            continue
        share = float(np.clip(np.vdot(missing, change) / norm, 0, 1))
        error = float(np.mean((missing - share * change) ** 2))
        if error < best:
            best, lag = error, shift + share
    return float(lag)


def front_width(video: Video, front_px: NDArray[np.floating]) -> float:
    """Width in pixels, from 10 to 90 %, of a straight vertical front that moves.

    Every frame is averaged along the front, which takes out the noise, and
    brought to the true position of the front; the mean of all is measured.

    Args:
        video: An estimate, or the truth.
        front_px: (t,) true column of the front in each frame.

    Returns:
        NaN where no frame has the front 8 pixels from both borders, or where
        there is no edge.
    """
    width = video.shape[2]
    around = np.arange(-_FRONT_REACH_PX, _FRONT_REACH_PX + _FRONT_STEP_PX / 2, _FRONT_STEP_PX)
    profiles = [
        np.interp(position + around, np.arange(width), np.asarray(frame, np.float64).mean(0))
        for frame, position in zip(video, front_px, strict=True)
        if _FRONT_REACH_PX <= position <= width - 1 - _FRONT_REACH_PX
    ]
    if not profiles:
        return float("nan")
    profile = np.mean(profiles, axis=0)
    first, last = profile[:_ENDS].mean(), profile[-_ENDS:].mean()
    if first == last:
        return float("nan")
    rise = (profile - first) / (last - first)
    return _crossing(around, rise, 0.9) - _crossing(around, rise, 0.1)


def _crossing(x: NDArray[np.float64], rise: NDArray[np.float64], level: float) -> float:
    """Where ``rise`` crosses ``level`` upwards for the last time from the middle outwards."""
    middle = int(np.argmin(np.abs(rise - 0.5)))
    if level > 0.5:
        above = np.flatnonzero(rise[middle:] >= level)
        i = middle + int(above[0]) if above.size else len(rise) - 1
    else:
        below = np.flatnonzero(rise[: middle + 1] <= level)
        i = int(below[-1]) + 1 if below.size else 1
    i = max(i, 1)
    step = rise[i] - rise[i - 1]
    return float(x[i - 1] + (level - rise[i - 1]) / step * (x[i] - x[i - 1])) if step else x[i]


def front_growth(estimate: Video, truth: Video, front_px: NDArray[np.floating] | None) -> float:
    """Share by which the front of the estimate is wider than that of the truth; 0 is ideal."""
    if front_px is None:
        return float("nan")
    return front_width(estimate, front_px) / front_width(truth, front_px) - 1


def bias_sd(estimate: Video, truth: Video, noisy: Video) -> float:
    """Mean of estimate minus truth, in standard deviations of the noise; NaN without noise."""
    noise = mse(noisy, truth)
    error = np.asarray(estimate, np.float64) - truth
    return float(np.nanmean(error) / np.sqrt(noise)) if noise > 0 else float("nan")


def coverage(estimate: Video, sd: Video, truth: Video, sds: float) -> float:
    """Share of pixels whose truth is within ``sds`` standard deviations of the estimate.

    Nominally 0.683 for one and 0.954 for two.
    """
    error = np.abs(np.asarray(estimate, np.float64) - truth)
    known = np.isfinite(error) & np.isfinite(sd)
    return float((error[known] <= sds * sd[known]).mean()) if known.any() else float("nan")
