"""Writes an inversion as NeXus: functions with bands, diagnostics, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from quietbeam.core.errors import SinkError
from quietbeam.offline.inversion.driver import Inversion
from quietbeam.offline.inversion.uncertainty import LEVEL

FORMAT = "quietbeam-inversion-1"


def write_result(
    path: Path, found: Inversion, functions: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write ``/entry``, whole or not at all.

    ``/entry/NAME`` is an NXdata for every function: the value by its axis, the
    90 % band (``lower``, ``upper``), ``NAME_errors`` (one s.d. of the value),
    ``informed`` (share of the prior's variance that the data removed) and
    ``observed``.  ``/entry/process`` has what it was made with and from,
    ``/entry/diagnostics`` the parameters, both covariances, eigenvalues, trace,
    mean squares of the residuals and the histogram of composition.

    Args:
        path: Of the file.
        found: The inversion.
        provenance: What it was made with and from.
        functions: In SI units, as ``CahnHilliard.in_si`` gives them.

    Raises:
        SinkError: It cannot be written.
    """
    unready = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(unready, "w") as file:
            _fill(file, found, functions, provenance)
        unready.replace(path)
    except OSError as error:
        with suppress(OSError):
            unready.unlink()
        raise SinkError(f"{path}: cannot be written: {error}") from error


def _fill(
    file: h5py.File, found: Inversion, functions: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    file.attrs.update({"quietbeam_format": FORMAT, "default": "entry"})
    entry = _group(file, "entry", "NXentry")
    entry.attrs["default"] = next(iter(functions))
    for name, one in functions.items():
        _function(entry, name, one)
    process = _group(entry, "process", "NXprocess")
    process["program"], process["version"] = "quietbeam", version("quietbeam")
    process["sequence_index"] = 1
    process["configuration"] = json.dumps(dict(provenance), default=str)
    process["notes"] = list(found.notes) or [""]
    _diagnostics(_group(entry, "diagnostics", "NXcollection"), found)


def _function(entry: h5py.Group, name: str, one: Mapping[str, Any]) -> None:
    data = _group(entry, name, "NXdata")
    data.attrs.update({"signal": name, "axes": [one["axis"]], "title": one["label"]})
    data[one["axis"]] = one["x"]
    data[name] = one["value"]
    data[name].attrs["units"] = one["unit"]
    half_band = (one["upper"] - one["lower"]) / 2
    data[f"{name}_errors"] = half_band / _z()
    for key in ("lower", "upper", "informed"):
        data[key] = one[key]
    data["observed"] = np.asarray(one["observed"], np.uint8)
    for key in ("lower", "upper"):
        data[key].attrs.update({"units": one["unit"], "level": LEVEL})


def _diagnostics(group: h5py.Group, found: Inversion) -> None:
    prior = found.problem.model.parameters
    group["names"] = list(prior.names)
    group["theta"] = found.fit.point.theta
    group["prior_mean"], group["prior_sd"] = prior.mean, prior.sd
    group["covariance_information"] = found.covariances.information
    group["covariance_sandwich"] = found.covariances.sandwich
    group["eigenvalues"] = found.eigenvalues
    group["converged"] = np.uint8(found.converged)
    group["rejected_share"] = found.rejected
    group["mean_square_residual"] = found.check.total
    group["mean_square_by_frame"] = found.check.chi2
    group["histogram_of_c"] = found.seen
    group["cost"] = [step["cost"] for step in found.fit.trace]
    for name, value in found.check.correlation.items():
        group[f"residual_correlation_{name}"] = value


def _group(parent: h5py.Group, name: str, kind: str) -> h5py.Group:
    made = parent.create_group(name)
    made.attrs["NX_class"] = kind
    return made


def _z() -> float:
    from scipy.stats import norm

    return float(norm.ppf(0.5 + LEVEL / 2))
