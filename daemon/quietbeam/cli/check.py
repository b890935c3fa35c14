"""``quietbeam check``: validate a configuration and its surroundings, start nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json
from quietbeam.core.errors import ConfigError

_EX_CONFIG = 78


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam check``."""
    parser = add_command(
        subparsers,
        "check",
        "Validate every table and key; then whether directories can be written, files read, "
        "ports opened, denoisers built and the rings fit into the shared memory.",
        "quietbeam check configs/minimal.toml --json",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the TOML file")
    parser.add_argument(
        "--no-environment",
        action="store_true",
        help="only the file itself, not this machine (for a check on another one)",
    )
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    from quietbeam.config import load

    report: dict[str, Any] = {"config": str(arguments.config), "ok": False, "findings": []}
    try:
        config = load(arguments.config)
        report["config_sha256"] = config.sha256
        if not arguments.no_environment:
            from quietbeam.service.checks import environment

            report["findings"] = environment(config)
    except ConfigError as error:
        report["findings"] = str(error).splitlines()
    report["ok"] = not report["findings"]
    if arguments.json:
        print_json(report)
    else:
        for finding in report["findings"]:
            print(finding)
        print(f"{arguments.config}: {'ok' if report['ok'] else 'will not work'}")
    return 0 if report["ok"] else _EX_CONFIG
