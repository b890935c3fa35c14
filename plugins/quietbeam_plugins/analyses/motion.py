"""Drift to a fraction of a pixel, and sharpness, of the middle of a frame."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quietbeam_plugins.analyses.regions import known_mean
from quietbeam_plugins.analyses.untyped import fft

Pixels = NDArray[np.float32]

_SIDE = 256


class Shift(NamedTuple):
    """How far a frame moved from the reference, pixels; ``sd`` of each; peak of 0 to 1."""

    y: float
    x: float
    sd: float
    peak: float


class Registration:
    """Registers frames to a reference by windowed cross-correlation with a parabolic peak.

    Every frequency is whitened (phase correlation, Kuglin and Hines 1975) as far as it
    stands above the power of the errors, so that noise has no say.  The s.d. of a
    shift is the Cramer-Rao bound ``s sqrt(area) / sqrt(sum (dI/dx)^2)`` for pixels of s.d. s.

    Args:
        reference: (h, w); not-a-number counts as its mean.
    """

    def __init__(self, reference: Pixels) -> None:
        image = middle(reference)
        h, w = image.shape
        self._window = np.outer(np.hanning(h), np.hanning(w)).astype(np.float32)
        self._spectrum = np.conj(self._transform(image))
        gy, gx = np.gradient(_filled(image) * self._window)
        self._steepness = float(min((gy**2).sum(), (gx**2).sum()))

    def __call__(self, frame: Pixels, sd: Pixels, area_px: float | None) -> Shift:
        """Give the shift of ``frame``; positive is towards larger row and column numbers."""
        image = middle(frame)
        cross = self._transform(image) * self._spectrum
        size = np.abs(cross)
        area = area_px or 1.0
        noise = known_mean(middle(sd)) ** 2 * area * float((self._window**2).sum())
        weight = 1 / (size + np.float32(4 * noise + 1e-3 * size.mean() + 1e-30))
        surface = fft.irfft2(cross * weight, image.shape)
        at = np.unravel_index(int(np.argmax(surface)), surface.shape)
        full = float(fft.irfft2(size * weight, image.shape)[0, 0])
        peak = float(surface[at]) / full if full > 0 else 0.0
        y, x = (_refined(surface, at, axis) for axis in (0, 1))
        spread = known_mean(middle(sd)) * np.sqrt(area)
        error = spread / np.sqrt(self._steepness) if self._steepness > 0 else float("nan")
        return Shift(y, x, float(error), min(peak, 1.0))

    def _transform(self, image: Pixels) -> NDArray[np.complex64]:
        filled = _filled(image)
        return fft.rfft2((filled - filled.mean()) * self._window).astype(np.complex64)


def sharpness(frame: Pixels) -> float:
    """Give the relative gradient energy, mean |grad I|^2 / mean(I)^2 (Tenengrad, normalised)."""
    image = middle(frame)
    gy = image[2:, 1:-1] - image[:-2, 1:-1]
    gx = image[1:-1, 2:] - image[1:-1, :-2]
    energy = (gy * gy + gx * gx) / 4
    level = known_mean(image)
    return known_mean(energy) / level**2 if level else float("nan")


def middle(image: Pixels) -> Pixels:
    """Give at most 256 x 256 pixels around the centre, a view."""
    h, w = image.shape
    top, left = max(0, (h - _SIDE) // 2), max(0, (w - _SIDE) // 2)
    return image[top : top + _SIDE, left : left + _SIDE]


def _filled(image: Pixels) -> Pixels:
    if np.isfinite(image).all():
        return image
    return np.nan_to_num(image, nan=np.nan_to_num(known_mean(image)))


def _refined(surface: NDArray[np.float32], at: tuple[np.intp, ...], axis: int) -> float:
    """Fit a parabola through the peak and its two neighbours along ``axis``; wraps around."""
    size = surface.shape[axis]
    centre = int(at[axis])
    values = []
    for step in (-1, 0, 1):
        place = [int(i) for i in at]
        place[axis] = (centre + step) % size
        values.append(float(surface[tuple(place)]))
    left, mid, right = values
    bend = left - 2 * mid + right
    offset = 0.5 * (left - right) / bend if bend < 0 else 0.0
    shift = centre + float(np.clip(offset, -0.5, 0.5))
    return shift - size if shift > size / 2 else shift
