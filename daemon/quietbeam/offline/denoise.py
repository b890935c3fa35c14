"""Cleans a recording offline, trained on itself: the library's use without a beamline."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from quietbeam.core.errors import DataError
from quietbeam.core.plugin import CorrectionPlugin, DenoiserPlugin
from quietbeam.model.clean import Estimate, to_counts
from quietbeam.model.fuse import fuse
from quietbeam.offline.calibrated import CalibratedSeries
from quietbeam.offline.choose import Choice, Progress, choose
from quietbeam.offline.figures import Figures, Sample
from quietbeam.offline.judge import Verdict
from quietbeam.offline.passes import blind_estimates, engine_for
from quietbeam.offline.series import Series
from quietbeam.offline.train import Recipe
from quietbeam.offline.two_way import both_ways

log = structlog.get_logger()

FALLBACK = ("kalman", "median", "svd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Provenance and figures of one cleaned recording; all plain values.

    Attributes:
        source: File and dataset, or "array".
        asked: The denoiser that was asked for.
        used: The one that was used.
        reason: Why that one.
        two_way: Time ran backwards as well, and all was put together.
        gain: Counts per photon, of the noise fit.
        offset_variance: Counts squared, of the noise fit.
        impulsive: Outliers were frequent; estimated PSNRs are not given.
        figures: Of quality.
        advantage: By how much the estimated error is smaller than that of the
            best other candidate, in units of the noise variance.
        advantage_error: Standard error of ``advantage``.
        training_steps: 0 where nothing was trained.
        training_s: Wall time of the training.
        weights_sha256: Of the network, "" without one.
        seconds: Wall time of everything.
    """

    source: str
    frames: int
    shape: tuple[int, int]
    asked: str
    used: str
    reason: str
    two_way: bool
    gain: float
    offset_variance: float
    impulsive: bool
    figures: Figures
    advantage: float
    advantage_error: float
    training_steps: int
    best_step: int
    training_s: float
    weights_sha256: str
    seed: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Give everything in plain types, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Denoised:
    """What ``denoise`` gives.

    Attributes:
        clean: (t, h, w) float32, corrected counts; NaN where a pixel is bad.
        sd: (t, h, w) float32, one standard deviation of ``clean``.
        report: How it came about.
    """

    clean: NDArray[np.float32]
    sd: NDArray[np.float32]
    report: Report


def denoise(
    array: NDArray[Any],
    denoiser: str | DenoiserPlugin = "quiet",
    *,
    minutes: float = 2.0,
    steps: int | None = None,
    seed: int = 0,
    mask: NDArray[np.bool_] | None = None,
    images: bool = False,
    fallback: Sequence[str] = FALLBACK,
    corrections: Sequence[CorrectionPlugin] = (),
    recipe: Recipe | None = None,
    progress: Progress = lambda _what, _share: None,
) -> Denoised:
    """Clean a video with a network trained on that video alone.

    Example::

        result = quietbeam.denoise(video, minutes=5)
        print(result.report.used, result.report.figures.psnr_clean_db)

    Args:
        array: (t, h, w) of any real dtype; h and w at least 16.  NaN marks bad
            pixels.  Colour is not cleaned as such: pass one channel at a time.
        denoiser: Name of a denoiser, or a denoiser plugin with its settings.
        minutes: Of training.
        steps: Train exactly so many steps instead: the same seed then gives
            the same result on the same machine.
        seed: Of everything random.
        mask: (h, w), True where a pixel is bad throughout.
        images: The frames are unrelated images, not a video; needs ``n2v``.
        fallback: Classical denoisers the network has to beat to be used;
            empty to use the network whatever comes.
        corrections: Correction plugins, applied in order.
        recipe: Further settings of the training, in place of ``minutes``,
            ``steps`` and ``seed``.
        progress: Told what is being done and the share that is done.

    Raises:
        DataError: The array is no image series, or too small.
        ConfigError: There is no such denoiser.
    """
    series = array_series(array)
    recipe = recipe or Recipe(minutes=minutes, steps=steps, seed=seed)
    began = time.monotonic()
    with CalibratedSeries(series, corrections, mask, images=images) as recording:
        choice = choose(recording, denoiser, recipe, fallback, progress)
        clean, sd, figures = clean_all(recording, choice, progress)
    asked = denoiser if isinstance(denoiser, str) else type(denoiser).__name__.lower()
    return Denoised(clean, sd, make_report(recording, choice, figures, asked, recipe, began))


def clean_all(
    recording: CalibratedSeries, choice: Choice, progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.float32], Figures]:
    """Clean every frame in memory: (clean, sd), (t, h, w) each, and figures of quality."""
    shape = (len(recording), *recording.shape)
    clean, sd = np.empty(shape, np.float32), np.empty(shape, np.float32)
    sample = Sample(recording)
    for frame in cleaned(recording, choice, progress):
        clean[frame.index], sd[frame.index] = frame.clean, frame.sd
        sample.add(frame.estimate, frame.clean)
    return clean, sd, sample.figures(choice.verdict)


def array_series(array: NDArray[Any]) -> Series:
    """Give a video or one image in memory as a series.

    Raises:
        DataError: It is neither, or not of numbers.
    """
    values = np.asarray(array)
    if values.ndim == 4 or (values.ndim == 3 and values.shape[-1] in {3, 4}):
        raise DataError(
            f"array of shape {values.shape} looks like colour; expected (frames, height, width): "
            "pass one channel at a time, array[..., 0]"
        )
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or 0 in values.shape:
        raise DataError(f"array of shape {values.shape}, expected (frames, height, width)")
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if values.dtype.kind not in "uif":
        raise DataError(f"array of dtype {values.dtype}, expected integers or floats")
    t, h, w = values.shape
    return Series("array", (t, h, w), values.dtype.newbyteorder("="), None, lambda i: values[i])


@dataclass(frozen=True, slots=True, eq=False)
class CleanFrame:
    """One cleaned frame: ``clean`` and ``sd`` (h, w) float32, corrected counts."""

    index: int
    clean: NDArray[np.float32]
    sd: NDArray[np.float32]
    estimate: Estimate


def cleaned(
    recording: CalibratedSeries, choice: Choice, progress: Progress
) -> Iterator[CleanFrame]:
    """Give every frame of ``recording``, in order, cleaned by ``choice``.

    Only a few frames are in memory at a time.
    """
    overstated = _overstated(recording, choice.verdict)
    for estimate in _estimates(recording, choice):
        if choice.module is None:
            clean = np.where(estimate.prepared.valid, estimate.prepared.pixels, np.float32(np.nan))
            sd = np.sqrt(recording.noise.variance(clean)).astype(np.float32)
        else:
            clean, sd = to_counts(estimate, recording.stabiliser, choice.unknown_variance)
            sd /= np.float32(overstated)
        never = ~recording.ever_valid
        clean[never] = sd[never] = np.nan
        index = estimate.prepared.position
        progress(f"cleaning with {choice.name}", (index + 1) / len(recording))
        yield CleanFrame(index, clean, sd, estimate)


def _overstated(recording: CalibratedSeries, verdict: Verdict | None) -> float:
    """How many times larger the predicted s.d. is than measured, where that can be measured."""
    trusted = not (recording.noise.impulsive or recording.correlation.in_time)
    return verdict.overstated if trusted and verdict is not None else 1.0


def _estimates(recording: CalibratedSeries, choice: Choice) -> Iterator[Estimate]:
    if choice.module is None:
        for i in range(len(recording)):
            prepared = recording.prepared(i)
            zero = np.zeros_like(prepared.z)
            yield Estimate(prepared, prepared.z, zero, prepared.z, zero, zero)
        return
    if choice.two_way:
        answers = both_ways(choice.module, recording)
    else:
        answers = blind_estimates(engine_for(choice.module, recording), recording)
    for prepared, mean, variance in answers:
        z, posterior, weight = fuse(mean, variance, prepared.z, prepared.valid)
        yield Estimate(prepared, mean, variance, z, posterior, weight)


def make_report(
    recording: CalibratedSeries,
    choice: Choice,
    figures: Figures,
    asked: str,
    recipe: Recipe,
    began: float,
) -> Report:
    """Put together what is known; ``began`` is of ``time.monotonic``."""
    training = choice.training
    return Report(
        source=recording.run.run,
        frames=len(recording),
        shape=recording.shape,
        asked=asked,
        used=choice.name,
        reason=choice.reason,
        two_way=choice.two_way,
        gain=recording.noise.gain,
        offset_variance=recording.noise.offset_variance,
        impulsive=recording.noise.impulsive,
        figures=figures,
        advantage=choice.gain,
        advantage_error=choice.gain_error,
        training_steps=training.steps if training else 0,
        best_step=training.best_step if training else 0,
        training_s=training.seconds if training else 0.0,
        weights_sha256=choice.weights_sha256,
        seed=recipe.seed,
        seconds=time.monotonic() - began,
    )
