r"""Spectra to components: exact non-negative least squares for every pixel, with its covariance.

At each pixel the optical densities d of E energies are a mix of K components with absorbances
A (E, K)::

    minimise (d - A x)^T W (d - A x)  with x >= 0,   W = diag(1 / s^2)

For the few components of a map the solution is found exactly, without iterating: of all 2^K
choices which components are free, the one that satisfies the Karush-Kuhn-Tucker conditions is
the smallest cost among those with x >= 0.  The covariance is that of the free fit,
(A^T W A)^-1: one held at zero is not known any better for it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quietbeam import ConfigError

Pixels = NDArray[np.float32]

MAX_COMPONENTS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What the fit gives at n pixels.

    Attributes:
        amount: (K, n) float64, never negative; NaN where the data are not finite.
        covariance: (K, K, n) float64.
        chi2: (n,) cost at the minimum; about E - K where the model holds.
    """

    amount: NDArray[np.float64]
    covariance: NDArray[np.float64]
    chi2: NDArray[np.float64]


def fit_non_negative(
    density: NDArray[np.floating],
    sd: NDArray[np.floating],
    absorbance: NDArray[np.floating],
) -> Fit:
    """Fit every pixel.

    Args:
        density: (E, n) optical densities.
        sd: (E, n) their standard deviations, above 0.
        absorbance: (E, K), of a unit of each component.

    Raises:
        ConfigError: The components cannot be told apart at these energies.
    """
    check_components(absorbance)
    d, a = np.asarray(density, np.float64), np.asarray(absorbance, np.float64)
    k, n = a.shape[1], d.shape[1]
    known = np.isfinite(d).all(0) & np.isfinite(sd).all(0) & (np.asarray(sd) > 0).all(0)
    w = 1 / np.where(known, np.asarray(sd, np.float64), 1) ** 2
    d = np.where(known, d, 0)
    normal = np.einsum("ei,en,ej->nij", a, w, a)
    right = np.einsum("ei,en,en->ni", a, w, d)
    whole = np.einsum("en,en,en->n", d, w, d)
    amount, covariance = np.zeros((n, k)), np.linalg.inv(normal)
    cost = whole.copy()
    for count in range(1, k + 1):
        for free in itertools.combinations(range(k), count):
            index = np.ix_(range(n), free, free)
            inverse = np.linalg.inv(normal[index])
            x = np.einsum("nij,nj->ni", inverse, right[:, free])
            now = whole - np.einsum("ni,ni->n", x, right[:, free])
            better = (x >= 0).all(1) & (now < cost)
            cost = np.where(better, now, cost)
            filled = np.zeros((n, k))
            filled[:, free] = x
            amount[better] = filled[better]
    nan = np.nan
    return Fit(
        np.where(known, amount.T, nan),
        np.where(known, covariance.transpose(1, 2, 0), nan),
        np.where(known, np.maximum(cost, 0), nan),
    )


def share(fit: Fit, component: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the share of one component in the sum of all and its variance, (n,) each.

    f = x_c / sum(x); to first order Var(f) = g^T C g with g_j = (delta_jc - f) / sum(x).
    """
    total = fit.amount.sum(0)
    safe = np.where(total > 0, total, np.nan)
    f = fit.amount[component] / safe
    gradient = -np.broadcast_to(f, fit.amount.shape).copy()
    gradient[component] += 1
    gradient /= safe
    return f, np.einsum("in,ijn,jn->n", gradient, fit.covariance, gradient)


def check_components(absorbance: NDArray[np.floating]) -> None:
    """Check that the components can be told apart.

    Raises:
        ConfigError: They cannot, or there are too many.
    """
    energies, components = absorbance.shape
    if components > MAX_COMPONENTS:
        raise ConfigError(f"{components} components; at most {MAX_COMPONENTS} are fitted")
    if energies < components:
        raise ConfigError(f"{components} components need as many energies; there are {energies}")
    scale = np.linalg.norm(absorbance, axis=0)
    if not (scale > 0).all() or np.linalg.cond(absorbance / np.maximum(scale, 1e-30)) > 50:
        raise ConfigError(
            f"the components cannot be told apart at these energies: absorbances "
            f"{np.round(absorbance.T, 4).tolist()}; choose other energies"
        )
