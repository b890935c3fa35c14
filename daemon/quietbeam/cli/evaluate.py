"""``quietbeam evaluate``: denoisers against the truth, against filters and on real recordings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json, print_table
from quietbeam.cli._progress import bar
from quietbeam.registry import available

if TYPE_CHECKING:
    from quietbeam.offline.evaluation.score import Example, Trial

CASES = ("gaussian", "poisson", "impulse", "mixed")
SCENES = ("paper", "slow", "fast", "moving", "particle", "dip")
_OTHER_STEPS = 600  # of a denoiser that somebody else installed

EXPECTED = (
    *(("umvd", "n2v", case) for case in CASES),
    *(("umvd", "raw", case) for case in CASES),
    # Of Noise2Void the paper claims only continuous noise.
    *(("n2v", "raw", case) for case in ("gaussian", "poisson")),
)
"""(better, worse, case): what the paper's figure 2 says."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Size of the data and steps of every training."""

    size_px: int
    frames: int
    steps: dict[str, int]


_UNTRAINED = {"kalman": 0, "median": 0, "svd": 0}
QUICK = Scale(64, 48, {**_UNTRAINED, "n2v": 100, "umvd": 160, "quiet": 600})
FULL = Scale(128, 100, {**_UNTRAINED, "n2v": 3000, "umvd": 6000, "quiet": 10_000})

_DESCRIPTION = """\
Compare denoisers with the truth: scenes x noise cases x methods x seeds.

Raw, the daemon's classical denoisers as they run, n2v, umvd and quiet trained on each noisy video
alone, classical filters tuned with the truth (what no experiment has) and, where scikit-image is
installed, non-local means, wavelets and total variation, tuned too.  Cells that a denoiser lost to
them are marked.

Without options: the paper's figure 2b (Cahn-Hilliard phase separation, four kinds of noise, three
seeds), and exit code 1 where one of its statements does not come out.  About 20 minutes on 2
processors; every further scene takes as long again, --seeds 1 a third of it, --full many hours.
--recordings takes a minute or two for each recording and trained method at 256 x 256; large images
with umvd take much longer (11 s for every frame of 512 x 512)."""

_RECORDINGS = """\
score real recordings instead: files, folders, or parts of files as
'FILE:/dataset[0:20, 100:228, 100:228]', against '@/dataset[...]' after that, else against the
dataset 'target' beside the frames, else (repeats of a static scene) every second frame is
cleaned and compared with the mean of the others; gain and offset are fitted"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam evaluate``."""
    example = "quietbeam evaluate --scenes slow moving --seeds 1 --output evaluation"
    parser = add_command(subparsers, "evaluate", _DESCRIPTION, example)
    parser.add_argument(
        "--scenes", nargs="+", choices=(*SCENES, "all"), default=["paper"], metavar="SCENE",
        help=f"{' '.join(SCENES)}, or all (default: paper)",
    )  # fmt: skip
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE",
        help=f"of noise: {' '.join(CASES)} (default: all)",
    )  # fmt: skip
    installed = [*available("denoisers")]
    parser.add_argument(
        "--methods", nargs="+", choices=installed, metavar="NAME",
        help=f"{' '.join(installed)} (default: those that come with quietbeam)",
    )  # fmt: skip
    parser.add_argument("--recordings", nargs="+", metavar="RECORDING", help=_RECORDINGS)
    parser.add_argument(
        "--images", action="store_true", help="recordings are unrelated images, not videos"
    )
    parser.add_argument(
        "--spots", action="store_true",
        help="leave isolated spots (gamma hits) of recordings out, as bad pixels",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument(
        "--full", action="store_true", help="larger data and long training: many hours"
    )
    parser.add_argument("--effort", type=float, default=1.0, help="factor on all training steps")
    parser.add_argument(
        "--cpu-seconds", type=float, metavar="S",
        help="the same processor time of training for every network, in place of steps; "
        "the steps that this came to are told",
    )  # fmt: skip
    parser.add_argument("--no-peers", action="store_true", help="leave scikit-image's out")
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time (default: 2)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write tables (Markdown, JSON) and plots (PNG)"
    )
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    from quietbeam.core.errors import ConfigError

    for name in ("seeds", "effort", "processes", "cpu_seconds"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected more than 0")
    scale = FULL if arguments.full else QUICK
    names = arguments.methods or [name for name in scale.steps if name in available("denoisers")]
    methods = {
        name: round(scale.steps.get(name, _OTHER_STEPS) * arguments.effort) for name in names
    }
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.recordings:
        return _recordings(arguments, methods)
    return _scenes(arguments, scale, methods)


def _scenes(arguments: argparse.Namespace, scale: Scale, methods: dict[str, int]) -> int:
    from quietbeam.offline.evaluation import tables
    from quietbeam.offline.evaluation.plots import plot_psnr
    from quietbeam.offline.evaluation.score import evaluate
    from quietbeam.offline.evaluation.summary import checks, summarise

    scenes = SCENES if "all" in arguments.scenes else arguments.scenes
    with bar() as progress:
        trials = _trials(scale, scenes, arguments.cases, arguments.seeds, progress)
        result = evaluate(trials, methods, **_how(arguments), progress=progress)
    summaries = summarise(result.scores)
    checked = checks(summaries, EXPECTED)
    document = {
        "passed": all(check.passed for check in checked),
        "checks": [asdict(check) for check in checked],
        "summary": [asdict(one) | {"lost": one.lost} for one in summaries],
        "scores": [asdict(score) for score in result.scores],
        "data": {"size_px": scale.size_px, "frames": scale.frames},
        "steps": result.steps,
        "notes": result.notes,
    }
    if arguments.output is not None:
        plots = _plots(arguments.output, result.examples, result.notes)
        if plots:
            psnr = plot_psnr(arguments.output, summaries)
            plots = {scene: psnr[scene] + plots[scene] for scene in psnr}
        text = tables.scenes_markdown(summaries, checked, result.notes, plots)
        _write(arguments.output, text, document)
    if arguments.json:
        print_json(document)
    else:
        header, rows = tables.scene_table(summaries, tuned=False)
        print_table(rows, header)
        _print_lines("", tables.LEGEND, tables.MARKS, *tables.lost_cells(summaries), "")
        for check in checked:
            word = "pass" if check.passed else "FAIL"
            print(f"{word}  {check.statement} ({check.psnr_margin:+.2f} dB)")
        _print_lines(*result.notes)
    return 0 if document["passed"] else 1


def _recordings(arguments: argparse.Namespace, methods: dict[str, int]) -> int:
    from quietbeam.offline.evaluation import tables
    from quietbeam.offline.evaluation.recorded import evaluate_recordings
    from quietbeam.offline.evaluation.recordings import open_all

    found, skipped = open_all(arguments.recordings, images=arguments.images, spots=arguments.spots)
    with bar() as progress:
        result = evaluate_recordings(found, methods, **_how(arguments), progress=progress)
    notes = [*skipped, *result.notes]
    document = {
        "scores": [asdict(score) for score in result.scores],
        "steps": result.steps,
        "notes": notes,
    }
    if arguments.output is not None:
        plots = _plots(arguments.output, result.examples, notes)
        text = tables.recordings_markdown(result.scores, notes, plots)
        _write(arguments.output, text, document)
    if arguments.json:
        print_json(document)
    else:
        for recording in found:
            mine = [score for score in result.scores if score.recording == recording.name]
            header, rows = tables.recorded_table(mine, tuned=False)
            print(recording.name)
            print_table(rows, header)
            print()
        _print_lines(tables.RECORDED_LEGEND, *notes)
    return 0


def _how(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "processes": arguments.processes,
        "peers": not arguments.no_peers,
        "cpu_seconds": arguments.cpu_seconds,
    }


def _trials(
    scale: Scale, scenes: Sequence[str], cases: Sequence[str], seeds: int, progress: Any
) -> list[Trial]:
    """One simulation for each scene and seed, under every kind of noise."""
    from quietbeam.offline.evaluation.score import Trial
    from quietbeam.testing import scenes as library
    from quietbeam.testing.cahn_hilliard import NOISES

    made: list[Trial] = []
    for number, scene in enumerate(dict.fromkeys(scenes)):
        for seed in range(seeds):
            progress("simulating", (number * seeds + seed) / (len(scenes) * seeds))
            one = library.SCENES[scene](scale.size_px, scale.frames, seed)
            for place, (case, noise) in enumerate(NOISES.items()):
                if case in cases:
                    noisy = noise.apply(one.truth, seed=100 * seed + place)
                    made.append(Trial(case, seed, one.truth, noisy, scene, one.front_px))
    progress("simulating", 1.0)
    order = list(scenes)
    return sorted(made, key=lambda t: (order.index(t.scene), CASES.index(t.case)))


def _plots(folder: Path, examples: Sequence[Example], notes: list[str]) -> dict[str, list[str]]:
    from quietbeam.offline.evaluation.plots import can_plot, plot_examples

    if not can_plot():
        notes.append("no plots: matplotlib is not installed")
        return {}
    return plot_examples(folder, examples)


def _write(folder: Path, text: str, document: dict[str, Any]) -> None:
    (folder / "evaluation.md").write_text(text, encoding="utf-8")
    with (folder / "evaluation.json").open("w") as file, redirect_stdout(file):
        print_json(document)


def _print_lines(*lines: str) -> None:
    for line in lines:
        print(line)
