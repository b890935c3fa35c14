"""The command line: one module per command, imported only when that command is asked for.

A command module has ``add_parser(subparsers)``: it adds its own parser, with an
example in the epilog, and sets ``execute``, a function of the parsed arguments
that gives the exit code::

    def add_parser(subparsers: Subparsers) -> None:
        parser = subparsers.add_parser("run", help="the daemon", epilog="example: ...")
        parser.set_defaults(execute=_execute)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from quietbeam.core.errors import QuietbeamError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001
else:
    Subparsers = argparse._SubParsersAction  # noqa: SLF001

__all__ = ["COMMANDS", "Subparsers", "main"]

COMMANDS = (
    ("run", "the daemon: read a detector, clean, train, record, publish"),
    ("check", "validate a configuration and its surroundings, start nothing"),
    ("demo", "a simulated operando cell, the daemon and a live dashboard"),
    ("simulate", "be a detector: send a file or a phantom over ZMQ"),
    ("capture", "write the raw stream parts of a detector to a file"),
    ("replay", "send a captured stream again, bit-equal"),
    ("denoise", "clean a video offline, trained on itself"),
    ("analyse", "measure a recording by a workflow, raw against clean, with a report"),
    ("invert", "recover the physics behind a recording, with bands"),
    ("pretrain", "make the prior weights that a network starts from"),
    ("evaluate", "quality tables against truth and baselines"),
    ("bench", "speed, latency and memory of denoisers and engines"),
    ("soak", "many frames through a real daemon: nothing may grow, nothing may be lost"),
    ("repair", "make a recording that was cut off readable again"),
    ("doctor", "report what this machine can do"),
    ("install-service", "write the files of the systemd service, and explain them"),
    ("plugins", "list what is installed"),
    ("control", "command a running daemon"),
)
"""Name and one line of help of every command; see ``module_of``."""

_DESCRIPTION = "Clean detector frames while the beam is on."
_EPILOG = "example: quietbeam demo\nhelp on one command: quietbeam run --help"
_INTERRUPTED = 130  # as shells report SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give the exit code of the process.

    0 only on success; 1 failed; 2 wrong arguments; 65 unreadable data; 78 a
    configuration that can never work; 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parser(_wanted(words)).parse_args(words)
        return int(arguments.execute(arguments) or 0)
    except QuietbeamError as error:
        print(f"quietbeam: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # `quietbeam ... | head`: the reader has seen enough
        sys.stderr.close()
        return 1


def module_of(command: str) -> str:
    """Name the module of a command."""
    return f"quietbeam.cli.{command.replace('-', '_')}"


def _wanted(words: Sequence[str]) -> str | None:
    """Name the command asked for: the first word that is no option."""
    return next((word for word in words if not word.startswith("-")), None)


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quietbeam",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=_version())
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in COMMANDS:
        if name == wanted:
            import_module(module_of(name)).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    return parser


def _version() -> str:
    from quietbeam import __version__

    return f"quietbeam {__version__}"
