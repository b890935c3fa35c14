"""A detector that sends a series of images, on time, over ZMQ."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.offline.sender import Sender, ticks
from quietbeam.testing.simulators.encoders import Encoder
from quietbeam.testing.simulators.pva import PvaSender


class Images(Protocol):
    """What ``quietbeam.offline.series.Series`` is: images by their number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[Any]: ...


@dataclass(frozen=True, slots=True)
class Report:
    """What was sent.

    Attributes:
        sent: Frames that the socket took.
        unsent: Frames given up because no reader took them in time.
        late: Frames that left more than a frame time after they were due.
        seconds: From the first frame to the last.
    """

    sent: int
    unsent: int
    late: int
    seconds: float

    @property
    def rate_hz(self) -> float:
        """Frames per second, really."""
        return (self.sent - 1) / self.seconds if self.sent > 1 and self.seconds > 0 else 0.0

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {**asdict(self), "rate_hz": round(self.rate_hz, 3)}


def simulated_run(
    first: NDArray[Any],
    frames: int,
    rate_hz: float,
    label: str = "simulated",
    channels: tuple[str, ...] = (),
    metadata: Mapping[str, Any] | None = None,
) -> RunStart:
    """Describe a series that looks like ``first`` throughout."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    return RunStart(
        run=f"{label}-{stamp}",
        shape=first.shape,
        channels=channels,
        dtype=np.dtype(first.dtype),
        frame_time_s=1 / rate_hz,
        exposure_s=0.9 / rate_hz,
        frames_expected=frames,
        metadata={"simulated": True, **(metadata or {})},
    )


def simulate(
    images: Images,
    encoder: Encoder,
    sender: Sender | PvaSender,
    *,
    rate_hz: float,
    frames: int,
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Send ``frames`` images as one series; images repeat if there are fewer.

    A frame that no reader takes within a frame time is given up and counted.
    """
    channels = getattr(images, "channels", ())
    metadata = getattr(images, "metadata", None)
    run = simulated_run(images[0], frames, rate_hz, channels=channels, metadata=metadata)
    for message in encoder.start(run):
        sender.send(message)
    sent = unsent = late = 0
    began_s = ended_s = time.monotonic()
    for number, late_s in enumerate(ticks(rate_hz)):
        if number >= frames or stop():
            break
        frame = Frame(
            run=run.run,
            index=number,
            time_ns=round(number / rate_hz * 1e9),
            received_ns=time.monotonic_ns(),
            pixels=images[number % len(images)],
        )
        if all(sender.send(message, 1 / rate_hz) for message in encoder.frame(frame)):
            sent += 1
            late += late_s > 1 / rate_hz
        else:
            unsent += 1
        ended_s = time.monotonic()
    for message in encoder.end(RunEnd(run=run.run, reason="completed")):
        sender.send(message)
    return Report(sent=sent, unsent=unsent, late=int(late), seconds=ended_s - began_s)
