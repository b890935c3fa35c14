"""A first guess of mu_h and D from one linear regression: the weak form.

With G' = M mu_h' and a smooth test function psi, Cahn-Hilliard dynamics are linear
in the coefficients of G and M (Reinbold, Gurevich & Grigoriev, Phys. Rev. E 101,
010203 (2020), for the method):

    dc/dt = lap G(c) - kappa [ lap(M lap c) - div(M' lap c grad c) ]

Filtering with psi, a Gaussian in space and (1 - s^2)^p in time, puts the outer
derivatives on psi.  M is a sum of Bernstein polynomials with positive
coefficients, so it is positive by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import lsq_linear
from scipy.special import comb
from torch import Tensor

from quietbeam.offline.inversion.model import Array, vector

if TYPE_CHECKING:
    from quietbeam_plugins.inversions._cahn_hilliard import CahnHilliardModel

_DEGREE = 4
_POWER = 4
_LEAST = 0.02  # smallest mobility, of the largest one


@dataclass(frozen=True, slots=True, eq=False)
class WeakForm:
    """What the regression found.

    Attributes:
        theta: Parameters of the model.
        r2: Share of the variance of dc/dt that it explains; below 0.5 do not trust it.
    """

    theta: Array
    r2: float


def weak_form(
    model: CahnHilliardModel, frames: Array, times: Array, smooth_px: float, test_px: float
) -> WeakForm:
    """Regress on smooth frames.

    Args:
        model: Whose parameters are wanted.
        frames: (t, h, w) composition.
        times: (t,) frames.
        smooth_px: S.d. of a Gaussian applied before anything is multiplied.
        test_px: S.d. of the test function in space.
    """
    half = min(4, (len(frames) - 1) // 2)
    kernel, slope = _test_function(half, float(np.median(np.diff(times))))
    eigenvalues = model.grid.eigenvalues
    before = torch.exp(-eigenvalues * smooth_px**2 / 2)
    after = torch.exp(-eigenvalues * test_px**2 / 2)
    c = model.grid.filtered(vector(frames), before)
    columns = _columns(model, c)
    seen = model.grid.filtered(columns, after)
    seen = torch.stack([_in_time(one, kernel) for one in seen])
    target = _in_time(model.grid.filtered(c, after), -slope)
    thin = max(1, int(test_px // 2))
    rows = seen[..., ::thin, ::thin].reshape(len(seen), -1).numpy().T
    right = target[..., ::thin, ::thin].reshape(-1).numpy()
    scale = np.sqrt((rows**2).mean(0)) + 1e-30
    free = _DEGREE + 1
    lower = np.r_[np.full(free - 1, -np.inf), np.zeros(free)]
    found = lsq_linear(rows / scale, right, (lower, np.inf))
    r2 = 1 - 2 * found.cost / float(((right - right.mean()) ** 2).sum() + 1e-30)
    return WeakForm(_as_parameters(model, found.x / scale, frames), float(r2))


def _columns(model: CahnHilliardModel, c: Tensor) -> Tensor:
    """(2 degree + 1, t, h, w): what multiplies the coefficients of G, then of M."""
    grid = model.grid
    curvature, gradient = grid.laplacian(c), grid.gradient(c)
    columns = [grid.laplacian(_bernstein(c, j)[0]) for j in range(1, _DEGREE + 1)]
    for j in range(_DEGREE + 1):
        value, slope = _bernstein(c, j)
        fluxes = grid.between(slope * curvature)
        bent = grid.divergence((fluxes[0] * gradient[0], fluxes[1] * gradient[1]))
        columns.append(-model.kappa * (grid.laplacian(value * curvature) - bent))
    return torch.stack(columns)


def _bernstein(c: Tensor, j: int) -> tuple[Tensor, Tensor]:
    """One Bernstein polynomial of degree ``_DEGREE`` and its derivative."""
    n, inside = _DEGREE, c.clamp(0, 1)

    def value(k: int, degree: int) -> Tensor:
        if not 0 <= k <= degree:
            return torch.zeros_like(c)
        return float(comb(degree, k)) * inside**k * (1 - inside) ** (degree - k)

    return value(j, n), n * (value(j - 1, n - 1) - value(j, n - 1))


def _test_function(half: int, interval: float) -> tuple[Array, Array]:
    """Weights of (1 - s^2)^p over 2 half + 1 frames, and of its time derivative."""
    s = np.arange(-half, half + 1) / (half + 1)
    kernel = (1 - s**2) ** _POWER
    slope = -2 * _POWER * s * (1 - s**2) ** (_POWER - 1) / ((half + 1) * interval)
    # Exact on a straight line, which sums of few points are not by themselves.
    slope *= -kernel.sum() / (slope @ (s * (half + 1) * interval))
    return kernel / kernel.sum(), slope / kernel.sum()


def _in_time(field: Tensor, weights: Array) -> Tensor:
    """Correlate along the first axis, whole overlaps only."""
    return torch.einsum("thwk,k->thw", field.unfold(0, len(weights), 1), vector(weights))


def _as_parameters(model: CahnHilliardModel, found: Array, frames: Array) -> Array:
    """Turn G and M into coefficients of mu_h and ln D, weighted by how often c was seen."""
    c = np.linspace(0.02, 0.98, 193)
    seen, edges = np.histogram(frames, bins=64, range=(0, 1))
    weight = np.sqrt(np.interp(c, (edges[1:] + edges[:-1]) / 2, seen / max(seen.max(), 1)) + 1e-3)
    g, m = np.r_[0.0, found[:_DEGREE]], found[_DEGREE:]
    table = [_bernstein(vector(c), j) for j in range(_DEGREE + 1)]
    value = np.stack([one[0].numpy() for one in table], -1)
    slope = np.stack([one[1].numpy() for one in table], -1)
    mobility = value @ m
    mobility = np.maximum(mobility, _LEAST * mobility.max() + 1e-12)
    return model.fitted(c, (slope @ g) / mobility, mobility, weight)
