"""``quietbeam pretrain``: make the prior weights that a network starts from."""

from __future__ import annotations

import argparse
from pathlib import Path

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json, print_mapping
from quietbeam.cli._progress import bar


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam pretrain``."""
    parser = add_command(
        subparsers,
        "pretrain",
        "Train a network on imagined scenes (phases, fronts, particles, textures, steps, "
        "flicker; few photons, impulses, scan lines), where the truth is known, and write the "
        "weights as safetensors. The ones that come with quietbeam were made so; the same seed "
        "gives the same weights. About 15 minutes with one thread.",
        "quietbeam pretrain quiet -o quiet-s3.safetensors",
    )
    parser.add_argument("denoiser", nargs="?", default="quiet", help="(%(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--size", default="S", help="of the network (%(default)s)")
    parser.add_argument("--steps", type=int, default=5000, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from quietbeam.core.errors import ConfigError
    from quietbeam.core.plugin import DenoiserPlugin
    from quietbeam.model import checkpoint
    from quietbeam.offline.pretrain import pretrain
    from quietbeam.registry import find
    from quietbeam.testing.imagined import expose, imagine

    if arguments.steps < 1 or arguments.threads < 1:
        raise ConfigError("--steps and --threads: expected at least 1")
    plugin = find("denoisers", arguments.denoiser, DenoiserPlugin)
    try:
        settings = plugin.model_validate({"size": arguments.size, "prior": False})
    except ValidationError as error:
        raise ConfigError(f"{arguments.denoiser} --size {arguments.size}: {error}") from error
    with bar() as progress:
        weights = pretrain(
            settings.build,
            imagine,
            expose,
            steps=arguments.steps,
            seed=arguments.seed,
            threads=arguments.threads,
            progress=progress,
        )
    provenance = {
        "denoiser": arguments.denoiser,
        "size": arguments.size,
        "steps": str(arguments.steps),
        "seed": str(arguments.seed),
        "made_by": "quietbeam pretrain",
    }
    digest = checkpoint.save(arguments.output, weights, provenance)
    report = {"written": arguments.output, "sha256": digest, **provenance}
    print_json(report) if arguments.json else print_mapping(report)
    return 0
