"""Start-up module for plan runners: a device, the plans and a RunEngine.

``start-re-manager --startup-module quietbeam_plugins.devices.startup``; for
blueapi a source of ``kind: planFunctions``.  Where the daemon is, and what it
measures, is told by the environment: ``QUIETBEAM_PREFIX`` (``BL99-QB:DEN1:``)
and ``QUIETBEAM_METRICS`` (names, with commas between).
"""

from __future__ import annotations

import os

from bluesky import RunEngine

from quietbeam_plugins.devices._metrics import METRICS
from quietbeam_plugins.devices.classic import Denoiser
from quietbeam_plugins.devices.plans import (
    adaptive_exposure,
    count_clean,
    measure_until,
    track_front,
    wait_for_metric,
)
from quietbeam_plugins.devices.safeguards import telling_run_uid

__all__ = [
    "RE",
    "adaptive_exposure",
    "count_clean",
    "denoiser",
    "measure_until",
    "track_front",
    "wait_for_metric",
]

_names = os.environ.get("QUIETBEAM_METRICS", "")
denoiser = Denoiser(
    os.environ.get("QUIETBEAM_PREFIX", "BL99-QB:DEN1:"),
    name="denoiser",
    metrics=tuple(name.strip() for name in _names.split(",") if name.strip()) or METRICS,
)
RE = RunEngine({})
RE.preprocessors.append(telling_run_uid(denoiser))
