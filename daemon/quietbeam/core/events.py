"""What a source says: a run starts, frames arrive, the run ends.

The grammar of every source is ``(RunStart Frame* RunEnd)*``.  A ``Rejected``
may stand anywhere: it is a message that was refused, and why.  So may
``Dropped``: frames that a source had no room for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

EndReason = Literal["completed", "aborted", "lost"]

RejectReason = Literal[
    "malformed",  # not the format at all: bad JSON, bad CBOR, missing keys
    "truncated",  # fewer bytes than declared
    "oversized",  # more bytes or pixels than allowed or declared
    "shape",  # shape differs from the run's, or is not an image
    "dtype",  # unknown dtype, or it differs from the run's
    "compression",  # unknown codec, or the codec refused the bytes
    "foreign",  # belongs to another run than the one going on
    "duplicate",  # this frame number was already seen in this run
    "unsafe",  # a pickled or otherwise executable payload
    "unknown_type",  # a well-formed message of a type we do not read
    "no_run",  # end or data without anything to attach it to
    "preview",  # a dummy or preview frame
]
"""Why a message was refused: a closed list, so that it can label a metric."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunStart:
    """First event of a run: everything that stays the same until its end.

    Attributes:
        run: Name of the run, unique in time for one source.
        shape: (h, w) in pixels; (c, h, w) for frames of several channels.
        channels: Name of each channel, in order; empty where there is one.
        dtype: Of the counts.
        frame_time_s: Time from one frame to the next, or None if not told.
        exposure_s: Time the shutter was open, or None if not told.
        frames_expected: As announced; often wrong, never waited for.
        first_index: Number of its first frame, or None where the format does
            not tell; what is missing is counted from there.
        mask: bool, True where a pixel is bad for the whole run: (h, w) for all
            channels, or of ``shape``; or None.
        nodata: Count that means "no data" in this dtype, or None.
        saturation: Count from which on a pixel is saturated, or None.
        metadata: Anything else worth keeping; must survive JSON.
    """

    run: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    channels: tuple[str, ...] = ()
    frame_time_s: float | None = None
    exposure_s: float | None = None
    frames_expected: int | None = None
    first_index: int | None = None
    pixel_size_m: float | None = None
    energy_kev: float | None = None
    distance_m: float | None = None
    mask: NDArray[np.bool_] | None = None
    nodata: float | None = None
    saturation: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def planes(self) -> tuple[RunStart, ...]:
        """Give each channel as a run of its own: (h, w), its name in ``metadata["channel"]``."""
        if not self.channels:
            return (self,)
        mask = self.mask
        return tuple(
            replace(
                self,
                shape=self.shape[1:],
                channels=(),
                mask=mask[number] if mask is not None and mask.ndim == 3 else mask,
                metadata={**self.metadata, "channel": name},
            )
            for number, name in enumerate(self.channels)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One detector image.

    Attributes:
        run: Name of the run it belongs to.
        index: Number given by the detector; gaps are lost frames.
        time_ns: Detector clock in nanoseconds; its epoch is the detector's.
        received_ns: Our monotonic clock (``time.monotonic_ns``) at arrival.
        pixels: (h, w), or (c, h, w) with several channels, C order, native byte
            order, detector counts.  May be a view of a buffer that is reused:
            copy it to keep it.
    """

    run: str
    index: int
    time_ns: int
    received_ns: int
    pixels: NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """Last event of a run.

    Attributes:
        run: Name of the run.
        reason: Why it ended; ``lost`` if nobody said that it does.
        frames_sent: How many frames the producer says it sent, or None.
        account: What became of its frames, as JSON; filled in by the daemon.
    """

    run: str
    reason: EndReason
    frames_sent: int | None = None
    account: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A message that was refused; nothing already accepted is touched.

    Attributes:
        reason: One of a closed list; labels a metric.
        detail: For the log: what was got, what was expected.
        run: Name of the run it belongs to, where that is known.
        index: Number of the frame it would have been; None if it is no frame,
            or its number is not known.
    """

    reason: RejectReason
    detail: str
    run: str | None = None
    index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Frames that reached the source and were given up there, before they were read.

    Attributes:
        frames: How many.
        reason: A word that labels a metric, such as ``queue_full``.
    """

    frames: int
    reason: str


Event = RunStart | Frame | RunEnd | Rejected | Dropped
