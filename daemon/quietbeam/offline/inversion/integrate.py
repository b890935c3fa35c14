"""Steps a forward model through time, with its derivatives: the tangent-linear model.

ROS2 (Verwer, Spee, Blom & Hundsdorfer, SIAM J. Sci. Comput. 20, 1456 (1999)):

    (1 - g h A) k1 = f(u),   (1 - g h A) k2 = f(u + h k1) - 2 k1,   u+ = u + h (3 k1 + k2) / 2

It is of second order for *any* A, so the implicit part may be linear, constant
and the same for every parameter and window: one solver serves the whole fit, and
where A conserves mass, so does the step.  The derivative is that of the scheme
itself, step by step: exact, not an approximation of a continuous sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quietbeam.offline.inversion.model import Array, ForwardModel


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """When the frames of n windows were taken: (n, k), frames; the first column is the start."""

    of: Array

    def intervals(self, longest: float) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Give, for each frame after the first, the (start, length) of its steps: (n,) each."""
        for before, after in zip(self.of.T[:-1], self.of.T[1:], strict=True):
            steps = max(1, math.ceil(float((after - before).max()) / longest - 1e-9))
            length = torch.from_numpy((after - before) / steps)
            start = torch.from_numpy(np.ascontiguousarray(before))
            yield [(start + i * length, length) for i in range(steps)]


def trajectory(model: ForwardModel, start: Tensor, theta: Tensor, times: Times) -> Iterator[Tensor]:
    """Give the states (n, *s) at every time after the first."""
    state = start
    for steps in times.intervals(model.step):
        for now, length in steps:
            h = _like(length, state)
            one = model.solve(model.rate(state, theta, now))
            ahead = model.rate(state + h * one, theta, now + length)
            two = model.solve(ahead - 2 * one)
            state = state + h / 2 * (3 * one + two)
        yield state


def sensitivities(
    model: ForwardModel,
    start: Tensor,
    theta: Tensor,
    times: Times,
    modes: Tensor,
    negligible: float = 0.0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give states (n, *s) and their derivatives (n, p + m, *s) at every time after the first.

    The directions are the p parameters, then the m ``modes`` (m, *s) of the start.
    The dtype of ``modes`` is that of the derivatives; float32 is enough for a
    Gauss-Newton matrix and twice as fast.

    Args:
        model: The equation.
        start: (n, *s) initial states.
        theta: (p,) parameters.
        times: Of the windows.
        modes: (m, *s) corrections of the start.
        negligible: Dissipation leaves few directions of a start alive.  Combinations of
            them whose squared norm has fallen below this are carried no further.
    """
    p, n, shape = len(theta), len(start), start.shape[1:]
    state = start
    moved = _rows_first(
        torch.zeros((n, p, *shape), dtype=modes.dtype), modes.expand(n, *modes.shape)
    )
    weights = torch.eye(len(modes), dtype=modes.dtype).expand(n, -1, -1)  # alive to modes
    for steps in times.intervals(model.step):
        for now, length in steps:
            h = _like(length, state)
            hd = h.unsqueeze(1).to(modes.dtype)
            change = torch.zeros((moved.shape[1], p), dtype=start.dtype)
            change[:p] = torch.eye(p, dtype=start.dtype)
            one, done = map(model.solve, model.tangent(state, theta, now, moved, change))
            ahead, dahead = model.tangent(
                state + h * one, theta, now + length, moved + hd * done, change
            )
            two, dtwo = model.solve(ahead - 2 * one), model.solve(dahead - 2 * done)
            state = state + h / 2 * (3 * one + two)
            moved = moved + hd / 2 * (3 * done + dtwo)
        alive = torch.einsum("nmr,nr...->nm...", weights, moved[:, p:])
        yield state, torch.cat((moved[:, :p], alive), 1)
        if negligible > 0:
            kept, weights = _compressed(moved[:, p:], weights, negligible)
            moved = _rows_first(moved[:, :p], kept)


def _compressed(moved: Tensor, weights: Tensor, negligible: float) -> tuple[Tensor, Tensor]:
    """Keep the combinations of (n, r, *s) that matter, and what they are of the modes."""
    flat = moved.reshape(*moved.shape[:2], -1)
    _, left = torch.linalg.qr(weights.double())  # modes = Q (left moved): norms as modes have them
    inner = left @ (flat @ flat.transpose(1, 2)).double() @ left.transpose(1, 2)
    if not torch.isfinite(inner).all():  # diverged: the caller will see it
        return moved, weights
    values, vectors = torch.linalg.eigh(inner)
    count = max(1, int((values > negligible).sum(1).max()))
    if count == moved.shape[1]:
        return moved, weights
    chosen = vectors[..., -count:]
    kept = torch.einsum("nrk,nrs,ns...->nk...", chosen, left, moved.double())
    back = torch.linalg.solve(left, chosen)
    return kept.to(moved.dtype), (weights.double() @ back).to(moved.dtype)


def _rows_first(*parts: Tensor) -> Tensor:
    """Join along directions, rows outermost in memory: what products of matrices along y want."""
    whole = torch.cat(parts, 1)
    return whole.movedim(2, 0).contiguous().movedim(0, 2)


def _like(length: Tensor, state: Tensor) -> Tensor:
    return length.to(state.dtype).reshape(-1, *[1] * (state.ndim - 1))
