"""Measures how noise is correlated, in space and in time, without the truth.

The scene must not be taken for noise.  So everything is measured on the finest
structure: differences of second or fourth order, which optics pass hardly any
scene into, and on that half of the image where they are smallest.

Space: ``y[t-1] - 2 y[t] + y[t+1]`` removes what stands still or moves evenly; a
fourth difference *across* the direction asked about leaves the correlation
along it as it is, for noise whose covariance is a product of both directions.

Time: the variogram ``g(k) = E (h[t+k] - h[t])^2 / 2`` of second differences h in
both directions of space is ``n - c(k)`` for noise of power n and autocovariance
c, plus ``b k^2`` for a scene that moves (Matheron 1963).  n and b are fitted where
c is taken as zero (k = 4..8); so correlation that lasts longer than that is
reported too small, and noise that never changes is not seen in it at all:
``fixed`` tells of that.  Where the noise is blurred as much as the scene (by a
scintillator, with hardly any read-out noise) nothing is fine enough to tell one
from the other, and the correlation in time is not known.

What contaminates it: scenes with texture as fine as a pixel that moves faster
than about one pixel a frame look like correlation in space; of noise that is
partly blurred the sharp part (read-out noise, rounding) counts most; a series
whose exposure changes from frame to frame has no one variogram.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from quietbeam.model.correct import Float, Valid
from quietbeam.model.correlation import WHOLE_LINE_PX, NoiseCorrelation, share_kept

_NEAR = (1, 2, 3, 4)
_FAR = tuple(range(8, WHOLE_LINE_PX + 1))
_LAGS = (0, *_NEAR, *_FAR)
_TIMES = 8
_FREE = 4  # from this many frames on noise is taken as independent
_TILES, _SIDE_PX = 32, 28
_ALWAYS, _PERIOD, _BURST = 256, 64, 16  # frames: after the first only a burst of each period
_UNKNOWN = ((float("nan"),) * (_FREE - 1), float("nan"))
_LEAST_SHARE = 0.02  # of the noise power at the finest scale; with less, scene may be most of it
_SECOND, _FOURTH = 6.0, 70.0  # power of white noise after a difference of that order
_DEPENDENT = {2: 1.94, 4: 2.63}  # sum of squared autocorrelations of such differences


class CorrelationMeter:
    """Measures ``NoiseCorrelation`` on a stream of frames: about a millisecond a frame.

    It looks at up to 32 tiles of 28 px, spread over the image; after 256
    frames only at 16 of each 64.
    """

    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []
        self._side = 0
        self._next = -1
        self._given = self._frames = 0
        self._history: deque[tuple[Float, Float, Float]] = deque(maxlen=_TIMES + 1)

    def add(self, position: int, z: Float, valid: Valid | None = None) -> None:
        """Take one frame (h, w); best in stabilised units, so that bright pixels weigh no more.

        Args:
            position: Its number; a gap is no harm.
            z: At least 16 x 16.
            valid: (h, w); None where all are.
        """
        self._given += 1
        if self._given > _ALWAYS and self._given % _PERIOD >= _BURST:
            return
        if not self._places:
            self._spread(z.shape[0], z.shape[1])
        if position != self._next:
            self._history.clear()
        self._next = position + 1
        tiles = self._cut(z, valid)
        rows, columns = _differences(tiles, 1, 4), _differences(tiles, 2, 4)
        both = _differences(_differences(tiles, 1, 2), 2, 2)
        self._history.append((rows, columns, both))
        self._frames += 1
        if len(self._history) > 2:
            self._in_space()
        self._in_time()

    def result(self) -> NoiseCorrelation:
        """Give what is known by now."""
        quiet = self._quiet() if self._frames > 2 else np.empty(0, np.intp)
        if not quiet.size:
            return NoiseCorrelation(frames=self._frames)
        rows, columns = self._rows.of(quiet), self._columns.of(quiet)
        rows, columns = rows / rows[0], columns / columns[0]
        near = slice(1, 1 + len(_NEAR))
        seen = self._rows.counts[0, quiet].sum()
        error = np.sqrt(_DEPENDENT[4] * _DEPENDENT[2] / seen)
        share = share_kept(rows[1:]) * share_kept(columns[1:])
        return NoiseCorrelation(
            tuple(map(float, rows[near])),
            tuple(map(float, columns[near])),
            float(np.mean(rows[near.stop :])),
            float(np.mean(columns[near.stop :])),
            *(self._time(quiet) if share > _LEAST_SHARE else _UNKNOWN),
            error=float(error),
            time_error=self._time_error(quiet),
            frames=self._frames,
        )

    def _quiet(self) -> NDArray[np.intp]:
        """Give the quieter half of the tiles, without those where no noise is at all."""
        counts = self._rows.counts[0] * (self._columns.counts[0] > 0)
        power = self._rows.sums[0] / np.maximum(counts, 1) * (self._columns.sums[0] > 0)
        some = power > 0
        if not some.any():
            return np.empty(0, np.intp)
        noisy = np.flatnonzero(power > 0.1 * np.median(power[some]))
        return noisy[np.argsort(power[noisy], kind="stable")][: -(-len(noisy) // 2)]

    def _spread(self, h: int, w: int) -> None:
        whole = min(_SIDE_PX, h, w)
        grid = [
            (y, x)
            for y in np.linspace(0, h - whole, max(1, h // whole)).astype(int)
            for x in np.linspace(0, w - whole, max(1, w // whole)).astype(int)
        ]
        chosen = np.linspace(0, len(grid) - 1, min(_TILES, len(grid))).astype(int)
        self._places = [grid[i] for i in chosen]
        self._side = whole
        n = len(self._places)
        self._rows, self._columns = _Moments(len(_LAGS), n), _Moments(len(_LAGS), n)
        self._change, self._still = _Moments(_TIMES, n), _Moments(1, n)

    def _cut(self, z: Float, valid: Valid | None) -> Float:
        """Give the tiles (n, side, side); NaN, which spreads by itself, where not valid."""
        side = self._side
        parts = [np.s_[y : y + side, x : x + side] for y, x in self._places]
        tiles = np.stack([z[part] for part in parts]).astype(np.float32)
        if valid is not None and not valid.all():
            tiles[~np.stack([valid[part] for part in parts])] = np.nan
        return tiles

    def _in_space(self) -> None:
        a, b, c = list(self._history)[-3:]
        rows, columns = (a[i] - 2 * b[i] + c[i] for i in (0, 1))
        for i, lag in enumerate(_LAGS):
            if lag < rows.shape[2]:
                self._rows.add(i, rows[:, :, : rows.shape[2] - lag] * rows[:, :, lag:])
                self._columns.add(i, columns[:, : columns.shape[1] - lag] * columns[:, lag:])

    def _in_time(self) -> None:
        newest = self._history[-1]
        for k, older in enumerate(list(self._history)[-2::-1]):
            self._change.add(k, (newest[2] - older[2]) ** 2 / 2)
        if len(self._history) > _TIMES:
            finest = [_differences(rows, 2, 4) for rows in (newest[0], self._history[0][0])]
            self._still.add(0, finest[0] * finest[1])

    def _time(self, quiet: NDArray[np.intp]) -> tuple[tuple[float, ...], float]:
        """(coefficients at 1, 2, 3 frames, power of what stays over that of the noise)."""
        known = int(np.count_nonzero(self._change.counts.any(1)))
        g, k = self._change.of(quiet)[:known], np.arange(1, known + 1)
        if known < _FREE + 2 or not np.isfinite(g).all():
            return _UNKNOWN
        far = k >= _FREE
        slope, noise = np.polyfit(k[far] ** 2, g[far], 1)
        if slope < 0:  # no scene does that: only chance, or noise of long memory
            slope, noise = 0.0, g[far].mean()
        if not noise > 0:
            return _UNKNOWN
        r = 1 - (g - slope * k**2)[: _FREE - 1] / noise
        still = float(self._still.of(quiet)[0]) / _FOURTH**2
        return tuple(map(float, r)), still / (float(noise) / _SECOND**2)

    def _time_error(self, quiet: NDArray[np.intp]) -> float:
        pairs = self._change.counts[:, quiet].sum(1)
        return float(np.sqrt(3 * _DEPENDENT[2] ** 2 / max(pairs[pairs > 0].min(initial=np.inf), 1)))


class _Moments:
    """Sums of products per quantity and tile, and how many entered."""

    def __init__(self, quantities: int, tiles: int) -> None:
        self.sums = np.zeros((quantities, tiles))
        self.counts = np.zeros((quantities, tiles))

    def add(self, quantity: int, products: NDArray[np.floating]) -> None:
        """Take (tiles, h, w); NaN is left out."""
        sums = products.sum((1, 2), dtype=np.float64)
        counts = np.full(len(sums), products[0].size)
        if np.isnan(sums).any():
            known = np.isfinite(products)
            sums, counts = np.where(known, products, 0).sum((1, 2)), known.sum((1, 2))
        self.sums[quantity] += sums
        self.counts[quantity] += counts

    def of(self, tiles: NDArray[np.intp]) -> NDArray[np.float64]:
        """Mean of each quantity over these tiles; NaN where nothing entered."""
        counts = self.counts[:, tiles].sum(1)
        return np.where(counts > 0, self.sums[:, tiles].sum(1) / np.maximum(counts, 1), np.nan)


def measure(frames: Iterable[Float], valid: Iterable[Valid] | None = None) -> NoiseCorrelation:
    """Measure consecutive ``frames``, (h, w) each; a few dozen tell a coefficient of 0.05."""
    meter = CorrelationMeter()
    masks = iter(valid) if valid is not None else None
    for position, frame in enumerate(frames):
        meter.add(position, frame, None if masks is None else next(masks))
    return meter.result()


def _differences(x: Float, axis: int, order: int) -> Float:
    """Difference of ``order`` along ``axis``, which becomes that much shorter."""
    return np.asarray(np.diff(x, order, axis), np.float32)
