r"""Scanning transmission X-ray microscopy: optical density, composition, heterogeneity.

::

    OD = -ln(I / I0) - s^2 / (2 I^2),   s(OD)^2 = (s / I)^2 + (s0 / I0)^2

Energies come as the channels of a frame, or one after the other, frame by frame; a spectrum is
complete with the last of ``energies_ev``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat

from quietbeam import (
    AnalysisPlugin,
    ConfigError,
    MapSpec,
    Measured,
    MetricSpec,
    Observation,
    RunStart,
)
from quietbeam.offline.analyse_results import Results
from quietbeam.offline.images import read_image
from quietbeam.offline.report import Report
from quietbeam_plugins.analyses.alignment import Found, compare, moved_back, register
from quietbeam_plugins.analyses.composition import check_components, fit_non_negative, share
from quietbeam_plugins.analyses.regions import Region, check_regions, cut, known_mean
from quietbeam_plugins.analyses.uncertainty import ErrorCorrelation

Pixels = NDArray[np.float32]
FLAG_NO_I0, FLAG_UNREGISTERED, FLAG_NO_PARTICLES, FLAG_MISFIT = 1, 2, 4, 8

_AGREEMENT = 0.3  # correlation below which two energies do not show the same scene


class Stxm(AnalysisPlugin):
    """Composition of every pixel from the optical densities at two or more energies."""

    sees: ClassVar[Literal["clean", "channel", "frame"]] = "frame"

    energies_ev: tuple[PositiveFloat, ...] = ()
    """Of the channels, in order, or of successive frames; none: read from the channels' names."""
    components: Mapping[str, tuple[NonNegativeFloat, ...]] = {}
    """Name = absorbance of a full particle at each energy; the first is what is mapped."""
    spectra: Path | None = None
    """Instead: text with energy (eV) and a column of absorbance for each component, named."""
    i0: Region | None = None
    """Where no sample is, [top, left, bottom, right]; its mean is I0 of each energy."""
    i0_counts: tuple[PositiveFloat, ...] = ()
    """Instead: counts without a sample at each energy, measured before."""
    i0_lines: bool = False
    """I0 by scan line, from the region: takes out what the beam did from line to line."""
    register_energies: bool = True
    max_shift_px: PositiveFloat = 8.0
    """Energies further apart than this are not registered: flagged."""
    shift_sd_px: NonNegativeFloat = 0.25
    """How well the shift between energies is known; enters the uncertainty where edges are."""
    min_density: PositiveFloat = 0.15
    """Sum of the components from which on a pixel is part of a particle, in units of them."""
    reference: str | None = None
    """File of a map of the first component (ptychography): resized, aligned, compared."""

    def metrics(self) -> Mapping[str, MetricSpec]:
        """Of the particles, of the fit, of the registration."""
        return _METRICS

    def maps(self) -> Mapping[str, MapSpec]:
        """Optical density (sum over energies), composition and its s.d., misfit."""
        return {
            "density": MapSpec("", "Mean optical density of all energies"),
            "composition": MapSpec(
                "", "Share of the first component", uncertainty="composition_sd"
            ),
            "composition_sd": MapSpec("", "Standard deviation of that share"),
        }

    @contextmanager
    def open(self, run: RunStart) -> Generator[_Running, None, None]:
        """Read spectra and reference; find the energies.

        Raises:
            ConfigError: Energies, components or I0 are missing or do not fit each other.
        """
        if find_spec("skimage") is None:
            raise ConfigError("stxm needs scikit-image: pip install 'quietbeam[analyse]'")
        shape = run.shape[-2:]
        energies = self._energies(run)
        absorbance = self._absorbance(energies)
        if self.i0 is None and len(self.i0_counts) != len(energies):
            raise ConfigError(
                f"stxm needs I0: i0 = a region without sample, or i0_counts for each of "
                f"{len(energies)} energies; got {list(self.i0_counts) or 'neither'}"
            )
        check_regions({} if self.i0 is None else {"i0": self.i0}, shape)
        reference = None if self.reference is None else read_image("reference", self.reference)
        yield _Running(self, energies, absorbance, reference)

    def _energies(self, run: RunStart) -> tuple[float, ...]:
        if run.channels and not self.energies_ev:
            found = [re.search(r"\d+(\.\d+)?", name) for name in run.channels]
            if not all(found):
                raise ConfigError(
                    f"stxm: energies_ev is not set, and the channels {list(run.channels)} are "
                    "not named after energies"
                )
            return tuple(float(one.group()) for one in found if one)
        if run.channels and len(run.channels) != len(self.energies_ev):
            raise ConfigError(
                f"stxm: {len(self.energies_ev)} energies_ev for {len(run.channels)} channels"
            )
        if not self.energies_ev:
            raise ConfigError("stxm: energies_ev is not set; frames of one channel do not tell it")
        return self.energies_ev

    def _absorbance(self, energies: tuple[float, ...]) -> NDArray[np.float64]:
        """(E, K) absorbance of the components."""
        if self.spectra is not None:
            absorbance = read_spectra(self.spectra, energies)
        else:
            wrong = {n: len(v) for n, v in self.components.items() if len(v) != len(energies)}
            if wrong or len(self.components) < 1:
                raise ConfigError(
                    f"stxm: components need one absorbance for each of the energies "
                    f"{list(energies)} eV; got {dict(self.components) or 'no components'}"
                )
            absorbance = np.array(list(self.components.values())).T
        check_components(absorbance)
        return absorbance

    def report(self, report: Report, raw: Results | None, clean: Results | None) -> None:
        """Draw what was found; see ``quietbeam.offline.analyse``."""
        from quietbeam_plugins.analyses.stxm_figures import draw

        draw(self, report, raw, clean)


_METRICS = {
    "composition_mean": MetricSpec(
        "", "Mean share of the first component", uncertainty="composition_mean_sd"
    ),
    "composition_mean_sd": MetricSpec("", "Standard deviation of that mean"),
    "heterogeneity": MetricSpec(
        "", "s.d. of the composition within particles, noise taken off", (), "heterogeneity_sd"
    ),
    "heterogeneity_sd": MetricSpec("", "Standard deviation of that"),
    "particle_area": MetricSpec("px", "Pixels in particles"),
    "shift_y": MetricSpec("px", "Of the last energy against the first, down"),
    "shift_x": MetricSpec("px", "Of the last energy against the first, right"),
    "agreement": MetricSpec("", "Least correlation of an energy with the first, registered"),
    "chi2": MetricSpec("", "Mean misfit by degree of freedom; needs more energies than components"),
    "reference_psnr": MetricSpec("dB", "Against the reference map, resized and aligned"),
    "reference_ssim": MetricSpec("", "Against the reference map, resized and aligned"),
    "flag": MetricSpec(
        "", "0 good; sum of 1 no I0, 2 not registered, 4 no particles, 8 the spectra do not fit"
    ),
}


class _Running:
    """One run."""

    def __init__(
        self,
        settings: Stxm,
        energies: tuple[float, ...],
        absorbance: NDArray[np.float64],
        reference: Pixels | None,
    ) -> None:
        self._settings, self._energies = settings, energies
        self._absorbance, self._reference = absorbance, reference
        self._errors = ErrorCorrelation(lag=4)
        self._density: list[Pixels] = []
        self._variance: list[Pixels] = []
        self._dark = False
        self.message: str | None = None

    def __call__(self, seen: Observation) -> Measured:
        stacked = seen.clean.ndim == 3
        self._errors.add(*((a[0] if stacked else a) for a in (seen.clean, seen.sd)))
        clean, sd = (a if stacked else a[None] for a in (seen.clean, seen.sd))
        for plane, spread in zip(clean, sd, strict=True):
            self._add(plane, spread)
        if len(self._density) < len(self._energies):
            return {}
        density, variance = np.stack(self._density), np.stack(self._variance)
        dark, self._dark = self._dark, False
        self._density, self._variance = [], []
        if dark:
            self.message = "no I0: the region without sample has no counts; nothing is given"
            return {"flag": float(FLAG_NO_I0)}
        return self._spectrum(density, variance)

    def _add(self, counts: Pixels, sd: Pixels) -> None:
        """Take the counts of the next energy to optical density."""
        settings, number = self._settings, len(self._density)
        i0: float | Pixels
        if settings.i0 is None:
            i0, relative = settings.i0_counts[number], 0.0
        else:
            place = cut(settings.i0)
            i0 = known_mean(counts[place])
            relative = (self._errors.mean_sd(sd[place]) / i0) ** 2 if i0 > 0 else float("nan")
            if settings.i0_lines and i0 > 0:
                rows = np.full((counts.shape[0], 1), i0, np.float32)
                part = np.nanmean(counts[place], axis=1, keepdims=True)
                rows[place[0]] = part
                i0 = np.where(rows > 0, rows, np.float32(np.nan))
                relative = known_mean((sd[place] / i0[place[0]]) ** 2) / counts[place].shape[1]
        if not np.all(np.nan_to_num(i0) > 0):
            self._dark, i0 = True, 1.0
        safe = np.where(counts > 0, counts, np.float32(np.nan))
        own = np.square(sd / safe)
        self._density.append((-np.log(safe / i0) - own / 2).astype(np.float32))
        self._variance.append((own + np.float32(relative)).astype(np.float32))

    def _spectrum(self, density: Pixels, variance: Pixels) -> Measured:
        flag, said = 0, []
        out: dict[str, float | Pixels] = {}
        if self._settings.register_energies:
            found = self._register(density, variance)
            out |= {
                "shift_y": found[-1].y,
                "shift_x": found[-1].x,
                "agreement": min(one.agreement for one in found),
            }
            if not all(self._is_good(one) for one in found):
                flag |= FLAG_UNREGISTERED
                said.append(
                    f"the energies cannot be registered (shift {found[-1].y:.1f}, "
                    f"{found[-1].x:.1f} px, agreement {out['agreement']:.2f}): no composition"
                )
                self.message = "; ".join(said)
                return out | {"flag": float(flag), "density": density.mean(0)}
        maps, more, flags = self._composition(density, variance, said)
        self.message = "; ".join(said) or None
        return out | maps | more | {"flag": float(flag | flags)}

    def _is_good(self, found: Found) -> bool:
        far = max(abs(found.y), abs(found.x)) > self._settings.max_shift_px
        return found.agreement >= _AGREEMENT and not far

    def _register(self, density: Pixels, variance: Pixels) -> list[Found]:
        """Move every energy onto the first, in place."""
        all_found = []
        for number in range(1, len(density)):
            found = register(density[0], density[number])
            all_found.append(found)
            if self._is_good(found) and max(abs(found.y), abs(found.x)) > 0.02:
                density[number] = moved_back(density[number], found)
                variance[number] = moved_back(variance[number], found)
            # what the shift is not known to: it moves edges
            steep_y, steep_x = np.gradient(density[number])
            variance[number] += self._settings.shift_sd_px**2 * (steep_y**2 + steep_x**2)
        return all_found or [Found(0.0, 0.0, 1.0)]

    def _composition(
        self, density: Pixels, variance: Pixels, said: list[str]
    ) -> tuple[dict[str, Pixels], dict[str, float], int]:
        shape = density.shape[1:]
        bulk = density.mean(0)
        nan = np.full(shape, np.nan, np.float32)
        maps = {"density": bulk, "composition": nan, "composition_sd": nan.copy()}
        # a particle has to stand out of the errors of its own pixel, too
        floor = np.sqrt(variance.mean(0) / len(density))
        level = float(self._absorbance.mean()) * self._settings.min_density
        inside = (bulk > level) & (bulk > 2 * floor)
        area = int(inside.sum())
        figures: dict[str, float] = {"particle_area": float(area)}
        if area < 16:
            said.append(f"no particles: {area} pixels are denser than {level:.3g}")
            return maps, figures, FLAG_NO_PARTICLES
        fit = fit_non_negative(density[:, inside], np.sqrt(variance[:, inside]), self._absorbance)
        value, spread = share(fit)
        composition = nan.copy()
        composition[inside] = value
        maps["composition"] = composition
        maps["composition_sd"][inside] = np.sqrt(spread)
        flag = self._misfit(fit.chi2, figures, said)
        figures |= self._moments(value, spread)
        figures |= self._likeness(composition)
        return maps, figures, flag

    def _misfit(self, chi2: NDArray[np.float64], out: dict[str, float], said: list[str]) -> int:
        energies, components = self._absorbance.shape
        if energies == components:
            return 0
        out["chi2"] = known_mean(chi2) / (energies - components)
        if out["chi2"] < 25:
            return 0
        said.append(
            f"the spectra do not fit (chi2 {out['chi2']:.0f} by degree of freedom): "
            "wrong energies or components?"
        )
        return FLAG_MISFIT

    def _moments(self, value: NDArray[np.float64], spread: NDArray[np.float64]) -> dict[str, float]:
        """Mean and s.d. of the composition; errors of pixels add to the s.d. and are taken off."""
        known = np.isfinite(value) & np.isfinite(spread)
        n = int(known.sum())
        if not n:
            return {}
        shared = float(self._errors.shared(n))
        noise = float(spread[known].mean())
        seen = float(value[known].var())
        true = max(seen - noise, 0.0)
        error = np.sqrt(2 * seen * noise + noise**2) * np.sqrt(shared)
        return {
            "composition_mean": float(value[known].mean()),
            "composition_mean_sd": float(np.sqrt(noise * shared)),
            "heterogeneity": float(np.sqrt(true)),
            "heterogeneity_sd": float(error / max(2 * np.sqrt(true), np.sqrt(error))),
        }

    def _likeness(self, composition: Pixels) -> dict[str, float]:
        if self._reference is None:
            return {}
        found = compare(composition, self._reference)
        return {"reference_psnr": found.psnr_db, "reference_ssim": found.ssim}


def read_spectra(path: Path, energies: tuple[float, ...]) -> NDArray[np.float64]:
    """Read reference spectra and give them at ``energies`` by linear interpolation, (E, K).

    Raises:
        ConfigError: No such file, no numbers in it, or an energy beyond its ends.
    """
    if not path.is_file():
        raise ConfigError(f"spectra = {str(path)!r}: there is no such file")
    rows = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","):
            try:
                rows.append([float(cell) for cell in row])
            except ValueError:
                continue  # a header
    table = np.array([row for row in rows if len(row) == len(rows[-1])] if rows else [])
    if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] < 2:
        raise ConfigError(
            f"spectra = {str(path)!r}: expected lines of energy,absorbance[,absorbance ...]"
        )
    table = table[np.argsort(table[:, 0])]
    low, high = table[0, 0], table[-1, 0]
    outside = [energy for energy in energies if not low <= energy <= high]
    if outside:
        raise ConfigError(
            f"spectra = {str(path)!r} cover {low:g} to {high:g} eV; {outside} are outside: "
            "wrong energies?"
        )
    return np.stack([np.interp(energies, table[:, 0], column) for column in table.T[1:]], 1)
