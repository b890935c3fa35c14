"""Quality of denoisers against the truth, over noise cases and seeds: the paper's figure 2b.

The data come from outside.  Every training runs in a process of its own with
one thread (``python -m quietbeam.offline.evaluate``: one JSON line in, one
out), so that two of them fill two processors and neither knows the truth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.errors import EngineError
from quietbeam.offline.baselines import BASELINES, best_causal, tune
from quietbeam.offline.quality import psnr, ssim

Video = NDArray[np.float32]

ORACLES = ("best causal filter", "best filter")
"""Classical, tuned with the truth; the second may see the whole video."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One noisy video with its truth, both (t, h, w), values 0..1."""

    case: str
    seed: int
    truth: Video
    noisy: Video


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How one method did on one trial; PSNR in dB for a peak of 1, over all frames.

    Attributes:
        detail: Steps trained, or the filter and its settings.
    """

    case: str
    seed: int
    method: str
    psnr: float
    ssim: float
    seconds: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Mean and standard deviation over seeds; the latter NaN for one seed."""

    case: str
    method: str
    psnr: float
    psnr_sd: float
    ssim: float
    ssim_sd: float
    seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One statement of the paper, and whether it came out; margins are of means over seeds."""

    statement: str
    passed: bool
    psnr_margin: float
    ssim_margin: float


def evaluate(
    trials: Sequence[Trial],
    methods: Mapping[str, int],
    *,
    processes: int = 2,
    progress: Callable[[str, float], None] = lambda _what, _share: None,
) -> list[Score]:
    """Score raw, tuned filters and ``methods`` on every trial.

    Args:
        trials: The data.
        methods: Denoisers by name, with steps of training (0: needs none).  Steps, not
            seconds, so that a busy machine gives the same figures, only later.
        processes: Trainings at a time.
        progress: Told the share of the work that is done.

    Raises:
        EngineError: A training failed.
    """
    meter = _Meter(len(trials) * sum(map(_cost, methods.values())), progress)
    with tempfile.TemporaryDirectory(prefix="quietbeam-") as folder, _Pool(processes) as pool:
        jobs = []
        for number, trial in enumerate(trials):
            np.save(Path(folder) / f"{number}.npy", trial.noisy)
        for name, steps in reversed([*methods.items()]):  # the long ones first: no lonely last one
            for number, trial in enumerate(trials):
                noisy = Path(folder) / f"{number}.npy"
                clean = Path(folder) / f"{number}-{name}.npy"
                order = _Order(str(noisy), str(clean), name, steps, trial.seed)
                jobs.append(pool.submit(_trained, trial, order, meter))
        scores = [score for trial in trials for score in _classical(trial)]
        scores += [job.result() for job in jobs]
    place = {name: n for n, name in enumerate(["raw", *ORACLES, *methods])}
    cases = {trial.case: n for n, trial in enumerate(trials)}
    return sorted(scores, key=lambda s: (cases[s.case], s.seed, place[s.method]))


@dataclass(frozen=True, slots=True)
class _Order:
    """What a child is asked to do."""

    noisy: str
    clean: str
    denoiser: str
    steps: int
    seed: int


class _Meter:
    def __init__(self, total: float, progress: Callable[[str, float], None]) -> None:
        self._total, self._progress, self._lock = total, progress, threading.Lock()
        self._done = 0.0

    def add(self, cost: float) -> None:
        with self._lock:
            self._done += cost
            self._progress("training and scoring", min(1.0, self._done / self._total))


def _cost(steps: int) -> float:
    """Share of the work, in steps: starting and cleaning count as fifty."""
    return steps + 50.0


class _Pool(ThreadPoolExecutor):
    """Threads that each wait for a child; after an error nothing new is begun."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.shutdown(wait=True, cancel_futures=error is not None)


def _trained(trial: Trial, order: _Order, meter: _Meter) -> Score:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    request = {name: getattr(order, name) for name in _Order.__slots__}
    child = subprocess.run(
        [sys.executable, "-m", "quietbeam.offline.evaluate"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if child.returncode:
        raise EngineError(f"{order.denoiser} on {trial.case}: {child.stderr.strip()[-2000:]}")
    answer = json.loads(child.stdout.splitlines()[-1])
    meter.add(_cost(order.steps))
    clean = np.load(order.clean)
    return _score(trial, order.denoiser, clean, answer["seconds"], f"{answer['steps']} steps")


def _classical(trial: Trial) -> Iterable[Score]:
    yield _score(trial, "raw", trial.noisy, 0.0, "")
    began = time.monotonic()
    causal = best_causal(trial.noisy, trial.truth, peak=1.0)
    others = [
        tune(name, trial.noisy, trial.truth, peak=1.0)
        for name, one in BASELINES.items()
        if not one.causal
    ]
    overall = max(causal, *others, key=lambda best: best.psnr)
    for name, best in zip(ORACLES, (causal, overall), strict=True):
        settings = ", ".join(f"{key} {value}" for key, value in best.settings.items())
        detail = f"{best.name}: {settings}" if settings else best.name
        yield _score(trial, name, best.clean, time.monotonic() - began, detail)


def _score(trial: Trial, method: str, clean: Video, seconds: float, detail: str) -> Score:
    return Score(
        case=trial.case,
        seed=trial.seed,
        method=method,
        psnr=psnr(clean, trial.truth, 1.0),
        ssim=ssim(clean, trial.truth, 1.0),
        seconds=round(seconds, 1),
        detail=detail,
    )


def summarise(scores: Sequence[Score]) -> list[Summary]:
    """Give mean and spread over seeds, in the order of ``scores``."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.case, score.method), []).append(score)
    return [_summary(case, method, group) for (case, method), group in groups.items()]


def _summary(case: str, method: str, group: Sequence[Score]) -> Summary:
    def spread(values: Sequence[float]) -> float:
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

    decibels, similarities = [s.psnr for s in group], [s.ssim for s in group]
    return Summary(
        case=case,
        method=method,
        psnr=float(np.mean(decibels)),
        psnr_sd=spread(decibels),
        ssim=float(np.mean(similarities)),
        ssim_sd=spread(similarities),
        seeds=len(group),
    )


def checks(summaries: Sequence[Summary], expected: Sequence[tuple[str, str, str]]) -> list[Check]:
    """Test statements (better, worse, case) on PSNR and SSIM; those not measured are left out."""
    known = {(one.case, one.method): one for one in summaries}
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


def main() -> int:
    """Be the child: train one denoiser on one noisy video."""
    import torch

    from quietbeam.offline.denoise import denoise

    torch.set_num_threads(1)
    order = _Order(**json.loads(sys.stdin.read()))
    video = np.load(order.noisy)
    result = denoise(video, order.denoiser, steps=max(1, order.steps), seed=order.seed, fallback=())
    np.save(order.clean, result.clean)
    report = result.report
    print(json.dumps({"seconds": report.seconds, "steps": report.training_steps}))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
