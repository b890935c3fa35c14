"""How sure an estimate is: covariances, bands, what the data say nothing about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from quietbeam.offline.inversion.fit import Fit
from quietbeam.offline.inversion.model import Array, Recovered
from quietbeam.offline.inversion.problem import Problem

LEVEL = 0.9
"""Of every band: it should hold the truth in 90 of 100 experiments."""


@dataclass(frozen=True, slots=True, eq=False)
class Covariances:
    """(p, p) each.

    Attributes:
        information: Inverse of the observed information: right where the noise model is.
        sandwich: From the scores of tiles and blocks of frames: right also where the
            noise varies, or is correlated within a tile and block.
    """

    information: Array
    sandwich: Array


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """One recovered function with its band.

    Attributes:
        x, value: (k,).
        sd: (k,) of the value, of its logarithm where it is positive by construction.
        lower, upper: (k,) of the 90 % band.
        informed: (k,) share of the prior's variance that the data removed, 0..1.
        observed: (k,) x lies between the 1st and 99th percentile of what was seen.
    """

    x: Array
    value: Array
    sd: Array
    lower: Array
    upper: Array
    informed: Array
    observed: np.ndarray
    axis: str
    unit: str
    label: str


def covariances(problem: Problem, found: Fit) -> Covariances:
    """Give the covariances of theta; one more run of the tangent-linear model.

    The sandwich is S^-1 B S^-1 with B the sum over clusters (a tile of the image
    in a block of frames) of outer products of their scores, after elimination of
    the corrections of the starts; Liang & Zeger (1986), with the prior's information.
    """
    normal = problem.normal(found.point, scores=True)
    p = len(found.point.theta)
    information = found.covariance
    scores = normal.scores
    if scores is None:
        raise ValueError("no scores")
    own = scores[..., :p] - np.einsum("nmp,nbtm->nbtp", found.reduced.follow, scores[..., p:])
    flat = own.reshape(-1, p)
    flat = flat[(flat != 0).any(1)]
    small = len(flat) / max(1, len(flat) - p)  # few clusters understate
    meat = small * flat.T @ flat + np.diag(1 / problem.model.parameters.sd**2)
    return Covariances(information, information @ meat @ information)


def bands(
    recovered: Mapping[str, Recovered], found: Covariances, prior_sd: Array, seen: Array
) -> dict[str, Band]:
    """Give every function with the wider one of its two bands, point by point.

    Args:
        recovered: Linearised about the estimate.
        found: Covariances of the parameters.
        prior_sd: (p,).
        seen: Values of x that occur in the data; the gauge is fixed over their range.
    """
    low, high = np.percentile(seen, (1, 99)) if seen.size else (-np.inf, np.inf)
    half = norm.ppf(0.5 + LEVEL / 2)
    out = {}
    for name, one in recovered.items():
        inside = (one.x >= low) & (one.x <= high) if one.axis == "c" else np.ones(len(one.x), bool)
        value, jacobian = one.value, one.jacobian
        if one.gauge:
            keep = inside if inside.any() else slice(None)
            value, jacobian = value - value[keep].mean(), jacobian - jacobian[keep].mean(0)
        variances = [
            np.einsum("ij,jk,ik->i", jacobian, matrix, jacobian)
            for matrix in (found.information, found.sandwich)
        ]
        before = np.maximum((jacobian**2) @ prior_sd**2, 1e-300)
        sd = np.sqrt(np.maximum(*variances))
        lower, upper = (
            (value * np.exp(-half * sd), value * np.exp(half * sd))
            if one.logarithmic
            else (value - half * sd, value + half * sd)
        )
        informed = np.clip(1 - variances[0] / before, 0, 1)
        out[name] = Band(
            one.x, value, sd, lower, upper, informed, inside, one.axis, one.unit, one.label
        )
    return out


def identifiability(found: Fit, prior_sd: Array) -> Array:
    """Give the eigenvalues, largest first, of the data's information in units of the prior's.

    A direction with an eigenvalue below 1 is known from the prior rather than from the data.
    """
    data = found.reduced.matrix - np.diag(1 / prior_sd**2)
    scaled = prior_sd[:, None] * data * prior_sd[None]
    return np.asarray(np.sort(np.linalg.eigvalsh(scaled))[::-1], np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """Posterior predictive check: are the residuals the noise?

    Attributes:
        residual: (n, k, *s) measured minus predicted over the noise s.d.; NaN where unused.
        chi2: (n, k) mean square of every frame; 1 is expected.
        correlation: Along y, x and t, from one value to the next; 0 is expected.
        total: Mean square of all.
        passed: All of it is within what chance and 2 % of model error allow.
    """

    residual: Array
    chi2: Array
    correlation: dict[str, float]
    total: float
    passed: bool


def predictive(problem: Problem, found: Fit) -> Check:
    """Compare measured and predicted frames at the estimate."""
    predicted = problem.predict(found.point).numpy()
    pairs = [problem.windows.frame(k) for k in range(predicted.shape[1])]
    measured = np.stack([one[0].numpy() for one in pairs], 1)
    weight = np.stack([one[1].numpy() for one in pairs], 1)
    z = np.where(weight > 0, (measured - predicted) * np.sqrt(weight), np.nan)
    with np.errstate(invalid="ignore"):
        filled = np.nan_to_num(z)
        used = np.isfinite(z)
        axes = tuple(range(2, z.ndim))
        counts = used.sum(axes)
        chi2 = np.divide(
            (filled**2).sum(axes), counts, np.full(counts.shape, np.nan), where=counts > 0
        )
    correlation = {}
    for name, axis in zip(("t", "y", "x"), range(1, z.ndim), strict=False):
        a, b = (
            np.take(filled, range(z.shape[axis] - 1), axis),
            np.take(filled, range(1, z.shape[axis]), axis),
        )
        correlation[name] = float((a * b).sum() / max((filled**2).sum(), 1e-300))
    total = float((filled**2).sum() / max(1, used.sum()))
    chance = 4 / np.sqrt(max(1, used.sum()))
    passed = abs(total - 1) < 0.02 + 2 * chance and all(
        abs(one) < 0.02 + chance for one in correlation.values()
    )
    return Check(z, chi2, correlation, total, passed)
