"""Figures of every channel: regions, dynamic variability, drift, focus, beam, noise."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from quietbeam import AnalysisPlugin, MapSpec, Measured, MetricSpec, Observation, RunStart
from quietbeam_plugins.analyses.motion import Registration, sharpness
from quietbeam_plugins.analyses.noise import PhotonTransferWatch
from quietbeam_plugins.analyses.regions import Region, check_regions, cut, known_mean
from quietbeam_plugins.analyses.uncertainty import TEMPORAL_LAGS, ErrorCorrelation
from quietbeam_plugins.analyses.variability import Variability

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_FIRST = 8  # frames that make the reference of drift and beam


class Statistics(AnalysisPlugin):
    """Means with honest uncertainties of every region; variability; drift; focus; beam; noise."""

    sees: ClassVar[Literal["clean", "channel", "frame"]] = "channel"

    regions: Mapping[str, Region] = {}
    """Name = [top, left, bottom, right] in pixels, the end excluded; none means the whole frame."""
    beam: Region | None = None
    """Where nothing but the beam is: its intensity is watched there; else in the whole frame."""
    every: PositiveInt = 8
    """Frames from one look at variability, drift, focus and correlation to the next."""
    variability_map: bool = False
    """Also give the local 3 x 3 x 3 standard deviation of the clean frames as a map."""

    def metrics(self) -> Mapping[str, MetricSpec]:
        """Five per region, and those of the frame."""
        specs: dict[str, MetricSpec] = {}
        for name in self.regions or ("frame",):
            specs[f"{name}_mean"] = MetricSpec(
                "count", f"Mean of {name}", uncertainty=f"{name}_mean_sd"
            )
            specs[f"{name}_mean_sd"] = MetricSpec("count", "Standard deviation of that mean")
            specs[f"{name}_sum"] = MetricSpec(
                "count", f"Sum over {name}", uncertainty=f"{name}_sum_sd"
            )
            specs[f"{name}_sum_sd"] = MetricSpec("count", "Standard deviation of that sum")
            specs[f"{name}_spread"] = MetricSpec("count", f"Spatial standard deviation in {name}")
        return specs | _FRAME_METRICS

    def maps(self) -> Mapping[str, MapSpec]:
        """Declare the variability, where it is asked for."""
        spec = MapSpec("count", "Local 3 x 3 x 3 standard deviation of the clean frames")
        return {"variability": spec} if self.variability_map else {}

    @contextmanager
    def open(self, run: RunStart) -> Generator[_Running, None, None]:
        """Check the regions against the run's shape.

        Raises:
            ConfigError: A region is empty or lies outside the frame.
        """
        h, w = run.shape
        regions = dict(self.regions) or {"frame": (0, 0, h, w)}
        check_regions(regions | ({} if self.beam is None else {"beam": self.beam}), run.shape)
        yield _Running(self, regions)


_FRAME_METRICS = {
    "variability_raw": MetricSpec("count", "Mean local 3 x 3 x 3 s.d. before denoising"),
    "variability_clean": MetricSpec("count", "Mean local 3 x 3 x 3 s.d. of the clean frames"),
    "variability_reduction": MetricSpec("", "1 - clean / raw of these means"),
    "variability_raw_quantiles": MetricSpec(
        "count", "5, 25, 50, 75, 95 % of the local s.d., raw", (len(QUANTILES),)
    ),
    "variability_clean_quantiles": MetricSpec(
        "count", "5, 25, 50, 75, 95 % of the local s.d., clean", (len(QUANTILES),)
    ),
    "drift_y": MetricSpec("px", "Shift from the first frames, down", uncertainty="drift_sd"),
    "drift_x": MetricSpec("px", "Shift from the first frames, right", uncertainty="drift_sd"),
    "drift_sd": MetricSpec("px", "Standard deviation of either shift"),
    "drift_peak": MetricSpec("", "Height of the correlation's peak; near 0: not to be trusted"),
    "focus": MetricSpec("", "Relative gradient energy of the clean frame"),
    "beam": MetricSpec("", "Intensity relative to the first frames", uncertainty="beam_sd"),
    "beam_sd": MetricSpec("", "Standard deviation of that intensity"),
    "error_area": MetricSpec("px", "Correlation area of clean errors; 1 for white noise"),
    "error_temporal": MetricSpec(
        "",
        f"Correlation of clean errors {', '.join(map(str, TEMPORAL_LAGS))} frames apart",
        (len(TEMPORAL_LAGS),),
    ),
    "noise_gain": MetricSpec("count", "Slope of the raw noise variance over the mean"),
    "noise_offset": MetricSpec("count2", "Raw noise variance at zero counts"),
    "noise_area": MetricSpec("px", "Correlation area of the raw noise; 1 for white noise"),
}


class _Running:
    """One channel over one run."""

    def __init__(self, settings: Statistics, regions: Mapping[str, Region]) -> None:
        self._settings, self._regions = settings, regions
        self._errors = ErrorCorrelation(settings.every)
        self._raw, self._clean = Variability(settings.every), Variability(settings.every)
        self._noise = PhotonTransferWatch(settings.every)
        self._first: list[NDArray[np.float32]] = []
        self._registration: Registration | None = None
        self._beam_first: list[float] = []
        self._seen = 0
        self.message: str | None = None

    def __call__(self, seen: Observation) -> Measured:
        self._errors.add(seen.clean, seen.sd)
        out: dict[str, Any] = {}
        for name, region in self._regions.items():
            out |= self._region(name, seen.clean[cut(region)], seen.sd[cut(region)])
        out |= self._variability(seen)
        out |= self._noise.add(seen)
        out |= self._beam(seen)
        if self._seen < _FIRST:
            self._first.append(np.array(seen.clean))
        elif self._seen % self._settings.every == 0:
            out |= self._look(seen)
        self._seen += 1
        return out

    def _region(
        self, name: str, clean: NDArray[np.float32], sd: NDArray[np.float32]
    ) -> dict[str, float]:
        use = np.isfinite(clean)
        values, spreads = (clean, sd) if use.all() else (clean[use], sd[use])
        n = values.size
        mean = known_mean(values)
        error = self._errors.mean_sd(spreads)
        return {
            f"{name}_mean": mean,
            f"{name}_mean_sd": error,
            f"{name}_sum": mean * n,
            f"{name}_sum_sd": error * n,
            f"{name}_spread": float(values.std()) if n else float("nan"),
        }

    def _variability(self, seen: Observation) -> dict[str, Any]:
        raw = self._raw.add(seen.corrected, seen.valid)
        clean = self._clean.add(seen.clean)
        if raw is None or clean is None:
            return {}
        known = np.isfinite(raw) & np.isfinite(clean)
        if not known.any():
            return {}
        before, after = float(raw[known].mean()), float(clean[known].mean())
        out: dict[str, Any] = {
            "variability_raw": before,
            "variability_clean": after,
            "variability_reduction": 1 - after / before if before > 0 else float("nan"),
            "variability_raw_quantiles": np.quantile(raw[known][::7], QUANTILES),
            "variability_clean_quantiles": np.quantile(clean[known][::7], QUANTILES),
        }
        if self._settings.variability_map:
            out["variability"] = clean
        return out

    def _beam(self, seen: Observation) -> dict[str, float]:
        h, w = seen.clean.shape
        place = cut(self._settings.beam or (0, 0, h, w))
        level = known_mean(seen.clean[place])
        if len(self._beam_first) < _FIRST:
            self._beam_first.append(level)
        reference = float(np.mean(self._beam_first))
        if not reference > 0:
            self.message = "no beam: the mean of the first frames is not above zero"
            return {"beam": float("nan"), "beam_sd": float("nan")}
        error = self._errors.mean_sd(seen.sd[place]) / reference
        return {"beam": level / reference, "beam_sd": error}

    def _look(self, seen: Observation) -> dict[str, Any]:
        if self._registration is None:
            self._registration = Registration(np.asarray(np.mean(self._first, axis=0), np.float32))
            self._first.clear()
        area = self._errors.area_px
        shift = self._registration(seen.clean, seen.sd, area)
        return {
            "drift_y": shift.y,
            "drift_x": shift.x,
            "drift_sd": shift.sd,
            "drift_peak": shift.peak,
            "focus": sharpness(seen.clean),
            "error_area": float("nan") if area is None else area,
            "error_temporal": self._errors.temporal.copy(),
        }
