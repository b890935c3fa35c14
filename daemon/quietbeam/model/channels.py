"""What is said of several channels: of all together, and of each by its name.

The figure of all is the mean over the channels (in decibels where it is in
decibels); what warns is the worst of them.  Of one channel all is as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

import numpy as np

from quietbeam.core.result import MapSpec, MetricSpec
from quietbeam.model.stabilise import NoiseModel

_TRUSTED, _ERROR, _CORRELATION = (
    "quality.trusted",
    "quality.psnr_error_db",
    "quality.correlation_",
)

Spec = TypeVar("Spec", MetricSpec, MapSpec)


def named_for(metric: str, channel: str) -> str:
    """Name of a metric of one channel; ``channel`` is "" where there is only one."""
    return f"{metric}.{channel}" if channel else metric


def specs_for(specs: Mapping[str, Spec], channels: Sequence[str]) -> dict[str, Spec]:
    """Describe the metrics or maps of each channel; none where there is only one."""
    return {
        named_for(name, channel): replace(
            spec,
            description=f"{spec.description}, {channel}",
            uncertainty=spec.uncertainty and named_for(spec.uncertainty, channel),
        )
        for channel in channels
        for name, spec in specs.items()
    }


def joined_figures(
    figures: Sequence[Mapping[str, float]], channels: Sequence[str]
) -> dict[str, float]:
    """Give the figures of all channels together, then those of each."""
    if not channels:
        return dict(figures[0])
    out = {name: _joined(name, [of[name] for of in figures]) for name in figures[0]}
    for channel, of in zip(channels, figures, strict=True):
        out |= {named_for(name, channel): value for name, value in of.items()}
    return out


def _joined(name: str, values: Sequence[float]) -> float:
    if name == _TRUSTED:
        return float(np.min(values))
    if name == _ERROR:  # of a mean of independent figures
        return math.hypot(*filter(math.isfinite, values)) / len(values)
    if name.startswith(_CORRELATION):
        return float(max(values, key=abs))
    known = [value for value in values if math.isfinite(value)]  # a dark channel has no PSNR
    return float(np.mean(known)) if known else float("nan")


def joined_notices(notices: Sequence[str | None], channels: Sequence[str]) -> str | None:
    """Say what is to be known of each channel's noise; None if nothing."""
    if not channels:
        return notices[0]
    said = zip(channels, notices, strict=True)
    return "; ".join(f"{channel}: {notice}" for channel, notice in said if notice) or None


def each_channel(figures: Mapping[str, float], channels: Sequence[str]) -> list[dict[str, Any]]:
    """List the estimated PSNR of each channel; empty where there is only one."""
    names = ("quality.psnr_estimated_db", "quality.psnr_raw_db")
    rows = [
        (channel, [figures.get(named_for(name, channel)) for name in names]) for channel in channels
    ]
    keys = [name.removeprefix("quality.") for name in names]
    return [
        {"name": channel}
        | {
            key: value if value is not None and math.isfinite(value) else None
            for key, value in zip(keys, values, strict=True)
        }
        for channel, values in rows
    ]


def calibration_account(noise: Sequence[NoiseModel], channels: Sequence[str]) -> dict[str, Any]:
    """Give the noise model as plain values; with several channels their mean, and each."""
    if not channels:
        return asdict(noise[0])
    return {
        "gain": float(np.mean([one.gain for one in noise])),
        "offset_variance": float(np.mean([one.offset_variance for one in noise])),
        "impulsive": any(one.impulsive for one in noise),
        "channels": [
            {"name": name, **asdict(one)} for name, one in zip(channels, noise, strict=True)
        ],
    }
