"""``quietbeam simulate``: be a detector."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json
from quietbeam.cli._progress import progress
from quietbeam.cli._stop import stop_signals
from quietbeam.core.errors import DataError

_FORMATS = (
    *("dectris-v1", "dectris-v1-flat", "dectris-v2", "array-1.0", "adzmq"),
    *("stins", "xspress3", "xspress3-flat", "odin", "sls", "sls-4bit", "karabo", "jungfraujoch"),
    "pva",
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam simulate``."""
    parser = add_command(
        subparsers,
        "simulate",
        "Send a file (HDF5, NeXus, TIFF, .npy) or a simulated operando cell over ZMQ, frame by "
        "frame and on time, as a detector does it. Ctrl-C ends the series properly. "
        "'cahn-hilliard' is a cell that separates into two phases and tells what an inversion has "
        "to know, and the truth; --output writes it as a recording instead.",
        "quietbeam simulate phantom --format dectris-v2 --rate 20 --bind tcp://127.0.0.1:31001",
    )
    parser.add_argument(
        "images", metavar="FILE|phantom", help="file, file.h5:/dataset, phantom, or cahn-hilliard"
    )
    parser.add_argument("--format", choices=_FORMATS, default="dectris-v2", help="(%(default)s)")
    parser.add_argument("--rate", type=_positive, default=10.0, metavar="HZ", help="(%(default)s)")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--bind", metavar="ADDRESS", help="listen here; port 0: a free one; pva://CHANNEL"
    )
    where.add_argument("--connect", metavar="ADDRESS", help="connect to a reader that listens")
    where.add_argument(
        "--output", type=Path, metavar="FILE", help="write a recording (cahn-hilliard only)"
    )
    parser.add_argument(
        "--noise", choices=("gaussian", "poisson", "impulse", "mixed"), default="gaussian",
        help="of cahn-hilliard (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--level", type=_positive, default=0.5, help="of that noise, 1: the paper's (%(default)s)"
    )
    parser.add_argument(
        "--frames", type=int, metavar="N", help="how many (all; phantom: 2400; cahn-hilliard: 40)"
    )
    parser.add_argument("--compression", choices=("none", "lz4", "bslz4"), default="none")
    parser.add_argument(
        "--socket",
        choices=("push", "pub", "rep"),
        default="push",
        help="rep: answer requests, as karabo does (%(default)s)",
    )
    parser.add_argument("--wait", action="store_true", help="do not start before somebody reads")
    parser.add_argument("--seed", type=int, default=0, help="of the phantom (%(default)s)")
    parser.add_argument(
        "--size", type=int, help="of the phantom, in pixels (256; cahn-hilliard: 64)"
    )
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a rate; expected a number above 0")
    return value


def _execute(arguments: argparse.Namespace) -> int:
    from quietbeam.testing.simulators import encoder, simulate

    if arguments.frames is not None and arguments.frames < 1:
        raise DataError(f"--frames {arguments.frames}: expected at least 1")
    if arguments.output is not None:
        return _record(arguments)
    with (
        _images(arguments) as (images, frames),
        _sender(arguments) as sender,
        stop_signals() as stopped,
        progress("frames", frames, quiet=arguments.json) as show,
    ):
        images[0]  # a phantom works itself out now, not while it is sending
        print(f"sending on {sender.address}", file=sys.stderr, flush=True)
        while arguments.wait and not sender.wait_for_reader(0.2) and not stopped():
            continue
        report = simulate(
            images,
            encoder(arguments.format, arguments.compression),
            sender,
            rate_hz=arguments.rate,
            frames=frames,
            stop=_watched(stopped, lambda: show(sender.sent)),
        )
        result = {**report.as_dict(), "address": sender.address, "format": arguments.format}
    if arguments.json:
        print_json(result)
    else:
        print(
            f"{report.sent} frames sent in {report.seconds:.1f} s, {report.late} late, "
            f"{report.unsent} given up because nobody read them"
        )
    return 0 if report.sent else 1


def _record(arguments: argparse.Namespace) -> int:
    from quietbeam.testing.separating import record

    if arguments.images != "cahn-hilliard":
        raise DataError(f"--output: expected cahn-hilliard, got {arguments.images}")
    if arguments.output.exists():
        raise DataError(f"{arguments.output}: exists already; choose another name")
    cell = _separating(arguments)
    record(cell, arguments.output)
    if arguments.json:
        print_json({"file": arguments.output, "frames": len(cell)})
    else:
        print(f"{len(cell)} frames in {arguments.output}")
    return 0


def _separating(arguments: argparse.Namespace) -> Any:
    from quietbeam.testing.separating import Separating

    return Separating(
        size_px=arguments.size or 64, frames=arguments.frames or 40, seed=arguments.seed,
        noise=arguments.noise, level=arguments.level, frame_time_s=1 / arguments.rate,
    )  # fmt: skip


def _sender(arguments: argparse.Namespace) -> AbstractContextManager[Any]:
    address = arguments.bind or arguments.connect
    if (arguments.format == "pva") != address.startswith("pva://"):
        raise DataError(f"{address}: format pva, and it alone, has an address pva://CHANNEL")
    if arguments.format == "pva":
        from quietbeam.testing.simulators.pva import open_pva_sender

        return open_pva_sender(address)
    from quietbeam.offline.sender import open_sender

    return open_sender(address, kind=arguments.socket, bind=arguments.bind is not None)


@contextmanager
def _images(arguments: argparse.Namespace) -> Iterator[tuple[Any, int]]:
    """Give the images and how many to send."""
    if arguments.images == "phantom":
        from quietbeam.testing.phantoms import Phantom

        frames = arguments.frames or 2400
        size = arguments.size or 256
        shape = (size, size)
        yield (
            _PhantomImages(Phantom(shape, frames, arguments.seed, frame_time_s=1 / arguments.rate)),
            frames,
        )
        return
    if arguments.images == "cahn-hilliard":
        cell = _separating(arguments)
        yield cell, len(cell)
        return
    from quietbeam.offline.series import open_series

    with open_series(arguments.images) as series:
        yield series, arguments.frames or len(series)


class _PhantomImages:
    """Frames of a phantom, by their number."""

    def __init__(self, phantom: Any) -> None:
        self._phantom = phantom

    def __len__(self) -> int:
        return len(self._phantom)

    def __getitem__(self, index: int) -> Any:
        return self._phantom.frame(index)


def _watched(stopped: Callable[[], bool], show: Callable[[], None]) -> Callable[[], bool]:
    def stop() -> bool:
        show()
        return stopped()

    return stop
