"""Particles: found by watershed, followed through time, scored against an annotation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from quietbeam_plugins.analyses.untyped import ndimage, skimage

Labels = NDArray[np.int32]
Pixels = NDArray[np.float32]

_SAME = 0.3  # IoU from which on it is the same particle


def segment(
    image: Pixels, min_area_px: int = 30, seed_depth_px: float = 1.0, smooth_px: float = 0.7
) -> Labels | None:
    """Find particles brighter than what is between them: Otsu, distance, watershed.

    Args:
        image: (h, w); not-a-number is background.
        min_area_px: Smaller ones are dropped, and holes of this size filled.
        seed_depth_px: How much deeper than the neck between them two parts must be, to be two.
        smooth_px: s.d. of a Gaussian before the threshold.

    Returns:
        (h, w) int32, particles numbered from 1; None where the image is one mode only
        (its two halves by Otsu are not further apart than they are wide).
    """
    known = np.isfinite(image)
    if known.sum() < 2 * min_area_px or not np.ptp(image[known]) > 0:
        return None
    smooth = ndimage.gaussian_filter(np.where(known, image, image[known].min()), smooth_px)
    level = float(skimage("filters").threshold_otsu(smooth[known]))
    bright, dark = smooth[known & (smooth > level)], smooth[known & (smooth <= level)]
    if not bright.size or bright.mean() - dark.mean() < 2 * (bright.std() + dark.std()):
        return None
    mask = (smooth > level) & known
    morphology = skimage("morphology")
    mask = morphology.remove_small_holes(mask, max_size=min_area_px - 1)
    mask = morphology.remove_small_objects(mask, max_size=min_area_px - 1)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.0)
    seeds, _ = ndimage.label(morphology.h_maxima(depth, seed_depth_px) > 0, np.ones((3, 3)))
    return skimage("segmentation").watershed(-depth, seeds, mask=mask).astype(np.int32)


class Tracker:
    """Gives particles the same number in every frame, by their overlap.

    Args:
        most: Numbers there are; particles beyond get none (and are dropped).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: Labels | None = None
        self._next = 1
        self.dropped = 0

    def __call__(self, labels: Labels) -> Labels:
        """Renumber ``labels`` so that who was there keeps its number."""
        count = int(labels.max())
        numbers = np.zeros(count + 1, np.int32)
        if self._last is not None and count:
            overlap = iou_matrix(labels, self._last)
            mine, theirs = linear_sum_assignment(-overlap)
            kept = overlap[mine, theirs] >= _SAME
            numbers[mine[kept] + 1] = theirs[kept] + 1
        self.dropped = 0
        for number in range(1, count + 1):
            if not numbers[number]:
                if self._next > self._most:
                    self.dropped += 1
                    continue
                numbers[number], self._next = self._next, self._next + 1
        tracked = numbers[labels]
        if self._last is None or tracked.any():
            self._last = tracked
        return tracked


def iou_matrix(a: Labels, b: Labels) -> NDArray[np.float64]:
    """Intersection over union of every particle of ``a`` with every one of ``b``."""
    n, m = int(a.max()), int(b.max())
    both = np.bincount((a.astype(np.int64) * (m + 1) + b).ravel(), minlength=(n + 1) * (m + 1))
    both = both.reshape(n + 1, m + 1)
    size_a, size_b = both.sum(1), both.sum(0)
    union = size_a[1:, None] + size_b[None, 1:] - both[1:, 1:]
    return both[1:, 1:] / np.maximum(union, 1)


class Agreement(NamedTuple):
    """How a segmentation agrees with an annotation.

    Attributes:
        iou: Of foreground with foreground.
        f1: Of objects, matched one to one at an IoU of at least 0.5.
        boundary_px: Mean distance from the found boundary to the annotated one.
    """

    iou: float
    f1: float
    boundary_px: float


def agreement(found: Labels, truth: Labels) -> Agreement:
    """Score ``found`` against ``truth``, labels (h, w) each."""
    mine, true = found > 0, truth > 0
    union = int((mine | true).sum())
    iou = float((mine & true).sum() / union) if union else float("nan")
    n, m = len(np.unique(found[mine])), len(np.unique(truth[true]))
    matched = 0
    if n and m:
        overlap = iou_matrix(found, truth)
        rows, columns = linear_sum_assignment(-overlap)
        matched = int((overlap[rows, columns] >= 0.5).sum())
    f1 = 2 * matched / (n + m) if n + m else float("nan")
    return Agreement(iou, f1, _boundary_error(found, truth))


def _boundary_error(found: Labels, truth: Labels) -> float:
    find_boundaries = skimage("segmentation").find_boundaries
    mine, true = (find_boundaries(labels, mode="inner") for labels in (found, truth))
    if not mine.any() or not true.any():
        return float("nan")
    return float(ndimage.distance_transform_edt(~true)[mine].mean())
