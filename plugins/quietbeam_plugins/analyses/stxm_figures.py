"""Figures of STXM: the source paper's figure 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quietbeam.offline.analyse_results import Results
from quietbeam.offline.report import Report
from quietbeam_plugins.analyses import drawing

if TYPE_CHECKING:
    from quietbeam_plugins.analyses.stxm import Stxm


def draw(settings: Stxm, report: Report, raw: Results | None, clean: Results | None) -> None:
    """Add the sections."""
    kinds = list(drawing.both(raw, clean))
    shown = [(kind, found) for kind, found in kinds if found.has_map("composition")]
    if shown:
        _maps(settings, report, shown)
    else:
        report.warning("No composition was found: there is nothing to draw.")
    if settings.reference is not None:
        _likeness(report, kinds)
    _over_time(report, kinds)


def _maps(settings: Stxm, report: Report, shown: list[tuple[str, Results]]) -> None:
    first = next(iter(settings.components), "the first component")
    report.heading("Composition")
    total = len(shown[-1][1].frame_id) - 1
    at = sorted({round(q * total) for q in (0.1, 0.5, 0.9)})
    figure, panels = drawing.new_figure(len(shown), 3 * len(at), width=2.0, height=2.2)
    last: Any = None
    for row, (kind, found) in enumerate(shown):
        for number, position in enumerate(at):
            trio = panels[row, 3 * number : 3 * number + 3]
            title = f"{kind}, frame {found.frame_id[position]}"
            drawing.image(trio[0], found.map("density", position), found, title, None, "gray")
            last = drawing.image(
                trio[1], found.map("composition", position), found, first, (0, 1), "coolwarm"
            )
            drawing.image(
                trio[2], found.map("composition_sd", position), found, "s.d.", (0, 0.3), "magma"
            )
    figure.colorbar(last, ax=panels, shrink=0.6)
    report.figure(
        figure,
        f"Mean optical density, share of {first}, and its standard deviation.",
        "maps of density, composition and its uncertainty, raw above clean",
    )


def _likeness(report: Report, kinds: list[tuple[str, Results]]) -> None:
    report.heading("Against the reference map")
    figure, panels = drawing.new_figure(1, 2)
    names = ("reference_psnr", "reference_ssim")
    for panel, name, unit in zip(panels[0], names, ("PSNR / dB", "SSIM"), strict=True):
        values = [found.metrics[name] for _, found in kinds]
        drawing.boxes(panel, values, [kind for kind, _ in kinds], unit)
    report.figure(
        figure,
        "Likeness of the composition with the reference, resized and aligned; boxes over scans: "
        "quartiles, median, whiskers of 1.5 interquartile ranges.",
        "box plots of PSNR and SSIM, raw and clean",
    )


def _over_time(report: Report, kinds: list[tuple[str, Results]]) -> None:
    names = [
        name
        for name in ("composition_mean", "heterogeneity", "agreement")
        if any(np.isfinite(found.metrics[name]).any() for _, found in kinds)
    ]
    if not names:
        return
    report.heading("Over time")
    figure, panels = drawing.new_figure(1, len(names))
    for panel, name in zip(panels[0], names, strict=True):
        for kind, found in kinds:
            drawing.line(panel, kind, found, name)
    drawing.legend(panels[0, 0])
    report.figure(
        figure,
        "Mean composition and intra-particle heterogeneity (noise taken off), with their stated "
        "standard deviations.",
        "time series, raw in grey and clean in purple",
    )
