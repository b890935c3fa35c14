"""What is known of how noise hangs together, in space and in time, and what follows from it.

A frame-blind denoiser is misled by noise that its neighbours in time share
(afterglow, persistence, interpolated or compressed video), a pixel-blind one by
noise that its neighbours in space share (scan lines, scintillator blur).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

IN_TIME = 0.05
"""From this on a correlation from frame to frame is one: figures are off by decibels."""
IN_SPACE = 0.1
"""From this on a correlation between pixels matters to a pixel-blind denoiser."""
FIXED = 0.25
"""From this share of the noise power on a pattern that stays is mentioned."""
WHOLE_LINE_PX = 11
"""Reach that is given for noise of a whole line."""

_SURE, _NOTICED = 5.0, 3.5  # standard errors


@dataclass(frozen=True, slots=True)
class NoiseCorrelation:
    """Correlation coefficients of the noise; 0 where it is white, NaN where not known.

    Attributes:
        rows: At 1, 2, 3 and 4 px along a row.
        columns: The same along a column.
        line: Mean at 8..11 px along a row: noise of a whole scan line.
        column_line: The same along a column.
        time: At 1, 2 and 3 frames.
        fixed: Power of the finest structure that stays where it is, over the
            noise power: a fixed pattern, or a scene as fine as a pixel.
        error: Standard error of the correlations in space, for white noise.
        time_error: Of those in time.
        frames: Looked at.
    """

    rows: tuple[float, ...] = (float("nan"),) * 4
    columns: tuple[float, ...] = (float("nan"),) * 4
    line: float = float("nan")
    column_line: float = float("nan")
    time: tuple[float, ...] = (float("nan"),) * 3
    fixed: float = float("nan")
    error: float = float("inf")
    time_error: float = float("inf")
    frames: int = 0

    @property
    def in_time(self) -> bool:
        """Noise of one frame tells of that of another: quality figures do not hold."""
        return self.reach_frames > 0

    @property
    def reach_frames(self) -> int:
        """Frames the correlation in time reaches, 0..3; 3 may mean more."""
        return _reach(self.time, max(IN_TIME, _SURE * self.time_error))

    @property
    def reach_px(self) -> tuple[int, int]:
        """How far it reaches (along columns, along rows), 0..4 px, or 11 for whole lines."""
        limit = max(IN_SPACE, _SURE * self.error)
        return (
            WHOLE_LINE_PX if self.column_line > limit else _reach(self.columns, limit),
            WHOLE_LINE_PX if self.line > limit else _reach(self.rows, limit),
        )

    @property
    def alike(self) -> float:
        """How many pixels share their noise: by this fewer are independent."""
        along, across = (
            1 + 2 * sum(r * r for r in near if not math.isnan(r))
            for near in (self.rows, self.columns)
        )
        return along * across

    @property
    def share_of_finest(self) -> tuple[float, float]:
        """Give (noise power in second differences along both axes, over that of white noise; s.e.).

        Exactly one for noise that shows no correlation.
        """
        pairs = np.array([self.rows[:2], self.columns[:2]])
        if not (np.abs(pairs) > _NOTICED * self.error).any():
            return 1.0, 0.0
        return share_kept(pairs[0]) * share_kept(pairs[1]), 2 * self.error

    @property
    def second_difference(self) -> float:
        """Mean square of ``(y[t-1] - 2 y[t] + y[t+1]) / sqrt(6)`` over the noise power.

        1 for noise independent in time: ``1 - 4/3 r1 + r2/3`` otherwise.
        """
        if not self.in_time:
            return 1.0
        return max(share_kept(self.time), 0.05)

    def sentences(self) -> tuple[str, ...]:
        """Say in plain words what an operator should know; empty where the noise is white."""
        found = (self._of_time(), self._of_blur(), self._of_fixed(), *self._of_space())
        return tuple(filter(None, found))

    def figures(self) -> dict[str, float]:
        """Give one number an axis: rows, columns, line, column_line, time, fixed."""
        return {
            "rows": self.rows[0],
            "columns": self.columns[0],
            "line": self.line,
            "column_line": self.column_line,
            "time": self.time[0],
            "fixed": self.fixed,
        }

    def _of_time(self) -> str | None:
        reach = self.reach_frames
        if not reach:
            return None
        listed = ", ".join(f"r{k} = {r:.2f}" for k, r in enumerate(self.time[:reach], 1))
        help_ = "no blind method can tell it from signal"
        if reach < len(self.time):
            more = "frame more" if reach == 1 else "frames more"
            help_ = (
                f"only a blind spot of {reach} {more} on each side tells it from signal "
                f"(denoiser quiet, blind_frames = {reach})"
            )
        return (
            f"noise is correlated from frame to frame ({listed}): {help_}; "
            "the estimated PSNR is not to be trusted"
        )

    def _of_blur(self) -> str | None:
        if not (np.isnan(self.time[0]) and all(self.reach_px) and self.frames > 8):
            return None
        return (
            "noise is as blurred as the scene: whether it is correlated from frame to frame "
            "cannot be told"
        )

    def _of_fixed(self) -> str | None:
        long_memory = self.reach_frames == len(self.time)
        if long_memory or not self.fixed > max(FIXED, _SURE * self.time_error):
            return None
        return (
            f"a pattern as fine as a pixel stays in place, with {self.fixed:.0%} of the noise's "
            "power: no method can tell it from the scene; dark and flat frames can"
        )

    def _of_space(self) -> Iterator[str]:
        names = ("columns", "rows")
        for name, reach, first in zip(
            names, self.reach_px, (self.columns[0], self.rows[0]), strict=True
        ):
            if reach:
                yield (
                    f"noise is correlated along {name} ({first:.2f} at 1 px, up to {reach} px): "
                    "n2v needs its structured mask; frame-blind denoisers are not misled"
                )


def share_kept(r: Sequence[float]) -> float:
    """Noise power after a second difference over that of white noise, by r at lags 1 and 2."""
    return max(float(1 - 4 / 3 * r[0] + r[1] / 3), 0.0)


def _reach(coefficients: tuple[float, ...], limit: float) -> int:
    """Largest lag up to which |r| is above ``limit`` without a gap."""
    reach = 0
    for r in coefficients:
        if not abs(r) > limit:
            break
        reach += 1
    return reach
