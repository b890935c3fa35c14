"""Registration of images of one scene that look different; and comparison with a reference map."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quietbeam_plugins.analyses.untyped import ndimage, skimage

Pixels = NDArray[np.float32]


class Found(NamedTuple):
    """A shift in pixels (down, right) of an image against another, and whether to trust it."""

    y: float
    x: float
    agreement: float
    """Correlation coefficient after alignment, -1 to 1."""


def register(reference: Pixels, moving: Pixels, upsample: int = 50) -> Found:
    """Find how far ``moving`` lies from ``reference``, to 1 / ``upsample`` of a pixel.

    Cross-correlation by matrix DFT (Guizar-Sicairos 2008, in scikit-image) of silhouettes:
    what lies inside a particle differs from energy to energy and would pull the shift.
    """
    a, b = _silhouette(reference), _silhouette(moving)
    if not np.ptp(a) > 0 or not np.ptp(b) > 0:
        return Found(0.0, 0.0, 0.0)
    window = np.outer(np.hanning(a.shape[0]), np.hanning(a.shape[1]))
    found, _, _ = skimage("registration").phase_cross_correlation(
        (a - a.mean()) * window,
        (b - b.mean()) * window,
        upsample_factor=upsample,
        normalization=None,
    )
    back = ndimage.shift(b, found, order=1, mode="nearest")
    agreement = float(np.corrcoef(a.ravel(), back.ravel())[0, 1])
    return Found(-float(found[0]), -float(found[1]), agreement)


def _silhouette(image: Pixels) -> NDArray[np.float64]:
    """Smooth, and divide by the densest place nearby, 0 to 1: edges at half of what is inside.

    Where even the densest place is below half of Otsu's level there is no sample.
    """
    smooth = ndimage.gaussian_filter(_filled(image), 1.0).astype(np.float64)
    if not np.ptp(smooth) > 0:
        return np.zeros(smooth.shape)
    low = float(np.percentile(smooth, 20))
    level = float(skimage("filters").threshold_otsu(smooth)) - low
    if not level > 0:
        return np.zeros(smooth.shape)
    nearby = ndimage.gaussian_filter(ndimage.maximum_filter(smooth - low, 9), 1.0)
    return np.clip((smooth - low) / np.maximum(nearby, 0.5 * level), 0, 1)


def moved_back(image: Pixels, found: Found) -> Pixels:
    """Shift ``image`` so that it lies on the reference; NaN comes in at the border."""
    known = np.isfinite(image)
    back = (-found.y, -found.x)
    out = ndimage.shift(_filled(image), back, order=1, mode="constant", cval=np.nan)
    if not known.all():
        inside = ndimage.shift(known.astype(np.float32), back, order=1, cval=0)
        out = np.where(inside > 0.5, out, np.nan)
    return out.astype(np.float32)


class Likeness(NamedTuple):
    """How a map agrees with a reference of it."""

    psnr_db: float
    ssim: float
    found: Found


def compare(image: Pixels, reference: Pixels, span: float = 1.0) -> Likeness:
    """Resize and align ``reference`` to ``image``, then give PSNR and SSIM where both are known.

    Args:
        image: (h, w); NaN where unknown.
        reference: Of the same field at any resolution; NaN where unknown.
        span: Of the values, for the PSNR.
    """
    resize = skimage("transform").resize
    known = np.isfinite(reference).astype(np.float32)
    small = resize(np.nan_to_num(reference), image.shape, order=1, anti_aliasing=True)
    weight = resize(known, image.shape, order=1, anti_aliasing=True)
    small = np.where(weight > 0.5, small / np.maximum(weight, 1e-6), np.nan).astype(np.float32)
    found = register(_zero(image), _zero(small))
    aligned = moved_back(small, found)
    both = np.isfinite(image) & np.isfinite(aligned)
    if both.sum() < 16:
        return Likeness(float("nan"), float("nan"), found)
    mse = float(np.mean((image[both] - aligned[both]) ** 2, dtype=np.float64))
    psnr = 10 * np.log10(span**2 / mse) if mse > 0 else float("inf")
    a, b = (np.where(both, array, 0).astype(np.float64) for array in (image, aligned))
    _, local = skimage("metrics").structural_similarity(a, b, data_range=span, full=True)
    inside = ndimage.binary_erosion(both, iterations=2)
    ssim = float(local[inside].mean()) if inside.any() else float("nan")
    return Likeness(float(psnr), ssim, found)


def _zero(image: Pixels) -> Pixels:
    return np.nan_to_num(image, nan=0.0)


def _filled(image: Pixels) -> Pixels:
    known = np.isfinite(image)
    if known.all():
        return np.asarray(image, np.float32)
    level = float(np.median(image[known])) if known.any() else 0.0
    return np.where(known, image, np.float32(level)).astype(np.float32)
