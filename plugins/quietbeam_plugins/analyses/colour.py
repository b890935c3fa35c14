r"""Phases from colour: class probabilities in CIELAB, and none where no class fits.

Every class k is a Gaussian around its colour m_k, its covariance the spread of the class and
the noise of the frame taken to CIELAB through the Jacobian J of the transform::

    p_k(x) ~ N(x; m_k, spread^2 1 + J diag(s^2) J^T)

A pixel is *unclassified* where the nearest class is farther than chi^2_3 allows at 99.9 %, or no
class has a probability of 0.7.  All that depends on the colour alone, so it is tabled once for
64 x 64 x 64 colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from quietbeam_plugins.analyses.untyped import skimage

Pixels = NDArray[np.float32]
Level = Annotated[float, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]

_BITS = 6
_NODES = 1 << _BITS
_FAR = 16.27  # chi^2 with 3 degrees of freedom, 99.9 %
_SURE = 0.7


class Phase(BaseModel):
    """One class of colour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    colour: Colour
    """Red, green, blue of 0 to 255, as the camera gives it with ``full_scale`` taken to 255."""
    charge: float = Field(ge=0, le=1)
    """State of charge of this phase."""


@dataclass(frozen=True, slots=True, eq=False)
class Classified:
    """Arrays (h, w).

    Attributes:
        phase: uint8, number of the class from 1; 0 where unclassified.
        charge: float32, expected state of charge over the classes; NaN where unclassified.
        variance: float32, of ``charge``, from the class probabilities.
    """

    phase: NDArray[np.uint8]
    charge: Pixels
    variance: Pixels


class ColourTable:
    """Classes of all colours, at a certain noise.

    Args:
        phases: The classes.
        background: Colour between particles; it competes, and counts as none.
        spread: s.d. of the colours of a class, in units of CIELAB.
        noise: s.d. of a clean pixel by channel, 8-bit scale.
    """

    def __init__(
        self, phases: Sequence[Phase], background: Colour, spread: float, noise: NDArray[np.float64]
    ) -> None:
        axis = (np.arange(_NODES) + 0.5) * (256 / _NODES)
        rgb = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        lab, steps = _lab(rgb), 4.0
        jacobian = np.stack(
            [(_lab(rgb + steps * e) - _lab(rgb - steps * e)) / (2 * steps) for e in np.eye(3)], -1
        )
        covariance = jacobian @ (np.square(noise)[:, None] * jacobian.swapaxes(1, 2))
        covariance += spread**2 * np.eye(3)
        inverse, log_size = np.linalg.inv(covariance), np.linalg.slogdet(covariance)[1]
        centres = _lab(np.array([background, *(phase.colour for phase in phases)], float))
        away = lab[:, None] - centres[None]
        distance = np.einsum("nki,nij,nkj->nk", away, inverse, away)
        likelihood = np.exp(-0.5 * (distance - distance.min(1, keepdims=True)))
        probability = likelihood / likelihood.sum(1, keepdims=True)
        del log_size  # the same for all classes of one colour: it cancels
        self._fill(phases, distance, probability)

    def _fill(
        self,
        phases: Sequence[Phase],
        distance: NDArray[np.float64],
        probability: NDArray[np.float64],
    ) -> None:
        best = probability.argmax(1)
        rows = np.arange(best.size)
        known = (distance[rows, best] <= _FAR) & (probability[rows, best] >= _SURE) & (best > 0)
        share = probability[:, 1:] / np.maximum(probability[:, 1:].sum(1, keepdims=True), 1e-12)
        charges = np.array([phase.charge for phase in phases])
        mean = share @ charges
        nan = np.float32(np.nan)
        self._phase = np.where(known, best, 0).astype(np.uint8)
        self._charge = np.where(known, mean, nan).astype(np.float32)
        variance = np.maximum(share @ charges**2 - mean**2, 0)
        self._variance = np.where(known, variance, nan).astype(np.float32)

    def __call__(self, rgb: Pixels) -> Classified:
        """Classify (3, h, w) in the 8-bit scale; not-a-number is unclassified."""
        scale = np.float32(_NODES / 256)
        node = np.zeros(rgb.shape[1:], np.int32)
        for channel in rgb:
            level = np.clip(np.nan_to_num(channel * scale), 0, _NODES - 1).astype(np.int32)
            node = (node << _BITS) | level
        bad = ~np.isfinite(rgb).all(0)
        phase, charge = self._phase[node], self._charge[node]
        variance = self._variance[node]
        if bad.any():
            phase[bad], charge[bad], variance[bad] = 0, np.nan, np.nan
        return Classified(phase, charge, variance)


def _lab(rgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """CIELAB (D65) of sRGB values of 0 to 255, (n, 3)."""
    return skimage("color").rgb2lab(np.clip(rgb / 255, 0, 1)[None])[0]
