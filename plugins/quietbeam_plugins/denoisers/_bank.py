"""A linear filter fitted to the stream in closed form: what ``quiet`` stands on.

The network weighs filters pixel by pixel, but never takes one away from
another.  The best *linear* filter of a scene does: it subtracts a wide blur to
sharpen, an old mean to follow a drift.  Here is that filter, one for the whole
image, over all frames and memories in all blurs, with the network's answer as
one more term.  Its weights are those of least squares against the measured
frame: the estimates are blind, so the noise of that frame adds the same to the
error of every one of them and does not change which is best (Batson & Royer,
Noise2Self, ICML 2019, prop. 1).

Shapes: n streams, j images, f = 4 j terms, h2, w2 half of height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quietbeam_plugins.denoisers._filters import Blurs

_RIDGE = 2e-3
"""Of the noise variance: no term may grow large to undo another, which the next scene would pay."""
_SET = 4 * Blurs.count  # channels of one set of weights
_FEW = 30.0  # with so many pixels for each term the ridge is one


class FilterBank(nn.Module):
    """Weighted sum of the network's mean and of other images, each in every blur.

    The weights add up to one.  They are a buffer: no gradient step touches them, engines swap
    them like any other.  There is one set for estimates with later frames, and one for previews.

    Args:
        images: How many (j), the network's mean among them.
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        # A convolution of folded images: set after set, blur after blur, the four pixels of a fold.
        self.register_buffer("mix", torch.zeros(2 * _SET, 4 * images, 1, 1))
        for preview in (False, True):
            self.take(torch.eye(1, Blurs.count * images)[0], preview=preview)

    def forward(self, blurs: Blurs, images: list[Tensor], *, preview: bool) -> Tensor:
        """Give the filtered mean (n, 4, h2, w2) from images of that shape, the network's first."""
        mixed = F.conv2d(torch.cat(images, 1), self.get_buffer("mix"))
        first = _SET * int(preview)
        return blurs.summed([mixed[:, i : i + 4] for i in range(first, first + _SET, 4)])

    @staticmethod
    def terms(blurs: Blurs, images: list[Tensor]) -> Tensor:
        """Give all terms, blur after blur, the network's mean first: (f, n, 4, h2, w2)."""
        blurred = [blurs(image) for image in images]
        return torch.stack([image[b] for b in range(Blurs.count) for image in blurred])

    def moments(self) -> Moments:
        """Nothing measured yet."""
        count = len(self.weights(preview=False))
        return Moments(torch.zeros(count, count, dtype=torch.float64))

    def weights(self, *, preview: bool) -> Tensor:
        """Weights (f,) float64, in the order of ``terms``."""
        first = _SET * int(preview)
        return self.get_buffer("mix")[first : first + _SET : 4, ::4].flatten().double()

    def take(self, weights: Tensor, *, preview: bool) -> None:
        """Use these weights (f,) from now on, in the order of ``terms``."""
        first = _SET * int(preview)
        table = weights.reshape(Blurs.count, -1).contiguous()
        mix = torch.kron(table, torch.eye(4, dtype=weights.dtype))
        self.get_buffer("mix")[first : first + _SET] = mix[..., None, None]


@dataclass(slots=True, eq=False)
class Moments:
    """Second moments of the errors of f terms, all against the same measured pixels.

    Attributes:
        products: (f, f) float64, sums over pixels.
        pixels: How many.
    """

    products: Tensor
    pixels: int = 0

    def add(self, terms: Tensor, measured: Tensor) -> None:
        """Take (f, p) terms and (p,) measured pixels, stabilised units."""
        errors = terms - measured
        self.products += (errors @ errors.T).double()
        self.pixels += measured.numel()

    def solve(self) -> Tensor:
        """Weights (f,) that add up to one and leave the smallest error; they may be negative."""
        count = len(self.products)
        ridge = _RIDGE + _FEW * count / max(self.pixels, 1)
        mean = self.products / max(self.pixels, 1)
        ones = torch.ones(count, dtype=torch.float64)
        weights = torch.linalg.solve(mean + ridge * torch.eye(count, dtype=torch.float64), ones)
        return weights / weights.sum()

    def left(self, weights: Tensor) -> float:
        """Sum of the squared errors that ``weights`` leave."""
        return float(weights @ self.products @ weights)
