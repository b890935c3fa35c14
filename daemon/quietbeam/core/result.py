"""What the pipeline hands to the sinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What a metric is, declared before the first frame.

    Attributes:
        unit: As in UDUNITS; "" for a pure number.
        description: One line.
        shape: () for a scalar; else the fixed shape of the array.
    """

    unit: str
    description: str
    shape: tuple[int, ...] = ()
