"""What the figures of all workflows share: raw in grey, clean in colour, maps with scale bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.result import MapSpec
from quietbeam.offline.analyse_results import Results

COLOUR = {"raw": "0.55", "clean": "#810f7c"}
"""By kind of frame."""


def both(raw: Results | None, clean: Results | None) -> Iterator[tuple[str, Results]]:
    """Give those kinds that are there."""
    for kind, found in (("raw", raw), ("clean", clean)):
        if found is not None:
            yield kind, found


def new_figure(rows: int, columns: int, width: float = 3.0, height: float = 2.6) -> tuple[Any, Any]:
    """Give a figure and its panels, (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns + 0.6, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def line(panel: Any, kind: str, found: Results, name: str) -> None:
    """Draw a scalar over time with the band of its stated s.d."""
    at = found.measured(name)
    values = found.metrics[name][at]
    time = found.time_s[at] if np.ptp(found.time_s) > 0 else at
    panel.plot(time, values, color=COLOUR[kind], lw=1.2, label=kind)
    error = found.metrics.get(found.metric_specs[name].uncertainty)
    if error is not None:
        panel.fill_between(
            time, values - error[at], values + error[at], color=COLOUR[kind], alpha=0.25, lw=0
        )
    spec = found.metric_specs[name]
    panel.set_title(spec.description, fontsize=8)
    panel.set_ylabel(spec.unit or name, fontsize=8)
    panel.set_xlabel("time / s" if np.ptp(found.time_s) > 0 else "frame", fontsize=8)
    panel.tick_params(labelsize=7)


def image(
    panel: Any,
    pixels: NDArray[Any],
    found: Results,
    title: str,
    limits: tuple[float, float] | None = None,
    colours: str = "viridis",
) -> Any:
    """Draw a map with a scale bar; the limits default to 1 and 99 %."""
    known = pixels[np.isfinite(pixels)]
    low, high = limits or (np.percentile(known, [1, 99]) if known.size else (0.0, 1.0))
    shown = panel.imshow(pixels, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    panel.set_title(title, fontsize=8)
    panel.set_axis_off()
    scale_bar(panel, found.run.pixel_size_m, pixels.shape)
    return shown


def class_image(
    panel: Any, pixels: NDArray[Any], spec: MapSpec, found: Results, title: str
) -> None:
    """Draw a map of classes in their colours, none in black."""
    palette = np.array([(0, 0, 0), *(one.colour for one in spec.classes)], np.uint8)
    panel.imshow(palette[np.clip(pixels, 0, len(palette) - 1)], interpolation="nearest")
    panel.set_title(title, fontsize=8)
    panel.set_axis_off()
    scale_bar(panel, found.run.pixel_size_m, pixels.shape)


def scale_bar(panel: Any, pixel_m: float | None, shape: Sequence[int]) -> None:
    """Draw a bar of a round length, about a fifth of the width."""
    wanted = shape[1] / 5 * (pixel_m or 1)
    base = 10.0 ** np.floor(np.log10(wanted))
    length = base * max(n for n in (1, 2, 5) if n * base <= wanted)
    pixels = length / (pixel_m or 1)
    x, y = 0.05 * shape[1], 0.94 * shape[0]
    panel.plot([x, x + pixels], [y, y], color="white", lw=3, solid_capstyle="butt")
    panel.plot([x, x + pixels], [y, y], color="black", lw=1.2, solid_capstyle="butt")
    panel.text(
        x, y - 0.03 * shape[0], _length(length, pixel_m), color="white", fontsize=7,
        path_effects=_outline(),
    )  # fmt: skip


def _outline() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=1.5, foreground="black")]


def _length(length: float, pixel_m: float | None) -> str:
    if pixel_m is None:
        return f"{length:g} px"
    for unit, size in (("mm", 1e-3), ("µm", 1e-6), ("nm", 1e-9)):
        if length >= size:
            return f"{length / size:g} {unit}"
    return f"{length:.2g} m"


def boxes(
    panel: Any, values: Sequence[NDArray[np.float64]], kinds: Sequence[str], unit: str
) -> None:
    """Draw box plots: quartiles, median, whiskers of 1.5 times the interquartile range."""
    drawn = panel.boxplot(
        [v[np.isfinite(v)] for v in values], tick_labels=list(kinds), patch_artist=True, widths=0.5
    )
    for box, kind in zip(drawn["boxes"], kinds, strict=True):
        box.set_facecolor(COLOUR[kind])
        box.set_alpha(0.6)
    panel.set_ylabel(unit, fontsize=8)
    panel.tick_params(labelsize=8)


def legend(panel: Any) -> None:
    """Say which is raw and which is clean."""
    panel.legend(fontsize=7, frameon=False)
