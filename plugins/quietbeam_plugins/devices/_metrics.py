"""What devices of either kind need to know of metrics and measurements."""

from __future__ import annotations

import re
from collections.abc import Sequence

METRICS = ("quality.psnr_estimated_db", "quality.psnr_raw_db", "quality.noise_sd")
"""Metrics every daemon has; those of its analyses are named when a device is made."""

STATES = ("Idle", "WarmingUp", "Running", "Degraded", "Fault")
MEASURED = "Done"
"""State of a measurement that took all its frames."""


class StaleError(RuntimeError):
    """A measurement that must not be acted on: too few frames, or of another daemon."""


def attribute(metric: str) -> str:
    """Give the device's attribute of a metric: ``phase.fraction`` is ``phase_fraction``.

    Raises:
        ValueError: It is no name of a metric.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "_", metric).strip("_").lower()
    if not name.isidentifier():
        raise ValueError(f"{metric!r}: expected the name of a metric, as 'quality.psnr_raw_db'")
    return name


def attributes(metrics: Sequence[str]) -> dict[str, str]:
    """Give metric by attribute.

    Raises:
        ValueError: Two metrics would have the same.
    """
    found = {attribute(metric): metric for metric in metrics}
    if len(found) != len(set(metrics)):
        raise ValueError(f"{sorted(metrics)}: two of these would be the same attribute")
    return found


def check_measured(
    state: str, count: int, wanted: int, generations: tuple[int, int], name: str
) -> None:
    """Accept a measurement, or say why it must not be acted on.

    Args:
        state: Of the measurement (``Snap:State_RBV``).
        count: Frames it took.
        wanted: Frames it was to take.
        generations: Of the daemon before the put, and of the one that measured.
        name: Of the device.

    Raises:
        StaleError: It is none.
    """
    if state != MEASURED or count < wanted:
        raise StaleError(
            f"{name}: the measurement is {state} with {count} of {wanted} frames; is the detector "
            "running, and Snap:Timeout long enough?"
        )
    before, measured = generations
    if before != measured:
        raise StaleError(
            f"{name}: the daemon was started again during the measurement (generation {before}, "
            f"then {measured}); measure again"
        )
