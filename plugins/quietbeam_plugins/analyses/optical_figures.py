"""Figures of the optical workflow: the source paper's figure 4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quietbeam.offline.analyse_results import Results
from quietbeam.offline.report import Report
from quietbeam_plugins.analyses import drawing

if TYPE_CHECKING:
    from quietbeam_plugins.analyses.optical import Optical


def draw(settings: Optical, report: Report, raw: Results | None, clean: Results | None) -> None:
    """Add the sections."""
    kinds = list(drawing.both(raw, clean))
    at = sorted({round(q * (len(kinds[-1][1].frame_id) - 1)) for q in (0.0, 0.35, 0.7, 1.0)})
    if any(found.has_map("phase") for _, found in kinds):
        _phases(settings, report, kinds, at)
        _population(settings, report, kinds, at)
    else:
        report.warning("No particles were found: there is nothing to draw.")
    _shares(settings, report, kinds)


def _phases(
    settings: Optical, report: Report, kinds: list[tuple[str, Results]], at: list[int]
) -> None:
    report.heading("Particles and phases")
    shown = [(kind, found) for kind, found in kinds if found.has_map("phase")]
    figure, panels = drawing.new_figure(2 * len(shown), len(at))
    for row, (kind, found) in enumerate(shown):
        for column, position in enumerate(at):
            labels = found.map("particles", position)
            colours = np.where(labels > 0, labels * 37 % 19 + 1, np.nan)
            title = f"{kind}, frame {found.frame_id[position]}: {_count(labels)} particles"
            drawing.image(panels[2 * row, column], colours, found, title, (0, 20), "tab20")
            drawing.class_image(
                panels[2 * row + 1, column],
                found.map("phase", position),
                found.map_specs["phase"],
                found,
                f"{kind}: phases",
            )
    names = ", ".join(phase.name for phase in settings.phases)
    report.figure(
        figure,
        f"Particles by identity, and phases {names} in their own colours; black: background or "
        "unclassified.",
        "particles and phase maps at four times",
    )


def _count(labels: Any) -> int:
    return len(np.unique(labels[labels > 0]))


def _population(
    settings: Optical, report: Report, kinds: list[tuple[str, Results]], at: list[int]
) -> None:
    report.heading("Population")
    figure, panels = drawing.new_figure(len(kinds), len(at))
    for row, (kind, found) in enumerate(kinds):
        done = found.measured("population")
        for panel, position in zip(panels[row], at, strict=True):
            before = done[done <= position]
            if before.size:
                density = found.metrics["population"][before[-1]]
                panel.imshow(
                    density.T,
                    origin="lower",
                    aspect="auto",
                    extent=(0, 1, 0, settings.size_max_px),
                    cmap="magma",
                )
            panel.set_title(f"{kind}, frame {found.frame_id[position]}", fontsize=8)
            panel.set_xlabel("state of charge", fontsize=8)
            panel.set_ylabel("V/A / px", fontsize=8)
            panel.tick_params(labelsize=7)
    report.figure(
        figure,
        "Population density over particle-averaged state of charge and V/A.",
        "population densities at four times",
    )


def _shares(settings: Optical, report: Report, kinds: list[tuple[str, Results]]) -> None:
    report.heading("Over time")
    names = ["mean_charge", "unclassified", *(f"share_{phase.name}" for phase in settings.phases)]
    figure, panels = drawing.new_figure(1, len(names))
    for panel, name in zip(panels[0], names, strict=True):
        for kind, found in kinds:
            drawing.line(panel, kind, found, name)
    drawing.legend(panels[0, 0])
    report.figure(
        figure,
        "State of charge with its stated standard deviation, and shares of the phases.",
        "time series, raw in grey and clean in purple",
    )
