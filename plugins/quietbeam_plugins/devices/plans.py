"""Plans that wait for, act on and stop by what the denoiser measures.

Every value they act on is of a measurement: of frames that arrived after it
was asked for.  Devices are those of ``classic`` or ``asynchronous``; all
parameters are plain, so that blueapi and bluesky-queueserver can run them.
"""

# no annotations as text (``from __future__``): queueserver looks at them as they are
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.protocols import Movable, Readable
from bluesky.utils import MsgGenerator

from quietbeam_plugins.devices.uncertainty import Calibration, sd_from_scatter

T = TypeVar("T")


@runtime_checkable
class Measuring(Readable[Any], Protocol):
    """A device whose trigger measures; plan runners tell by its members which devices fit."""

    num_frames: Movable[Any]

    def measured(self, metric: str) -> Readable[Any]:
        """Give the signal of a measured metric."""
        ...


class NotReachedError(RuntimeError):
    """A plan gave up: what it waited for did not come."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What ``measure_until`` found: a mean, its s.d., and the frames it took."""

    value: float
    sd: float
    frames: int


def count_clean(
    device: Measuring, num: int = 1, frames: int = 10, md: dict[str, Any] | None = None
) -> MsgGenerator[None]:
    """Take ``num`` readings, each the mean over ``frames`` frames."""
    metadata = _metadata("count_clean", md, num=num, frames=frames)

    def inner() -> MsgGenerator[None]:
        yield from bps.mv(device.num_frames, frames)
        for _ in range(num):
            yield from bps.trigger_and_read([device])

    return (yield from _in_run(device, metadata, inner))


def wait_for_metric(
    device: Measuring,
    metric: str,
    at_least: float | None = None,
    at_most: float | None = None,
    frames: int = 5,
    timeout_s: float = 60.0,
    md: dict[str, Any] | None = None,
) -> MsgGenerator[float]:
    """Measure again and again until a metric is within limits; give its value.

    Raises:
        NotReachedError: It was not, within ``timeout_s``.
        ValueError: There is no limit.
    """
    low = -math.inf if at_least is None else at_least
    high = math.inf if at_most is None else at_most
    if (low, high) == (-math.inf, math.inf):
        raise ValueError("wait_for_metric: give at_least, at_most or both")

    metadata = _metadata("wait_for_metric", md, metric=metric)

    def inner() -> MsgGenerator[float]:
        yield from bps.mv(device.num_frames, frames)
        deadline_s = time.monotonic() + timeout_s
        while True:
            value = yield from measure(device, metric)
            if low <= value <= high:
                return value
            if time.monotonic() > deadline_s:
                raise NotReachedError(
                    f"{metric} is {value:g} after {timeout_s:g} s; wanted {low:g} to {high:g}"
                )

    return (yield from _in_run(device, metadata, inner))


def measure_until(
    device: Measuring,
    metric: str,
    target_sd: float,
    frame_sd: float | None = None,
    correlation: float = 0.0,
    max_frames: int = 1000,
    frames: int = 1,
    md: dict[str, Any] | None = None,
) -> MsgGenerator[Measured]:
    """Take no more frames than a wanted certainty needs, and so no more dose.

    Args:
        device: Measures.
        metric: Of whose mean the s.d. is to be small enough.
        target_sd: How small.
        frame_sd: S.d. of the metric on one frame, calibrated (``uncertainty.calibrate``);
            None judges by the scatter of 8 measurements or more, which sees no bias.
        correlation: Of the errors of successive frames; clean ones are not independent.
        max_frames: Where to give up.
        frames: Of one measurement.
        md: Metadata of the run.

    Raises:
        NotReachedError: ``max_frames`` were not enough.
    """
    calibration = None if frame_sd is None else Calibration(frame_sd, correlation)

    metadata = _metadata("measure_until", md, metric=metric, target_sd=target_sd)

    def inner() -> MsgGenerator[Measured]:
        yield from bps.mv(device.num_frames, frames)
        values: list[float] = []
        sd = math.inf
        while len(values) * frames < max_frames:
            values.append((yield from measure(device, metric)))
            taken = len(values) * frames
            sd = sd_from_scatter(values) if calibration is None else calibration.sd_of_mean(taken)
            if sd <= target_sd:
                return Measured(math.fsum(values) / len(values), sd, taken)
        raise NotReachedError(
            f"{metric}: s.d. {sd:g} after {len(values) * frames} frames; wanted {target_sd:g}"
        )

    return (yield from _in_run(device, metadata, inner))


def adaptive_exposure(
    device: Measuring,
    exposure: Movable[Any],
    start_s: float,
    target_db: float,
    longest_s: float,
    metric: str = "quality.psnr_estimated_db",
    tolerance_db: float = 0.5,
    frames: int = 20,
    max_steps: int = 10,
    md: dict[str, Any] | None = None,
) -> MsgGenerator[float]:
    """Find the shortest exposure that gives clean frames of a wanted quality; give it in seconds.

    Noise that is counted photons falls by 10 dB for ten times the exposure; so
    the exposure is multiplied by 10^(missing dB / 10), at most by 4 at a time.

    Raises:
        NotReachedError: It would be longer than ``longest_s``, or did not settle.
    """
    metadata = _metadata("adaptive_exposure", md, metric=metric, target_db=target_db)

    def inner() -> MsgGenerator[float]:
        yield from bps.mv(device.num_frames, frames)
        exposure_s = start_s
        for _ in range(max_steps):
            yield from bps.mv(exposure, exposure_s)
            missing_db = target_db - (yield from measure(device, metric))
            if abs(missing_db) <= tolerance_db:
                return exposure_s
            exposure_s *= min(max(10 ** (missing_db / 10), 0.25), 4.0)
            if exposure_s > longest_s:
                raise NotReachedError(
                    f"{target_db:g} dB need {exposure_s:.3g} s, more than {longest_s:g} s"
                )
        raise NotReachedError(f"{metric} did not settle at {target_db:g} dB in {max_steps} steps")

    return (yield from _in_run(device, metadata, inner))


def track_front(
    device: Measuring,
    motor: Movable[Any],
    metric: str,
    wanted: float,
    motor_per_unit: float,
    steps: int = 10,
    gain: float = 0.7,
    dead_band: float = 0.0,
    frames: int = 5,
    md: dict[str, Any] | None = None,
) -> MsgGenerator[None]:
    """Follow something that moves: keep ``metric`` at ``wanted`` by moving ``motor``.

    Args:
        device: Measures.
        motor: Moves the sample; its present position is where it starts.
        metric: The position of a front, say, in pixels.
        wanted: Where it should be.
        motor_per_unit: How far the motor moves the front by one unit of the metric (its sign, too).
        steps: Measurements.
        gain: Part of the deviation that is corrected at once, 0 to 1.
        dead_band: Deviations smaller than this are left alone.
        frames: Of one measurement.
        md: Metadata of the run.
    """
    metadata = _metadata("track_front", md, metric=metric, wanted=wanted)

    def inner() -> MsgGenerator[None]:
        yield from bps.mv(device.num_frames, frames)
        for _ in range(steps):
            deviation = (yield from measure(device, metric, [motor])) - wanted
            if math.isfinite(deviation) and abs(deviation) > dead_band:
                yield from bps.mvr(motor, -gain * deviation * motor_per_unit)

    return (yield from _in_run(device, metadata, inner))


def measure(device: Measuring, metric: str, others: list[Any] | None = None) -> MsgGenerator[float]:
    """Measure, make it an event of the open run, and give one metric of it."""
    reading = yield from bps.trigger_and_read([device, *(others or [])])
    name = device.measured(metric).name
    return float(reading[name]["value"])


def _in_run(
    device: Measuring, md: dict[str, Any], body: Callable[[], MsgGenerator[T]]
) -> MsgGenerator[T]:
    """Give what ``body`` gives: decorators of bluesky give the uid of the run instead."""
    results: list[T] = []

    @bpp.stage_decorator([device])
    @bpp.run_decorator(md=md)
    def inner() -> MsgGenerator[None]:
        results.append((yield from body()))

    yield from inner()
    return results[0]


def _metadata(plan: str, md: Mapping[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {"plan_name": plan, "plan_args": more, **(md or {})}
