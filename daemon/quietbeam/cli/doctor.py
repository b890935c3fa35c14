"""``quietbeam doctor``: report what this machine can do."""

from __future__ import annotations

import argparse
from pathlib import Path

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json, print_mapping
from quietbeam.core.errors import ConfigError


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam doctor``."""
    parser = add_command(
        subparsers,
        "doctor",
        "Report processor, memory, shared memory, engines and their precisions, GPU, disk, "
        "clock and limits, with a warning where something will hurt.",
        "quietbeam doctor --directory /data --json",
    )
    parser.add_argument(
        "--directory", type=Path, default=Path(), help="where recordings will go (default: here)"
    )
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    if not arguments.directory.is_dir():
        raise ConfigError(f"--directory {arguments.directory}: there is no such directory")
    from quietbeam.service.machine import report

    found = report(arguments.directory)
    if arguments.json:
        print_json(found)
        return 0
    warnings = found.pop("warnings")
    print_mapping(_shown(found))
    for name, text in warnings.items():
        print(f"warning: {name}: {text}")
    if not warnings:
        print("no warnings")
    return 0


def _shown(found: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Leave warnings to the end, and write sizes for people."""
    return {
        name: {key: _readable(key, value) for key, value in section.items() if key != "warning"}
        for name, section in found.items()
    }


def _readable(key: str, value: object) -> object:
    if "bytes" in key and isinstance(value, int):
        rate = "/s" if key.endswith("_per_s") else ""
        return f"{value / 2**20:.0f} MiB{rate}" if value < 10 << 30 else f"{value / 2**30:.0f} GiB"
    return value
