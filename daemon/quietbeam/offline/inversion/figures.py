"""The report of an inversion: what was recovered, how well, and whether to believe it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quietbeam.offline.inversion.driver import Inversion
from quietbeam.offline.inversion.uncertainty import LEVEL
from quietbeam.offline.report import Report


def write_report(
    path: Path,
    found: Inversion,
    functions: Mapping[str, Any],
    provenance: Mapping[str, Any],
    truth: Mapping[str, Any] | None = None,
) -> None:
    """Write one HTML page.

    Args:
        path: Of the page.
        found: The inversion.
        functions: In SI units.
        provenance: Shown at the end.
        truth: Values by name on the same grids, where the recording is a simulation.

    Raises:
        SinkError: It cannot be written.
        ImportError: matplotlib is not installed (the extra ``invert``).
    """
    report = Report("Inversion of a recording", provenance)
    for note in found.notes:
        report.warning(note)
    report.heading("Recovered functions")
    for name, one in functions.items():
        report.figure(_band(name, one, found.seen, (truth or {}).get(name)), _caption(one), name)
    report.heading("Predicted and measured frames")
    report.figure(_frames(found), "Measured, predicted, residual in s.d. of the noise.", "frames")
    check = found.check
    rows = [("mean square", check.total, 1.0)]
    rows += [(f"correlation along {k}", v, 0.0) for k, v in check.correlation.items()]
    report.table(rows, ("residuals", "found", "expected"), "Posterior predictive check")
    report.heading("Identifiability and trace")
    report.figure(
        _lines(found),
        "Left: information of the data in units of the prior's, by direction; below 1 the prior "
        "speaks. Right: how far the fit was above its end, step by step.",
        "eigenvalues and trace",
    )
    prior, sd = found.problem.model.parameters, np.sqrt(np.diag(found.covariances.sandwich))
    plain = np.sqrt(np.diag(found.covariances.information))
    rows = [
        (name, float(value), float(a), float(b), float(c))
        for name, value, a, b, c in zip(
            prior.names, found.fit.point.theta, plain, sd, prior.sd, strict=True
        )
    ]
    header = ("parameter", "estimate", "s.d. (information)", "s.d. (sandwich)", "s.d. (prior)")
    report.table(rows, header, "Parameters, in pixels and frames")
    report.write(path)


def _caption(one: Mapping[str, Any]) -> str:
    return (
        f"{one['label']} ({one['unit']}) with its {LEVEL:.0%} band; grey: composition that was "
        "not observed. Below: how often a composition was observed."
    )


def _band(name: str, one: Mapping[str, Any], seen: Any, truth: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure((6, 4.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    x, shown = one["x"], np.asarray(one["observed"], bool)
    upper.fill_between(x, one["lower"], one["upper"], color="tab:blue", alpha=0.3, lw=0)
    upper.plot(x, one["value"], color="tab:blue", label="recovered")
    if truth is not None:
        upper.plot(x, truth, "k--", lw=1, label="truth")
    inside = x[shown] if shown.any() else x
    for axes in (upper, lower):
        axes.axvspan(x[0], inside[0], color="0.85", lw=0)
        axes.axvspan(inside[-1], x[-1], color="0.85", lw=0)
    edge = max(float(np.abs(np.asarray(one["value"])[shown]).max(initial=0)), 1e-300)
    bottom = 0 if (np.asarray(one["value"]) > 0).all() else -2 * edge
    upper.set(ylabel=f"{name} ({one['unit']})", ylim=(bottom, 2 * edge))
    upper.legend(frameon=False)
    lower.stairs(seen, np.linspace(0, 1, len(seen) + 1), fill=True, color="0.5")
    lower.set(xlabel="composition c", yticks=[])
    return figure


def _frames(found: Inversion) -> Any:
    from matplotlib.figure import Figure

    predicted = found.problem.predict(found.fit.point).numpy()[0]
    windows = found.problem.windows
    chosen = np.unique(np.linspace(0, len(predicted) - 1, 5).astype(int))
    figure = Figure((8, 5), layout="constrained")
    axes = figure.subplots(3, len(chosen), squeeze=False)
    for column, k in enumerate(chosen):
        measured = windows.frame(k)[0][0].numpy()
        for row, (image, low, high, colours) in enumerate(
            (
                (measured, 0, 1, "viridis"),
                (predicted[k], 0, 1, "viridis"),
                (found.check.residual[0, k], -4, 4, "RdBu_r"),
            )
        ):
            one = axes[row, column]
            one.imshow(np.atleast_2d(image), vmin=low, vmax=high, cmap=colours)
            one.set(xticks=[], yticks=[])
        axes[0, column].set_title(f"frame {windows.index[0, k]}", fontsize=8)
    for row, word in enumerate(("measured", "predicted", "residual")):
        axes[row, 0].set_ylabel(word)
    return figure


def _lines(found: Inversion) -> Any:
    from matplotlib.figure import Figure

    figure = Figure((7, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(np.maximum(found.eigenvalues, 1e-3), "o")
    left.axhline(1, color="0.5", ls=":")
    left.set(xlabel="direction", ylabel="data / prior")
    cost = np.array([step["cost"] for step in found.fit.trace])
    right.semilogy(cost - min(cost.min(), found.fit.cost) + 1e-2, "o-")
    right.set(xlabel="step", ylabel="cost above the end")
    return figure
