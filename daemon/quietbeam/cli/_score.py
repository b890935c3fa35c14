"""Compares what the demo recorded with the truth that the phantom knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from quietbeam.testing.phantoms import Phantom

SETTLE_FRAMES = 100
"""Given to the causal filters to settle before they are scored."""


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
    from quietbeam.offline.recording import open_recording

    with open_recording(recording) as file:
        ids = np.asarray(file.clean.frame_id)
        scored = slice(max(0, len(ids) - frames), len(ids))
        settled = slice(max(0, scored.start - SETTLE_FRAMES), len(ids))
        truth = np.stack([phantom.truth(int(i)) for i in ids[settled]])
        noisy = np.stack([phantom.frame(int(i)) for i in ids[settled]]).astype(np.float32)
        stored = np.stack([file.raw.data[int(i)] for i in range(settled.start, settled.stop)])
        clean = np.stack([file.clean.data[int(i)] for i in range(scored.start, scored.stop)])
        versions = np.asarray(file.clean.model_version)
        estimated = np.asarray(file.metrics["quality.psnr_estimated_db"])[scored]
        assumed_peak = np.asarray(file.metrics["quality.peak"])[scored]
        sd = np.stack([file.clean.errors[int(i)] for i in range(scored.start, scored.stop)])
        times = np.asarray(file.clean.time)
    settle = scored.start - settled.start
    peak = float(np.ptp(truth[settle:]))
    best = best_causal(noisy, truth, peak=peak, settle=settle)
    promoted = np.flatnonzero(versions > 0)
    clean_psnr = psnr(clean, truth[settle:], peak)
    # the live figure refers to the range of the clean frames; here to the range of the truth
    same_peak = estimated + 20 * np.log10(peak / assumed_peak)
    inside = np.abs(clean - truth[settle:]) <= sd
    return {
        "frames_scored": len(clean),
        "raw_equals_sent": bool(np.array_equal(stored, noisy.astype(stored.dtype))),
        "psnr_raw_db": psnr(noisy[settle:], truth[settle:], peak),
        "psnr_clean_db": clean_psnr,
        "psnr_best_causal_db": best.psnr,
        "best_causal": {"filter": best.name, **best.settings},
        "psnr_estimated_db": float(np.nanmedian(same_peak)),
        "estimate_error_db": float(np.nanmedian(same_peak)) - clean_psnr,
        "coverage_1sd": float(inside.mean()),
        "model_version": int(versions[-1]) if len(versions) else 0,
        "first_promoted_s": float(times[promoted[0]] - times[0]) if promoted.size else None,
    }
