"""``quietbeam invert``: recover the physics behind a recording."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json, print_table
from quietbeam.cli._progress import bar


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam invert``."""
    parser = add_command(
        subparsers,
        "invert",
        "Recover functions of composition, with bands that hold the truth in 90 of 100 cases, from "
        "a recording: a differential equation is fitted to the measured frames, and starts from "
        "the denoised ones. What the recording does not say of itself (composition by counts, size "
        "of a pixel, kappa) has to be given; what cannot be answered is refused.",
        "quietbeam invert run.h5 -o physics.h5 --kappa 2e-15 --low 1000 --high 21000 "
        "--report report.html",
    )
    parser.add_argument("recording", metavar="IN", type=Path, help="a recording with raw frames")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="NeXus")
    parser.add_argument("--model", default="cahn-hilliard", help="a plugin's name (%(default)s)")
    parser.add_argument("--report", metavar="FILE", type=Path, help="write a page of HTML, too")
    parser.add_argument("--low", type=float, metavar="COUNTS", help="where the composition is 0")
    parser.add_argument("--high", type=float, metavar="COUNTS", help="where the composition is 1")
    parser.add_argument("--pixel-size", type=float, metavar="M", help="side of a pixel, metres")
    parser.add_argument("--frame-time", type=float, metavar="S", help="instead of recorded times")
    parser.add_argument("--kappa", type=float, metavar="M2", help="gradient energy over kT, m^2")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the model's plugin"
    )
    parser.add_argument("--window", type=int, default=0, metavar="N", help="frames (0: all in one)")
    parser.add_argument("--raw", action="store_true", help="leave the denoised frames out")
    parser.add_argument("--overwrite", action="store_true", help="OUT may exist")
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    from quietbeam.core.errors import SinkError
    from quietbeam.offline.inversion.driver import Recipe
    from quietbeam.offline.inversion.observed import Calibration, observe
    from quietbeam.offline.inversion.result import write_result

    if arguments.output.exists() and not arguments.overwrite:
        raise SinkError(f"{arguments.output}: exists already; choose another name or --overwrite")
    plugin = _plugin(arguments)
    calibration = Calibration(
        low=arguments.low, high=arguments.high, pixel_size_m=arguments.pixel_size,
        frame_time_s=arguments.frame_time,
    )  # fmt: skip
    observed = observe(arguments.recording, calibration, use_clean=not arguments.raw)
    recipe = Recipe(window_frames=arguments.window)
    with bar() as progress:
        found = plugin.invert(observed, recipe, progress)
    functions = plugin.in_si(found, observed)
    provenance = _provenance(arguments, plugin, observed, recipe)
    write_result(arguments.output, found, functions, provenance)
    truth = _truth(observed.given, functions)
    if arguments.report is not None:
        from quietbeam.offline.inversion.figures import write_report

        write_report(arguments.report, found, functions, provenance, truth)
    document = _document(found, functions, truth)
    if arguments.json:
        print_json(document)
    else:
        rows = [[name, *one.values()] for name, one in document["functions"].items()]
        print_table(rows, ["", *next(iter(document["functions"].values()))])
        for note in found.notes:
            print(note)
    return 0 if found.converged else 1


def _plugin(arguments: argparse.Namespace) -> Any:
    from pydantic import ValidationError

    from quietbeam.core.errors import ConfigError
    from quietbeam.core.plugin import InversionPlugin
    from quietbeam.registry import find

    settings = dict(one.split("=", 1) for one in arguments.set if "=" in one)
    if arguments.kappa is not None:
        settings["kappa_m2"] = arguments.kappa
    kind: type[InversionPlugin] = find("inversions", arguments.model, InversionPlugin)
    try:
        return kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"model {arguments.model}: {where}: {first['msg']}") from error


def _provenance(
    arguments: argparse.Namespace, plugin: Any, observed: Any, recipe: Any
) -> dict[str, Any]:
    from dataclasses import asdict
    from importlib.metadata import version

    return {
        "input": str(arguments.recording),
        "raw_sha256": observed.sha256,
        "model": arguments.model,
        "settings": plugin.model_dump(mode="json"),
        "given by the recording": {k: v for k, v in observed.given.items() if k != "truth"},
        "recipe": asdict(recipe),
        "denoised starts": observed.denoised,
        "noise": {"gain": observed.noise.gain, "offset_variance": observed.noise.offset_variance},
        "frame_interval_s": observed.interval_s,
        "pixel_size_m": observed.pixel_size_m,
        "quietbeam": version("quietbeam"),
        "torch": version("torch"),
    }


def _truth(given: Mapping[str, Any], functions: Mapping[str, Any]) -> dict[str, Any]:
    """Give the truth of a simulation on the grids of what was recovered; {} if not known."""
    import numpy as np

    known = given.get("truth")
    if not isinstance(known, Mapping):
        return {}
    out = {}
    for name, one in functions.items():
        if name in known and "c" in known:
            value = np.interp(one["x"], known["c"], known[name])
            if one["unit"] == "kT":  # the constant is arbitrary: that of what was recovered
                value += (one["value"] - value)[one["observed"]].mean()
            out[name] = value
    return out


def _document(found: Any, functions: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np

    shown = {}
    for name, one in functions.items():
        inside = one["observed"]
        width = float(np.mean((one["upper"] - one["lower"])[inside]))
        row: dict[str, Any] = {
            "unit": one["unit"],
            "mean": float(f"{np.mean(one['value'][inside]):.4g}"),
            "mean 90 % band": float(f"{width:.3g}"),
            "least informed": float(f"{one['informed'][inside].min():.3f}"),
        }
        if name in truth:
            error, holds = (one["value"] - truth[name])[inside], truth[name][inside]
            scale = holds - holds.mean() if one["unit"] == "kT" else holds
            row["relative error"] = float(f"{np.linalg.norm(error) / np.linalg.norm(scale):.4f}")
            held = (one["lower"] <= truth[name]) & (truth[name] <= one["upper"])
            row["band holds truth"] = float(f"{held[inside].mean():.2f}")
        shown[name] = row
    return {
        "functions": shown,
        "converged": found.converged,
        "mean_square_residual": found.check.total,
        "residual_correlation": found.check.correlation,
        "rejected": found.rejected,
        "eigenvalues": found.eigenvalues.tolist(),
        "linearisations": found.fit.linearisations,
        "seconds": round(found.seconds, 1),
        "notes": list(found.notes),
    }
