"""Figures of radiography: the source paper's figure 5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quietbeam.offline.analyse_results import Results
from quietbeam.offline.report import Report
from quietbeam_plugins.analyses import drawing

if TYPE_CHECKING:
    from quietbeam_plugins.analyses.radiography import Radiography


def draw(settings: Radiography, report: Report, raw: Results | None, clean: Results | None) -> None:
    """Add the sections."""
    kinds = list(drawing.both(raw, clean))
    ends = _ends(kinds[0][1])
    _variability(report, kinds)
    _changes(report, kinds, ends, "change", "Change of attenuation")
    for name in settings.electrodes or ("frame",):
        _profiles(report, kinds, ends, name)
    _activity(settings, report, kinds, ends)
    if any(found.has_map("sequestration") for _, found in kinds):
        _changes(report, kinds, ends[1:] or ends, "sequestration", "Since the first half-cycle")
    _efficiency(report, kinds[-1][1])


def _ends(found: Results) -> list[int]:
    """Positions of the last measured frame of every half-cycle."""
    number = found.metrics["half_cycle"]
    change = np.flatnonzero(np.diff(number) != 0)
    return [*change.tolist(), len(number) - 1]


def _variability(report: Report, kinds: list[tuple[str, Results]]) -> None:
    _, found = kinds[-1]
    raw, clean = (found.metrics[f"variability_{kind}"] for kind in ("raw", "clean"))
    if len(kinds) < 2 or not np.isfinite(clean).any():
        return
    report.heading("Dynamic variability")
    figure, panels = drawing.new_figure(1, 1)
    drawing.boxes(
        panels[0, 0], [raw, clean], ["raw", "clean"], "local 3 × 3 × 3 s.d. of the change"
    )
    before, after = float(np.nanmean(raw)), float(np.nanmean(clean))
    report.figure(
        figure,
        f"Mean local spatio-temporal standard deviation of the change of attenuation: "
        f"{before:.4f} raw, {after:.4f} clean, {100 * (1 - after / before):.0f} % less. "
        "Boxes over frames.",
        "box plots of the dynamic variability, raw and clean",
    )


def _changes(
    report: Report, kinds: list[tuple[str, Results]], ends: list[int], name: str, title: str
) -> None:
    shown = [(kind, found) for kind, found in kinds if found.has_map(name)]
    if not shown:
        return
    report.heading(title)
    figure, panels = drawing.new_figure(len(shown), len(ends))
    top = np.nanpercentile(np.abs(shown[-1][1].map(name, ends[0])), 99.5)
    top = max([top, *(np.nanpercentile(np.abs(shown[-1][1].map(name, e)), 99.5) for e in ends)])
    last: Any = None
    for row, (kind, found) in enumerate(shown):
        for column, end in enumerate(ends):
            label = f"{kind}, frame {found.frame_id[end]}"
            pixels = found.map(name, end)
            last = drawing.image(panels[row, column], pixels, found, label, (-top, top), "RdBu_r")
    figure.colorbar(last, ax=panels, shrink=0.7)
    report.figure(
        figure,
        f"{title} at the ends of the half-cycles.",
        f"maps of {title.lower()}, raw above clean",
    )


def _profiles(report: Report, kinds: list[tuple[str, Results]], ends: list[int], name: str) -> None:
    report.heading(f"Profiles over the depth of {name}")
    figure, panels = drawing.new_figure(1, len(ends), height=3.0)
    for panel, end in zip(panels[0], ends, strict=True):
        for kind, found in kinds:
            values = found.metrics[f"{name}_profile"]
            at = found.measured(f"{name}_profile")
            at = at[at <= end]
            if not at.size:
                continue
            profile, colour = values[at[-1]], drawing.COLOUR[kind]
            spread = found.metrics[f"{name}_profile_spread"][at[-1]]
            error = found.metrics[f"{name}_profile_sd"][at[-1]]
            depth = (np.arange(profile.size) + 0.5) / profile.size
            panel.fill_between(
                depth, profile - spread, profile + spread, color=colour, alpha=0.2, lw=0
            )
            panel.errorbar(depth, profile, error, color=colour, lw=1.2, label=kind)
        panel.set_xlabel("relative depth", fontsize=8)
        panel.set_title(f"frame {kinds[-1][1].frame_id[end]}", fontsize=8)
        panel.tick_params(labelsize=7)
    drawing.legend(panels[0, 0])
    report.figure(
        figure,
        "Depth-averaged change of attenuation. Bands: in-plane standard deviation. "
        "Bars: stated standard deviation of the mean.",
        f"profiles of {name}, raw in grey and clean in purple",
    )


def _activity(
    settings: Radiography, report: Report, kinds: list[tuple[str, Results]], ends: list[int]
) -> None:
    names = list(settings.electrodes or ("frame",))
    rows = []
    for number, end in enumerate(ends, 1):
        for name in names:
            cells = [cell for _, found in kinds for cell in _active(found, name, end)]
            rows.append((number, name, *cells))
    if not rows:
        return
    report.heading("Active area")
    header = ["half-cycle", "electrode"]
    for kind, _ in kinds:
        header += [kind, "±"]
    report.table(
        rows,
        header,
        f"Share that changed by more than {settings.active_threshold:g} in the half-cycle",
    )


def _active(found: Results, name: str, end: int) -> tuple[float, float]:
    at = found.measured(f"{name}_active")
    at = at[at <= end]
    if not at.size:
        return float("nan"), float("nan")
    share, error = (found.metrics[f"{name}_active{what}"][at[-1]] for what in ("", "_sd"))
    return float(share), float(error)


def _efficiency(report: Report, found: Results) -> None:
    values = found.metrics["coulombic_efficiency"]
    known = values[np.isfinite(values)]
    if not known.size:
        return
    steps = known[np.r_[True, np.diff(known) != 0]]
    report.heading("Coulombic efficiency")
    report.table(enumerate(steps, 1), ("cycle", "efficiency"), "Discharged over charged")
