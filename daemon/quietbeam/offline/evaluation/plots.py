"""Plots of an evaluation as PNG; needs matplotlib (the extra ``evaluate``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from quietbeam.offline.evaluation.score import Example
from quietbeam.offline.evaluation.summary import Summary
from quietbeam.offline.evaluation.work import Kind

_COLOURS: dict[Kind, str] = {
    "raw": "0.5",
    "filter": "tab:olive",
    "peer": "tab:orange",
    "best": "tab:green",
    "denoiser": "tab:blue",
}


def can_plot() -> bool:
    """Tell whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot_psnr(folder: Path, summaries: Sequence[Summary]) -> dict[str, list[str]]:
    """Draw PSNR by method, one panel for each noise and one file for each scene.

    A cell that was lost to a filter tuned with the truth is a red cross.

    Returns:
        File names in ``folder``, by scene.
    """
    from matplotlib.figure import Figure

    drawn: dict[str, list[str]] = {}
    for scene, group in groupby(summaries, key=lambda one: one.scene):
        cells = [list(cell) for _, cell in groupby(group, key=lambda one: one.case)]
        tall = 1.2 + 0.2 * max(map(len, cells))
        figure = Figure(figsize=(2.2 + 2.8 * len(cells), tall), layout="constrained")
        panels = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
        for panel, cell in zip(panels, cells, strict=True):
            _dots(panel, cell)
        figure.suptitle(f"{scene}: PSNR in dB")
        drawn[scene] = [_saved(figure, folder, f"psnr-{scene}")]
    return drawn


def _dots(panel: Any, cell: Sequence[Summary]) -> None:
    for row, one in enumerate(cell):
        lost = one.lost or one.lost_to_peer
        panel.errorbar(
            one.psnr,
            row,
            xerr=one.psnr_sd if one.seeds > 1 else None,
            marker="x" if lost else "o",
            markersize=5,
            color="tab:red" if lost else _COLOURS[one.kind],
        )
    panel.set_yticks(range(len(cell)), [one.method for one in cell], fontsize=7)
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.3)
    panel.set_title(cell[0].case, fontsize=9)


def plot_examples(folder: Path, examples: Sequence[Example]) -> dict[str, list[str]]:
    """Draw one frame as every method sees it, all on the scale of the truth.

    Returns:
        File names in ``folder``, by scene.
    """
    from matplotlib.figure import Figure

    drawn: dict[str, list[str]] = {}
    for number, example in enumerate(examples):
        figure = Figure(figsize=(1.8 * len(example.images), 2.1), layout="constrained")
        panels = figure.subplots(1, len(example.images), squeeze=False)[0]
        for panel, (title, image) in zip(panels, example.images, strict=True):
            panel.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            panel.set_title(title, fontsize=8)
            panel.set_axis_off()
        name = f"frames-{number}-{Path(example.scene).name}-{example.case}"
        drawn.setdefault(example.scene, []).append(_saved(figure, folder, name))
    return drawn


def _saved(figure: Any, folder: Path, name: str) -> str:
    file = re.sub(r"[^\w.-]+", "-", name).strip("-.") + ".png"
    figure.savefig(folder / file, dpi=110)  # a bare Figure draws with Agg: no display is needed
    return file
