"""The classical denoiser of slow scenes: a long mean, sharp, and what has changed since, smooth.

A pixel is predicted by the mean of its past plus the change that the newest
frames show.  The changes of the last T frames (each frame less the mean before
it, blurred by a few pixels) are a T x hw matrix of low rank: a scene moves as
a whole, noise does not.  Its leading singular vectors, those beyond the
largest one that noise alone would have (Marchenko & Pastur 1967; as a rule
for denoising: Gavish & Donoho, IEEE Trans. Inf. Theory 60, 5040 (2014)), say
how the newest change follows from those before it: regression on principal
components.  The same weights applied one frame later predict the next frame
without having seen it.

Only the T x T Gram matrix is decomposed, and only one row of it is new with
each frame; its eigenvectors are followed from frame to frame by subspace
iteration, which every engine can run.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from quietbeam import DenoiserPlugin
from quietbeam_plugins.denoisers._shared import UNKNOWN, Untrained, box_mean

_KERNEL = (1 / 9, 2 / 9, 3 / 9, 2 / 9, 1 / 9)  # of two box means of radius 1, in one direction
_NOISE = sum(k * k for k in _KERNEL) ** 2
"""Noise variance that the blur leaves of one."""

_OUTLIER_SD = 4.0
"""Pixels farther from their prediction are not learned from, unless they stay there."""

_PERSISTS = 3
"""Frames after which an outlier is a change, and its pixel begins anew."""

_FOLLOW = 0.1  # rate at which the measured error follows
_AROUND_PX = 8  # radius of the box it is measured in
_LEAST = 1e-3
"""On the diagonal of the Gram matrix: far below noise, and nothing is divided by zero."""


class SVD(DenoiserPlugin):
    """Causal, blind, no training: the strongest of its kind where scenes change slowly."""

    frames: int = Field(default=16, ge=4, le=64)
    """Frames whose changes are decomposed; each costs memory for one image."""
    components: int = Field(default=4, ge=1, le=8)
    """Singular vectors that are followed; those that noise could have made are not used."""
    memory: int = Field(default=64, ge=8)
    """Frames that the long mean reaches back."""

    def build(self) -> SVDFilter:
        """Give the filter."""
        return SVDFilter(self.frames, self.components, self.memory)


class SVDFilter(Untrained):
    """A ``StreamingDenoiser`` without weights."""

    window = 2

    def __init__(self, frames: int, components: int, memory: int) -> None:
        super().__init__()
        self.frames, self.components, self.memory = frames, components, memory

    def initial_state(self, n: int, h: int, w: int) -> tuple[Tensor, ...]:
        """Give the long mean, the frames in it, the error, outliers in a row; then the changes.

        Four planes (n, 1, h, w); Gram matrix (n, T, T), singular vectors
        (n, T, r) and weights (n, T, 1) of the changes; and these, newest
        first: T planes (n, 1, h, w).
        """
        t, zero = self.frames, torch.zeros(n, 1, h, w)
        first = torch.eye(t, self.components).expand(n, -1, -1).clone()
        known = (_LEAST * torch.eye(t).expand(n, -1, -1), first, torch.zeros(n, t, 1))
        planes = [zero.clone() for _ in range(4 + t)]
        return (*planes[:4], *known, *planes[4:])

    def forward(
        self, frame: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Predict frame i (n, 1, h, w) from the frames before it, then learn from it."""
        base, age, error, run, gram, basis, weights, *changes = state
        # A mean that was begun anew with the newest frame holds the change already.
        mean = base + torch.where(age < 1.5, 0.0, _combine(weights, changes))
        variance = torch.maximum(error, 0.5 / age.clamp(min=1))
        empty = age < 0.5

        outlying = ((frame - mean).abs() > _OUTLIER_SD * torch.sqrt(1 + variance)) & ~empty
        run = torch.where(outlying, run + 1, 0.0)
        changed = run >= _PERSISTS
        ignored = outlying & ~changed
        frame = torch.where(ignored, mean, frame)

        sharp = torch.where(empty, 0.0, frame - base)
        change = _blurred(sharp)
        basis = _followed(gram, basis)
        weights = _regression(basis, _products(sharp, changes), self._noise_edge(frame))
        changes = [change, *changes[:-1]]
        gram = _shifted(gram, _products(change, changes))

        missed = torch.where(ignored, 1 + error, (frame - mean) ** 2)
        found = box_mean(missed.clamp(max=_OUTLIER_SD**2), _AROUND_PX) - 1
        error = error + torch.maximum(1 / (age + 1), age.new_tensor(_FOLLOW)) * (found - error)
        anew = changed | empty
        age = torch.where(anew, 1.0, (age + 1).clamp(max=self.memory))
        following = (
            base + (frame - base) / age,
            age,
            torch.where(anew, 1.0, error),
            run,
            gram,
            basis,
            weights,
            *changes,
        )
        return (
            torch.where(empty, 0.0, mean),
            torch.where(empty, UNKNOWN, variance),
            following,
        )

    def _noise_edge(self, frame: Tensor) -> float:
        """Largest eigenvalue that blurred noise alone gives the Gram matrix."""
        independent = frame.shape[-2] * frame.shape[-1] * _NOISE  # pixels, after the blur
        return 1.1 * _NOISE * (1 + math.sqrt(self.frames / independent)) ** 2


def _blurred(image: Tensor) -> Tensor:
    return box_mean(box_mean(image, 1), 1)


def _products(image: Tensor, planes: list[Tensor]) -> Tensor:
    """Mean over the pixels of ``image`` times each of T planes, (n, 1, h, w) each: (n, T, 1)."""
    flat = image.flatten(2)
    sums = torch.cat([flat @ plane.flatten(2).mT for plane in planes], 1)
    return sums / (image.shape[-2] * image.shape[-1])


def _combine(weights: Tensor, planes: list[Tensor]) -> Tensor:
    """Weighted sum of T planes (n, 1, h, w), weights (n, T, 1)."""
    total = torch.zeros_like(planes[0])
    for j, plane in enumerate(planes):
        total = total + weights[:, j, None, None] * plane
    return total


def _shifted(gram: Tensor, row: Tensor) -> Tensor:
    """Gram matrix after the newest plane came in front; ``row`` (n, T, 1) are its products."""
    row = torch.cat([row[:, :1] + _LEAST, row[:, 1:]], 1)
    rest = torch.cat([row[:, 1:].mT, gram[:, :-1, :-1]], 1)
    return torch.cat([row, rest], 2)


def _followed(gram: Tensor, basis: Tensor) -> Tensor:
    """Leading eigenvectors (n, T, r), from those of the frame before: one subspace iteration.

    They are made orthonormal in the metric of ``gram`` itself (Gram-Schmidt),
    so that a regression on them needs no inverse, converged or not.
    """
    basis = gram @ basis
    columns: list[Tensor] = []
    for k in range(basis.shape[2]):
        column = basis[:, :, k : k + 1]
        for _ in range(2):  # once is not enough in float32
            column = column / column.square().sum(1, keepdim=True).sqrt()
            for other in columns:
                column = column - other * (other.mT @ gram @ column)
        columns.append(column / (column.mT @ gram @ column).sqrt())
    return torch.cat(columns, 2)


def _regression(basis: Tensor, products: Tensor, edge: float) -> Tensor:
    """Weights (n, T, 1) of the components above ``edge`` that give ``products`` (n, T, 1)."""
    squared = basis.square().sum(1)  # (n, r); for an eigenvector 1 / eigenvalue
    real = squared * edge < 1
    shares = (basis.mT @ products) * real[:, :, None].to(basis.dtype)
    return basis @ shares
