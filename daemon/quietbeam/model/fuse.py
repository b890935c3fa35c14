"""Posterior fusion: a blind prediction and the measured frame, in closed form."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

OUTLIER_SD = 4.5
"""A pixel farther than this from its prediction is taken as an outlier and not fused."""


def fuse(
    mean: Float, variance: Float, measured: Float, valid: NDArray[np.bool_] | None = None
) -> tuple[Float, Float, Float]:
    """Combine a blind estimate with the measured frame of unit noise.

    The product of two Gaussians: weight ``w = v / (1 + v)`` for the measured
    pixel.  ``v = 0`` means "not known": nothing is fused.  Outliers and
    invalid pixels keep the prediction.

    All arrays have one shape.

    Args:
        mean: Blind estimate, stabilised units.
        variance: Its variance about the truth.
        measured: Stabilised units.
        valid: False where ``measured`` means nothing.

    Returns:
        (estimate, its variance, weight of the measured pixel).
    """
    total = 1 + variance
    difference = measured - mean
    use = difference**2 < np.float32(OUTLIER_SD**2) * total
    if valid is not None:
        use &= valid
    np.copyto(difference, 0, where=~use)
    posterior: Float = np.asarray(variance / total, np.float32)
    weight: Float = np.asarray(posterior * use, np.float32)
    np.copyto(posterior, variance, where=~use)
    return np.asarray(mean + weight * difference, np.float32), posterior, weight
