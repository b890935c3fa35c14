"""``quietbeam replay``: send a captured stream again, or say what is in it."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json, print_mapping
from quietbeam.cli._progress import progress
from quietbeam.cli._stop import stop_signals
from quietbeam.core.events import Frame, Rejected, RunStart

_AT_ONCE = 1e12
_LONGEST_PAUSE_S = 60.0


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam replay``."""
    parser = add_command(
        subparsers,
        "replay",
        "Send the messages of a capture again, bit-equal, as fast as they came or at another "
        "speed. Without an address, decode the capture and say what is in it.",
        "quietbeam replay run.qbcap --bind tcp://127.0.0.1:31001 --wait --speed 2",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="written by quietbeam capture")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--bind", metavar="ADDRESS", help="listen here; port 0 takes a free one")
    where.add_argument("--connect", metavar="ADDRESS", help="connect to a reader that listens")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=_positive, metavar="HZ", help="messages per second")
    pace.add_argument(
        "--speed", type=_positive, default=1.0, metavar="X",
        help="times as fast as recorded (%(default)s); a pause lasts a minute at most",
    )  # fmt: skip
    parser.add_argument(
        "--from", type=float, default=0.0, dest="from_s", metavar="S",
        help="begin so many seconds after the first message",
    )  # fmt: skip
    parser.add_argument("--to", type=float, dest="to_s", metavar="S", help="end there")
    parser.add_argument("--socket", choices=("push", "pub"), default="push", help="(%(default)s)")
    parser.add_argument("--wait", action="store_true", help="do not start before somebody reads")
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value


def _execute(arguments: argparse.Namespace) -> int:
    sends = arguments.bind is not None or arguments.connect is not None
    result = _send(arguments) if sends else _summary(arguments)
    print_json(result) if arguments.json else print_mapping(result)
    return 0 if not result.get("unsent") else 1


def _send(arguments: argparse.Namespace) -> dict[str, Any]:
    from quietbeam.offline.capture import read_capture
    from quietbeam.offline.sender import open_sender

    with (
        read_capture(arguments.file) as capture,
        open_sender(
            arguments.bind or arguments.connect,
            kind=arguments.socket,
            bind=arguments.bind is not None,
        ) as sender,
        stop_signals() as stopped,
        progress("messages", None, quiet=arguments.json) as show,
    ):
        print(f"sending on {sender.address}", file=sys.stderr, flush=True)
        while arguments.wait and not sender.wait_for_reader(0.2) and not stopped():
            continue
        messages = capture.messages(arguments.from_s, arguments.to_s)
        for due_s, message in _timed(messages, arguments.rate, arguments.speed):
            if not _sleep_until(due_s, stopped):
                break
            sender.send(message)
            show(sender.sent)
        return {
            "file": str(arguments.file),
            "address": sender.address,
            "sent": sender.sent,
            "unsent": sender.unsent,
            "truncated": capture.truncated,
        }


def _timed(
    messages: Iterable[tuple[int, list[bytes]]], rate_hz: float | None, speed: float
) -> Iterator[tuple[float, list[bytes]]]:
    """Give every message with the moment (monotonic, s) when it is due."""
    due_s, before_ns = time.monotonic(), None
    for time_ns, message in messages:
        if before_ns is not None and rate_hz is not None:
            due_s += 1 / rate_hz
        elif before_ns is not None:
            due_s += min((time_ns - before_ns) * 1e-9 / speed, _LONGEST_PAUSE_S)
        before_ns = time_ns
        yield due_s, message


def _sleep_until(moment_s: float, stopped: Callable[[], bool]) -> bool:
    """Wait; False if somebody asked to stop."""
    while not stopped() and (left_s := moment_s - time.monotonic()) > 0:
        time.sleep(min(left_s, 0.1))
    return not stopped()


def _summary(arguments: argparse.Namespace) -> dict[str, Any]:
    """Decode a capture with the kind of source that wrote it."""
    from quietbeam.core.plugin import SourcePlugin
    from quietbeam.offline.capture import read_capture
    from quietbeam.registry import find

    part_of_it = (arguments.from_s, arguments.to_s)
    with read_capture(arguments.file) as capture:
        about = dict(capture.about)
        parts = sum(1 for _ in capture.between(*part_of_it))
        truncated = capture.truncated
    settings = dict(zip(("from_s", "to_s"), part_of_it, strict=True))
    settings |= {"file": str(arguments.file), "speed": _AT_ONCE}
    source = find("sources", "replay", SourcePlugin)
    runs: list[dict[str, Any]] = []
    rejected: Counter[str] = Counter()
    with source.model_validate(settings).open() as events:
        for event in events:
            if isinstance(event, RunStart):
                shape, dtype = list(event.shape), event.dtype.name
                runs.append({"run": event.run, "shape": shape, "dtype": dtype, "frames": 0})
            elif isinstance(event, Frame):
                runs[-1]["frames"] += 1
            elif isinstance(event, Rejected):
                rejected[event.reason] += 1
    return {
        **about,
        "parts": parts,
        "truncated": truncated,
        "runs": runs,
        "rejected": dict(rejected),
    }
