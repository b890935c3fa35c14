"""Colour microscopy of graphite: particles, their phases and states of charge, the population."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

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
from quietbeam.offline.report import Report
from quietbeam_plugins.analyses.colour import Classified, Colour, ColourTable, Phase
from quietbeam_plugins.analyses.illumination import Illumination
from quietbeam_plugins.analyses.particles import Tracker, segment
from quietbeam_plugins.analyses.regions import Region, check_regions, known_mean
from quietbeam_plugins.analyses.uncertainty import ErrorCorrelation

Pixels = NDArray[np.float32]
FLAG_NO_PARTICLES, FLAG_SATURATED, FLAG_UNCLASSIFIED, FLAG_TOO_MANY = 1, 2, 4, 8

_GRAPHITE = (
    Phase(name="III", colour=(60, 82, 150), charge=0.22),
    Phase(name="II", colour=(168, 66, 62), charge=0.5),
    Phase(name="I", colour=(208, 170, 78), charge=1.0),
)


class Optical(AnalysisPlugin):
    """Particles with identities, stages III, II, I by colour, state of charge, population."""

    sees: ClassVar[Literal["clean", "channel", "frame"]] = "frame"

    phases: tuple[Phase, ...] = Field(default=_GRAPHITE, min_length=1, max_length=32)
    """Classes with their colour and state of charge."""
    background: Colour = (36, 36, 40)
    """Colour between the particles."""
    clicks: Mapping[str, tuple[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt], ...]] = {}
    """Phase = places [frame, row, column] an operator named: their colour replaces the given."""
    spread: PositiveFloat = 9.0
    """How much colours of one class differ, s.d. in units of CIELAB."""
    full_scale: PositiveFloat | None = None
    """Counts of a white pixel; 255 for 8-bit cameras, else the detector's saturation."""
    white: Region | None = None
    """A reference that keeps its colour: light and colour are normalised to it."""
    remove_haze: bool = True
    """Subtract the slowly varying veil, told by the darkest places around."""
    min_area_px: PositiveInt = 30
    seed_depth_px: PositiveFloat = 1.0
    """How much deeper than the neck between them two parts must be, to be two particles."""
    max_particles: PositiveInt = 256
    size_max_px: PositiveFloat = 12.0
    """Upper end of the population's V/A axis; V/A is a third of the radius of an equal circle."""
    bins: tuple[PositiveInt, PositiveInt] = (20, 12)
    """Of the population density, over state of charge and V/A."""
    every: PositiveInt = 4
    """Frames from one classification to the next."""
    segment_every: PositiveInt = 24
    """Frames from one segmentation to the next."""
    max_unclassified: NonNegativeFloat = 0.3
    """Share of the particles' pixels that may be unclassified before the result is flagged."""

    def metrics(self) -> Mapping[str, MetricSpec]:
        """Of the electrode, of each phase, of each particle."""
        n = (self.max_particles,)
        specs = dict(_METRICS)
        for phase in self.phases:
            specs[f"share_{phase.name}"] = MetricSpec("", f"Share of the area in {phase.name}")
        specs["particle_charge"] = MetricSpec(
            "", "State of charge by particle number", n, "particle_charge_sd"
        )
        specs["particle_charge_sd"] = MetricSpec("", "Standard deviation of that", n)
        specs["particle_size"] = MetricSpec("px", "V/A by particle number", n)
        specs["population"] = MetricSpec("", "Density over (state of charge, V/A)", self.bins)
        return specs

    def maps(self) -> Mapping[str, MapSpec]:
        """Particles by number, phases as classes, state of charge."""
        classes = tuple(
            MapClass(p.name, (int(p.colour[0]), int(p.colour[1]), int(p.colour[2])))
            for p in self.phases
        )
        return {
            "particles": MapSpec("", "Number of the particle", "int32"),
            "phase": MapSpec("", "Phase; 0 is background or unclassified", "uint8", classes),
            "charge": MapSpec("", "State of charge", uncertainty="charge_sd"),
            "charge_sd": MapSpec("", "Standard deviation of the state of charge"),
        }

    @contextmanager
    def open(self, run: RunStart) -> Generator[_Running, None, None]:
        """Check channels, regions and clicks.

        Raises:
            ConfigError: The frames are not in colour, a name or place is not there, or
                scikit-image is missing.
        """
        if find_spec("skimage") is None:
            raise ConfigError("optical needs scikit-image: pip install 'quietbeam[analyse]'")
        order = _colours(run.channels)
        check_regions({} if self.white is None else {"white": self.white}, run.shape[-2:])
        names = {phase.name for phase in self.phases}
        for name, places in self.clicks.items():
            if name not in names:
                raise ConfigError(f"clicks: {name!r} is no phase; expected one of {sorted(names)}")
            for _, y, x in places:
                if y >= run.shape[-2] or x >= run.shape[-1]:
                    raise ConfigError(f"clicks: {name} at [{y}, {x}] is outside {run.shape[-2:]}")
        saturation = 255.0 if run.saturation is None else float(run.saturation)
        yield _Running(self, order, self.full_scale or saturation)

    def report(self, report: Report, raw: Results | None, clean: Results | None) -> None:
        """Draw what was found; see ``quietbeam.offline.analyse``."""
        from quietbeam_plugins.analyses.optical_figures import draw

        draw(self, report, raw, clean)


_METRICS = {
    "particle_count": MetricSpec("", "Particles found"),
    "mean_charge": MetricSpec("", "State of charge of all area", uncertainty="mean_charge_sd"),
    "mean_charge_sd": MetricSpec("", "Standard deviation of that"),
    "unclassified": MetricSpec("", "Share of the particles' pixels that fit no phase"),
    "saturated": MetricSpec("", "Share of pixels at the camera's limit"),
    "flicker": MetricSpec("", "Brightness relative to the frames before"),
    "haze": MetricSpec("", "Mean veil subtracted, of full scale"),
    "flag": MetricSpec(
        "", "0 good; sum of 1 no particles, 2 saturated, 4 unclassified, 8 too many particles"
    ),
}


class _Running:
    """One run."""

    def __init__(self, settings: Optical, order: tuple[int, ...], full_scale: float) -> None:
        self._settings, self._order = settings, list(order)
        self._scale = np.float32(255 / full_scale)
        self._light = Illumination(settings.white, remove_haze=settings.remove_haze)
        self._errors = ErrorCorrelation()
        self._tracker = Tracker(settings.max_particles)
        self._phases = list(settings.phases)
        self._clicked: dict[str, list[NDArray[np.float32]]] = {}
        self._table: ColourTable | None = None
        self._noise = np.zeros(3)
        self._labels: NDArray[np.int32] | None = None
        self._seen = 0
        self.message: str | None = None

    def __call__(self, seen: Observation) -> Measured:
        settings, position = self._settings, self._seen
        self._seen += 1
        green = self._order[1]
        self._errors.add(seen.clean[green], seen.sd[green])
        self._light.follow(seen.clean[self._order])
        looking = position % settings.every == 0 or position % settings.segment_every == 0
        wanted = {frame for places in settings.clicks.values() for frame, _, _ in places}
        if not looking and position not in wanted:
            return {"flicker": self._light.flicker}
        counts = seen.clean[self._order]
        rgb = self._light.corrected(counts) * self._scale
        self._take_clicks(position, rgb)
        if not looking:
            return {"flicker": self._light.flicker}
        if position % settings.segment_every == 0 or self._labels is None:
            self._segment(rgb)
        saturated = np.asarray((counts * self._scale >= 254.5).any(0))
        return self._look(rgb, seen.sd[self._order] * self._scale, saturated)

    def _take_clicks(self, position: int, rgb: Pixels) -> None:
        """Learn the colours of places an operator named, 5 x 5 pixels around each."""
        for name, places in self._settings.clicks.items():
            for frame, y, x in places:
                if frame == position:
                    patch = rgb[:, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
                    self._clicked.setdefault(name, []).append(np.median(patch, axis=(1, 2)))
                    self._table = None
        if self._table is None and self._clicked:
            self._phases = [
                phase.model_copy(
                    update={"colour": tuple(np.mean(self._clicked[phase.name], axis=0).tolist())}
                )
                if phase.name in self._clicked
                else phase
                for phase in self._settings.phases
            ]

    def _segment(self, rgb: Pixels) -> None:
        found = segment(rgb.max(0), self._settings.min_area_px, self._settings.seed_depth_px)
        self._labels = None if found is None else self._tracker(found)

    def _look(self, rgb: Pixels, sd: Pixels, saturated: NDArray[np.bool_]) -> Measured:
        out: dict[str, Any] = {
            "flicker": self._light.flicker,
            "haze": self._light.haze * float(self._scale) / 255,
            "saturated": float(saturated.mean()),
        }
        if self._labels is None or not self._labels.any():
            self.message = "no particles: nothing stands out from the background"
            return out | {"particle_count": 0.0, "flag": float(FLAG_NO_PARTICLES)}
        found = self._classify(rgb, sd)
        inside = (self._labels > 0) & ~saturated
        phase = np.where(inside, found.phase, 0).astype(np.uint8)
        charge = np.where(phase > 0, found.charge, np.float32(np.nan)).astype(np.float32)
        out |= self._electrode(phase, charge, found.variance, int(inside.sum()))
        out |= self._particles(charge, found.variance)
        out |= self._flags(out, float(saturated[self._labels > 0].mean()))
        return out | {
            "particles": self._labels,
            "phase": phase,
            "charge": charge,
            "charge_sd": np.sqrt(found.variance),
        }

    def _classify(self, rgb: Pixels, sd: Pixels) -> Classified:
        noise = np.array([known_mean(channel[::8, ::8]) for channel in sd])
        noise = np.nan_to_num(noise)
        if self._table is None or (np.abs(noise - self._noise) > 0.25 * self._noise + 0.5).any():
            self._noise = noise
            settings = self._settings
            self._table = ColourTable(self._phases, settings.background, settings.spread, noise)
        return self._table(rgb)

    def _electrode(
        self, phase: NDArray[np.uint8], charge: Pixels, variance: Pixels, area: int
    ) -> dict[str, Any]:
        counts = np.bincount(phase.ravel(), minlength=len(self._phases) + 1)[1:]
        classified = int(counts.sum())
        out: dict[str, Any] = {
            f"share_{one.name}": counts[n] / classified if classified else float("nan")
            for n, one in enumerate(self._phases)
        }
        known = phase > 0
        error = known_mean(variance[known]) * float(self._errors.shared(classified))
        return out | {
            "mean_charge": known_mean(charge[known]),
            "mean_charge_sd": float(np.sqrt(error)),
            "unclassified": 1 - classified / area if area else float("nan"),
        }

    def _particles(self, charge: Pixels, variance: Pixels) -> dict[str, Any]:
        """Mean state of charge, V/A and the population, by particle number."""
        assert self._labels is not None  # noqa: S101  the caller looked
        most = self._settings.max_particles
        labels = self._labels
        known = np.isfinite(charge) & (labels > 0)
        area = np.bincount(labels.ravel(), minlength=most + 1)[1:]
        count = np.bincount(labels[known], minlength=most + 1)[1:]
        there = (area > 0) & (count >= area / 2)  # of the others too little is known
        safe = np.where(there, count, 1)
        total, square = (
            np.bincount(labels[known], image[known].astype(np.float64), most + 1)[1:]
            for image in (charge, variance)
        )
        nan = np.nan
        mean = np.where(there, total / safe, nan)
        error = np.where(there, np.sqrt(square / safe * self._errors.shared(safe)), nan)
        size = np.where(area > 0, np.sqrt(area / np.pi) / 3, nan)
        limits = ((0.0, 1.0), (0.0, self._settings.size_max_px))
        density, _, _ = np.histogram2d(
            mean[there], size[there], bins=self._settings.bins, range=limits
        )
        if there.any():
            cell = (
                1.0 / self._settings.bins[0] * self._settings.size_max_px / self._settings.bins[1]
            )
            density /= max(density.sum(), 1) * cell
        return {
            "particle_count": float((area > 0).sum()),
            "particle_charge": mean,
            "particle_charge_sd": error,
            "particle_size": size,
            "population": density,
        }

    def _flags(self, out: Mapping[str, Any], saturated: float) -> dict[str, float]:
        said, flag = [], 0
        if saturated > 0.05:
            flag |= FLAG_SATURATED
            said.append(f"{100 * saturated:.0f} % of the particles' pixels are saturated: left out")
        share = float(np.asarray(out["unclassified"]))
        if not share <= self._settings.max_unclassified:
            flag |= FLAG_UNCLASSIFIED
            said.append(
                f"{100 * share:.0f} % of the particles' pixels fit no phase: calibrate the colours"
            )
        if self._tracker.dropped:
            flag |= FLAG_TOO_MANY
            said.append(f"{self._tracker.dropped} particles beyond max_particles were dropped")
        self.message = "; ".join(said) or None
        return {"flag": float(flag)}


def _colours(channels: tuple[str, ...]) -> tuple[int, ...]:
    """Find red, green and blue among the channels."""
    names = [name.lower() for name in channels]
    if {"red", "green", "blue"} <= set(names):
        return tuple(names.index(name) for name in ("red", "green", "blue"))
    if len(names) == 3:
        return (0, 1, 2)
    raise ConfigError(
        "optical needs colour: channels red, green, blue; "
        f"the frames have {list(channels) or 'one channel'}"
    )
