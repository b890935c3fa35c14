"""Cahn-Hilliard dynamics and their derivatives.

    dc/dt = div( M(c) grad mu ),   mu = mu_h(c) - kappa lap c
    mu_h = [ln(c / (1 - c))] + sum_j a_j f_j(c),   M = g(c) D(c),   ln D = sum_j b_j f_j(c)

g(c) is c, 1 or c (1 - c): three conventions of the literature.  mu_h + const and
(s kappa, s mu_h, D / s) are the same dynamics; a_0 is left out and kappa is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from quietbeam.offline.inversion.basis import Basis
from quietbeam.offline.inversion.model import GAMMA, Array, Parameters, Recovered, vector
from quietbeam_plugins.inversions._grid import Grid
from quietbeam_plugins.inversions._weak_form import weak_form

Convention = Literal["cD", "D", "c(1-c)D"]
EDGE = 0.01
"""Beyond this distance from 0 and 1 the logarithm goes on as a straight line."""


def entropy(c: Tensor) -> tuple[Tensor, Tensor]:
    """Give ln(c / (1 - c)) and its derivative, a straight line near and beyond 0 and 1."""
    inside = c.clamp(EDGE, 1 - EDGE)
    slope = 1 / (inside * (1 - inside))
    return torch.log(inside / (1 - inside)) + slope * (c - inside), slope


def geometry(c: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    """Give g(c) and its derivative; never below a small positive number."""
    if convention == "D":
        return torch.ones_like(c), torch.zeros_like(c)
    value, slope = (c, torch.ones_like(c)) if convention == "cD" else (c * (1 - c), 1 - 2 * c)
    above = value > 1e-3
    return value.clamp_min(1e-3), slope * above


@dataclass(frozen=True)
class CahnHilliardModel:
    """See the module; ``parameters`` are a_1.. then b_0..

    Attributes:
        grid: Space.
        kappa: Gradient energy, px^2 kT.
        potential: Basis of mu_h.
        diffusivity: Basis of ln D.
        scale: A typical D, px^2/frame: the centre of its prior.
        stiffness: Constant mobility of the implicit part, px^2/frame.
        step: Longest time step, frames.
        blur: Response of optics and pixel to every eigenfunction of the Laplacian.
        corrected: How many modes of an initial state are corrected.
        entropic: mu_h contains the mixing entropy.
    """

    grid: Grid
    kappa: float
    potential: Basis
    diffusivity: Basis
    scale: float
    blur: Tensor
    corrected: int
    stiffness: float = 0.0
    step: float = 0.25
    convention: Convention = "cD"
    entropic: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.grid.shape

    @property
    def parameters(self) -> Parameters:
        return self._parameters

    @cached_property
    def _parameters(self) -> Parameters:
        na, nb = self.potential.size, self.diffusivity.size
        names = [f"mu_{j + self.potential.first}" for j in range(na)]
        names += [f"lnD_{j + self.diffusivity.first}" for j in range(nb)]
        mean = np.zeros(na + nb)
        constant = np.linalg.lstsq(
            self.diffusivity.at(np.linspace(0, 1, 99)), np.ones(99), rcond=None
        )[0]
        mean[na:] = np.log(self.scale) * constant
        return Parameters(
            tuple(names), mean, np.r_[_spread(self.potential, 6.0), _spread(self.diffusivity, 3.0)]
        )

    def rate(self, state: Tensor, theta: Tensor, time: Tensor) -> Tensor:
        del time
        mu, mobility = self._chemical(state, theta)[0], self._mobility(state, theta)[0]
        gradient = self.grid.gradient(mu - self.kappa * self.grid.laplacian(state))
        my, mx = self.grid.between(mobility)
        return self.grid.divergence((my * gradient[0], mx * gradient[1]))

    def tangent(
        self, state: Tensor, theta: Tensor, time: Tensor, direction: Tensor, change: Tensor
    ) -> tuple[Tensor, Tensor]:
        del time
        na, kind = self.potential.size, direction.dtype
        mu, mu_slope = self._chemical(state, theta)
        mobility, mobility_slope = self._mobility(state, theta)
        gradient = self.grid.gradient(mu - self.kappa * self.grid.laplacian(state))
        between = self.grid.between(mobility)
        rate = self.grid.divergence((between[0] * gradient[0], between[1] * gradient[1]))

        dmu = _wide(mu_slope, kind) * direction
        dmu -= self.kappa * self.grid.laplacian(direction)
        dmobility = _wide(mobility_slope, kind) * direction
        by = torch.nonzero(change.abs().sum(1)).squeeze(-1)
        f, g = self.potential.functions(state)[0], self.diffusivity.functions(state)[0]
        dmu[:, by] += torch.einsum("bj,jn...->nb...", change[by, :na], f).to(kind)
        grown = torch.einsum("bj,jn...->nb...", change[by, na:], g) * mobility.unsqueeze(1)
        dmobility[:, by] += grown.to(kind)
        dgradient, dbetween = self.grid.gradient(dmu), self.grid.between(dmobility)
        fy, fx = (
            (_wide(m, kind) * dq).addcmul_(dm, _wide(q, kind))
            for m, q, dm, dq in zip(between, gradient, dbetween, dgradient, strict=True)
        )
        return rate, self.grid.divergence((fy, fx))

    def solve(self, value: Tensor) -> Tensor:
        return self.grid.filtered(value, self._response)

    def observe(self, state: Tensor) -> Tensor:
        return self.grid.filtered(state, self.blur)

    def initial(self, frames: Array) -> Array:
        """Give frames (t, h, w) as starts: without the scales that dynamics makes by itself.

        What is shorter than an interface follows the longer waves within a frame.  Noise
        there is not small, and squared by the dynamics it looks like physics.
        """
        cut = 2.2**2 / self.kappa
        response = torch.exp(-((self.grid.eigenvalues / cut) ** 2))
        return np.clip(self.grid.filtered(vector(frames), response).numpy(), EDGE, 1 - EDGE)

    def modes(self, smoothest: int | None = None) -> Tensor:
        return self.grid.smoothest(self.corrected if smoothest is None else smoothest)

    def recovered(self, theta: Array, where: Array) -> Mapping[str, Recovered]:
        na = self.potential.size
        f, g = self.potential.at(where), self.diffusivity.at(where)
        base = entropy(vector(where))[0].numpy() if self.entropic else np.zeros_like(where)
        none = np.zeros((len(where), len(self.parameters)))
        dmu, dln = none.copy(), none.copy()
        dmu[:, :na], dln[:, na:] = f, g
        return {
            "mu_h": Recovered(
                where, base + f @ theta[:na], dmu, "c", "kT", "homogeneous chemical potential",
                gauge=True,
            ),
            "D": Recovered(
                where, np.exp(g @ theta[na:]), dln, "c", "px^2/frame", "diffusivity",
                logarithmic=True,
            ),
        }  # fmt: skip

    def tuned(self, theta: Array) -> CahnHilliardModel:
        c = torch.linspace(0.03, 0.97, 48, dtype=torch.float64)
        mobility = self._mobility(c, vector(theta))[0]
        return replace(self, stiffness=1.2 * float(mobility.max()))

    def starts(self, frames: Array, times: Array, count: int) -> Sequence[Array]:
        """Weak forms of several smoothness, the one that explains most first; then the prior's."""
        found = [
            weak_form(self, frames, times, smooth, test)
            for smooth, test in ((0.7, 3.0), (1.2, 4.0), (2.0, 5.0))[: max(1, count)]
        ]
        found.sort(key=lambda one: -one.r2)
        return [one.theta for one in found]

    def fitted(self, c: Array, mu_slope: Array, mobility: Array, weight: Array) -> Array:
        """Give the parameters closest to mu_h'(c) and M(c), given as curves, under the prior."""
        na, prior = self.potential.size, self.parameters
        place = vector(c)
        slope = mu_slope - (entropy(place)[1].numpy() if self.entropic else 0.0)
        diffusivity = np.log(mobility / geometry(place, self.convention)[0].numpy())
        columns = self.potential.functions(place)[1].numpy().T
        theta = np.empty(len(prior))
        for part, matrix, target in (
            (slice(None, na), columns, slope),
            (slice(na, None), self.diffusivity.at(c), diffusivity),
        ):
            sd, mean = prior.sd[part], prior.mean[part]
            rows = np.r_[matrix * weight[:, None], np.diag(0.1 / sd)]
            right = np.r_[target * weight, 0.1 * mean / sd]
            theta[part] = np.linalg.lstsq(rows, right, rcond=None)[0]
        return theta

    @cached_property
    def _response(self) -> Tensor:
        waves = self.grid.eigenvalues
        stiff = self.stiffness * self.kappa * waves**2
        return 1 / (1 + GAMMA * self.step * stiff)

    def _chemical(self, c: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        value, slope, _ = self.potential.evaluate(theta[: self.potential.size], c)
        if self.entropic:
            base, base_slope = entropy(c)
            value, slope = value + base, slope + base_slope
        return value, slope

    def _mobility(self, c: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        value, slope, _ = self.diffusivity.evaluate(theta[self.potential.size :], c)
        g, g_slope = geometry(c, self.convention)
        diffusivity = torch.exp(value)
        return g * diffusivity, diffusivity * (g_slope + g * slope)


def _wide(field: Tensor, kind: torch.dtype) -> Tensor:
    """Give (n, *s) as (n, 1, *s), to stand beside directions."""
    return field.to(kind).unsqueeze(1)


def _spread(basis: Basis, first: float) -> Array:
    """Prior s.d.: the higher the degree the smaller, as coefficients of smooth functions are."""
    if basis.kind == "spline":
        return np.full(basis.size, first)
    degree = np.arange(basis.first, basis.first + basis.size)
    return first / np.maximum(degree, 1.0) ** 1.5
