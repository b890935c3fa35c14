"""Takes flicker, colour cast and haze out of colour frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam_plugins.analyses.regions import Region, cut
from quietbeam_plugins.analyses.untyped import ndimage

Pixels = NDArray[np.float32]

_BLOCKS = 6  # along each side, where the darkest places tell the veil
_DARK = 4  # per cent
_FOLLOW = 0.15  # of a change of level is taken for a change of the scene, not of the lamp


class Illumination:
    """Follows the lamp, and the veil.

    With a white reference each channel is divided by its brightness there, relative to the
    first frame.  Without one the ratio of each frame's median brightness to its running mean is
    divided out, in all channels alike: what is fast is flicker, what is slow is the scene.

    Attributes:
        flicker: Brightness of the last frame, relative.
        haze: Mean veil of the last frame, counts.
    """

    def __init__(self, white: Region | None, *, remove_haze: bool) -> None:
        self._white, self._remove_haze = white, remove_haze
        self._first: NDArray[np.float64] | None = None
        self._level = float("nan")
        self._gain = np.ones(3, np.float32)
        self.flicker = 1.0
        self.haze = 0.0

    def follow(self, rgb: Pixels) -> None:
        """See the next frame (3, h, w), counts."""
        white = self._white
        if white is None:
            level = float(np.nanmedian(rgb[1, ::8, ::8]))
            if np.isnan(self._level):
                self._level = level
            self.flicker = level / self._level if self._level > 0 else 1.0
            self._level += _FOLLOW * (level - self._level)
            self._gain = np.full(3, 1 / self.flicker if self.flicker > 0 else 1, np.float32)
            return
        now = np.nanmean(rgb[(slice(None), *cut(white))], axis=(1, 2)).astype(np.float64)
        first = self._first if self._first is not None else now
        self._first = first
        ratio = np.where((now > 0) & (first > 0), first / np.maximum(now, 1e-9), 1)
        self._gain = ratio.astype(np.float32)
        self.flicker = float(1 / ratio.mean())

    def corrected(self, rgb: Pixels) -> Pixels:
        """Give the last frame without them, (3, h, w) counts."""
        out: Any = rgb * self._gain[:, None, None]
        if self._remove_haze:
            veil = _veil(out.min(0))
            self.haze = float(veil.mean())
            out -= veil
        return out


def _veil(darkest: Pixels) -> Pixels:
    """Give how far the darkest places around lie above the darkest of all, smooth, (h, w)."""
    h, w = darkest.shape
    rows, columns = (np.array_split(np.arange(n), _BLOCKS) for n in (h, w))
    level = np.array(
        [[np.nanpercentile(darkest[r[0] : r[-1] + 1 : 2, c[0] : c[-1] + 1 : 2], _DARK)
          for c in columns] for r in rows]
    )  # fmt: skip
    level = np.where(np.isfinite(level), level, np.nanmin(level) if np.isfinite(level).any() else 0)
    level = ndimage.gaussian_filter(level - level.min(), 0.7, mode="nearest")
    y = np.linspace(0, _BLOCKS - 1, h)
    x = np.linspace(0, _BLOCKS - 1, w)
    smooth = ndimage.map_coordinates(level, np.meshgrid(y, x, indexing="ij"), order=1)
    return smooth.astype(np.float32)
