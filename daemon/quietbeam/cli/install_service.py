"""``quietbeam install-service``: write the files of the systemd service, and explain them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json

if TYPE_CHECKING:
    from quietbeam.service.installation import Item

_NEXT = """
next, as root:
  systemd-sysusers && systemd-tmpfiles --create
  {program} check {config}
  systemctl daemon-reload
  systemctl enable --now quietbeam
then: systemctl status quietbeam · journalctl -u quietbeam -f · systemctl reload quietbeam
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam install-service``."""
    parser = add_command(
        subparsers,
        "install-service",
        "Write the systemd unit, its user, directories, control token and the drop-ins of this "
        "site. Starts nothing. Drop-ins and the token are kept where they exist.",
        "quietbeam install-service --network 172.23.0.0/16 --data /data --dry-run",
    )
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="write under DIR (for packages)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the files, write nothing")
    parser.add_argument(
        "--program", type=Path, help="the quietbeam to run (default: of this environment)"
    )
    parser.add_argument(
        "--config", type=Path, default=Path("/etc/quietbeam/quietbeam.toml"), help="its TOML file"
    )
    parser.add_argument(
        "--unit-directory",
        type=Path,
        default=Path("/etc/systemd/system"),
        help="packages take /usr/lib/systemd/system",
    )
    parser.add_argument(
        "--network", action="append", default=[], help="may be spoken with; repeat for more"
    )
    parser.add_argument(
        "--data", action="append", default=[], type=Path, help="may be written to; repeat for more"
    )
    parser.add_argument("--cpus", default="", help="cores of the service, e.g. 2-15")
    parser.add_argument("--gpu", action="store_true", help="prepare an NVIDIA GPU")
    parser.add_argument(
        "--views", action="store_true", help="let EPICS and web clients stay over a restart"
    )
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    from quietbeam.service.installation import Choices, items, own_program, write

    choices = Choices(
        program=arguments.program or own_program(),
        config=arguments.config,
        networks=tuple(arguments.network),
        data=tuple(arguments.data),
        cpus=arguments.cpus,
        gpu=arguments.gpu,
        views=arguments.views,
    )
    listed = items(choices, arguments.unit_directory)
    done = [
        (item, "would write" if arguments.dry_run else write(item, arguments.root))
        for item in listed
    ]
    if arguments.json:
        print_json([{"path": str(i.path), "why": i.why, "done": verb} for i, verb in done])
        return 0
    for item, verb in done:
        print(f"{verb:9} {item.path}\n          {item.why}")
        if arguments.dry_run:
            print(_indented(item))
    print(_NEXT.format(program=choices.program, config=choices.config), end="")
    return 0


def _indented(item: Item) -> str:
    text = item.text if item.mode & 0o077 else "(made anew, shown to nobody)\n"
    return "".join(f"          | {line}\n" for line in text.splitlines())
