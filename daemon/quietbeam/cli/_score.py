"""Compares what the demo recorded with the truth that the phantom knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from quietbeam.testing.phantoms import Phantom

SETTLE_FRAMES = 50
"""Given to the causal filters to settle before they are scored."""

REGION_PX = 96
"""Side of the central region in which the filters are tuned, and compared with the clean frames."""


def score(recording: Path, phantom: Phantom, frames: int) -> dict[str, Any]:
    """Score the last ``frames`` clean frames of a recording against the truth.

    The classical filters are tuned *with* the truth, on these very frames:
    the best that any of them could have done.

    Returns:
        True PSNR (dB) of raw, clean and best causal filter over the same
        frames and with the same peak (the range of the true signal); the
        estimated PSNR at the same peak; when the first promoted frame came.
    """
    from quietbeam.offline.baselines import best_causal
    from quietbeam.offline.quality import psnr
    from quietbeam.offline.recording import Recording

    with Recording(recording) as file:
        ids = file.column("clean/frame_id")
        scored = slice(max(0, len(ids) - frames), len(ids))
        settled = slice(max(0, scored.start - SETTLE_FRAMES), len(ids))
        raw_at = np.searchsorted(file.column("raw/frame_id"), ids[settled])
        stored = np.stack([file.raw[int(i)] for i in raw_at])
        clean, sd = file.clean[scored], file.errors[scored]
        versions = file.column("clean/model_version")
        times = file.column("clean/host_time")
        estimated = file.metrics["quality.psnr_estimated_db"][scored]
        assumed_peak = file.metrics["quality.peak"][scored]
    truth = np.stack([phantom.truth(int(i)) for i in ids[settled]])
    noisy = np.stack([phantom.frame(int(i)) for i in ids[settled]]).astype(np.float32)
    settle = scored.start - settled.start
    peak = float(np.ptp(truth[settle:]))
    best = best_causal(_middle(noisy), _middle(truth), peak=peak, settle=settle)
    same_region = psnr(_middle(clean), _middle(truth[settle:]), peak)
    promoted = np.flatnonzero(versions > 0)
    clean_psnr = psnr(clean, truth[settle:], peak)
    raw_psnr = psnr(noisy[settle:], truth[settle:], peak)
    # the live figure refers to the range of the clean frames; here to the range of the truth
    estimate = float(np.nanmedian(estimated + 20 * np.log10(peak / assumed_peak)))
    inside = np.abs(clean - truth[settle:]) <= sd
    return {
        "frames_scored": len(clean),
        "raw_equals_sent": bool(np.array_equal(stored, noisy.astype(stored.dtype))),
        "psnr_raw_db": raw_psnr,
        "psnr_clean_db": clean_psnr,
        "psnr_estimated_db": estimate,
        "psnr_best_causal_db": best.psnr,
        "best_causal": {"filter": best.name, **best.settings},
        "gain_over_raw_db": clean_psnr - raw_psnr,
        "gain_over_best_causal_db": same_region - best.psnr,
        "estimate_error_db": estimate - clean_psnr,
        "coverage_1sd": float(inside.mean()),
        "model_version": int(versions[-1]) if len(versions) else 0,
        "first_promoted_s": float(times[promoted[0]] - times[0]) if promoted.size else None,
    }


def _middle(video: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the central region of (t, h, w)."""
    h, w = video.shape[1:]
    top, left = max(0, (h - REGION_PX) // 2), max(0, (w - REGION_PX) // 2)
    return video[:, top : top + REGION_PX, left : left + REGION_PX]
