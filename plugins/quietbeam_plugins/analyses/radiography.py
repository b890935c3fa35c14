r"""Neutron and X-ray radiography: transmission, change of attenuation, active area, sequestration.

With counts I (dark subtracted), beam intensity b and open beam O, by Beer-Lambert::

    T = I / (b O),     A = -ln(I / b) - s^2 / (2 I^2),     dA = A(t) - A(reference)
    s(dA)^2 = (s_t / I_t)^2 + (s_ref / I_ref)^2

The term s^2 / (2 I^2) takes the mean of the logarithm of a noisy number back to the logarithm of
its mean (second order).  Differences need no open beam: it cancels.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from scipy.special import ndtr

from quietbeam import (
    AnalysisPlugin,
    ConfigError,
    MapClass,
    MapSpec,
    Measured,
    MetricSpec,
    Observation,
    RunStart,
)
from quietbeam.offline.analyse_results import Results
from quietbeam.offline.images import mean_image
from quietbeam.offline.report import Report
from quietbeam_plugins.analyses.attenuation import Attenuation, Beam, PlainReference, Reference
from quietbeam_plugins.analyses.cycler import (
    coulombic_efficiencies,
    half_cycles,
    read_cycler,
)
from quietbeam_plugins.analyses.regions import Region, check_regions, cut
from quietbeam_plugins.analyses.uncertainty import ErrorCorrelation
from quietbeam_plugins.analyses.variability import Variability

Pixels = NDArray[np.float32]
Depth = Literal["down", "up", "right", "left"]

FLAG_GOOD, FLAG_NO_OPEN_BEAM, FLAG_NO_BEAM, FLAG_DARK = 0, 1, 2, 4


class Radiography(AnalysisPlugin):
    """Change of attenuation against a reference, with its uncertainty, and what follows from it."""

    sees: ClassVar[Literal["clean", "channel", "frame"]] = "channel"

    dark: str | None = None
    """File of the counts without beam (FILE.h5:/dataset, TIFF, .npy); unless corrected before."""
    open_beam: str | None = None
    """File of the counts without a sample; needed for transmission only."""
    beam: Region | None = None
    """Where nothing but the beam is, [top, left, bottom, right]: its intensity is divided out."""
    electrodes: Mapping[str, Region] = {}
    """Name = [top, left, bottom, right]; none means the whole frame."""
    depth: Depth = "down"
    """Where depth grows, in the profiles."""
    bins: PositiveInt = 32
    """Of a profile."""
    reference: NonNegativeInt = 0
    """Frame of the run, counted from 0, from which changes are counted."""
    reference_frames: PositiveInt = 4
    """So many frames from there are averaged."""
    half_cycles: tuple[NonNegativeInt, ...] = ()
    """Frames of the run at which half-cycles begin."""
    cycler: Path | None = None
    """File of the battery cycler: half-cycles and coulombic efficiency from its current."""
    cycler_offset_s: float = 0.0
    """Time of the first frame on the cycler's clock."""
    active_threshold: PositiveFloat = 0.05
    """Change of attenuation within a half-cycle beyond which a place is active."""
    thickness_mm: PositiveFloat | None = None
    """Along the beam: then changes are those of the attenuation coefficient, 1/cm."""
    every: PositiveInt = Field(default=4)
    """Frames from one set of maps to the next."""

    def metrics(self) -> Mapping[str, MetricSpec]:
        """Of every electrode, and of the frame."""
        unit, specs = self._unit(), dict(_FRAME_METRICS)
        for name in self.electrodes or ("frame",):
            specs |= {
                f"{name}_change": MetricSpec(
                    unit, f"Mean change in {name}", uncertainty=f"{name}_change_sd"
                ),
                f"{name}_change_sd": MetricSpec(unit, "Standard deviation of that mean"),
                f"{name}_profile": MetricSpec(
                    unit, f"Change over the depth of {name}", (self.bins,), f"{name}_profile_sd"
                ),
                f"{name}_profile_sd": MetricSpec(
                    unit, "Standard deviation of that profile", (self.bins,)
                ),
                f"{name}_profile_spread": MetricSpec(
                    unit, "In-plane standard deviation of the change, by depth", (self.bins,)
                ),
                f"{name}_active": MetricSpec(
                    "", f"Active share of {name}", uncertainty=f"{name}_active_sd"
                ),
                f"{name}_active_sd": MetricSpec("", "Standard deviation of that share"),
            }
        return specs

    def maps(self) -> Mapping[str, MapSpec]:
        """Change and its s.d.; where a half-cycle is active; what the first one left behind."""
        unit = self._unit()
        maps = {
            "change": MapSpec(unit, "Change of attenuation", uncertainty="change_sd"),
            "change_sd": MapSpec(unit, "Standard deviation of the change of attenuation"),
            "active": MapSpec(
                "", "Active in this half-cycle", "uint8", (MapClass("active", (129, 15, 124)),)
            ),
            "sequestration": MapSpec(unit, "Change since the end of the first half-cycle"),
        }
        if self.open_beam is not None:
            maps["transmission"] = MapSpec("", "Share of the beam that passes")
        return maps

    def _unit(self) -> str:
        return "1/cm" if self.thickness_mm is not None else ""

    @contextmanager
    def open(self, run: RunStart) -> Generator[_Running, None, None]:
        """Read the images and the cycler's file.

        Raises:
            ConfigError: A file cannot be read or does not fit, or a region lies outside.
        """
        h, w = run.shape
        electrodes = dict(self.electrodes) or {"frame": (0, 0, h, w)}
        check_regions(electrodes | ({"beam": self.beam} if self.beam else {}), run.shape)
        for name, region in electrodes.items():
            size = region[2] - region[0] if self.depth in {"down", "up"} else region[3] - region[1]
            if size < self.bins:
                raise ConfigError(
                    f"bins = {self.bins} is more than the {size} pixels of {name} along its depth"
                )
        if tuple(sorted(set(self.half_cycles))) != self.half_cycles:
            raise ConfigError(f"half_cycles = {list(self.half_cycles)}: expected rising numbers")
        dark = None if self.dark is None else mean_image("dark", self.dark, run)
        beam = None if self.open_beam is None else mean_image("open_beam", self.open_beam, run)
        if beam is not None and dark is not None:
            beam = beam - dark
        yield _Running(self, electrodes, dark, beam)

    def report(self, report: Report, raw: Results | None, clean: Results | None) -> None:
        """Draw what was found; see ``quietbeam.offline.analyse``."""
        from quietbeam_plugins.analyses.radiography_figures import draw

        draw(self, report, raw, clean)


_FRAME_METRICS = {
    "beam": MetricSpec("", "Intensity relative to the first frames", uncertainty="beam_sd"),
    "beam_sd": MetricSpec("", "Standard deviation of that intensity"),
    "half_cycle": MetricSpec("", "Number of the half-cycle, from 1; 0 before the first"),
    "coulombic_efficiency": MetricSpec("", "Of the last complete cycle by now"),
    "variability_raw": MetricSpec("", "Mean local 3 x 3 x 3 s.d. of the change, raw"),
    "variability_clean": MetricSpec("", "Mean local 3 x 3 x 3 s.d. of the change, clean"),
    "flag": MetricSpec("", "0 good; sum of 1 no open beam, 2 no beam, 4 pixels without counts"),
}


class _Running:
    """One channel over one run."""

    def __init__(
        self,
        settings: Radiography,
        electrodes: Mapping[str, Region],
        dark: Pixels | None,
        open_beam: Pixels | None,
    ) -> None:
        self._settings, self._electrodes = settings, electrodes
        self._open_beam = open_beam
        self._errors = ErrorCorrelation()
        self._attenuation = Attenuation(dark, Beam(settings.beam))
        self._whole = Reference(settings.reference, settings.reference_frames)
        self._raw_reference = PlainReference(settings.reference, settings.reference_frames)
        self._half: Reference | None = None
        self._first_end: Reference | None = None
        self._half_number = 0
        self._seen = 0
        self._first_ns: int | None = None
        self._raw, self._clean = (Variability(3 * settings.every) for _ in range(2))
        self._cycler = _Cycler(settings)
        self.message: str | None = None

    def __call__(self, seen: Observation) -> Measured:
        settings = self._settings
        now = self._attenuation(seen.clean, seen.sd, self._errors)
        self._errors.add(now.counts, now.counts * np.sqrt(now.variance))
        self._first_ns = seen.time_ns if self._first_ns is None else self._first_ns
        elapsed_s = (seen.time_ns - self._first_ns) / 1e9
        self._follow_half_cycles(now, elapsed_s)
        self._whole.add(self._seen, now, self._errors)
        flag = self._flag(now)
        out: dict[str, Any] = {
            "beam": now.beam,
            "beam_sd": now.beam_sd,
            "half_cycle": float(self._half_number),
            "coulombic_efficiency": self._cycler.efficiency(elapsed_s),
            "flag": float(flag),
        }
        if not flag & FLAG_NO_BEAM:
            out |= self._variability(seen, now)
            if self._seen % settings.every == 0:
                out |= self._look(now)
        self._seen += 1
        return out

    def _flag(self, now: Attenuation.Now) -> int:
        said = []
        flag = FLAG_GOOD
        if self._open_beam is None:
            flag |= FLAG_NO_OPEN_BEAM
            said.append("no open_beam: transmission is not given, changes need none")
        if not np.isfinite(now.beam):
            flag |= FLAG_NO_BEAM
            said.append("no beam: its region has no counts above dark; nothing is given")
        elif now.lost > 0.01:
            flag |= FLAG_DARK
            said.append(f"{100 * now.lost:.0f} % of the pixels have no counts above dark")
        self.message = "; ".join(said) or None
        return flag

    def _follow_half_cycles(self, now: Attenuation.Now, elapsed_s: float) -> None:
        number = self._cycler.half_cycle(self._seen, elapsed_s)
        if number != self._half_number:
            if number == 2 and self._first_end is None:
                self._first_end = Reference(self._seen, self._settings.reference_frames)
            self._half_number = number
            self._half = Reference(self._seen, self._settings.reference_frames)
        for reference in (self._half, self._first_end):
            if reference is not None:
                reference.add(self._seen, now, self._errors)

    def _variability(self, seen: Observation, now: Attenuation.Now) -> dict[str, float]:
        measured = self._attenuation.plain(seen.corrected, seen.valid, now.beam)
        self._raw_reference.add(self._seen, measured)
        if not (self._whole.complete and self._raw_reference.complete):
            return {}
        clean = self._clean.add(self._whole.change(now)[0])
        raw = self._raw.add(measured - self._raw_reference.attenuation)
        if raw is None or clean is None:
            return {}
        known = np.isfinite(raw) & np.isfinite(clean)
        if not known.any():
            return {}
        return {
            "variability_raw": float(raw[known].mean()),
            "variability_clean": float(clean[known].mean()),
        }

    def _look(self, now: Attenuation.Now) -> dict[str, Any]:
        out: dict[str, Any] = {}
        scale = np.float32(10 / self._settings.thickness_mm if self._settings.thickness_mm else 1)
        if self._open_beam is not None:
            out["transmission"] = now.counts / np.where(
                self._open_beam > 0, self._open_beam, np.nan
            ).astype(np.float32)
        if self._whole.complete:
            change, variance, common = self._whole.change(now)
            out |= {"change": change * scale, "change_sd": np.sqrt(variance) * scale}
            for name, region in self._electrodes.items():
                found = (change[cut(region)], variance[cut(region)], common)
                out |= self._electrode(name, *found, float(scale))
        if self._half is not None and self._half.complete:
            out |= self._activity(now)
        if self._first_end is not None and self._first_end.complete:
            out["sequestration"] = self._first_end.change(now)[0] * scale
        return out

    def _electrode(
        self, name: str, change: Pixels, variance: Pixels, common: float, scale: float
    ) -> dict[str, float | NDArray[np.float64]]:
        """``common`` is the variance that all pixels share: that of the beam."""
        rows, row_variance = (_along(image, self._settings.depth) for image in (change, variance))
        bins = np.array_split(np.arange(rows.shape[0]), self._settings.bins)
        means, spreads, errors = np.full((3, len(bins)), np.nan)
        for number, part in enumerate(bins):
            known = np.isfinite(rows[part])
            if known.any():
                means[number] = rows[part][known].mean(dtype=np.float64)
                spreads[number] = rows[part][known].std()
                errors[number] = np.sqrt(
                    row_variance[part][known].mean() * self._errors.shared(int(known.sum()))
                    + common
                )
        known = np.isfinite(change)
        total = float(change[known].mean(dtype=np.float64)) if known.any() else float("nan")
        error = (
            float(np.sqrt(variance[known].mean() * self._errors.shared(int(known.sum())) + common))
            if known.any()
            else float("nan")
        )
        return {
            f"{name}_change": total * scale,
            f"{name}_change_sd": error * scale,
            f"{name}_profile": means * scale,
            f"{name}_profile_sd": errors * scale,
            f"{name}_profile_spread": spreads * scale,
        }

    def _activity(self, now: Attenuation.Now) -> dict[str, Any]:
        """Share of places whose change exceeds the threshold; its variance is binomial.

        Each independent patch (of the correlation area) exceeds it with the probability
        ``Phi((|dA| - threshold) / s)``.
        """
        assert self._half is not None  # noqa: S101  the caller looked
        change, variance, _ = self._half.change(now)
        threshold = self._settings.active_threshold
        with np.errstate(invalid="ignore"):
            active = np.abs(change) > threshold
        image = np.zeros(change.shape, np.uint8)
        out: dict[str, Any] = {}
        for name, region in self._electrodes.items():
            place = cut(region)
            known = np.isfinite(change[place])
            n = int(known.sum())
            if not n:
                out |= {f"{name}_active": float("nan"), f"{name}_active_sd": float("nan")}
                continue
            image[place] = active[place]
            sd = np.sqrt(np.maximum(variance[place][known], 1e-12))
            p = ndtr((np.abs(change[place][known]) - threshold) / sd)
            out[f"{name}_active"] = float(active[place][known].mean())
            spread = float((p * (1 - p)).mean()) * float(self._errors.shared(n))
            out[f"{name}_active_sd"] = float(np.sqrt(spread))
        return out | {"active": image}


class _Cycler:
    """Tells the half-cycle of a frame, from its number or from the cycler's clock."""

    def __init__(self, settings: Radiography) -> None:
        self._starts = settings.half_cycles
        self._offset_s = settings.cycler_offset_s
        self._cycles = [] if settings.cycler is None else half_cycles(*read_cycler(settings.cycler))
        if settings.cycler is not None and not self._cycles:
            raise ConfigError(f"cycler = {str(settings.cycler)!r}: no current flows in it")

    def half_cycle(self, position: int, elapsed_s: float) -> int:
        """Number from 1; 0 before the first."""
        if self._cycles:
            starts = [cycle.start_s for cycle in self._cycles]
            return int(np.searchsorted(starts, elapsed_s + self._offset_s, side="right"))
        if not self._starts:
            return 1
        return int(np.searchsorted(self._starts, position, side="right"))

    def efficiency(self, elapsed_s: float) -> float:
        """Of the last cycle complete by now; not-a-number where there is none."""
        now = elapsed_s + self._offset_s
        done = coulombic_efficiencies([cycle for cycle in self._cycles if cycle.end_s <= now])
        return done[-1] if done else float("nan")


def _along(image: Pixels, depth: Depth) -> Pixels:
    """Turn an image so that depth grows with the row."""
    turned = image if depth in {"down", "up"} else image.T
    return turned if depth in {"down", "right"} else turned[::-1]
