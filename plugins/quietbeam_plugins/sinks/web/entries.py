"""One frame as the live view keeps it, and where frames are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.events import RunStart
from quietbeam.core.result import MapSpec, MetricSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """Raw and clean of one frame, full resolution.

    Attributes:
        id: Counts the frames of a source of pictures, from 1 (live) or 0 (file).
        start: The run's start, with mask, saturation and channels.
        time_s: Detector clock since the run's first frame.
        unix_s: When it arrived.
        raw: (h, w) or (c, h, w) counts; None where there is none.
        clean: Same shape, float32, NaN where bad; None where not cleaned.
        sd: One standard deviation of ``clean``.
    """

    id: int
    run: str
    index: int
    start: RunStart
    time_s: float
    unix_s: float
    raw: NDArray[Any] | None = None
    clean: NDArray[np.float32] | None = None
    sd: NDArray[np.float32] | None = None
    maps: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    denoiser: str | None = None
    model_version: int = 0
    latency_s: float | None = None

    @property
    def nbytes(self) -> int:
        """Memory held by its pixels."""
        arrays = [self.raw, self.clean, self.sd, *self.maps.values()]
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        height, width = self.start.shape[-2:]
        return height, width

    def channel(self, name: str | None) -> int | None:
        """Give the number of the channel ``name`` (None: the first); None where there is one."""
        channels = self.start.channels
        if not channels:
            return None
        return channels.index(name) if name in channels else 0

    def plane(self, what: str, name: str | None) -> NDArray[Any] | None:
        """Give (h, w) of ``raw``, ``clean`` or ``sd`` of one channel."""
        array: NDArray[Any] | None = getattr(self, what)
        number = self.channel(name)
        return array if array is None or number is None or array.ndim == 2 else array[number]

    def mask(self, name: str | None) -> NDArray[np.bool_] | None:
        """Give (h, w) of what is bad for the whole run."""
        mask, number = self.start.mask, self.channel(name)
        return mask if mask is None or mask.ndim == 2 or number is None else mask[number]


class Pictures(Protocol):
    """A source of pictures: the rolling buffer of the stream, or a finished file."""

    name: str
    """"live", or the name of the recording."""
    live: bool

    def newest(self) -> Entry | None:
        """Give the newest frame."""
        ...

    def get(self, number: int) -> Entry | None:
        """Give the kept frame whose id is nearest to ``number``."""
        ...

    def ids(self, after: int = -1) -> Sequence[int]:
        """Give what is kept with an id beyond ``after``, oldest first."""
        ...

    def span(self) -> dict[str, Any]:
        """Describe what is kept: ``first``, ``last``, ``frames``, ``seconds``, ``times_s``."""
        ...

    def described(self) -> dict[str, Any]:
        """Describe the run and its declared ``metrics`` and ``maps``, for ``hello``."""
        ...


def run_described(run: RunStart | None, **more: Any) -> dict[str, Any] | None:
    """Describe a run as JSON."""
    if run is None:
        return None
    names = ("run", "frame_time_s", "pixel_size_m", "energy_kev", "saturation", "nodata")
    return {
        **{name: getattr(run, name) for name in (*names, "frames_expected", "exposure_s")},
        "shape": list(run.shape[-2:]),
        "channels": list(run.channels),
        "dtype": run.dtype.name,
        "unit": "counts",
        "started_unix_s": None,
        "ended_unix_s": None,
        "end_reason": None,
        **more,
    }


def specs_described(specs: Mapping[str, MetricSpec]) -> dict[str, Any]:
    """Describe scalar metrics as JSON."""
    return {
        name: {"unit": spec.unit, "description": spec.description}
        for name, spec in specs.items()
        if spec.shape == ()
    }


def maps_described(specs: Mapping[str, MapSpec]) -> dict[str, Any]:
    """Describe images of analyses as JSON, classes with their colours."""
    return {
        name: {
            "unit": spec.unit,
            "description": spec.description,
            "dtype": spec.dtype,
            "classes": [
                {"value": value, "name": one.name, "colour": f"#{bytes(one.colour).hex()}"}
                for value, one in enumerate(spec.classes, 1)
            ]
            or None,
        }
        for name, spec in specs.items()
    }
