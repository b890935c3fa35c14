"""``quietbeam denoise``: clean a recording offline, trained on itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json, print_mapping
from quietbeam.cli._progress import bar

if TYPE_CHECKING:
    from quietbeam.offline.denoise import Report


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam denoise``."""
    parser = add_command(
        subparsers,
        "denoise",
        "Clean a video with a network trained on that video alone, and write raw, clean and its "
        "standard deviation as NeXus/HDF5. Where the network is not better than a classical "
        "filter on frames it never learned from, the filter is used, and the report says so.",
        "quietbeam denoise run42.h5:/entry/data/data -o run42_clean.h5 --minutes 5",
    )
    parser.add_argument("source", metavar="IN", help="HDF5, NeXus ([:/dataset]), TIFF or .npy")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True)
    parser.add_argument("--denoiser", default="quiet", help="a plugin's name (default: quiet)")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training (default: 2)")
    parser.add_argument("--steps", type=int, help="train exactly so many steps instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of the processor (default: all)")
    parser.add_argument("--memory-mib", type=int, default=1024, help="for training data")
    parser.add_argument("--dark", metavar="FILE", help="subtracted; a series is averaged")
    parser.add_argument("--flat", metavar="FILE", help="divided by; a series is averaged")
    parser.add_argument("--mask", metavar="FILE", help="non-zero is a bad pixel")
    parser.add_argument(
        "--images", action="store_true", help="unrelated images, not a video; needs n2v"
    )
    parser.add_argument(
        "--no-fallback", action="store_true", help="use the network even if a filter is better"
    )
    parser.add_argument("--weights", metavar="FILE", type=Path, help="save the network there, too")
    parser.add_argument("--overwrite", action="store_true", help="OUT may exist")
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    import sys

    from quietbeam.core.errors import ConfigError
    from quietbeam.service.logs import configure

    configure(level="warning", stream=sys.stderr)
    for name in ("minutes", "steps", "threads", "memory_mib"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected more than 0")
    reports = _denoise(arguments)
    if arguments.json:
        one = reports[0].as_dict()
        several = {"channels": [report.as_dict() for report in reports]}
        print_json({"output": arguments.output, **(one if len(reports) == 1 else several)})
        return 0
    for report in reports:
        print_mapping(_shown(report))
    print_mapping({"written": arguments.output})
    return 0


def _denoise(arguments: argparse.Namespace) -> tuple[Report, ...]:
    from quietbeam.offline.denoise import FALLBACK
    from quietbeam.offline.train import Recipe, use_threads
    from quietbeam.offline.write import corrections, denoise_file

    if arguments.threads is not None:
        use_threads(arguments.threads)
    recipe = Recipe(
        minutes=arguments.minutes,
        steps=arguments.steps,
        memory_bytes=arguments.memory_mib << 20,
        seed=arguments.seed,
    )
    with bar() as progress:
        return denoise_file(
            arguments.source,
            arguments.output,
            arguments.denoiser,
            recipe,
            fallback=() if arguments.no_fallback else FALLBACK,
            applied=corrections(arguments.dark, arguments.flat, arguments.mask),
            images=arguments.images,
            weights=arguments.weights,
            overwrite=arguments.overwrite,
            progress=progress,
        )


def _shown(report: Report) -> dict[str, Any]:
    figures = report.figures
    shown = {
        "source": f"{report.source}, {report.frames} frames of {report.shape}",
        "used": f"{report.used} ({report.reason})",
        "noise": f"variance = {report.gain:.4g} * mean + {report.offset_variance:.4g}",
        "estimated PSNR": f"{figures.psnr_raw_db:.2f} dB raw, {figures.psnr_clean_db:.2f} dB clean",
        "local s.d.": f"{figures.local_sd_ratio:.3f} of the raw one",
        "residual lag-1 correlation": (
            f"x {figures.residual_x:.3f}, y {figures.residual_y:.3f}, t {figures.residual_t:.3f}"
        ),
        "training": f"{report.training_steps} steps in {report.training_s:.0f} s",
    }
    if not figures.trusted:
        why = "the noise has outliers, or is correlated in time, or there is none"
        shown["estimated PSNR"] = f"not known: {why}"
    if figures.notes:
        shown["noise, in words"] = "; ".join(figures.notes)
    return shown
