"""What the gate compares: one denoiser on guard tiles, in numbers.

Every denoiser is judged by its *risk*, the mean squared error of what it puts
out, which Stein's unbiased estimate gives without the truth.  A blind estimate
``m`` of variance ``v`` fused with the measured ``y`` of unit noise gives
``x = (m + v y) / (1 + v)``, and

    risk = (y - x)^2 + 2 s v / (1 + v) - s      (Stein, Ann. Stat. 9, 1135, 1981)

because ``dx/dy = v / (1 + v)``; ``s`` is the variance of the noise, which is
one where the calibration is right.  For ``v = 0`` it is the blind loss less s.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Labels = NDArray[np.int64]

BLOCK_PX = 32
RESIDUAL_CAP = 8.0
"""Residuals count up to this many noise s.d.: one cosmic ray must not decide."""
HUBER = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One denoiser on guard tiles; every array is (b,), one value per tile and frame.

    Attributes:
        frame: Which guard frame.
        place: Which tile of the image.
        channel: Which channel, 0 where there is only one.
        guard_tile: The tile is never trained on in any frame.
        misfit: Mean of ``(y - x)^2``, with ``x`` the fused output.
        share: Mean of ``v / (1 + v)``, the share of ``y`` in ``x``.
        robust: Mean Huber loss of ``y - m``, for noise with outliers.
        residual: Mean of ``y - m``.
        power: Mean of ``(y - m)^2``.
        spatial: Mean product of neighbouring residuals.
        temporal: Mean product of a residual with that of the frame before.
        raw_power: Mean square of second temporal differences over sqrt 6: the
            variance of the noise, or more where the scene moves unevenly.
        raw_spatial: Mean product of neighbouring such differences.
        variance: Mean of ``v``; 0 where the denoiser knows none.
    """

    frame: Labels
    place: Labels
    channel: Labels
    guard_tile: NDArray[np.bool_]
    misfit: Values
    share: Values
    robust: Values
    residual: Values
    power: Values
    spatial: Values
    temporal: Values
    raw_power: Values
    raw_spatial: Values
    variance: Values

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def finite(self) -> bool:
        """Every number is one."""
        return all(bool(np.isfinite(getattr(self, field.name)).all()) for field in fields(self))

    def risk(self, noise: float = 1.0) -> Values:
        """Stein's estimate of the mean squared error, if the noise has this variance."""
        return self.misfit + noise * (2 * self.share - 1)

    def where(self, keep: NDArray[np.bool_]) -> Scores:
        """Only some of the tiles."""
        return Scores(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})


def concatenate(parts: list[Scores]) -> Scores:
    """One table of many; ``parts`` is not empty."""
    columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Scores)}
    return Scores(**{name: np.concatenate(column) for name, column in columns.items()})


def score(
    measured: NDArray[np.float32],
    mean: NDArray[np.float32],
    variance: NDArray[np.float32],
    valid: NDArray[np.bool_],
    *,
    frame: int,
    origin: tuple[int, int],
    channel: int = 0,
    guard: NDArray[np.bool_],
) -> Scores:
    """Judge one denoiser on one crop of one guard frame.

    Args:
        measured: (3, h, w): the guard frame after the two before it; stabilised units.
        mean: (2, h, w): blind estimates of the last two.
        variance: (2, h, w): of ``mean``, 0 where unknown.
        valid: (3, h, w): False where ``measured`` means nothing.
        frame: Label of the guard frame.
        origin: (top, left) of the crop in the image.
        channel: Label of the channel.
        guard: (h, w): True on tiles that are never trained on.

    Returns:
        One row per tile with valid pixels, about 32 px a side.
    """
    blocks = _Blocks(valid[2])
    both, all_three = valid[1:].all(0), valid.all(0)
    mean = np.where(np.isfinite(mean), mean, np.nan)  # or the cap would hide an infinity
    before, now = _capped(measured[1:] - mean)
    v = np.where(np.isfinite(variance[1]) & (variance[1] >= 0), variance[1], np.nan)
    v = v.astype(np.float64)
    second = (measured[0] - 2 * measured[1] + measured[2]) / np.sqrt(6)
    raw = _capped(np.where(all_three, second, 0))
    columns = {
        "misfit": blocks.mean((now / (1 + v)) ** 2),
        "share": blocks.mean(v / (1 + v)),
        "robust": blocks.mean(_huber(now)),
        "residual": blocks.mean(now),
        "power": blocks.mean(now**2),
        "spatial": blocks.neighbours(now),
        "temporal": blocks.mean(np.where(both, now * before, 0)),
        "raw_power": blocks.mean(raw**2),
        "raw_spatial": blocks.neighbours(raw),
        "variance": blocks.mean(v),
    }
    keep = blocks.filled
    return Scores(
        frame=np.full(int(keep.sum()), frame, np.int64),
        place=blocks.places(origin)[keep],
        channel=np.full(int(keep.sum()), channel, np.int64),
        guard_tile=blocks.mean(guard.astype(np.float64))[keep] > 0.5,
        **{name: column[keep] for name, column in columns.items()},
    )


def _capped(residual: NDArray[np.floating]) -> Values:
    return np.clip(residual, -RESIDUAL_CAP, RESIDUAL_CAP).astype(np.float64)


def _huber(residual: Values) -> Values:
    size = np.abs(residual)
    return np.where(size < HUBER, residual**2 / 2, HUBER * (size - HUBER / 2))


class _Blocks:
    """Means over the tiles of one crop; invalid pixels do not count."""

    def __init__(self, valid: NDArray[np.bool_]) -> None:
        self._valid = valid
        self._rows, self._columns = (_edges(size) for size in valid.shape)
        self._count = self._sum(np.ones(valid.shape))
        self.filled = self._count > 0

    def mean(self, values: Values) -> Values:
        """Per tile, flattened; 0 for a tile without a valid pixel."""
        return self._sum(values) / np.maximum(self._count, 1)

    def neighbours(self, values: Values) -> Values:
        """Mean product of pixels side by side, over both directions."""
        known = np.where(self._valid, values, 0)
        product = np.zeros(values.shape)
        product[:, :-1] += known[:, :-1] * known[:, 1:] / 2
        product[:-1] += known[:-1] * known[1:] / 2
        return self.mean(product)

    def places(self, origin: tuple[int, int]) -> Labels:
        """A number for the place of each tile in the image."""
        rows = (self._rows + origin[0]).astype(np.int64)
        columns = (self._columns + origin[1]).astype(np.int64)
        return (rows[:, None] * 1_000_000 + columns[None]).reshape(-1)

    def _sum(self, values: Values) -> Values:
        known = np.where(self._valid, values, 0)
        rows = np.add.reduceat(known, self._rows, axis=0)
        return np.add.reduceat(rows, self._columns, axis=1).reshape(-1)


def _edges(size: int) -> Labels:
    """Where tiles of about 32 px start; the last one takes what is left over."""
    return np.arange(max(1, size // BLOCK_PX)) * BLOCK_PX
