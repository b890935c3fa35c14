"""Scores denoisers on simulated scenes: scenes x noise cases x methods x seeds.

The data come from outside, with their truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quietbeam.offline.baselines import BASELINES
from quietbeam.offline.evaluation.against_truth import (
    bias_sd,
    coverage,
    front_growth,
    temporal_lag,
)
from quietbeam.offline.evaluation.peers import PEERS, missing_peers
from quietbeam.offline.evaluation.work import (
    AT_ONCE,
    BEST,
    BEST_CAUSAL,
    LIVE,
    Estimate,
    Kind,
    Material,
    Progress,
    workshop,
)
from quietbeam.offline.quality import psnr, ssim

Video = NDArray[np.float32]
Image = NDArray[np.float32]

LOST_DB = 0.2
"""A method that is this much below the best filter has lost the cell."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One noisy video with its truth, both (t, h, w) float32, values 0..1.

    Attributes:
        front_px: (t,) true column of a straight front, where the scene has one.
    """

    case: str
    seed: int
    truth: Video
    noisy: Video
    scene: str = "paper"
    front_px: NDArray[np.floating] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How one method did on one trial; PSNR in dB for a peak of 1, over all frames.

    What a method cannot have is NaN.

    Attributes:
        case: The noise.
        lag_frames: By which the estimate trails the truth.
        front_growth: Share by which a moving front came out wider, 10 to 90 %.
        bias_sd: Mean error, in standard deviations of the noise.
        coverage_1sd: Share of the truth within one s.d. of the estimate; 0.683 is right.
        coverage_2sd: Within two; 0.954.
        estimate_error_db: PSNR that the denoiser estimated without the truth, minus the true one.
        flagged: The denoiser does not trust its own estimate.
        train_cpu_s: Processor time of the training.
        frame_cpu_ms: Processor time for each frame, once it runs.
        detail: Steps trained, or the filter and its settings.
    """

    scene: str
    case: str
    seed: int
    method: str
    kind: Kind
    psnr: float
    ssim: float
    lag_frames: float = float("nan")
    front_growth: float = float("nan")
    bias_sd: float = float("nan")
    coverage_1sd: float = float("nan")
    coverage_2sd: float = float("nan")
    estimate_error_db: float = float("nan")
    flagged: bool = False
    train_cpu_s: float = 0.0
    frame_cpu_ms: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One frame of one trial to look at: (title, (h, w) float32), truth and noisy first."""

    scene: str
    case: str
    images: tuple[tuple[str, Image], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """All scores, one example for each cell, and what could not be done."""

    scores: list[Score]
    examples: list[Example]
    notes: list[str]
    steps: dict[str, int]


def evaluate(
    trials: Sequence[Trial],
    methods: Mapping[str, int],
    *,
    processes: int = 2,
    peers: bool = True,
    cpu_seconds: float | None = None,
    progress: Progress = lambda _what, _share: None,
) -> Evaluation:
    """Score raw, tuned filters, peers and ``methods`` on every trial.

    Args:
        trials: The data.
        methods: Denoisers by name, with steps of training (0: needs none).  Steps, not
            seconds, so that a busy machine gives the same figures, only later.
        processes: Children at a time, of one thread each.
        peers: Tune scikit-image's denoisers too, where it is installed.
        cpu_seconds: Processor time of every training, in place of the steps of ``methods``.
        progress: Told the share of the work that is done.

    Raises:
        EngineError: A child failed.
    """
    usable, notes = usable_peers(wanted=peers)
    materials = [Material(f"{t.scene}/{t.case}", t.noisy, t.truth, t.seed) for t in trials]
    scores = [_score(trial, Estimate(method="raw", kind="raw", clean="")) for trial in trials]
    pictures: dict[tuple[str, str], list[tuple[str, Image]]] = {}
    with workshop(materials, processes, progress) as shop:
        steps = dict(methods) if cpu_seconds is None else shop.rehearse([*methods], cpu_seconds)
        notes += steps_note(steps, cpu_seconds)
        for done in shop.work(steps, [*BASELINES], usable, strict=True):
            trial = trials[done.material]
            scores += [_score(trial, estimate) for estimate in done.estimates]
            if trial.seed == min(t.seed for t in trials):
                row = pictures.setdefault((trial.scene, trial.case), _truth_and_noisy(trial))
                row += [(e.method, _picture(np.load(e.clean, "r"))) for e in _shown(done.estimates)]
    order = method_order(methods)
    cells = {(trial.scene, trial.case): n for n, trial in enumerate(trials)}
    scores.sort(key=lambda s: (cells[s.scene, s.case], s.seed, order.index(s.method)))
    examples = [
        Example(*cell, (*row[:2], *sorted(row[2:], key=lambda one: order.index(one[0]))))
        for cell, row in sorted(pictures.items(), key=lambda one: cells[one[0]])
    ]
    return Evaluation(scores, examples, notes, steps)


def method_order(methods: Iterable[str]) -> list[str]:
    """Give the names of all that is scored, in the order of the tables."""
    tuned = [f"tuned {name}" for name in (*BASELINES, *PEERS)]
    networks = [name + when for name in methods for when in ("", LIVE, AT_ONCE)]
    return ["raw", *tuned, BEST_CAUSAL, BEST, *networks]


def usable_peers(*, wanted: bool) -> tuple[list[str], list[str]]:
    """(names of the peers that can run, notes on those that cannot)."""
    if not wanted:
        return [], []
    missing = missing_peers()
    notes = [f"{name} left out: {needs} is not installed" for name, needs in missing.items()]
    return [name for name in PEERS if name not in missing], notes


def steps_note(steps: Mapping[str, int], cpu_seconds: float | None) -> list[str]:
    """Tell what a budget of processor time came to: with these steps it can be repeated exactly."""
    if cpu_seconds is None:
        return []
    said = ", ".join(f"{name} {count} steps" for name, count in steps.items() if count)
    return [f"{cpu_seconds:g} s of processor time for each training: {said}"]


def _score(trial: Trial, estimate: Estimate) -> Score:
    truth, noisy = trial.truth, trial.noisy
    clean = np.load(estimate.clean) if estimate.clean else noisy
    sd = np.load(estimate.sd) if estimate.sd else np.full((1, 1, 1), np.nan)
    return Score(
        scene=trial.scene,
        case=trial.case,
        seed=trial.seed,
        method=estimate.method,
        kind=estimate.kind,
        psnr=psnr(clean, truth, 1.0),
        ssim=ssim(clean, truth, 1.0),
        lag_frames=temporal_lag(clean, truth),
        front_growth=front_growth(clean, truth, trial.front_px),
        bias_sd=bias_sd(clean, truth, noisy),
        coverage_1sd=coverage(clean, sd, truth, 1.0),
        coverage_2sd=coverage(clean, sd, truth, 2.0),
        estimate_error_db=estimate.estimated_psnr - psnr(clean, truth, estimate.peak),
        flagged=not estimate.trusted,
        train_cpu_s=estimate.train_cpu_s,
        frame_cpu_ms=estimate.frame_cpu_ms,
        detail=estimate.detail,
    )


def _shown(estimates: Sequence[Estimate]) -> list[Estimate]:
    return [e for e in estimates if e.kind == "denoiser" or e.method == BEST]


def _truth_and_noisy(trial: Trial) -> list[tuple[str, Image]]:
    return [("truth", _picture(trial.truth)), ("noisy", _picture(trial.noisy))]


def _picture(video: Video) -> Image:
    """A frame just after the middle, where what appears suddenly has appeared."""
    return np.array(video[min(len(video) - 1, len(video) // 2 + 2)], np.float32)
