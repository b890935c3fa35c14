"""The gate: is the candidate better than what runs, on data nobody was trained on?

Pure functions of numbers; nothing here knows what a network is.

Comparisons are *paired*: the same pixels, the same noise, so that most of the
noise cancels.  Neighbouring pixels are not independent, so the unit of counting
is a tile of a guard frame, and the standard error is the largest of three:
tiles taken as independent, clustered by frame, and clustered by place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quietbeam.trainer.scores import Labels, Scores, Values

_CALIBRATED = (0.9, 1.2)
"""Noise variances that do not contradict a calibration to one."""


@dataclass(frozen=True, slots=True)
class Gain:
    """A mean over tiles and its standard error."""

    mean: float
    standard_error: float

    def exceeds(self, sigmas: float) -> bool:
        """Above zero by more than ``sigmas`` standard errors."""
        return bool(self.mean > sigmas * self.standard_error)

    def falls_below(self, sigmas: float) -> bool:
        """Below zero by more than ``sigmas`` standard errors."""
        return bool(self.mean < -sigmas * self.standard_error)


@dataclass(frozen=True, slots=True)
class Noise:
    """What is known of the noise when losses are compared.

    Attributes:
        variance: One, or what the data say where they contradict the calibration.
        impulsive: It has outliers: compare robust losses, squares cannot be trusted.
    """

    variance: float = 1.0
    impulsive: bool = False


def measured_noise(classical: Scores, *, impulsive: bool = False) -> Noise:
    """Trust the calibration (variance one) unless the data contradict it clearly.

    A wrong variance would favour whoever takes more, or less, of the measured
    frame into its output.  Second temporal differences and the residual of the
    classical denoiser are at least as large as the noise: if both are small,
    so is the noise.  If they are large it may be the noise or the scene; only
    what neighbouring pixels do not share is surely noise.
    """
    raw = float(classical.raw_power.mean())
    bound = min(raw, float(classical.power.mean()))
    alone = min(bound, raw - float(classical.raw_spatial.mean()))
    low, high = _CALIBRATED
    if bound < low:
        return Noise(bound, impulsive)
    return Noise(alone if alone > high else 1.0, impulsive)


def paired_gain(reference: Scores, candidate: Scores, noise: Noise) -> Gain:
    """Loss of ``reference`` less that of ``candidate``: positive when the candidate is better.

    Both must have been scored on the same tiles in the same order.
    """
    if not (
        np.array_equal(reference.frame, candidate.frame)
        and np.array_equal(reference.place, candidate.place)
    ):
        raise ValueError("paired comparison of scores from different tiles")
    difference = losses(reference, noise) - losses(candidate, noise)
    return estimate(difference, candidate.frame, candidate.place)


def losses(scores: Scores, noise: Noise) -> Values:
    """What is compared: the risk, or the robust loss where squares cannot be trusted."""
    return scores.robust if noise.impulsive else scores.risk(noise.variance)


def estimate(values: Values, frame: Labels, place: Labels) -> Gain:
    """Mean and standard error of correlated tile values.

    The error is the largest of: tiles independent, clustered by frame,
    clustered by place.  Few clusters cost extra (the s.d. of Student's t);
    fewer than four frames give no error at all, hence infinity.
    """
    mean = float(values.mean())
    alone = np.arange(len(values))
    errors = [_clustered_error(values - mean, labels) for labels in (alone, frame)]
    if len(np.unique(place)) > 3:  # a small image has too few places to tell
        errors.append(_clustered_error(values - mean, place))
    return Gain(mean, max(errors))


def _clustered_error(centred: Values, labels: NDArray[np.integer]) -> float:
    _, cluster = np.unique(labels, return_inverse=True)
    sums = np.bincount(cluster, centred)
    k = len(sums)
    if k <= 3:
        return float("inf")
    variance = k / (k - 1) * float((sums**2).sum()) / len(centred) ** 2
    return float(np.sqrt(variance * (k - 1) / (k - 3)))


_UNIT = Noise()


@dataclass(frozen=True, slots=True)
class Residual:
    """What is left of the data after the blind estimate: white noise, if all is well.

    Attributes:
        mean: Of ``y - m`` in noise s.d.; 0 if unbiased.
        chi2: Of ``(y - m)^2 / (s + v)``; 1 if ``v`` is honest.
        spatial: Correlation of neighbouring pixels, less that of the raw noise.
        temporal: Correlation with the frame before.
        knows_variance: ``v`` is not 0 everywhere.
    """

    mean: Gain
    chi2: Gain
    spatial: Gain
    temporal: Gain
    knows_variance: bool


def residual(scores: Scores, noise: Noise = _UNIT) -> Residual:
    """Summarise the residual of one denoiser over all tiles."""
    power = float(scores.power.mean())
    chi2 = scores.power / (noise.variance + scores.variance)
    raw_power = float(scores.raw_power.mean())
    raw_spatial = float(scores.raw_spatial.mean()) / raw_power if raw_power > 0 else 0.0

    def correlation(products: Values, offset: float = 0.0) -> Gain:
        if power <= 0:
            return Gain(0.0, 0.0)
        ratio = float(products.mean()) / power
        spread = estimate((products - ratio * scores.power) / power, scores.frame, scores.place)
        return Gain(ratio - offset, spread.standard_error)

    return Residual(
        mean=estimate(scores.residual, scores.frame, scores.place),
        chi2=estimate(chi2, scores.frame, scores.place),
        spatial=correlation(scores.spatial, raw_spatial),
        temporal=correlation(scores.temporal),
        knows_variance=bool((scores.variance > 0).any()),
    )


@dataclass(frozen=True, slots=True)
class Rules:
    """How sure the gate wants to be.

    Attributes:
        sigmas: Standard errors a gain must exceed.
        min_frames: Guard frames needed before anything is decided.
        mean: Bias of the residual that is let pass, in noise s.d.
        chi2: Departure of log chi2 from 0 that is let pass.
        correlation: Residual correlation that is let pass.
        margin: How much worse than the classical denoiser a residual may look.
    """

    sigmas: float = 2.0
    min_frames: int = 4
    mean: float = 0.05
    chi2: float = 0.25
    correlation: float = 0.10
    margin: float = 0.02


def residual_faults(candidate: Residual, classical: Residual, rules: Rules) -> list[str]:
    """Say what is wrong with the candidate's residual; nothing if it passes.

    Real noise is never exactly as calibrated, so each tolerance is the larger
    of a fixed one and what the classical denoiser shows on the same data, plus
    three standard errors.
    """
    faults = []

    def check(name: str, got: float, limit: float, error: float) -> None:
        if not got <= limit + 3 * error:
            faults.append(f"{name} {got:.3f} exceeds {limit:.3f} ± {error:.3f}")

    floor = abs(classical.mean.mean) + rules.margin
    check(
        "residual mean",
        abs(candidate.mean.mean),
        max(rules.mean, floor),
        candidate.mean.standard_error,
    )
    got, error = _log_chi2(candidate.chi2)
    tolerance = max(rules.chi2, abs(_log_chi2(classical.chi2)[0]) + rules.margin)
    if candidate.knows_variance:
        check("log chi2", got, tolerance, error)
    check("log chi2 below one (the frame itself leaked?)", -got, tolerance, error)
    for name in ("spatial", "temporal"):
        own: Gain = getattr(candidate, name)
        floor = getattr(classical, name).mean + rules.margin
        limit = max(rules.correlation, floor)
        check(f"{name} residual correlation", own.mean, limit, own.standard_error)
    return faults


def _log_chi2(chi2: Gain) -> tuple[float, float]:
    safe = max(chi2.mean, 1e-6)
    return float(np.log(safe)), chi2.standard_error / safe


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why, and the numbers behind it (stabilised units)."""

    action: Literal["promote", "reject", "demote", "fallback"]
    reason: str
    gain: float = float("nan")
    standard_error: float = float("nan")
    loss_candidate: float = float("nan")
    loss_live: float = float("nan")
    loss_classical: float = float("nan")
    residual_mean: float = float("nan")
    chi2: float = float("nan")
    spatial_correlation: float = float("nan")
    temporal_correlation: float = float("nan")
    classical: str = ""
    """The best of the classical denoisers: what is compared with, and gone back to."""


def best_classical(classical: Mapping[str, Scores], *, impulsive: bool = False) -> str:
    """Name of the classical denoiser of the least loss, among those whose numbers are finite.

    All of them on the same tiles, in the same order; not empty.
    """
    sound = {name: scores for name, scores in classical.items() if scores.finite} or classical
    nearest = min(sound.values(), key=lambda scores: float(scores.power.mean()))
    noise = measured_noise(nearest, impulsive=impulsive)
    return min(sound, key=lambda name: float(losses(sound[name], noise).mean()))


def choose_fallback(
    classical: Mapping[str, Scores],
    fallback: str,
    *,
    impulsive: bool = False,
    rules: Rules | None = None,
) -> Decision | None:
    """Replace the classical denoiser in use by another one that is surely better.

    Args:
        classical: As for ``best_classical``.
        fallback: The one of them that is in use.
        impulsive: The noise has outliers; compare robust losses.
        rules: How sure to be.

    Returns:
        None while the one in use is the best, or may well be.
    """
    rules = rules or Rules()
    best = best_classical(classical, impulsive=impulsive)
    current, other = classical[fallback], classical[best]
    if best == fallback or not other.finite or len(np.unique(other.frame)) < rules.min_frames:
        return None
    noise = measured_noise(other, impulsive=impulsive)
    reason = f"{fallback} gives values that are not finite"
    if current.finite:
        gain = paired_gain(current, other, noise)
        if not gain.exceeds(rules.sigmas):
            return None
        reason = f"{best} is better than {fallback}: {gain.mean:.4f} ± {gain.standard_error:.4f}"
    figures = _figures(None, current, other, noise)
    return Decision("fallback", reason, classical=best, **figures)


Replay = Callable[[], tuple[Scores, Scores] | None]
"""Gives (what runs, candidate) on older guard frames, or None while there are too few."""


def decide(
    candidate: Scores | None,
    live: Scores | None,
    classical: Scores,
    *,
    impulsive: bool = False,
    replay: Replay | None = None,
    rules: Rules | None = None,
) -> Decision | None:
    """Promote the candidate, demote what runs, or leave all as it is.

    Args:
        candidate: None while training is frozen: then only demotion is considered.
        live: What runs; None if that is the classical denoiser.
        classical: The best one.  All three on the same tiles, in the same order.
        impulsive: The noise has outliers; compare robust losses.
        replay: Asked only when the rest has passed, because it costs time.
        rules: How sure to be.

    Returns:
        None when there are too few guard frames to say anything, or when there
        is no candidate and what runs is good.
    """
    rules = rules or Rules()
    if len(np.unique(classical.frame)) < rules.min_frames:
        return None
    noise = measured_noise(classical, impulsive=impulsive)
    demotion = _demotion(live, classical, noise, rules)
    if candidate is None:
        return demotion
    faults = _faults(candidate, live, classical, noise, replay=replay, rules=rules)
    if faults and demotion is not None:
        return demotion
    figures = _figures(candidate, live, classical, noise)
    if faults:
        return Decision("reject", "; ".join(faults), **figures)
    reason = "better than what runs and than classical; replay and residual pass"
    return Decision("promote", reason, **figures)


def _faults(
    candidate: Scores,
    live: Scores | None,
    classical: Scores,
    noise: Noise,
    *,
    replay: Replay | None,
    rules: Rules,
) -> list[str]:
    """Why the candidate must not run; nothing if it may.  The first sort of fault ends it."""
    if not candidate.finite:
        return ["the candidate gives values that are not finite"]
    faults = []
    references = {"classical": classical} | ({} if live is None else {"live": live})
    for name, reference in references.items():
        if not reference.finite:
            continue  # anything finite beats it
        gain = paired_gain(reference, candidate, noise)
        if not gain.exceeds(rules.sigmas):
            faults.append(
                f"gain over {name} {gain.mean:.4f} ± {gain.standard_error:.4f} "
                f"is not above {rules.sigmas:g} standard errors"
            )
        elif _worse_on_guard_tiles(reference, candidate, noise, rules):
            faults.append(f"worse than {name} on the tiles never trained on")
        elif channels := _worse_channels(reference, candidate, noise, rules):
            faults.append(f"worse than {name} in channels {channels}")
    if not faults:
        faults = residual_faults(residual(candidate, noise), residual(classical, noise), rules)
    if not faults and replay is not None and (older := replay()) is not None:
        faults = _replay_faults(*older, noise, rules)
    return faults


def _worse_channels(reference: Scores, candidate: Scores, noise: Noise, rules: Rules) -> list[int]:
    """Numbers of the channels, from 0, that pay for what the others gain."""
    worse = []
    for channel in np.unique(candidate.channel):
        keep = candidate.channel == channel
        gain = paired_gain(reference.where(keep), candidate.where(keep), noise)
        if gain.falls_below(rules.sigmas):
            worse.append(int(channel))
    return worse


def _worse_on_guard_tiles(reference: Scores, candidate: Scores, noise: Noise, rules: Rules) -> bool:
    keep = candidate.guard_tile
    if not keep.any():
        return False
    gain = paired_gain(reference.where(keep), candidate.where(keep), noise)
    return gain.falls_below(rules.sigmas)


def _replay_faults(reference: Scores, candidate: Scores, noise: Noise, rules: Rules) -> list[str]:
    if not candidate.finite:
        return ["the candidate gives values that are not finite on older frames"]
    if not reference.finite or len(np.unique(reference.frame)) < rules.min_frames:
        return []
    gain = paired_gain(reference, candidate, noise)
    if not gain.falls_below(rules.sigmas):
        return []
    return [f"worse on older frames: {gain.mean:.4f} ± {gain.standard_error:.4f}"]


def _demotion(
    live: Scores | None, classical: Scores, noise: Noise, rules: Rules
) -> Decision | None:
    if live is None or not classical.finite:
        return None
    if not live.finite:
        figures = _figures(None, live, classical, noise)
        return Decision("demote", "what runs gives values that are not finite", **figures)
    gain = paired_gain(live, classical, noise)
    if not gain.exceeds(rules.sigmas):
        return None
    figures = _figures(None, live, classical, noise)
    reason = f"classical is better by {gain.mean:.4f} ± {gain.standard_error:.4f}"
    return Decision("demote", reason, **figures)


def _figures(
    candidate: Scores | None, live: Scores | None, classical: Scores, noise: Noise
) -> dict[str, Any]:
    """The numbers of a decision; the gain is the one over what runs (the closer call)."""

    def loss(scores: Scores) -> float:
        return float(losses(scores, noise).mean())

    running = classical if live is None else live
    figures = {"loss_classical": loss(classical), "loss_live": loss(running)}
    judged = classical if candidate is None else candidate
    if judged.finite and running.finite:
        gain = paired_gain(running, judged, noise)
        figures |= {"gain": gain.mean, "standard_error": gain.standard_error}
    if candidate is not None:
        figures["loss_candidate"] = loss(candidate)
    shown = residual(running if candidate is None else candidate, noise)
    return figures | {
        "residual_mean": shown.mean.mean,
        "chi2": shown.chi2.mean,
        "spatial_correlation": shown.spatial.mean,
        "temporal_correlation": shown.temporal.mean,
    }
