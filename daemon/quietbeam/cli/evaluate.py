"""``quietbeam evaluate``: the paper's figure 2b, on simulated data that know their truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json, print_table
from quietbeam.cli._progress import bar

if TYPE_CHECKING:
    from quietbeam.offline.evaluate import Summary, Trial

CASES = ("gaussian", "poisson", "impulse", "mixed")

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


QUICK = Scale(64, 48, {"kalman": 0, "n2v": 100, "umvd": 160, "quiet": 600})
FULL = Scale(128, 100, {"kalman": 0, "n2v": 3000, "umvd": 6000, "quiet": 10_000})


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam evaluate``."""
    parser = add_command(
        subparsers,
        "evaluate",
        "Compare raw, classical filters, n2v, umvd and quiet on simulated Cahn-Hilliard phase "
        "separation under four kinds of noise, with PSNR and SSIM against the truth, and check "
        "what the paper's figure 2b says. About 20 minutes on 2 processors.",
        "quietbeam evaluate --cases gaussian --seeds 1 --json",
    )
    parser.add_argument(
        "--full", action="store_true", help="larger data and long training: many hours"
    )
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument(
        "--methods", nargs="+", choices=list(QUICK.steps), default=list(QUICK.steps),
        metavar="NAME", help="kalman n2v umvd quiet",
    )  # fmt: skip
    parser.add_argument("--effort", type=float, default=1.0, help="factor on all training steps")
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time (default: 2)")
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    from quietbeam.core.errors import ConfigError

    for name in ("seeds", "effort", "processes"):
        if not getattr(arguments, name) > 0:
            raise ConfigError(f"--{name} {getattr(arguments, name)}: expected more than 0")
    from quietbeam.offline.evaluate import checks, evaluate, summarise

    scale = FULL if arguments.full else QUICK
    methods = {name: round(scale.steps[name] * arguments.effort) for name in arguments.methods}
    with bar() as progress:
        trials = _trials(scale, arguments.cases, arguments.seeds, progress)
        scores = evaluate(trials, methods, processes=arguments.processes, progress=progress)
    summaries = summarise(scores)
    checked = checks(summaries, EXPECTED)
    passed = all(check.passed for check in checked)
    if arguments.json:
        print_json(
            {
                "passed": passed,
                "checks": [asdict(check) for check in checked],
                "summary": [asdict(summary) for summary in summaries],
                "scores": [asdict(score) for score in scores],
                "data": {"size_px": scale.size_px, "frames": scale.frames},
            }
        )
    else:
        _print(summaries, [(c.statement, c.passed, c.psnr_margin) for c in checked])
    return 0 if passed else 1


def _trials(scale: Scale, cases: Sequence[str], seeds: int, progress: Any) -> list[Trial]:
    """Phase separation from the first visible domains on, one simulation a seed."""
    from quietbeam.offline.evaluate import Trial
    from quietbeam.testing.cahn_hilliard import NOISES, CahnHilliard

    model = CahnHilliard(size_px=scale.size_px)
    made: list[Trial] = []
    for seed in range(seeds):
        progress("simulating", seed / seeds)
        truth = model.simulate(scale.frames, since=0.05, until=0.1, seed=seed)
        for number, (name, noise) in enumerate(NOISES.items()):
            if name in cases:
                made.append(Trial(name, seed, truth, noise.apply(truth, seed=100 * seed + number)))
    progress("simulating", 1.0)
    return sorted(made, key=lambda trial: CASES.index(trial.case))


def _print(summaries: Sequence[Summary], checked: Sequence[tuple[str, bool, float]]) -> None:
    def number(mean: float, sd: float, digits: int) -> str:
        spread = f" ± {sd:.{digits}f}" if sd == sd else ""  # noqa: PLR0124  NaN for one seed
        return f"{mean:.{digits}f}{spread}"

    rows = [
        (s.case, s.method, number(s.psnr, s.psnr_sd, 2), number(s.ssim, s.ssim_sd, 3))
        for s in summaries
    ]
    print_table(rows, ("NOISE", "METHOD", "PSNR dB", "SSIM"))
    print()
    for statement, passed, margin in checked:
        print(f"{'pass' if passed else 'FAIL'}  {statement} ({margin:+.2f} dB)")
