"""The child of ``work``: one order on stdin, one line of JSON on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.model.correct import fill_invalid
from quietbeam.offline.baselines import BASELINES, SINGLE_IMAGE, Baseline, Tuned, tune
from quietbeam.offline.evaluation.peers import PEERS, for_single_images
from quietbeam.offline.evaluation.work import (
    AT_ONCE,
    BEST,
    BEST_CAUSAL,
    LIVE,
    Estimate,
    Kind,
    Order,
)

if TYPE_CHECKING:
    from quietbeam.offline.calibrated import CalibratedSeries
    from quietbeam.offline.choose import Choice

_ENDLESS = 1_000_000  # steps of which a few are timed before any is judged
_TIMED = 6
_ALL_JUDGED = 12  # steps of the shortest training that has every validation a long one has


def denoise_with(order: Order) -> list[Estimate]:
    """Train one denoiser on one noisy video as ``quietbeam.denoise`` does; the truth is unknown.

    What can use the future gives a second estimate without it, what has a preview another one
    with that, all from the same weights.
    """
    import torch

    from quietbeam.offline.calibrated import CalibratedSeries
    from quietbeam.offline.choose import choose
    from quietbeam.offline.denoise import array_series
    from quietbeam.offline.train import Recipe

    torch.set_num_threads(1)
    name, clock = order.names[0], _Clock()
    recipe = Recipe(steps=max(1, order.steps), seed=order.seed)
    with CalibratedSeries(array_series(np.load(order.noisy)), images=order.images) as recording:
        choice = choose(recording, name, recipe, (), clock)
        found = [_cleaned(order, recording, choice, name, clock)]
        if choice.two_way:
            streaming = replace(choice, two_way=False, verdict=choice.one_way)
            found.append(_cleaned(order, recording, streaming, f"{name}{LIVE}", clock))
        if (early := _previewing(choice, name)) is not None:
            found.append(_cleaned(order, recording, early, f"{name}{AT_ONCE}", clock))
    return found


def _cleaned(
    order: Order, recording: CalibratedSeries, choice: Choice, method: str, clock: _Clock
) -> Estimate:
    from quietbeam.offline.denoise import clean_all

    clock.begin_cleaning()
    frames, deviations, figures = clean_all(recording, choice, clock)
    clean, sd = f"{order.output}-{method}.npy", f"{order.output}-{method}-sd.npy"
    np.save(clean, frames)
    np.save(sd, deviations)
    steps = choice.training.steps if choice.training else 0
    used = "" if choice.name == order.names[0] else f" ({choice.name} was used)"
    return Estimate(
        method=method,
        kind="denoiser",
        clean=clean,
        sd=sd,
        estimated_psnr=figures.psnr_clean_db,
        peak=figures.peak,
        trusted=figures.trusted,
        train_cpu_s=clock.training_s,
        frame_cpu_ms=clock.frame_ms,
        detail=(f"{steps} steps" if steps else "") + used,
    )


def _previewing(choice: Choice, name: str) -> Choice | None:
    """Give the same weights in a module of lag 0, where the denoiser has one."""
    from quietbeam.core.plugin import DenoiserPlugin
    from quietbeam.model.torch_engine import load_weights, weights_of
    from quietbeam.registry import find

    plugin = find("denoisers", name, DenoiserPlugin)
    if choice.module is None or choice.name != name or "preview" not in plugin.model_fields:
        return None
    module = plugin.model_validate({"preview": True}).build()
    load_weights(module, weights_of(choice.module))
    return replace(choice, module=module, two_way=False, verdict=None)


class _Clock:
    """Processor time of training and of cleaning, from the progress that is told."""

    def __init__(self) -> None:
        self._began = time.process_time()
        self.training_s = 0.0
        self.steps: list[float] = []
        self._frames: list[float] = []

    def begin_cleaning(self) -> None:
        """Another one is timed from here."""
        self._frames.clear()

    def __call__(self, what: str, _share: float) -> None:
        now = time.process_time()
        if what.startswith("training"):
            self.training_s = now - self._began
            self.steps.append(now)
        elif what.startswith("cleaning"):
            self._frames.append(now)

    @property
    def frame_ms(self) -> float:
        """Each frame after the first, for which a network has to read ahead."""
        if len(self._frames) < 2:
            return float("nan")
        return 1e3 * (self._frames[-1] - self._frames[0]) / (len(self._frames) - 1)


def rehearse(order: Order) -> int:
    """Tell how many steps take ``cpu_seconds``; 0 for a denoiser that needs no training.

    The shortest training that has all its validations is timed, and single
    steps: every further step adds nothing but itself.
    """
    import torch

    from quietbeam.offline.choose import build

    torch.set_num_threads(1)
    if not build(order.names[0])[1].trainable:
        return 0
    single = _timed(order, _ENDLESS, _TIMED)
    step_s = (single.steps[-1] - single.steps[0]) / (len(single.steps) - 1)
    judged_s = _timed(order, _ALL_JUDGED, _ALL_JUDGED).training_s
    return max(1, round(_ALL_JUDGED + (order.cpu_seconds - judged_s) / step_s))


def _timed(order: Order, steps: int, until: int) -> _Clock:
    """Begin a training of ``steps`` and leave it after ``until`` of them."""
    from quietbeam.offline.denoise import denoise

    clock = _Clock()

    def progress(what: str, share: float) -> None:
        clock(what, share)
        if len(clock.steps) >= until:
            raise _EnoughError

    try:
        denoise(
            np.load(order.noisy),
            order.names[0],
            steps=steps,
            images=order.images,
            fallback=(),
            progress=progress,
        )
    except _EnoughError:
        return clock
    raise RuntimeError(f"{order.names[0]} did not tell of its steps")


class _EnoughError(Exception):
    """Raised through the training to end it."""


def tune_filters(order: Order) -> list[Estimate]:
    """Tune every classical filter with the truth and name the best, causal and of all."""
    names = [n for n in order.names if n in SINGLE_IMAGE] if order.images else order.names
    tuned, spent = _tuned(order, names, BASELINES)
    found = [_estimate(order, "filter", f"tuned {n}", n, tuned, spent) for n in names if n != "raw"]
    causal = [name for name in names if BASELINES[name].causal]
    groups = {BEST: names} if order.images else {BEST_CAUSAL: causal, BEST: names}
    for title, group in groups.items():
        best = max(group, key=lambda name: tuned[name].psnr)
        found.append(_estimate(order, "best", title, best, tuned, spent))
    return found


def tune_peers(order: Order) -> list[Estimate]:
    """Tune the denoisers of others with the truth."""
    among = {n: for_single_images(p) if order.images else p for n, p in PEERS.items()}
    tuned, spent = _tuned(order, order.names, among)
    return [_estimate(order, "peer", f"tuned {n}", n, tuned, spent) for n in order.names]


def _tuned(
    order: Order, names: Sequence[str], among: Mapping[str, Baseline]
) -> tuple[dict[str, Tuned], dict[str, float]]:
    """(the best of each, processor time in s of one run of it)."""
    noisy, truth = _filled(np.load(order.noisy)), np.load(order.truth)
    best: dict[str, Tuned] = {}
    spent: dict[str, float] = {}
    for name in names:
        best[name] = tune(name, noisy, truth, peak=1.0, among=among)
        began = time.process_time()
        among[name].filter(noisy, **best[name].settings)
        spent[name] = time.process_time() - began
    return best, spent


def _filled(video: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill bad pixels from their neighbours: filters know of none."""
    finite = np.isfinite(video)
    if finite.all():
        return video
    return np.stack([fill_invalid(*one) for one in zip(video, finite, strict=True)])


def _estimate(
    order: Order,
    kind: Kind,
    title: str,
    name: str,
    tuned: Mapping[str, Tuned],
    spent: Mapping[str, float],
) -> Estimate:
    one = tuned[name]
    clean = f"{order.output}-{title}.npy"
    np.save(clean, one.clean)
    settings = ", ".join(f"{key} {value}" for key, value in one.settings.items())
    parts = ([name] if kind == "best" else []) + ([settings] if settings else [])
    return Estimate(
        method=title,
        kind=kind,
        clean=clean,
        frame_cpu_ms=1e3 * spent[name] / len(one.clean),
        detail=": ".join(parts),
    )


_TASKS: Mapping[str, Callable[[Order], list[Estimate]]] = {
    "denoise": denoise_with,
    "filters": tune_filters,
    "peers": tune_peers,
}


def main() -> int:
    """Do what stdin says."""
    order = Order(**json.loads(sys.stdin.read()))
    answer: dict[str, Any]
    if order.task == "rehearsal":
        answer = {"steps": rehearse(order)}
    else:
        answer = {"estimates": [asdict(one) for one in _TASKS[order.task](order)]}
    print(json.dumps(answer))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
