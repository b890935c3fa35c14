"""Mean, spread and total of the clean frames, whole or in rectangles."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from quietbeam import AnalysisPlugin, ConfigError, MetricSpec, RunStart

Pixels = NDArray[np.float32]
Region = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt]


class Statistics(AnalysisPlugin):
    """Mean with its uncertainty and spatial s.d. of every region, NaN pixels left out."""

    regions: Mapping[str, Region] = {}
    """Name = [top, left, bottom, right] in pixels, the end excluded; none means the whole frame."""

    def metrics(self) -> Mapping[str, MetricSpec]:
        """Three per region."""
        specs = {}
        for name in self._names():
            specs[f"{name}_mean"] = MetricSpec("count", f"Mean of {name}")
            specs[f"{name}_mean_sd"] = MetricSpec("count", "Standard deviation of that mean")
            specs[f"{name}_spread"] = MetricSpec("count", f"Spatial standard deviation in {name}")
        return specs

    @contextmanager
    def open(
        self, run: RunStart
    ) -> Generator[Callable[[Pixels, Pixels], Mapping[str, float]], None, None]:
        """Check the regions against the run's shape.

        Raises:
            ConfigError: A region is empty or lies outside the frame.
        """
        h, w = run.shape
        regions = dict(self.regions) or {"frame": (0, 0, h, w)}
        for name, (top, left, bottom, right) in regions.items():
            if not (top < bottom <= h and left < right <= w):
                raise ConfigError(
                    f"region {name} = {[top, left, bottom, right]} is not inside {h} x {w} pixels"
                )

        def measure(clean: Pixels, sd: Pixels) -> Mapping[str, float]:
            out: dict[str, float] = {}
            for name, (top, left, bottom, right) in regions.items():
                part = clean[top:bottom, left:right]
                out |= self._measure(name, part, sd[top:bottom, left:right])
            return out

        yield measure

    def _names(self) -> list[str]:
        return list(self.regions) or ["frame"]

    @staticmethod
    def _measure(name: str, clean: Pixels, sd: Pixels) -> dict[str, float]:
        use = np.isfinite(clean)
        n = int(use.sum())
        if n == 0:
            return dict.fromkeys(
                (f"{name}_mean", f"{name}_mean_sd", f"{name}_spread"), float("nan")
            )
        values = clean[use].astype(np.float64)
        # errors of neighbouring pixels are not independent after denoising: a lower bound
        error = float(np.sqrt((sd[use].astype(np.float64) ** 2).sum()) / n)
        return {
            f"{name}_mean": float(values.mean()),
            f"{name}_mean_sd": error,
            f"{name}_spread": float(values.std()),
        }
