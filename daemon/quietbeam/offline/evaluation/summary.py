"""Means over seeds, cells that were lost, and the paper's statements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quietbeam.offline.evaluation.score import LOST_DB, Score
from quietbeam.offline.evaluation.work import Kind

NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Means over seeds of the figures of ``Score``; NaN where there are none.

    Attributes:
        psnr_sd: Standard deviation over seeds; NaN for one seed.
        ssim_sd: The same.
        flagged: Share of the seeds.
        margin_db: PSNR above the best filter of this cell, which was tuned with
            the truth; of denoisers only.
        peer_margin_db: The same for the best peer.
    """

    scene: str
    case: str
    method: str
    kind: Kind
    seeds: int
    psnr: float
    psnr_sd: float
    ssim: float
    ssim_sd: float
    lag_frames: float
    front_growth: float
    bias_sd: float
    coverage_1sd: float
    coverage_2sd: float
    estimate_error_db: float
    flagged: float
    train_cpu_s: float
    frame_cpu_ms: float
    margin_db: float
    peer_margin_db: float

    @property
    def lost(self) -> bool:
        """A filter tuned with the truth was better by more than 0.2 dB."""
        return self.margin_db < -LOST_DB

    @property
    def lost_to_peer(self) -> bool:
        """A peer tuned with the truth was better by more than 0.2 dB."""
        return self.peer_margin_db < -LOST_DB


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One statement of the paper, and whether it came out; margins are of means over seeds."""

    statement: str
    passed: bool
    psnr_margin: float
    ssim_margin: float


def summarise(scores: Sequence[Score]) -> list[Summary]:
    """Give mean and spread over seeds, in the order of ``scores``."""
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.scene, score.case, score.method), []).append(score)
    return [_summary(group, _best(groups, group[0])) for group in groups.values()]


def _best(groups: dict[tuple[str, str, str], list[Score]], one: Score) -> tuple[float, float]:
    """PSNR of the best filter and of the best peer in the cell of ``one``; NaN if none."""
    cell = [g for key, g in groups.items() if key[:2] == (one.scene, one.case)]

    def best(kind: Kind) -> float:
        return max((_mean([s.psnr for s in g]) for g in cell if g[0].kind == kind), default=NAN)

    return best("best"), best("peer")


def _summary(group: Sequence[Score], best: tuple[float, float]) -> Summary:
    first = group[0]
    decibels = _mean([s.psnr for s in group])
    judged = first.kind == "denoiser"

    def mean(name: str) -> float:
        return _mean([float(getattr(score, name)) for score in group])

    return Summary(
        scene=first.scene,
        case=first.case,
        method=first.method,
        kind=first.kind,
        seeds=len(group),
        psnr=decibels,
        psnr_sd=_spread([s.psnr for s in group]),
        ssim=mean("ssim"),
        ssim_sd=_spread([s.ssim for s in group]),
        lag_frames=mean("lag_frames"),
        front_growth=mean("front_growth"),
        bias_sd=mean("bias_sd"),
        coverage_1sd=mean("coverage_1sd"),
        coverage_2sd=mean("coverage_2sd"),
        estimate_error_db=mean("estimate_error_db"),
        flagged=mean("flagged"),
        train_cpu_s=mean("train_cpu_s"),
        frame_cpu_ms=mean("frame_cpu_ms"),
        margin_db=decibels - best[0] if judged else NAN,
        peer_margin_db=decibels - best[1] if judged else NAN,
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else NAN


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else NAN


def checks(summaries: Sequence[Summary], expected: Sequence[tuple[str, str, str]]) -> list[Check]:
    """Test statements (better, worse, case) about the scene ``paper``, on PSNR and SSIM.

    Those that were not measured are left out.
    """
    known = {(one.case, one.method): one for one in summaries if one.scene == "paper"}
    made = []
    for better, worse, case in expected:
        if (case, better) not in known or (case, worse) not in known:
            continue
        first, second = known[case, better], known[case, worse]
        decibels, similarity = first.psnr - second.psnr, first.ssim - second.ssim
        made.append(
            Check(
                statement=f"{better} beats {worse}: {case}",
                passed=decibels > 0 and similarity > 0,
                psnr_margin=decibels,
                ssim_margin=similarity,
            )
        )
    return made
