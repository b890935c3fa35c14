"""``quietbeam plugins``: what is installed."""

from __future__ import annotations

import argparse
from typing import Any

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json, print_table


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam plugins``."""
    parser = add_command(
        subparsers,
        "plugins",
        "List the installed plugins by kind. Nothing is imported unless --long is given.",
        "quietbeam plugins --long",
    )
    parser.add_argument("--long", action="store_true", help="import them and show their settings")
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    from quietbeam.registry import KINDS, available

    found = {
        kind: {
            name: _described(kind, name, point.value, long=arguments.long)
            for name, point in available(kind).items()
        }
        for kind in KINDS
    }
    if arguments.json:
        print_json(found)
        return 0
    rows = [
        (kind, name, plugin.get("error") or plugin["object"])
        for kind, plugins in found.items()
        for name, plugin in plugins.items()
    ]
    if not arguments.long:
        print_table(rows, ("KIND", "NAME", "OBJECT"))
        return 0
    for kind, name, text in rows:
        print(f"{kind} {name}: {found[kind][name].get('summary') or text}")
        for key in found[kind][name].get("settings", []):
            print(f"    {key['key']} = {key['default']}  ({key['type']}) {key['text']}".rstrip())
    return 0


def _described(kind: str, name: str, target: str, *, long: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"object": target}
    if not long:
        return described
    from quietbeam.cli._reference import settings_of, summary_of
    from quietbeam.core.errors import QuietbeamError
    from quietbeam.core.plugin import Plugin
    from quietbeam.registry import find

    try:
        cls = find(kind, name, Plugin)
    except (QuietbeamError, AttributeError) as error:
        return described | {"error": f"cannot be loaded: {error}"}
    return described | {"summary": summary_of(cls), "settings": settings_of(cls)}
