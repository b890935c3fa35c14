"""Reads what a battery cycler wrote: time and current; gives half-cycles and their charge."""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam import ConfigError

_TIME = {"time/s": 1.0, "time_s": 1.0, "time (s)": 1.0, "time/h": 3600.0, "time": 1.0, "t": 1.0}
_TIME |= {"test_time(s)": 1.0, "time(s)": 1.0, "test time (s)": 1.0}
_CURRENT = {"i/ma": 1e-3, "<i>/ma": 1e-3, "i/a": 1.0, "current_a": 1.0, "current(a)": 1.0}
_CURRENT |= {"current (a)": 1.0, "current/a": 1.0, "current_ma": 1e-3, "current(ma)": 1e-3}
_CURRENT |= {"current (ma)": 1e-3, "current": 1.0, "i": 1.0}


@dataclass(frozen=True, slots=True)
class HalfCycle:
    """One stretch of current of one sign.

    Attributes:
        start_s: On the cycler's clock.
        end_s: Likewise.
        charge_c: Coulombs that flowed; positive while charging.
    """

    start_s: float
    end_s: float
    charge_c: float


def read_cycler(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give time in s and current in A (positive while charging).

    Comma, semicolon or tab separated text with a header line naming both, or Bio-Logic
    ``.mpr`` where the package ``galvani`` is installed.

    Raises:
        ConfigError: It is missing, or holds no such columns.
    """
    if not path.is_file():
        raise ConfigError(f"cycler = {str(path)!r}: there is no such file")
    table = _read_mpr(path) if path.suffix.lower() == ".mpr" else _read_text(path)
    time, current = _column(path, table, _TIME), _column(path, table, _CURRENT)
    known = np.isfinite(time) & np.isfinite(current)
    if known.sum() < 2 or (np.diff(time[known]) < 0).any():
        raise ConfigError(f"cycler = {str(path)!r}: expected at least 2 rows of rising time")
    return time[known], current[known]


def half_cycles(
    time_s: NDArray[np.float64], current_a: NDArray[np.float64], rest_share: float = 0.02
) -> list[HalfCycle]:
    """Split at changes of the sign of the current; rest (little current) belongs to none."""
    limit = rest_share * float(np.abs(current_a).max())
    sign = np.where(np.abs(current_a) <= limit, 0, np.sign(current_a)).astype(int)
    active = np.flatnonzero(sign)
    if not active.size:
        return []
    breaks = np.flatnonzero(np.diff(sign[active])) + 1
    found = []
    for part in np.split(active, breaks):
        span = slice(part[0], part[-1] + 1)
        charge = float(np.trapezoid(current_a[span], time_s[span]))
        found.append(HalfCycle(float(time_s[part[0]]), float(time_s[part[-1]]), charge))
    return found


def coulombic_efficiencies(cycles: list[HalfCycle]) -> list[float]:
    """Give discharged over charged, for every charge that a discharge follows."""
    pairs = itertools.pairwise(cycles)
    return [-out.charge_c / into.charge_c for into, out in pairs if into.charge_c > 0]


def _read_text(path: Path) -> dict[str, NDArray[np.float64]]:
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    names = {*_TIME, *_CURRENT}
    for at, line in enumerate(lines[:200]):  # some exports have a preamble
        for separator in "\t;,":
            header = [cell.strip().strip('"').lower() for cell in line.split(separator)]
            if len(header) > 1 and len(names & set(header)) > 1:
                rows = list(csv.reader(lines[at + 1 :], delimiter=separator))
                return {
                    name: np.array([_number(row, column) for row in rows])
                    for column, name in enumerate(header)
                }
    return {}


def _number(row: list[str], column: int) -> float:
    try:
        return float(row[column].strip().replace(",", "."))
    except (IndexError, ValueError):
        return float("nan")


def _read_mpr(path: Path) -> dict[str, NDArray[np.float64]]:
    if find_spec("galvani") is None:
        raise ConfigError(
            f"cycler = {str(path)!r}: .mpr files need the package galvani "
            "(pip install galvani), or export the file as text"
        )
    from importlib import import_module

    reader: Any = import_module("galvani").BioLogic
    data = reader.MPRfile(str(path)).data
    return {name.lower(): np.asarray(data[name], np.float64) for name in data.dtype.names}


def _column(
    path: Path, table: dict[str, NDArray[np.float64]], known: dict[str, float]
) -> NDArray[np.float64]:
    for name, scale in known.items():
        if name in table:
            return table[name] * scale
    raise ConfigError(
        f"cycler = {str(path)!r}: has columns {sorted(table) or 'that are not known'}; "
        f"expected one of {sorted(known)}"
    )
