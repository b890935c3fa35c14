"""Scores denoisers on real recordings, against a target whose scale is fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quietbeam.offline.baselines import BASELINES
from quietbeam.offline.evaluation.recordings import Repeats
from quietbeam.offline.evaluation.score import (
    Example,
    method_order,
    steps_note,
    usable_peers,
)
from quietbeam.offline.evaluation.work import BEST, Estimate, Kind, Material, Progress, workshop
from quietbeam.offline.quality import local_sd_ratio, ssim, to_db

Float = NDArray[np.float32]

_SPAN = (0.1, 99.9)
"""Percentiles of the target that a PSNR refers to: spots do not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedScore:
    """How one method did on one recording; NaN where it cannot be told.

    Attributes:
        psnr: dB for the span of the target, without the target's own noise;
            NaN where the error is smaller than that.
        gain_db: PSNR above that of the raw frames.
        ssim: Lowered by the target's own noise.
        local_sd_ratio: Mean 3 x 3 x 3 standard deviation, cleaned over raw; of videos only.
    """

    recording: str
    method: str
    kind: Kind
    psnr: float
    gain_db: float
    ssim: float
    local_sd_ratio: float
    train_cpu_s: float
    frame_cpu_ms: float
    detail: str


@dataclass(frozen=True, slots=True, eq=False)
class RecordedEvaluation:
    """All scores, one example for each recording, and what could not be done and why."""

    scores: list[RecordedScore]
    examples: list[Example]
    notes: list[str]
    steps: dict[str, int]


def evaluate_recordings(
    recordings: Sequence[Repeats],
    methods: Mapping[str, int],
    *,
    processes: int = 2,
    peers: bool = True,
    cpu_seconds: float | None = None,
    seed: int = 0,
    progress: Progress = lambda _what, _share: None,
) -> RecordedEvaluation:
    """Score raw, tuned filters, peers and ``methods``; arguments as for ``evaluate``.

    A method that cannot work on a recording is left out, with a note.
    """
    usable, notes = usable_peers(wanted=peers)
    notes += [f"{one.name}: {note}" for one in recordings for note in one.notes]
    scores = [_score(one, Estimate(method="raw", kind="raw", clean="")) for one in recordings]
    pictures = [[("target", one.target[0]), ("noisy", one.noisy[0])] for one in recordings]
    estimates: list[tuple[int, Estimate]] = []
    materials = [Material(r.name, r.noisy, _scaled_target(r), seed, r.images) for r in recordings]
    with workshop(materials, processes, progress) as shop:
        steps = dict(methods) if cpu_seconds is None else shop.rehearse([*methods], cpu_seconds)
        notes += steps_note(steps, cpu_seconds)
        for done in shop.work(steps, [*BASELINES], usable, strict=False):
            notes += [done.failure] if done.failure else []
            estimates += [(done.material, estimate) for estimate in done.estimates]
        for number, estimate in estimates:
            scores.append(_score(recordings[number], estimate, scores[number].psnr))
            if estimate.kind == "denoiser" or estimate.method == BEST:
                pictures[number].append((estimate.method, np.load(estimate.clean, "r")[0].copy()))
    names = [one.name for one in recordings]
    order = method_order(methods)
    scores.sort(key=lambda s: (names.index(s.recording), order.index(s.method)))
    examples = [
        Example(one.name, "", tuple(_alike(one, title, image) for title, image in row))
        for one, row in zip(recordings, pictures, strict=True)
    ]
    return RecordedEvaluation(scores, examples, _last_lines(notes), steps)


def fitted(image: Float, target: Float) -> Float:
    """Bring ``image`` to the scale of ``target``: gain and offset of least squares."""
    use = np.isfinite(image) & np.isfinite(target)
    x, y = image[use].astype(np.float64), target[use].astype(np.float64)
    variance = float(x.var()) if use.any() else 0.0
    gain = float(((x - x.mean()) * (y - y.mean())).mean()) / variance if variance > 0 else 0.0
    offset = float(y.mean() - gain * x.mean()) if use.any() else 0.0
    return np.asarray(gain * image + offset, np.float32)


def _scaled_target(one: Repeats) -> Float:
    """Give the target in the units of the noisy frames, for tuning."""
    if one.target_variance > 0:  # the same detector: only the beam may have changed
        pairs = zip(one.noisy, one.target, strict=True)
        return np.stack([t * (np.nanmean(n) / (np.nanmean(t) or 1)) for n, t in pairs])
    return np.stack([fitted(t, n) for n, t in zip(one.noisy, one.target, strict=True)])


def _score(one: Repeats, estimate: Estimate, raw_psnr: float | None = None) -> RecordedScore:
    clean = np.load(estimate.clean) if estimate.clean else one.noisy
    errors, similar = [], []
    for noisy, image, target in zip(one.noisy, clean, one.target, strict=True):
        judged = np.where(np.isfinite(noisy), target, np.float32(np.nan))
        known = judged[np.isfinite(judged)]
        peak = float(np.ptp(np.percentile(known, _SPAN))) or 1.0
        scaled = fitted(image, judged)
        square = float(np.nanmean((scaled.astype(np.float64) - judged) ** 2))
        errors.append((square - one.target_variance) / peak**2)
        similar.append(ssim(scaled, judged, peak))
    decibels = (
        float(np.mean([to_db(error, 1.0) for error in errors]))
        if one.images
        else to_db(float(np.mean(errors)), 1.0)
    )
    return RecordedScore(
        recording=one.name,
        method=estimate.method,
        kind=estimate.kind,
        psnr=decibels,
        gain_db=decibels - (decibels if raw_psnr is None else raw_psnr),
        ssim=float(np.mean(similar)),
        local_sd_ratio=float("nan") if one.images else local_sd_ratio(clean, one.noisy),
        train_cpu_s=estimate.train_cpu_s,
        frame_cpu_ms=estimate.frame_cpu_ms,
        detail=estimate.detail,
    )


def _alike(one: Repeats, title: str, image: Float) -> tuple[str, Float]:
    """Scale an image to 0..1 as the target's span is."""
    target = one.target[0]
    low, high = np.percentile(target[np.isfinite(target)], _SPAN)
    return title, (fitted(image, target) - np.float32(low)) / np.float32(high - low or 1)


def _last_lines(notes: Sequence[str]) -> list[str]:
    """Shorten the words of a child to what it died of."""
    last = [note.splitlines()[-1].removeprefix("quietbeam.core.errors.") for note in notes]
    return [
        f"{note.split(': ', 1)[0]}: {end}" if "\n" in note else note
        for note, end in zip(notes, last, strict=True)
    ]
