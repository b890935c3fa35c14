"""The tables of an evaluation: the same columns on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from math import isnan

from quietbeam.offline.evaluation.recorded import RecordedScore
from quietbeam.offline.evaluation.summary import Check, Summary

Row = tuple[str, ...]

LOST, LOST_TO_PEER = "▼", "▽"
MARKS = (
    f"{LOST} more than 0.2 dB below the best classical filter, "
    f"{LOST_TO_PEER} only below the best peer; both were tuned with the truth."
)


def number(value: float, digits: int = 2, form: str = "") -> str:
    """Write a number; nothing for NaN."""
    return "" if isnan(value) else f"{value:{form}.{digits}f}"


def spread(mean: float, sd: float, digits: int) -> str:
    """Write a mean with its standard deviation, where there is one."""
    tail = number(sd, digits)
    return number(mean, digits) + (f" ± {tail}" if tail else "")


def mark(one: Summary) -> str:
    """Give the mark of a cell that was lost, "" for others."""
    return LOST if one.lost else LOST_TO_PEER if one.lost_to_peer else ""


_COLUMNS: Mapping[str, Callable[[Summary], str]] = {
    "METHOD": lambda s: s.method,
    "PSNR dB": lambda s: f"{spread(s.psnr, s.psnr_sd, 2)} {mark(s)}".strip(),
    "SSIM": lambda s: spread(s.ssim, s.ssim_sd, 3),
    "LAG": lambda s: number(s.lag_frames, 2, "+"),
    "FRONT": lambda s: (
        number(100 * s.front_growth, 0, "+") + ("" if isnan(s.front_growth) else "%")
    ),
    "BIAS": lambda s: number(s.bias_sd, 3, "+"),
    "1 SD": lambda s: number(s.coverage_1sd),
    "2 SD": lambda s: number(s.coverage_2sd),
    "EST-TRUE": lambda s: number(s.estimate_error_db, 2, "+") + (" flagged" if s.flagged else ""),
    "TRAIN s": lambda s: number(s.train_cpu_s, 0) if s.train_cpu_s else "",
    "ms/FRAME": lambda s: number(s.frame_cpu_ms, 2) if s.frame_cpu_ms else "",
}
LEGEND = (
    "LAG frames the estimate trails the truth; FRONT growth of a moving front's 10-90 % width; "
    "BIAS mean error in s.d. of the noise; 1 SD, 2 SD share of the truth within the estimate's "
    "own s.d. (0.68, 0.95 are right); EST-TRUE dB of the PSNR estimated without the truth minus "
    "the true one; TRAIN s and ms/FRAME processor time."
)

_RECORDED: Mapping[str, Callable[[RecordedScore], str]] = {
    "METHOD": lambda s: s.method,
    "PSNR dB": lambda s: number(s.psnr),
    "GAIN dB": lambda s: number(s.gain_db, 2, "+"),
    "SSIM": lambda s: number(s.ssim, 3),
    "LOCAL SD": lambda s: number(s.local_sd_ratio, 3),
    "TRAIN s": lambda s: number(s.train_cpu_s, 0) if s.train_cpu_s else "",
    "ms/FRAME": lambda s: number(s.frame_cpu_ms, 1) if s.frame_cpu_ms else "",
    "DETAIL": lambda s: s.detail,
}
RECORDED_LEGEND = (
    "PSNR against the target or the mean of the repeats that were held back, gain and offset "
    "fitted, the target's own noise taken off; LOCAL SD mean 3 x 3 x 3 standard deviation, "
    "cleaned over raw."
)


def scene_table(summaries: Iterable[Summary], *, tuned: bool) -> tuple[Row, list[Row]]:
    """Give (header, rows); without every single tuned filter unless ``tuned``."""
    header = ("SCENE", "NOISE", *_COLUMNS)
    rows = [
        (one.scene, one.case, *(text(one) for text in _COLUMNS.values()))
        for one in summaries
        if tuned or one.kind not in {"filter", "peer"}
    ]
    return _without_empty(header, rows)


def recorded_table(scores: Iterable[RecordedScore], *, tuned: bool) -> tuple[Row, list[Row]]:
    """Give (header, rows) of one recording; ``tuned`` as for ``scene_table``."""
    header = tuple(_RECORDED)
    rows = [
        tuple(text(one) for text in _RECORDED.values())
        for one in scores
        if tuned or one.kind not in {"filter", "peer"}
    ]
    return _without_empty(header, rows)


def _without_empty(header: Row, rows: list[Row]) -> tuple[Row, list[Row]]:
    kept = [n for n, _ in enumerate(header) if any(row[n] for row in rows)]
    return tuple(header[n] for n in kept), [tuple(row[n] for n in kept) for row in rows]


def psnr_matrix(summaries: Sequence[Summary]) -> tuple[Row, list[Row]]:
    """Give (header, rows) of one scene: methods down, noise cases across."""
    cases = list(dict.fromkeys(one.case for one in summaries))
    cells = {(s.method, s.case): f"{number(s.psnr)} {mark(s)}".strip() for s in summaries}
    methods = dict.fromkeys(one.method for one in summaries)
    return ("PSNR dB", *cases), [(m, *(cells.get((m, c), "") for c in cases)) for m in methods]


def lost_cells(summaries: Iterable[Summary]) -> list[str]:
    """Say of every cell that was lost by how much."""
    said = []
    for one in summaries:
        cell = f"{one.method} on {one.scene}/{one.case}"
        if one.lost:
            said.append(f"{cell}: {one.margin_db:+.2f} dB against the best filter")
        elif one.lost_to_peer:
            said.append(f"{cell}: {one.peer_margin_db:+.2f} dB against the best peer")
    return said


def markdown(header: Row, rows: Iterable[Row]) -> str:
    """Write a table in Markdown."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines) + "\n"


def scenes_markdown(
    summaries: Sequence[Summary],
    checked: Sequence[Check],
    notes: Sequence[str],
    plots: Mapping[str, Sequence[str]],
) -> str:
    """Write the whole report; ``plots`` are file names by scene."""
    parts = ["# Evaluation\n", f"{MARKS}\n", *(f"Note: {note}.\n" for note in notes)]
    if checked:
        rows = [
            (c.statement, "pass" if c.passed else "FAIL", number(c.psnr_margin, 2, "+"))
            for c in checked
        ]
        parts.append("## What the paper says\n")
        parts.append(markdown(("STATEMENT", "", "MARGIN dB"), rows))
    for scene, group in groupby(summaries, key=lambda one: one.scene):
        ones = list(group)
        parts += [f"## Scene: {scene}\n", markdown(*psnr_matrix(ones))]
        parts += [f"![{name}]({name})\n" for name in plots.get(scene, ())]
        lost = "\n".join(f"- {line}" for line in lost_cells(ones)) or "- nothing"
        parts.append(f"Lost:\n\n{lost}\n")
        parts += [f"{LEGEND}\n", markdown(*scene_table(ones, tuned=True))]
    return "\n".join(parts)


def recordings_markdown(
    scores: Sequence[RecordedScore], notes: Sequence[str], plots: Mapping[str, Sequence[str]]
) -> str:
    """Write the whole report; ``plots`` are file names by recording."""
    parts = ["# Real recordings\n", f"{RECORDED_LEGEND}\n", *(f"Note: {n}.\n" for n in notes)]
    for recording, group in groupby(scores, key=lambda one: one.recording):
        parts += [f"## {recording}\n", markdown(*recorded_table(group, tuned=True))]
        parts += [f"![{name}]({name})\n" for name in plots.get(recording, ())]
    return "\n".join(parts)
