"""Levenberg-Marquardt with the corrections of the starts eliminated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from quietbeam.core.errors import DataError
from quietbeam.offline.inversion.model import Array, Parameters
from quietbeam.offline.inversion.problem import Normal, Point, Problem

GAIN = 0.02
"""The fit ends when the next step promises a smaller gain in log posterior, and ..."""
SHARE = 0.1
"""... moves no parameter by more than this share of its s.d.: both are statistics, not digits."""
_MOST = 1e8  # damping beyond which no step is worth trying


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """Normal equations of theta alone, with priors; what the corrections follow.

    Attributes:
        matrix: (p, p) information: its inverse is the covariance of theta.
        right: (p,).
        follow: (n, m, p): alpha moves by own - follow theta.
        own: (n, m).
    """

    matrix: Array
    right: Array
    follow: Array
    own: Array


@dataclass(slots=True, eq=False)
class Fit:
    """The end of one fit.

    Attributes:
        point: Estimate.
        normal: Linearisation there, without scores.
        reduced: The same with priors and without corrections.
        cost: Minus the log posterior.
        converged: The stopping rule was met.
        trace: For every step: cost, damping, largest move in s.d., promised gain.
        linearisations: Runs of the tangent-linear model.
    """

    point: Point
    normal: Normal
    reduced: Reduced
    cost: float
    converged: bool
    trace: list[dict[str, float]] = field(default_factory=list)
    linearisations: int = 0

    @property
    def covariance(self) -> Array:
        """(p, p) inverse of the observed information with priors."""
        return np.asarray(np.linalg.inv(self.reduced.matrix), np.float64)


def reduce(
    normal: Normal, point: Point, prior: Parameters, start_sd: float, damping: float = 0.0
) -> Reduced:
    """Add the priors and eliminate the corrections, window by window."""
    m = normal.c.shape[-1]
    matrix = normal.a + np.diag(1 / prior.sd**2)
    matrix = matrix + damping * np.diag(np.diag(matrix))
    right = normal.g - (point.theta - prior.mean) / prior.sd**2
    follow, own = np.empty_like(normal.b.transpose(0, 2, 1)), np.empty_like(normal.h)
    for i, (b, c, h) in enumerate(zip(normal.b, normal.c, normal.h, strict=True)):
        c = c + np.eye(m) / start_sd**2  # noqa: PLW2901
        c = c + damping * np.diag(np.diag(c))  # noqa: PLW2901
        factor = cho_factor(c)
        follow[i] = cho_solve(factor, b.T)
        own[i] = cho_solve(factor, h - point.alpha[i] / start_sd**2)
        matrix -= b @ follow[i]
        right = right - b @ own[i]
    return Reduced((matrix + matrix.T) / 2, right, follow, own)


def fit(
    problem: Problem,
    theta: Array,
    *,
    most: int = 20,
    point: Point | None = None,
    fixed: np.ndarray | None = None,
    told: Callable[[int, float], None] = lambda _step, _cost: None,
) -> Fit:
    """Fit from ``theta``, or go on from ``point``.

    Raises:
        DataError: It diverges at the very start.

    Args:
        problem: What is to be explained.
        theta: Where to begin.
        point: Where to go on instead.
        most: Linearisations, at most.
        fixed: (p,) bool: parameters that stay, for a profile.
        told: Told of every step: its number and cost.
    """
    prior, start_sd = problem.model.parameters, problem.windows.of.start_sd
    here = problem.origin(theta) if point is None else point
    free = np.ones(len(prior), bool) if fixed is None else ~fixed
    damping, trace = (1e-2 if point is None else 1e-6), []
    cost, count, converged = problem.cost(here), 0, False
    normal = problem.normal(here)
    if not np.isfinite(normal.a).all():
        raise DataError("the solution from the starting point has no finite derivatives")
    while True:
        count += 1
        told(count, cost)
        plain = reduce(normal, here, prior, start_sd)
        step, gain = _newton(plain, free)
        sd = np.sqrt(np.diag(np.linalg.inv(plain.matrix)))
        move = float(np.abs(step / sd).max())
        trace.append({"cost": cost, "damping": damping, "move": move, "gain": gain})
        if gain < GAIN and move < SHARE:
            here, cost = _better(problem, here, plain, step, cost)
            converged = True
            break
        found = _descend(problem, normal, here, cost, damping, free) if count < most else None
        if found is None:
            break
        there, after, damping = found
        ahead = problem.normal(there)
        if not np.isfinite(ahead.a).all():
            break
        here, cost, normal = there, after, ahead
    return Fit(here, normal, plain, cost, converged, trace, count)


def _newton(reduced: Reduced, free: np.ndarray) -> tuple[Array, float]:
    """Give the step of theta and the gain it promises; corrections included."""
    step = np.zeros(len(free))
    step[free] = np.linalg.solve(reduced.matrix[np.ix_(free, free)], reduced.right[free])
    return step, 0.5 * float(step @ reduced.right)


def _moved(here: Point, reduced: Reduced, step: Array) -> Point:
    return Point(here.theta + step, here.alpha + reduced.own - reduced.follow @ step)


def _better(
    problem: Problem, here: Point, reduced: Reduced, step: Array, cost: float
) -> tuple[Point, float]:
    """Take the last, insignificant step if it does no harm."""
    there = _moved(here, reduced, step)
    after = problem.cost(there)
    return (there, after) if after <= cost else (here, cost)


def _descend(
    problem: Problem, normal: Normal, here: Point, cost: float, damping: float, free: np.ndarray
) -> tuple[Point, float, float] | None:
    """Find a step that lowers the cost, with more and more damping; None: there is none."""
    prior, start_sd = problem.model.parameters, problem.windows.of.start_sd
    while damping < _MOST:
        damped = reduce(normal, here, prior, start_sd, damping)
        there = _moved(here, damped, _newton(damped, free)[0])
        after = problem.cost(there)
        if after < cost:
            return there, after, max(damping / 10, 1e-9)
        damping = max(damping, 1e-4) * 10
    return None
