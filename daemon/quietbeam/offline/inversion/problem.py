"""The least-squares problem: measured frames, windows, residuals and normal equations.

Multiple shooting.  Every window starts from a *clean* frame plus unknown smooth
corrections alpha, and is compared with the *measured* frames:

    min  sum_w,k || (O c_k(theta; d_w + F alpha_w) - y_wk) / sigma ||^2 + priors

Clean frames are never data: their noise is neither independent nor unbiased.
The corrections of a window enter no other one, so they are eliminated window by
window (Schur complement); what is left has the size of theta.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from quietbeam.offline.inversion.integrate import Times, sensitivities, trajectory
from quietbeam.offline.inversion.model import Array, ForwardModel, vector

TILES = 4
"""Tiles along each side of an image; residuals of different tiles count as independent."""
NEGLIGIBLE = 1e-3
"""Information, in units of the prior's, below which a direction of a start is dropped."""
BLOCK_FRAMES = 4
"""Frames of one block in time, likewise."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What was measured, in units of composition.

    Attributes:
        frames: (t, *s) measured; any value where ``weight`` is 0.
        weight: (t, *s) one over the variance of the noise; 0: not used.
        clean: (t, *s) denoised: where windows start.
        times: (t,) frames.
        start_sd: S.d. allowed to every correction of a start; wide, because the
            clean frames were made from the same measurement.
    """

    frames: Array
    weight: Array
    clean: Array
    times: Array
    start_sd: float


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The measured frames, cut into n windows of k frames; the last may have fewer, weighing 0."""

    of: Measured
    index: np.ndarray
    padding: np.ndarray

    @classmethod
    def cut(cls, measured: Measured, frames: int) -> Windows:
        """Cut into windows of about ``frames``, at least two."""
        total = len(measured.frames)
        count = max(1, round(total / max(2, frames)))
        parts = np.array_split(np.arange(total), count)
        longest = max(map(len, parts))
        index = np.stack([np.pad(p, (0, longest - len(p)), mode="edge") for p in parts])
        padding = np.stack([np.arange(longest) >= len(p) for p in parts])
        return cls(measured, index, padding)

    @property
    def times(self) -> Times:
        """When the frames of every window were taken."""
        of = self.of.times[self.index]
        step = float(np.median(np.diff(self.of.times)))
        extra = np.cumsum(self.padding, axis=1) * step  # time goes on where frames do not
        return Times(of + extra)

    def starts(self) -> Tensor:
        """(n, *s) float64."""
        return vector(self.of.clean[self.index[:, 0]])

    def frame(self, k: int) -> tuple[Tensor, Tensor]:
        """Give the k-th frame of every window and its weight: (n, *s) each."""
        of = self.index[:, k]
        weight = self.of.weight[of] * ~self.padding[:, k].reshape(
            -1, *[1] * (self.of.frames.ndim - 1)
        )
        return vector(self.of.frames[of]), vector(weight)

    def __len__(self) -> int:
        return len(self.index)


@dataclass(slots=True, eq=False)
class Point:
    """Where the fit is: parameters and the corrections of every window."""

    theta: Array
    alpha: Array
    """(n, m)."""


@dataclass(slots=True, eq=False)
class Normal:
    """Gauss-Newton equations at a point, without priors; float64.

    Attributes:
        a: (p, p), b: (n, p, m), c: (n, m, m): blocks of J^T W J.
        g: (p,), h: (n, m): J^T W r with r = measured - predicted.
        chi2: sum W r^2.
        used: Number of measured values.
        scores: (n, blocks, tiles, p + m) parts of (g, h), if asked for.
    """

    a: Array
    b: Array
    c: Array
    g: Array
    h: Array
    chi2: float
    used: int
    scores: Array | None = None


@dataclass(frozen=True, eq=False)
class Problem:
    """A model and the windows it is to explain."""

    model: ForwardModel
    windows: Windows
    modes: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "modes", self.model.modes().contiguous())

    def origin(self, theta: Array) -> Point:
        """Give the point ``theta`` without corrections."""
        return Point(theta, np.zeros((len(self.windows), len(self.modes))))

    def start(self, point: Point) -> Tensor:
        """Give the initial state of every window: (n, *s)."""
        shift = torch.einsum("nm,m...->n...", vector(point.alpha), self.modes)
        return self.windows.starts() + shift

    def predict(self, point: Point) -> Tensor:
        """Give what the detector should see: (n, k, *s)."""
        start, theta = self.start(point), vector(point.theta)
        states = [start, *trajectory(self.model, start, theta, self.windows.times)]
        return self.model.observe(torch.stack(states, 1))

    def cost(self, point: Point) -> float:
        """Give half of chi^2 and priors: minus the log posterior; infinite where it diverged."""
        start, theta = self.start(point), vector(point.theta)
        total = self._misfit(0, start)
        for k, state in enumerate(trajectory(self.model, start, theta, self.windows.times), 1):
            total += self._misfit(k, state)
        total += self.prior_cost(point)
        return total if np.isfinite(total) else float("inf")

    def prior_cost(self, point: Point) -> float:
        """Give the part of the priors."""
        prior = self.model.parameters
        z = (point.theta - prior.mean) / prior.sd
        return 0.5 * float(z @ z + (point.alpha**2).sum() / self.windows.of.start_sd**2)

    def normal(self, point: Point, *, scores: bool = False) -> Normal:
        """Linearise: one run of the tangent-linear model."""
        n, p, m = len(self.windows), len(point.theta), len(self.modes)
        start, theta = self.start(point), vector(point.theta)
        matrix, right = np.zeros((n, p + m, p + m)), np.zeros((n, p + m))
        chi2, used, parts = 0.0, 0, []
        first = torch.zeros((n, p + m, *start.shape[1:]), dtype=torch.float32)
        first[:, p:] = self.modes
        runs = sensitivities(
            self.model, start, theta, self.windows.times, self.modes.to(torch.float32),
            self._negligible(),
        )  # fmt: skip
        for k, (state, moved) in enumerate(_chain((start, first), runs)):
            measured, weight = self.windows.frame(k)
            residual = measured - self.model.observe(state)
            columns = self.model.observe(moved).double().reshape(n, p + m, -1)
            weighted = columns * weight.reshape(n, 1, -1)
            matrix += (weighted @ columns.transpose(1, 2)).numpy()
            pull = weighted * residual.reshape(n, 1, -1)
            right += pull.sum(2).numpy()
            chi2 += float((weight * residual**2).sum())
            used += int((weight > 0).sum())
            if scores:
                parts.append(self._tiles(pull).numpy())
        return Normal(
            matrix[:, :p, :p].sum(0), matrix[:, :p, p:], matrix[:, p:, p:],
            right[:, :p].sum(0), right[:, p:], chi2, used, _blocks(parts) if scores else None,
        )  # fmt: skip

    def _negligible(self) -> float:
        """Squared norm of a direction that all frames together cannot tell from noise."""
        of = self.windows.of
        return NEGLIGIBLE / (float(of.weight.max()) * len(of.frames) * of.start_sd**2)

    def _misfit(self, k: int, state: Tensor) -> float:
        measured, weight = self.windows.frame(k)
        return 0.5 * float((weight * (measured - self.model.observe(state)) ** 2).sum())

    def _tiles(self, pull: Tensor) -> Tensor:
        """Sum (n, q, pixels) over tiles: (n, tiles, q)."""
        shape = self.model.shape
        image = pull.reshape(*pull.shape[:2], *(shape if len(shape) == 2 else (1, *shape)))
        rows = [part.sum(2) for part in image.tensor_split(min(TILES, image.shape[2]), 2)]
        return torch.stack([part.sum(2) for row in rows for part in row.tensor_split(TILES, 2)], 1)


def _chain(first: tuple[Tensor, Tensor], rest):  # noqa: ANN001, ANN202
    yield first
    yield from rest


def _blocks(parts: list[Array]) -> Array:
    """Sum k frames of (n, tiles, q) in blocks: (n, blocks, tiles, q)."""
    frames = np.stack(parts, 1)
    cuts = np.arange(0, frames.shape[1], BLOCK_FRAMES)
    return np.add.reduceat(frames, cuts, axis=1)
