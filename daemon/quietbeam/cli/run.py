"""``quietbeam run``: the daemon."""

from __future__ import annotations

import argparse
from pathlib import Path

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam run``."""
    parser = add_command(
        subparsers,
        "run",
        "Read a detector, clean its frames, train on them, record and publish. SIGTERM drains "
        "and ends, a second one ends at once, SIGHUP reloads the configuration.",
        "quietbeam run configs/minimal.toml",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the TOML file")
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    from quietbeam.config import load

    config = load(arguments.config)
    from quietbeam.service.daemon import run

    return run(config)
