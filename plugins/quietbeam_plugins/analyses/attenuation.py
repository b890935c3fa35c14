"""Counts to attenuation with its variance, the beam divided out; and references to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quietbeam_plugins.analyses.regions import Region, cut, known_mean
from quietbeam_plugins.analyses.uncertainty import ErrorCorrelation

Pixels = NDArray[np.float32]


class Beam:
    """Intensity of the beam relative to that of the first frame with one."""

    def __init__(self, region: Region | None) -> None:
        self._region, self._first = region, float("nan")

    def __call__(self, counts: Pixels, sd: Pixels, errors: ErrorCorrelation) -> tuple[float, float]:
        """Give (intensity, s.d.); (1, 0) where no region was named, not-a-number without counts."""
        if self._region is None:
            return 1.0, 0.0
        place = cut(self._region)
        level, error = known_mean(counts[place]), errors.mean_sd(sd[place])
        if not level > 0:
            return float("nan"), float("nan")
        if np.isnan(self._first):
            self._first = level
        return level / self._first, error / self._first


class Attenuation:
    """Takes counts to ``-ln(I / b)``; see ``radiography`` for the equations."""

    @dataclass(frozen=True, slots=True, eq=False)
    class Now:
        """One frame.

        Attributes:
            counts: (h, w) float32, dark subtracted, divided by the beam.
            variance: Of ``counts``, relative to their square.
            attenuation: (h, w) float32; NaN where there are no counts.
            beam: Its intensity, relative; NaN where there is none.
            beam_sd: Its standard deviation.
            lost: Share of the pixels that have no counts above dark.
        """

        counts: Pixels
        variance: Pixels
        attenuation: Pixels
        beam: float
        beam_sd: float
        lost: float

    def __init__(self, dark: Pixels | None, beam: Beam) -> None:
        self._dark, self._beam = dark, beam

    def __call__(self, clean: Pixels, sd: Pixels, errors: ErrorCorrelation) -> Now:
        """Take one clean frame and its s.d., (h, w) each."""
        counts = clean if self._dark is None else clean - self._dark
        beam, beam_sd = self._beam(counts, sd, errors)
        known = counts > 0
        if known.all():
            safe, lost = counts, 0.0
        else:
            safe = np.where(known, counts, np.float32(np.nan))
            lost = 1 - float(known.sum()) / max(1, int(np.isfinite(counts).sum()))
        variance = np.square(sd / safe)
        attenuation = (-np.log(safe / np.float32(beam)) - variance / 2).astype(np.float32)
        return self.Now(
            safe / np.float32(beam), variance, attenuation, beam, beam_sd, min(max(lost, 0.0), 1.0)
        )

    def plain(self, counts: Pixels, valid: NDArray[np.bool_], beam: float) -> Pixels:
        """Give the attenuation of measured counts, as they are; NaN where there is none."""
        above = counts if self._dark is None else counts - self._dark
        usable = valid & (above > 0)
        if not usable.all():
            above = np.where(usable, above, np.float32(np.nan))
        return -np.log(above / np.float32(beam))


class Reference:
    """The mean of some frames, that later ones are compared with.

    Args:
        first: Position of its first frame in the run.
        frames: How many.
    """

    def __init__(self, first: int, frames: int) -> None:
        self._first, self._frames = first, frames
        self._taken = 0
        self._counts: NDArray[np.float64] | None = None
        self._variance: NDArray[np.float64] | None = None
        self._beam_variance = 0.0
        self._attenuation: Pixels | None = None
        self._relative: Pixels | None = None

    @property
    def complete(self) -> bool:
        """All its frames came."""
        return self._attenuation is not None

    def add(self, position: int, now: Attenuation.Now, errors: ErrorCorrelation) -> None:
        """Take a frame, if it belongs to the reference."""
        if self.complete or position < self._first or not np.isfinite(now.beam):
            return
        if self._counts is None or self._variance is None:
            self._counts = np.zeros(now.counts.shape)
            self._variance = np.zeros(now.counts.shape)
        self._counts += now.counts
        self._variance += now.variance
        self._beam_variance += (now.beam_sd / now.beam) ** 2
        self._taken += 1
        if self._taken == self._frames:
            mean = self._counts / self._taken
            share = errors.shared_in_time(self._taken)
            relative = self._variance / self._taken * share
            self._beam_variance *= share / self._taken
            self._attenuation = (-np.log(mean) - relative / 2).astype(np.float32)
            self._relative = relative.astype(np.float32)
            self._counts = self._variance = None

    def change(self, now: Attenuation.Now) -> tuple[Pixels, Pixels, float]:
        """Give (change, its variance by pixel, the variance all pixels share: the beam's).

        Raises:
            ValueError: The reference is not complete.
        """
        if self._attenuation is None or self._relative is None:
            raise ValueError("the reference is not complete yet")
        common = (now.beam_sd / now.beam) ** 2 + self._beam_variance
        return now.attenuation - self._attenuation, now.variance + self._relative, common


class PlainReference:
    """The mean attenuation of some measured frames, without uncertainty.

    Attributes:
        attenuation: (h, w); zeros until ``complete``.
    """

    def __init__(self, first: int, frames: int) -> None:
        self._first, self._frames, self._taken = first, frames, 0
        self.attenuation: Pixels | np.float32 = np.float32(0)

    @property
    def complete(self) -> bool:
        """All its frames came."""
        return self._taken == self._frames

    def add(self, position: int, attenuation: Pixels) -> None:
        """Take a frame, if it belongs to the reference."""
        if not self.complete and position >= self._first:
            self.attenuation = self.attenuation + attenuation / np.float32(self._frames)
            self._taken += 1
