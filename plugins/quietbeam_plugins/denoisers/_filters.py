"""Fixed filters that ``quiet`` chooses between: medians, blurs, and how noise passes them.

*Folded* means that 2 x 2 pixels stand in four channels at half the resolution,
so that dense convolutions, which processors do fast, also do what needs single
pixels.  Shapes: n streams, h height, w width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Paeth, Graphics Gems (1990): exchanges that leave the median of nine in the middle.
_EXCHANGES = (
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3),
    (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip


def fold(x: Tensor) -> Tensor:
    """(n, 1, h, w) -> (n, 4, h / 2, w / 2); edges are repeated up to a multiple of eight."""
    h, w = x.shape[-2:]
    return F.pixel_unshuffle(F.pad(x, (0, -w % 8, 0, -h % 8), mode="replicate"), 2)


def unfold(x: Tensor, h: int, w: int) -> Tensor:
    """Undo ``fold`` for an image of (h, w)."""
    return F.pixel_shuffle(x, 2)[..., :h, :w]


def median_3x3(x: Tensor) -> Tensor:
    """Median of 3 x 3 pixels of (n, 1, h, w); the edges are repeated."""
    h, w = x.shape[-2:]
    padded = _edge(x)
    near = [padded[..., i : i + h, j : j + w] for i in range(3) for j in range(3)]
    for i, j in _EXCHANGES:
        near[i], near[j] = torch.minimum(near[i], near[j]), torch.maximum(near[i], near[j])
    return near[4]


class Blurs(torch.nn.Module):
    """Four versions of a folded image: as it is, and with blurs of 1, 1.4 and 2.2 pixels s.d.

    The buffer ``energies`` (4, 4, 1, 1) tells what is left of the variance of
    white noise (diagonal), and what any two of them share.
    """

    count = 4

    def __init__(self) -> None:
        super().__init__()
        binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
        linear = torch.tensor([[1.0, 3.0, 0.0], [0.0, 3.0, 1.0]]) / 4
        lift = torch.einsum("oy,px->opyx", linear, linear).reshape(4, 1, 3, 3)
        self.register_buffer("fine", _folded_binomial(), persistent=False)
        self.register_buffer("wide", torch.outer(binomial, binomial)[None, None], persistent=False)
        self.register_buffer("lift", lift, persistent=False)
        energies = self._energies()[..., None, None]
        self.register_buffer("energies", energies, persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(n, 4, h / 2, w / 2) -> four of the same shape."""
        once = self._fine(x)
        return [x, once, self._fine(once), self._coarse(x)]

    def summed(self, images: Sequence[Tensor]) -> Tensor:
        """Sum of four folded images, the first as it is, each further one with its own blur."""
        plain, once, twice, coarse = images
        return plain + self._fine(once + self._fine(twice)) + self._coarse(coarse)

    def _fine(self, x: Tensor) -> Tensor:
        return F.conv2d(_edge(x), self.get_buffer("fine"))

    def _coarse(self, x: Tensor) -> Tensor:
        wide, lift = self.get_buffer("wide"), self.get_buffer("lift")
        coarse = F.conv2d(_edge(x.mean(1, keepdim=True)), wide)
        return F.conv2d(_edge(F.conv2d(_edge(coarse), wide)), lift)

    def _energies(self) -> Tensor:
        """What is left of the variance of white noise, and shared between any two: (4, 4)."""
        total = torch.zeros(self.count, self.count)
        for phase in range(4):
            point = torch.zeros(1, 4, 17, 17)
            point[0, phase, 8, 8] = 1
            answers = torch.stack([answer.flatten() for answer in self(point)])
            total += answers @ answers.T / 4
        return total


def _folded_binomial() -> Tensor:
    """The kernel 1 4 6 4 1 along both axes, for folded images: (4, 4, 3, 3)."""
    axis = torch.zeros(2, 2, 3)  # pixel out, pixel in, offset at half resolution
    for out in range(2):
        for distance, tap in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
            place = out + distance
            axis[out, place % 2, place // 2 + 1] = tap / 16
    return torch.einsum("oiy,pjx->opijyx", axis, axis).reshape(4, 4, 3, 3).contiguous()


def _edge(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="replicate")
