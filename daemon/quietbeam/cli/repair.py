"""``quietbeam repair``: make a recording whose writer was killed whole again."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json
from quietbeam.core.errors import DataError


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam repair``."""
    parser = add_command(
        subparsers,
        "repair",
        "Clear the mark of a dead writer, cut frames that are incomplete, count what is there "
        "and give NAME.h5.part its final name. A file that is being written is refused, a file "
        "in order is left as it is, nothing is ever overwritten.",
        "quietbeam repair recordings/*.part",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="recordings")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="also compare every frame with its checksum (reads all)",
    )
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    reports = [_repair(path, verify=arguments.verify) for path in arguments.files]
    if arguments.json:
        print_json(reports)
    else:
        for report in reports:
            _tell(report)
    whole = all("error" not in report and not report["found"]["bad"] for report in reports)
    return 0 if whole else DataError.exit_code


def _repair(path: Path, *, verify: bool) -> dict[str, Any]:
    from quietbeam.offline.repair import repair

    try:
        return {"given": str(path), **asdict(repair(path, verify=verify))}
    except (DataError, PermissionError) as error:
        return {"given": str(path), "error": str(error)}


def _tell(report: dict[str, Any]) -> None:
    if "error" in report:
        print(f"quietbeam: {report['error']}", file=sys.stderr)
        return
    found = report["found"]
    state = "its writer had been killed" if report["was_open"] else "was closed in order"
    counts = ", ".join(f"{name} {count}" for name, count in found.items())
    print(f"{report['file']}: {state}; {counts}; run {report['end_reason']}")
