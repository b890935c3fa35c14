"""``quietbeam analyse``: the workflow of a modality over a recording, with a report."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json, print_table
from quietbeam.cli._progress import bar

if TYPE_CHECKING:
    from quietbeam.core.plugin import AnalysisPlugin
    from quietbeam.offline.analyse import Outcome


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam analyse``."""
    parser = add_command(
        subparsers,
        "analyse",
        "Measure a recording with an analysis, on its clean frames and on its raw ones, and "
        "write metrics and maps with their uncertainties as NeXus, and a report as one HTML file.",
        "quietbeam analyse run42_clean.h5 -o run42_result.h5 --workflow radiography "
        "--config configs/neutron.toml --report run42.html",
    )
    parser.add_argument("source", metavar="IN", help="a recording; raw only: any image series")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True)
    parser.add_argument(
        "--workflow", metavar="NAME", required=True, help="an analysis: see quietbeam plugins"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML; its [[analyses]] of this kind holds the settings",
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="HTML; needs matplotlib")
    parser.add_argument("--dark", metavar="FILE", help="as it was applied before denoising")
    parser.add_argument("--flat", metavar="FILE", help="likewise")
    parser.add_argument("--mask", metavar="FILE", help="likewise")
    parser.add_argument("--overwrite", action="store_true", help="OUT may exist")
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    from importlib.util import find_spec

    from quietbeam.core.errors import ConfigError
    from quietbeam.offline.analyse import analyse_file
    from quietbeam.offline.write import corrections

    if arguments.report is not None and find_spec("matplotlib") is None:
        raise ConfigError("--report needs matplotlib: pip install 'quietbeam[analyse]'")
    plugin = _plugin(arguments.workflow, arguments.config)
    with bar() as progress:
        outcome = analyse_file(
            arguments.source,
            arguments.output,
            arguments.workflow,
            plugin,
            applied=corrections(arguments.dark, arguments.flat, arguments.mask),
            report=arguments.report,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    _print_as_json(outcome, arguments) if arguments.json else _tell(outcome, arguments)
    return 1 if outcome.failed else 0


def _plugin(name: str, config: Path | None) -> AnalysisPlugin:
    """Make the plugin with the settings of a configuration file."""
    from pydantic import ValidationError

    from quietbeam.core.errors import ConfigError
    from quietbeam.core.plugin import AnalysisPlugin
    from quietbeam.registry import find

    kind: type[Any] = find("analyses", name, AnalysisPlugin)
    try:
        return kind(**_settings(name, config))
    except ValidationError as error:
        raise ConfigError(f"{name}: {error}") from error


def _settings(name: str, config: Path | None) -> dict[str, Any]:
    from quietbeam.core.errors import ConfigError

    if config is None:
        return {}
    try:
        table = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config}: {error}") from error
    entries = table.get("analyses", [])
    found = [one for one in entries if isinstance(one, dict) and one.get("kind") == name]
    if not found:
        kinds = [one.get("kind") for one in entries if isinstance(one, dict)]
        raise ConfigError(f"{config}: has no [[analyses]] of kind {name!r}; it has {kinds}")
    return {key: value for key, value in found[0].items() if key not in {"kind", "name"}}


def _print_as_json(outcome: Outcome, arguments: argparse.Namespace) -> None:
    summary = {
        kind: {name: {"mean": mean, "sd": sd} for name, (mean, sd) in found.items()}
        for kind, found in outcome.summary.items()
    }
    print_json(
        {
            "output": arguments.output,
            "report": arguments.report,
            "frames": outcome.frames,
            "messages": outcome.messages,
            "failed": outcome.failed,
            "summary": summary,
        }
    )


def _tell(outcome: Outcome, arguments: argparse.Namespace) -> None:
    for kind, message in outcome.messages.items():
        print(f"{kind}: {message}")
    kinds = list(outcome.summary)
    names = list(outcome.summary[kinds[0]])
    rows = [[name, *(_shown(*outcome.summary[kind][name]) for kind in kinds)] for name in names]
    print_table(rows, ["mean over frames", *kinds])
    print(f"written: {arguments.output}")
    if arguments.report is not None:
        print(f"report: {arguments.report}")


def _shown(mean: float, sd: float) -> str:
    if mean != mean:  # noqa: PLR0124  not a number
        return "-"
    return f"{mean:.4g}" + (f" ± {sd:.2g}" if sd == sd else "")  # noqa: PLR0124
