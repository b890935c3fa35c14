"""``quietbeam capture``: write the raw stream parts of a detector to a file."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json, print_mapping
from quietbeam.cli._progress import progress
from quietbeam.cli._stop import stop_signals
from quietbeam.core.errors import ConfigError
from quietbeam.core.events import Frame, Rejected, RunStart


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam capture``."""
    parser = add_command(
        subparsers,
        "capture",
        "Read the source of a configuration and write every part it receives, unchanged, to a "
        "file: to look at later, to attach to a bug report, or to play again with "
        '`quietbeam replay` or `kind = "replay"`. A file that was cut off is good up to there.',
        "quietbeam capture configs/dectris.toml -o run.qbcap --seconds 60",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the TOML file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after this time")
    parser.add_argument("--frames", type=int, metavar="N", help="stop after so many frames")
    parser.add_argument(
        "--max-gib", type=float, default=16.0, metavar="G",
        help="stop before the file is larger (%(default)s)",
    )  # fmt: skip
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    from quietbeam.config import load

    config = load(arguments.config)
    source = config.source.plugin
    if "tap" not in type(source).model_fields:
        raise ConfigError(
            f'{arguments.config}: [source] kind = "{config.source.name}" has no stream to '
            "capture; expected one that reads a socket, such as dectris or array"
        )
    limit = max(round(arguments.max_gib * (1 << 30)), 1)
    tap = {"tap": arguments.output, "tap_required": True, "tap_max_bytes": limit}
    tapped = source.model_copy(update=tap)
    with stop_signals() as stopped, progress("frames", arguments.frames, quiet=arguments.json) as s:
        print(f"capturing to {arguments.output}; Ctrl-C ends it", file=sys.stderr, flush=True)
        counts = _read(tapped, arguments, stopped, s)
    result = {"file": str(arguments.output), "bytes": arguments.output.stat().st_size, **counts}
    print_json(result) if arguments.json else print_mapping(result)
    return 0


def _read(
    source: Any,
    arguments: argparse.Namespace,
    stopped: Callable[[], bool],
    show: Callable[[int], None],
) -> dict[str, Any]:
    """Run the source until it is enough, and count what came."""
    runs = frames = 0
    rejected: Counter[str] = Counter()
    limit = float("inf") if arguments.seconds is None else arguments.seconds
    deadline_s = time.monotonic() + limit
    ended = "source"  # its end, or that of the room there is
    with source.open() as events:
        for event in events:
            runs += isinstance(event, RunStart)
            frames += isinstance(event, Frame)
            if isinstance(event, Rejected):
                rejected[event.reason] += 1
            show(frames)
            if stopped() or time.monotonic() > deadline_s:
                ended = "stopped" if stopped() else "seconds"
                break
            if arguments.frames is not None and frames >= arguments.frames:
                ended = "frames"
                break
    return {"runs": runs, "frames": frames, "rejected": dict(rejected), "ended_by": ended}
