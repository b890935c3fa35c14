"""Functions of composition with few coefficients: what an inversion recovers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.polynomial import legendre
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from torch import Tensor

BasisName = Literal["legendre", "spline"]
_TABLE = 4097


@dataclass(frozen=True)
class Basis:
    """Functions on 0 <= c <= 1, with their first two derivatives; constant slope outside.

    ``legendre``: P_first(2c - 1), P_first+1, ...; ``spline``: cubic B-splines on
    equal knots.  Tabulated once on 4097 points and interpolated by cubic Hermite
    polynomials, so that value and derivative belong together to 1e-10.

    Attributes:
        kind: Which functions.
        size: How many.
        first: Lowest degree (``legendre`` only); 1 leaves the constant out.
    """

    kind: BasisName
    size: int
    first: int = 0

    def at(self, c: NDArray[np.floating]) -> NDArray[np.float64]:
        """Give the functions at ``c``: (..., size)."""
        return self._exact(np.asarray(c, np.float64))[0]

    def evaluate(self, coefficients: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give sum_j a_j f_j(c) and its first and second derivative, each of the shape of c."""
        table = self._table.to(c.dtype) @ coefficients.to(c.dtype)
        place, inside = _place(c)
        found = _hermite(table, place, inside)
        beyond = c - inside
        return found[0] + beyond * found[1], found[1], found[2]

    def functions(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Give every f_j(c) and f_j'(c): (size, ...) each."""
        place, inside = _place(c)
        found = _hermite(self._table.to(c.dtype), place, inside)
        beyond = (c - inside).unsqueeze(-1)
        value, slope = found[0] + beyond * found[1], found[1]
        return value.movedim(-1, 0), slope.movedim(-1, 0)

    @cached_property
    def _table(self) -> Tensor:
        """(4, _TABLE, size): value and first three derivatives on the table's points."""
        return torch.from_numpy(np.stack(self._exact(np.linspace(0, 1, _TABLE), 3)))

    def _exact(self, c: NDArray[np.float64], order: int = 0) -> list[NDArray[np.float64]]:
        if self.kind == "legendre":
            unit = np.eye(self.first + self.size)[self.first :].T
            found = []
            for _ in range(order + 1):
                found.append(np.moveaxis(legendre.legval(2 * c - 1, unit), 0, -1))
                unit = 2 * legendre.legder(unit, axis=0) if len(unit) > 1 else 0 * unit
            return found
        spline = self._spline
        return [np.asarray(spline(c, nu=nu)) for nu in range(order + 1)]

    @cached_property
    def _spline(self) -> BSpline:
        inner = np.linspace(0, 1, self.size - 2)
        knots = np.r_[[0.0] * 3, inner, [1.0] * 3]
        return BSpline(knots, np.eye(self.size), 3)


def _place(c: Tensor) -> tuple[Tensor, Tensor]:
    inside = c.clamp(0, 1).nan_to_num()  # a diverged state stays NaN through c - inside
    return (inside * (_TABLE - 1)).round().long(), inside


def _hermite(table: Tensor, place: Tensor, c: Tensor) -> list[Tensor]:
    """Taylor series of third order about the nearest point of the table."""
    d = c - place.to(c.dtype) / (_TABLE - 1)
    if table.ndim == 3:
        d = d.unsqueeze(-1)
    f0, f1, f2, f3 = (one[place] for one in table)
    return [
        f0 + d * (f1 + d / 2 * (f2 + d / 3 * f3)),
        f1 + d * (f2 + d / 2 * f3),
        f2 + d * f3,
    ]
