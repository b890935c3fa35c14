"""Phase separation: mu_h(c) and D(c) from images of composition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from quietbeam import ConfigError, InversionPlugin
from quietbeam.offline.inversion.basis import Basis, BasisName
from quietbeam.offline.inversion.driver import Inversion, Recipe, Told, invert
from quietbeam.offline.inversion.observed import Calibration, Observed, observe
from quietbeam_plugins.inversions._cahn_hilliard import CahnHilliardModel, Convention
from quietbeam_plugins.inversions._grid import make_grid


class CahnHilliard(InversionPlugin):
    """Cahn-Hilliard: dc/dt = div(g(c) D(c) grad(mu_h(c) - kappa lap c)).

    kappa cannot be recovered: (s kappa, s mu_h, D / s) are the same dynamics.
    mu_h is recovered up to a constant.
    """

    kappa_m2: float | None = Field(default=None, gt=0)
    """Gradient energy over kT, square metres; None: the recording says it."""
    boundary: Literal["periodic", "no-flux"] = "no-flux"
    """At the edge of the image."""
    convention: Convention = "cD"
    """Mobility: c D(c), D(c), or c (1 - c) D(c)."""
    basis: BasisName = "legendre"
    """Functions that mu_h and ln D are sums of."""
    potential_terms: int = Field(default=5, ge=2, le=16)
    """Of mu_h beside the mixing entropy."""
    diffusivity_terms: int = Field(default=8, ge=1, le=16)
    """Of ln D."""
    entropic: bool = True
    """mu_h contains ln(c / (1 - c))."""
    blur_px: float = Field(default=0.0, ge=0)
    """S.d. of the optics' blur, pixels; averaging over a pixel is taken into account anyway."""
    step_frames: float = Field(default=1 / 3, gt=0, le=1)
    """Longest time step, in frame intervals."""

    def solve(self, recording: Path) -> Mapping[str, Any]:
        """Give mu_h (kT) and D (m^2/s) by composition, with bands; see ``in_si``."""
        observed = observe(recording, Calibration())
        return self.in_si(self.invert(observed), observed)

    def invert(
        self, observed: Observed, recipe: Recipe | None = None, told: Told = lambda _w, _s: None
    ) -> Inversion:
        """Invert; in pixels and frames."""
        return invert(observed, self.model(observed), recipe, told)

    def model(self, observed: Observed) -> CahnHilliardModel:
        """Give the forward model of these frames.

        Raises:
            ConfigError: kappa is not known.
        """
        kappa_m2 = self.kappa_m2 or observed.given.get("kappa_m2")
        if not kappa_m2:
            raise ConfigError(
                "kappa is not known and cannot be recovered from images: mu_h, D and kappa scale "
                "together; give --kappa in square metres (gradient energy over kT)"
            )
        kappa = float(kappa_m2) / observed.pixel_size_m**2
        shape = (observed.raw.shape[1], observed.raw.shape[2])
        never: NDArray[np.bool_] = np.logical_not(observed.valid.any(axis=0))
        boundary = observed.given.get("boundary", self.boundary)
        grid = make_grid(shape, boundary, np.logical_not(never) if never.mean() > 0.02 else None)
        blur = torch.exp(-grid.eigenvalues * self.blur_px**2 / 2) * grid.pixel_response()
        area = float((~never).sum())
        # All waves up to k = 2 / sqrt(kappa): those of interfaces, which outlive a frame.
        corrected = int(np.clip(round(area / (np.pi * kappa)), 12, 160))
        return CahnHilliardModel(
            grid=grid,
            kappa=kappa,
            potential=Basis(self.basis, self.potential_terms, 1),
            diffusivity=Basis(self.basis, self.diffusivity_terms),
            scale=kappa,  # a frame that resolves the dynamics is about as long
            blur=blur,
            corrected=corrected,
            step=self.step_frames,
            convention=self.convention,
            entropic=self.entropic,
        )

    def in_si(self, found: Inversion, observed: Observed) -> dict[str, Any]:
        """Give the functions in SI units: {name: {x, value, lower, upper, sd, ...}}."""
        si = observed.pixel_size_m**2 / observed.interval_s
        out: dict[str, Any] = {}
        for name, band in found.bands.items():
            factor, unit = (si, "m^2/s") if band.unit == "px^2/frame" else (1.0, band.unit)
            out[name] = {
                "x": band.x, "value": band.value * factor, "lower": band.lower * factor,
                "upper": band.upper * factor, "sd": band.sd, "informed": band.informed,
                "observed": band.observed, "axis": band.axis, "unit": unit, "label": band.label,
            }  # fmt: skip
        return out
