"""What an inversion needs of a forward model, and the parameters it recovers.

Everything is in pixels and frames: lengths in pixels, times in median frame
intervals, composition 0..1, chemical potential in kT.  Torch, float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

GAMMA = 1 - 2**-0.5
"""Coefficient of the two-stage Rosenbrock scheme; see ``integrate``."""


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """The vector that is estimated, with a Gaussian prior on every component.

    Attributes:
        names: (p,), such as ``mu_1`` or ``lnD_0``.
        mean: (p,) of the prior.
        sd: (p,) of the prior.
    """

    names: tuple[str, ...]
    mean: Array
    sd: Array

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """One recovered function on a grid, linearised about the estimate.

    Attributes:
        x: (k,) where it is given; ``axis`` says of what.
        value: (k,) or, for a map, the shape of the image.
        jacobian: (k, p) derivative of ``value`` by the parameters (of its logarithm where
            ``logarithmic``, so that bands stay positive).
        unit: In pixels and frames, as powers: ``px^2/frame``, ``kT``.
        gauge: The mean over the observed range is arbitrary and taken out.
    """

    x: Array
    value: Array
    jacobian: Array
    axis: str
    unit: str
    label: str
    logarithmic: bool = False
    gauge: bool = False


class ForwardModel(Protocol):
    """A partial differential equation, discretised in space.

    n windows, b directions, ``*s`` the shape of the state.
    """

    @property
    def parameters(self) -> Parameters:
        """What is estimated."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape ``*s`` of the state, which is also that of a frame."""
        ...

    @property
    def step(self) -> float:
        """Longest time step, frames."""
        ...

    def rate(self, state: Tensor, theta: Tensor, time: Tensor) -> Tensor:
        """Give d(state)/d(time): (n, *s), (p,), (n,) -> (n, *s)."""
        ...

    def tangent(
        self, state: Tensor, theta: Tensor, time: Tensor, direction: Tensor, change: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Give the rate and its derivative along ``direction`` (n, b, *s) and ``change`` (b, p)."""
        ...

    def solve(self, value: Tensor) -> Tensor:
        """Give (1 - GAMMA * step * A)^-1 value for the stiff linear part A; (..., *s)."""
        ...

    def observe(self, state: Tensor) -> Tensor:
        """Give what the detector sees of the state: linear, (..., *s) -> (..., *s)."""
        ...

    def initial(self, frames: Array) -> Array:
        """Give clean frames (t, *s) as states that a window may start from."""
        ...

    def modes(self, smoothest: int | None = None) -> Tensor:
        """Give orthonormal corrections of an initial state: (m, *s), the smoothest first."""
        ...

    def recovered(self, theta: Array, where: Array) -> Mapping[str, Recovered]:
        """Give the functions that ``theta`` stands for."""
        ...

    def tuned(self, theta: Array) -> ForwardModel:
        """Give the model with the stiff part and the step fit for ``theta``."""
        ...

    def starts(self, frames: Array, times: Array, count: int) -> Sequence[Array]:
        """Give starting points from smooth ``frames`` (t, *s), the most likely one first."""
        ...


def vector(values: Array) -> Tensor:
    """Give an array as float64 tensor."""
    return torch.from_numpy(np.ascontiguousarray(values, np.float64))
