"""Space, discretised: derivatives of images with a boundary, and the smooth functions on them.

``Spectral`` is exact for band-limited images, periodic or without flux (a cosine
series).  ``Volumes`` takes a mask of any shape: finite volumes of one pixel, no
flux through the edge, second order.  Lengths are in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quietbeam.core.errors import ConfigError

Boundary = Literal["periodic", "no-flux"]
LARGEST_MASK_PX = 5000


class Grid(Protocol):
    """Fields are (..., h, w); fluxes are pairs of such, along y and along x."""

    shape: tuple[int, int]

    def gradient(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Give the derivatives along y and x, where fluxes live."""
        ...

    def divergence(self, fluxes: tuple[Tensor, Tensor]) -> Tensor:
        """Give the divergence; its sum over the image is zero to rounding."""
        ...

    def laplacian(self, field: Tensor) -> Tensor:
        """Give the Laplacian."""
        ...

    def between(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Give the field where fluxes live."""
        ...

    def filtered(self, field: Tensor, response: Tensor) -> Tensor:
        """Multiply every eigenfunction of the Laplacian by its ``response``."""
        ...

    @property
    def eigenvalues(self) -> Tensor:
        """Of minus the Laplacian, in the shape that ``filtered`` takes."""
        ...

    def pixel_response(self) -> Tensor:
        """Give the response of averaging over the area of a pixel."""
        ...

    def smoothest(self, count: int) -> Tensor:
        """Give the ``count`` smoothest eigenfunctions, orthonormal: (count, h, w)."""
        ...


@dataclass(frozen=True, eq=False)
class Axis:
    """One direction of an image: orthonormal waves and what derivatives do to them.

    Attributes:
        waves: (n, n); column j is the j-th eigenfunction.
        wavenumbers: (n,) radians per pixel.
        gradient: (n, n) first derivative, to where fluxes live.
        divergence: (n, n) first derivative, back.
    """

    waves: Tensor
    wavenumbers: Tensor
    gradient: Tensor
    divergence: Tensor


def axis(size: int, boundary: Boundary) -> Axis:
    """Give the waves on ``size`` pixel centres and their exact derivatives."""
    x = np.arange(size) + 0.5
    if boundary == "no-flux":
        k = np.pi * np.arange(size) / size
        cosines, sines = np.cos(np.outer(x, k)), np.sin(np.outer(x, k))
        norm = np.sqrt(np.where(k == 0, 1, 2) / size)
        waves = cosines * norm
        gradient = (sines * norm * -k) @ waves.T
        # A flux is a sine series; what it leaves of the highest sine is not seen on the grid.
        divergence = (waves * k) @ (sines * norm).T
        return Axis(*map(_tensor, (waves, k, gradient, divergence)))
    k = 2 * np.pi * np.arange(size // 2 + 1) / size
    columns, numbers, slopes = [], [], []
    for j, one in enumerate(k):
        last = 2 * j == size
        norm = np.sqrt((1 if j == 0 or last else 2) / size)
        columns.append(norm * np.cos(one * (x - 0.5)))
        slopes.append(norm * -one * np.sin(one * (x - 0.5)) * (not last))
        numbers.append(one)
        if j and not last:
            columns.append(norm * np.sin(one * (x - 0.5)))
            slopes.append(norm * one * np.cos(one * (x - 0.5)))
            numbers.append(one)
    waves = np.array(columns).T
    derivative = np.array(slopes).T @ waves.T
    return Axis(*map(_tensor, (waves, np.array(numbers), derivative, derivative)))


class Spectral:
    """Images on a rectangle, by dense matrices: below about 200 pixels faster than FFTs."""

    def __init__(self, shape: tuple[int, int], boundary: Boundary) -> None:
        self.shape = shape
        self._y, self._x = (axis(size, boundary) for size in shape)

    @property
    def eigenvalues(self) -> Tensor:
        """(h, w): squared wavenumbers."""
        return self._y.wavenumbers[:, None] ** 2 + self._x.wavenumbers[None] ** 2

    def gradient(self, field: Tensor) -> tuple[Tensor, Tensor]:
        return _left(self._y.gradient, field), _right(field, self._x.gradient.T)

    def divergence(self, fluxes: tuple[Tensor, Tensor]) -> Tensor:
        return _left(self._y.divergence, fluxes[0]) + _right(fluxes[1], self._x.divergence.T)

    @cached_property
    def _second(self) -> tuple[Tensor, Tensor]:
        y, x = ((-a.waves * a.wavenumbers**2) @ a.waves.T for a in (self._y, self._x))
        return y, x

    def laplacian(self, field: Tensor) -> Tensor:
        return _left(self._second[0], field) + _right(field, self._second[1])

    def between(self, field: Tensor) -> tuple[Tensor, Tensor]:
        return field, field

    def filtered(self, field: Tensor, response: Tensor) -> Tensor:
        spectrum = _right(_left(self._y.waves.T, field), self._x.waves) * response.to(field.dtype)
        return _right(_left(self._y.waves, spectrum), self._x.waves.T)

    def pixel_response(self) -> Tensor:
        y, x = (torch.sinc(a.wavenumbers / (2 * torch.pi)) for a in (self._y, self._x))
        return y[:, None] * x[None]

    def smoothest(self, count: int) -> Tensor:
        w = self.shape[1]
        order = torch.argsort(self.eigenvalues.reshape(-1), stable=True)[:count]
        return torch.stack(
            [torch.outer(self._y.waves[:, i // w], self._x.waves[:, i % w]) for i in order.tolist()]
        )


def _left(matrix: Tensor, field: Tensor) -> Tensor:
    """Multiply along y: one matrix product, for which rows lie outermost in memory."""
    rows = field.movedim(-2, 0)
    product = matrix.to(field.dtype) @ rows.reshape(rows.shape[0], -1)
    return product.reshape(-1, *rows.shape[1:]).movedim(0, -2)


def _right(field: Tensor, matrix: Tensor) -> Tensor:
    """Multiply along x; the layout in memory stays that of ``_left``."""
    rows = field.movedim(-2, 0)
    product = rows.reshape(-1, rows.shape[-1]) @ matrix.to(field.dtype)
    return product.reshape(*rows.shape[:-1], -1).movedim(0, -2)


class Volumes:
    """Images on a mask, by finite volumes; values outside it are kept at 0 change.

    Raises:
        ConfigError: The mask has more than 5000 pixels: dense matrices would not do.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.shape = mask.shape
        inside = int(mask.sum())
        if not 0 < inside <= LARGEST_MASK_PX:
            raise ConfigError(
                f"a mask of {inside} pixels; expected 1 to {LARGEST_MASK_PX}: choose one particle"
            )
        self.mask = torch.from_numpy(mask)
        self._open = (
            self.mask[1:] & self.mask[:-1],
            self.mask[:, 1:] & self.mask[:, :-1],
        )
        self._where = torch.nonzero(self.mask.reshape(-1)).squeeze(-1)

    def gradient(self, field: Tensor) -> tuple[Tensor, Tensor]:
        return (
            (field[..., 1:, :] - field[..., :-1, :]) * self._open[0],
            (field[..., 1:] - field[..., :-1]) * self._open[1],
        )

    def divergence(self, fluxes: tuple[Tensor, Tensor]) -> Tensor:
        y, x = fluxes
        along_y = torch.nn.functional.pad(y, (0, 0, 1, 1))
        along_x = torch.nn.functional.pad(x, (1, 1))
        return along_y[..., 1:, :] - along_y[..., :-1, :] + along_x[..., 1:] - along_x[..., :-1]

    def laplacian(self, field: Tensor) -> Tensor:
        return self.divergence(self.gradient(field))

    def between(self, field: Tensor) -> tuple[Tensor, Tensor]:
        return (
            (field[..., 1:, :] + field[..., :-1, :]) / 2,
            (field[..., 1:] + field[..., :-1]) / 2,
        )

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """(N,) and (N, N): eigenvalues of minus the Laplacian and its eigenfunctions."""
        count = len(self._where)
        number = torch.full((self.mask.numel(),), -1, dtype=torch.long)
        number[self._where] = torch.arange(count)
        number = number.reshape(self.shape)
        matrix = torch.zeros((count, count), dtype=torch.float64)
        for a, b, opened in (
            (number[1:], number[:-1], self._open[0]),
            (number[:, 1:], number[:, :-1], self._open[1]),
        ):
            i, j = a[opened], b[opened]
            matrix[i, j] = matrix[j, i] = -1.0
        matrix -= torch.diag(matrix.sum(1))
        values, functions = torch.linalg.eigh(matrix)
        return values.clamp_min(0), functions

    @property
    def eigenvalues(self) -> Tensor:
        """(N,) of the pixels inside."""
        return self._eigen[0]

    def filtered(self, field: Tensor, response: Tensor) -> Tensor:
        functions = self._eigen[1]
        flat = field.reshape(*field.shape[:-2], -1)
        functions = functions.to(field.dtype)
        spectrum = (flat[..., self._where] @ functions) * response.to(field.dtype)
        out = torch.zeros_like(flat)
        out[..., self._where] = spectrum @ functions.T
        return out.reshape(field.shape)

    def pixel_response(self) -> Tensor:
        """A finite volume *is* the average over its pixel."""
        return torch.ones_like(self.eigenvalues)

    def smoothest(self, count: int) -> Tensor:
        out = torch.zeros((min(count, len(self._where)), self.mask.numel()), dtype=torch.float64)
        out[:, self._where] = self._eigen[1][:, :count].T
        return out.reshape(-1, *self.shape)


def make_grid(
    shape: tuple[int, int], boundary: Boundary, mask: NDArray[np.bool_] | None = None
) -> Grid:
    """Give the grid for a whole image, or for the part of it where ``mask`` is True."""
    if mask is None or mask.all():
        return Spectral(shape, boundary)
    if mask.shape != shape:
        raise ConfigError(f"a mask of shape {mask.shape} for frames of {shape}")
    return Volumes(mask)


def _tensor(values: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float64))
