"""Images that a setting names: dark, flat, open beam, reference maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.errors import ConfigError
from quietbeam.core.events import RunStart
from quietbeam.offline.series import open_series, split_spec

Pixels = NDArray[np.float32]


def mean_image(what: str, spec: str, run: RunStart) -> Pixels:
    """Read the mean of a series, of the channel of ``run``, as float32 (h, w).

    Raises:
        ConfigError: It cannot be read or has not the shape of ``run``.
    """
    path, _ = split_spec(spec)
    if not path.exists():
        raise ConfigError(f"{what} = {spec!r}: there is no such file")
    with open_series(spec) as opened:
        series = opened.channel(run.metadata.get("channel"))
        total = np.zeros(series.shape[1:], np.float64)
        for i in range(len(series)):
            total += series[i]
        image = (total / len(series)).astype(np.float32)
    if image.shape != run.shape:
        raise ConfigError(
            f"{what} = {spec!r} has shape {image.shape}; the detector sends {run.shape}"
        )
    return image


def read_image(what: str, spec: str) -> Pixels:
    """Read the mean of a series of any size, float32 (h, w).

    Raises:
        ConfigError: It cannot be read.
    """
    path, _ = split_spec(spec)
    if not path.exists():
        raise ConfigError(f"{what} = {spec!r}: there is no such file")
    with open_series(spec) as series:
        return np.mean([series[i] for i in range(len(series))], axis=0).astype(np.float32)
