"""What commands print: for people on a terminal, for programs as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quietbeam.cli import Subparsers


def add_command(
    subparsers: Subparsers, name: str, description: str, example: str
) -> argparse.ArgumentParser:
    """Add the parser of one command; ``example`` is shown at the end of its help."""
    from quietbeam.cli import COMMANDS

    return subparsers.add_parser(
        name,
        help=dict(COMMANDS)[name],
        description=description,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``: one JSON document on stdout instead of text."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def print_json(value: Any) -> None:
    """Print ``value`` as one JSON document; paths as text, NaN as null."""
    print(json.dumps(_plain(value), indent=2, default=str))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):  # a NumPy scalar
        value = value.item()
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return str(value) if isinstance(value, Path) else value


def print_table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> None:
    """Print rows under a header, in columns wide enough for their longest text."""
    texts = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    for row in texts:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def print_mapping(value: Mapping[str, Any], indent: int = 0) -> None:
    """Print nested mappings as indented lines."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            print(f"{' ' * indent}{key}:")
            print_mapping(item, indent + 2)
        else:
            shown = ", ".join(map(str, item)) if isinstance(item, (list, tuple)) else item
            print(f"{' ' * indent}{key}: {shown}")


def is_terminal() -> bool:
    """Tell whether a person reads stdout."""
    return sys.stdout.isatty()
