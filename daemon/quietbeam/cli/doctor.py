"""``quietbeam doctor``: report what this machine can do, and what is wrong with a configuration."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json, print_mapping
from quietbeam.core.errors import ConfigError

_EX_CONFIG = 78


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam doctor``."""
    parser = add_command(
        subparsers,
        "doctor",
        "Report processor, memory, shared memory, engines and their precisions, GPU, disk, "
        "clock and limits, with a warning where something will hurt. With --config, only what is "
        "wrong with that configuration on this machine, each with its mend; 78 if anything is.",
        "quietbeam doctor --directory /data --json",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="diagnose this TOML file")
    parser.add_argument(
        "--directory", type=Path, default=Path(), help="where recordings will go (default: here)"
    )
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    return _machine(arguments) if arguments.config is None else _configuration(arguments)


def _configuration(arguments: argparse.Namespace) -> int:
    from quietbeam.service.diagnosis import diagnose

    findings = diagnose(arguments.config)
    if arguments.json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            print(f"{finding.name}: {finding.what}\n    mend: {finding.mend}")
        print(f"{arguments.config}: {len(findings) or 'nothing'} wrong")
    return _EX_CONFIG if findings else 0


def _machine(arguments: argparse.Namespace) -> int:
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
