"""What the pipeline hands to the sinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MapDtype = Literal["uint8", "uint16", "int32", "float32"]
"""What a map may be made of; not a number means unknown, 0 means none in the others."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """One cleaned frame and what was measured on it.

    Attributes:
        run: Name of the run.
        index: The detector's number of the raw frame this one belongs to.
        time_ns: Detector clock of that raw frame.
        received_ns: Our monotonic clock when that raw frame arrived.
        clean: (h, w) float32, corrected counts; NaN where a pixel is bad.
        sd: (h, w) float32, one standard deviation of ``clean``, same unit.
        raw: (h, w) detector counts, or None where only ``clean`` is carried.
        metrics: By ``group.name``; scalars or small arrays.
        maps: By ``group.name``; (h, w) images of what was measured at every pixel, of the
            dtype their ``MapSpec`` declares.  One that is not there was not measured.
        denoiser: Name of the denoiser that made ``clean``.
        model_version: 0 for a classical one; else the number of the promotion.
        latency_s: From ``received_ns`` to the moment ``clean`` was ready.
    """

    run: str
    index: int
    time_ns: int
    received_ns: int
    clean: NDArray[np.float32]
    sd: NDArray[np.float32]
    raw: NDArray[Any] | None
    metrics: Mapping[str, float | NDArray[Any]]
    denoiser: str
    model_version: int
    latency_s: float
    maps: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What a metric is, declared before the first frame.

    Attributes:
        unit: As in UDUNITS; "" for a pure number.
        description: One line.
        shape: () for a scalar; else the fixed shape of the array.
        uncertainty: Name of the metric that is its standard deviation, of the same shape and
            unit: within an analysis as that one is declared, elsewhere its whole name; "" if
            there is none.
    """

    unit: str
    description: str
    shape: tuple[int, ...] = ()
    uncertainty: str = ""


@dataclass(frozen=True, slots=True)
class MapClass:
    """What one value of a map of classes means, and its colour (red, green, blue; 0 to 255)."""

    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class MapSpec:
    """What a map is, declared before the first frame.

    Attributes:
        unit: As for metrics.
        description: One line.
        dtype: Of its pixels.
        classes: For a map of classes: what the values 1, 2, ... mean; 0 is none of them.
        uncertainty: Name of the map that is its standard deviation, as for metrics.
    """

    unit: str
    description: str
    dtype: MapDtype = "float32"
    classes: tuple[MapClass, ...] = ()
    uncertainty: str = ""
