"""``quietbeam control``: command a running daemon."""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from quietbeam.cli import Subparsers
from quietbeam.cli._ledger import print_ledger
from quietbeam.cli._output import add_command, add_json, print_json, print_mapping
from quietbeam.core.errors import ConfigError, QuietbeamError

_TIMEOUT_S = 30.0
_TOKEN_VARIABLE = "QUIETBEAM_TOKEN"  # noqa: S105 - the name of a variable, not a token


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam control``."""
    from quietbeam.service.control import COMMANDS

    commands = "\n".join(
        f"  {name + (' ' + spec.argument.name.upper() if spec.argument else ''):<18}{spec.help}"
        for name, spec in COMMANDS.items()
    )
    parser = add_command(
        subparsers,
        "control",
        f"Give a running daemon one command:\n\n{commands}",
        "quietbeam control rollback --config configs/minimal.toml",
    )
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="see above")
    parser.add_argument(
        "argument", nargs="?", metavar="VALUE", help="of the command, if it has one"
    )
    parser.add_argument(
        "--config", type=Path, help="the daemon's configuration: address and token are found by it"
    )
    parser.add_argument("--url", help="the daemon's address, e.g. http://127.0.0.1:9469")
    parser.add_argument(
        "--token-file",
        type=Path,
        help=f"file with the control token (or the token in {_TOKEN_VARIABLE})",
    )
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    body = _body(arguments.command, arguments.argument)
    url, token = _target(arguments)
    answer = send(url, token, arguments.command, body)
    if arguments.json:
        print_json(answer)
    elif arguments.command == "ledger":
        print_ledger(answer)
    else:
        print_mapping(answer)
    return 0


def send(url: str, token: str, command: str, body: dict[str, Any]) -> dict[str, Any]:
    """Give one command over HTTP and return the answer.

    Raises:
        QuietbeamError: The daemon cannot be reached or refuses; the message says why.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url {url!r}: expected http://HOST:PORT")
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        f"{url.rstrip('/')}/api/v1/control/{command}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        method="POST",
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=_TIMEOUT_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise QuietbeamError(f"{command} refused ({error.code}): {_reason(error)}") from error
    except OSError as error:
        raise QuietbeamError(f"no daemon answers at {url}: {error}") from error


def _reason(error: urllib.error.HTTPError) -> str:
    content = error.read()
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace")[:200] or error.reason


def _body(command: str, value: str | None) -> dict[str, Any]:
    from quietbeam.service.control import COMMANDS, ControlError, checked_argument

    argument = COMMANDS[command].argument
    if value is None:
        checked_argument(command, argument, {})
        return {}
    if argument is None:
        raise ControlError(f"{command} takes no value, got {value!r}")
    try:
        parsed = argument.type(value)
    except ValueError as error:
        raise ControlError(f"{command}: {argument.name} = {value!r}: not a number") from error
    checked_argument(command, argument, {argument.name: parsed})
    return {argument.name: parsed}


def _target(arguments: argparse.Namespace) -> tuple[str, str]:
    """Give address and token: from the options, the environment, or the runtime directory."""
    url, token = arguments.url, os.environ.get(_TOKEN_VARIABLE, "")
    token_file = arguments.token_file
    if arguments.config is not None:
        from quietbeam.config import load_service
        from quietbeam.service.runtime import directory_for, read_address, token_path

        name, service = load_service(arguments.config)
        directory = directory_for(name, service.runtime_directory)
        url = url or read_address(directory)
        token_file = token_file or token_path(directory)
    if token_file is not None:
        token = _read_token(token_file)
    if not url or not token:
        raise ConfigError(
            "give --config CONFIG of the running daemon, or --url with --token-file "
            f"(or the token in {_TOKEN_VARIABLE})"
        )
    return url, token


def _read_token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"the control token {path} cannot be read: {error.strerror}") from error
