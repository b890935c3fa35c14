"""From frames to recovered functions with bands: the whole inversion, in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from quietbeam.core.errors import DataError
from quietbeam.offline.inversion.fit import Fit, fit
from quietbeam.offline.inversion.model import Array, ForwardModel
from quietbeam.offline.inversion.observed import Observed
from quietbeam.offline.inversion.problem import Measured, Problem, Windows
from quietbeam.offline.inversion.uncertainty import (
    Band,
    Check,
    Covariances,
    bands,
    covariances,
    identifiability,
    predictive,
)

Told = Callable[[str, float], None]
OUTLIER = 4.5
"""A measured value that is further than this many s.d. from the model is left out: impulses."""

_LEAST_NOISE = 0.004  # s.d. of composition; below it the model, not the detector, limits
_MOST_RETRIES = 2
_MOST_REJECTED = 0.3
_SHORT, _MOST_SHORT = 6, 10  # frames and linearisations of the approach


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to invert; the defaults suit most recordings.

    Attributes:
        window_frames: Frames of one window; 0: all in one.
        start_sd: S.d. allowed to every corrected mode of an initial state.  Wide: what a
            denoiser gets wrong at the start of a run must not become physics.
        starts: Starting points that are tried.
        most: Linearisations of one fit, at most.
    """

    window_frames: int = 0
    start_sd: float = 1.0
    starts: int = 3
    most: int = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inversion:
    """What was found.

    Attributes:
        bands: Recovered functions, in pixels and frames.
        fit: Estimate, equations and trace.
        covariances: Of the parameters.
        check: Residuals against the noise.
        eigenvalues: See ``identifiability``.
        rejected: Share of the measured values left out as outliers.
        seen: (64,) histogram of the composition over 0..1.
        converged: The fit met its stopping rule.
        seconds: Of the processor's time.
        notes: What one should know.
    """

    problem: Problem
    bands: dict[str, Band]
    fit: Fit
    covariances: Covariances
    check: Check
    eigenvalues: Array
    rejected: float
    seen: Array
    converged: bool
    seconds: float
    notes: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)


def invert(
    observed: Observed,
    model: ForwardModel,
    recipe: Recipe | None = None,
    told: Told = lambda _what, _share: None,
) -> Inversion:
    """Recover the functions of ``model`` from ``observed``.

    Raises:
        DataError: No starting point leads to a solution that stays finite.
    """
    recipe = recipe or Recipe()
    with _one_thread():
        return _invert(observed, model, recipe, told)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small matrices: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _invert(observed: Observed, model: ForwardModel, recipe: Recipe, told: Told) -> Inversion:
    began = time.process_time()
    told("starting points", 0.0)
    theta = _approach(observed, model, recipe)
    told("starting points", 1.0)
    measured = weighed(observed, model, recipe)
    problem, theta = _begin(model, measured, [theta], recipe)
    found = _fit(problem, theta, recipe, told)
    cleaned, rejected = _without_outliers(problem, found)
    if rejected > _MOST_REJECTED:
        raise DataError(
            f"{rejected:.0%} of the measured values do not fit the solution found, at most "
            f"{_MOST_REJECTED:.0%} can be outliers: the model, kappa, the boundary or the "
            "calibration is not right, or the search ended in a wrong place; no numbers are given"
        )
    if rejected:
        problem = cleaned
        found = fit(problem, theta, most=recipe.most, point=found.point)
    told("uncertainty", 0.0)
    prior, both = problem.model.parameters, covariances(problem, found)
    seen = observed.clean[observed.valid]
    recovered = problem.model.recovered(found.point.theta, np.linspace(0.02, 0.98, 97))
    check, eigenvalues = predictive(problem, found), identifiability(found, prior.sd)
    told("uncertainty", 1.0)
    return Inversion(
        problem=problem,
        bands=bands(recovered, both, prior.sd, seen),
        fit=found,
        covariances=both,
        check=check,
        eigenvalues=eigenvalues,
        rejected=rejected,
        seen=np.histogram(seen, 64, (0, 1))[0].astype(np.float64),
        converged=found.converged,
        seconds=time.process_time() - began,
        notes=_notes(found, check, eigenvalues, rejected, observed),
    )


def _approach(observed: Observed, model: ForwardModel, recipe: Recipe) -> Array:
    """Give parameters near enough for long windows: a fit of short ones, which forgive more."""
    short = replace(recipe, window_frames=min(_SHORT, _window(recipe, observed.raw)))
    measured = weighed(observed, model, short)
    starts = model.starts(measured.clean, measured.times, recipe.starts)
    problem, theta = _begin(model, measured, starts, short)
    return fit(problem, theta, most=_MOST_SHORT).point.theta


def weighed(observed: Observed, model: ForwardModel, recipe: Recipe) -> Measured:
    """Give the frames with the weight of their noise, and where windows may start."""
    expected = np.clip(observed.clean, 0, 1)
    variance = np.maximum(observed.noise.variance(expected), _LEAST_NOISE**2)
    weight = np.where(observed.valid, 1 / variance, 0.0)
    if observed.noise.impulsive:
        weight[np.abs(observed.raw - observed.clean) > OUTLIER * np.sqrt(variance)] = 0.0
    starts = model.initial(observed.clean)
    measured = Measured(observed.raw, weight, starts, observed.times, recipe.start_sd)
    for first in Windows.cut(measured, _window(recipe, measured.frames)).index[:, 0]:
        weight[first] = 0.0  # a start holds no small scales; the frame itself is no prediction
    return measured


def _window(recipe: Recipe, frames: Array) -> int:
    return recipe.window_frames or len(frames)


def _begin(
    model: ForwardModel, measured: Measured, starts: Any, recipe: Recipe
) -> tuple[Problem, Array]:
    """Choose the best starting point whose trajectory stays finite."""
    windows = Windows.cut(measured, _window(recipe, measured.frames))
    tried = []
    for theta in starts:
        problem = Problem(model.tuned(theta), windows)
        tried.append((problem.cost(problem.origin(theta)), len(tried), problem, theta))
    best = min(tried, key=lambda one: one[:2])
    if not np.isfinite(best[0]):
        raise DataError(
            f"none of {len(tried)} starting points gives a solution that stays finite; check "
            "--kappa, --pixel-size, --low and --high"
        )
    return best[2], best[3]


def _fit(problem: Problem, theta: Array, recipe: Recipe, told: Told) -> Fit:
    """Fit; where the stiff part no longer suits the parameters, tune it and go on."""

    def step(number: int, _cost: float) -> None:
        told("fitting", min(0.95, number / recipe.most))

    found = fit(problem, theta, most=recipe.most, told=step)
    for _ in range(_MOST_RETRIES):
        if found.converged or len(found.trace) >= recipe.most:
            break
        adapted = Problem(problem.model.tuned(found.point.theta), problem.windows)
        found = fit(adapted, theta, most=recipe.most, point=found.point, told=step)
    told("fitting", 1.0)
    return found


def _without_outliers(problem: Problem, found: Fit) -> tuple[Problem, float]:
    """Give the problem without values that the model cannot explain as noise, and their share."""
    windows = problem.windows
    of = windows.of
    weight, predicted = of.weight.copy(), problem.predict(found.point).numpy()
    for n, row in enumerate(windows.index):
        for k, frame in enumerate(row):
            if not windows.padding[n, k]:
                z = (of.frames[frame] - predicted[n, k]) * np.sqrt(weight[frame])
                weight[frame][np.abs(z) > OUTLIER] = 0.0
    share = float(((weight == 0) & (of.weight > 0)).sum() / max(1, (of.weight > 0).sum()))
    if share < 1e-5:
        return problem, 0.0
    kept = Measured(of.frames, weight, of.clean, of.times, of.start_sd)
    return Problem(problem.model, Windows(kept, windows.index, windows.padding)), share


def _notes(
    found: Fit, check: Check, eigenvalues: Array, rejected: float, observed: Observed
) -> tuple[str, ...]:
    notes = []
    if not found.converged:
        notes.append("The fit did not meet its stopping rule: do not trust these numbers.")
    if not check.passed:
        correlation = ", ".join(f"{k} {v:+.3f}" for k, v in check.correlation.items())
        notes.append(
            f"The residuals are not the noise (mean square {check.total:.3f}, correlations "
            f"{correlation}): the model or the noise is not right, and the bands are too narrow."
        )
    unknown = int((eigenvalues < 1).sum())
    if unknown:
        notes.append(
            f"{unknown} of {len(eigenvalues)} directions of the parameters are known from the "
            "prior rather than from the data."
        )
    if rejected > 0.001:
        notes.append(f"{rejected:.2%} of the measured values were left out as outliers.")
    if not observed.denoised:
        notes.append("No denoised frames: starts are measured frames, smoothed by a Gaussian.")
    return tuple(notes)
