"""Compares denoisers on guard patches of one recording, without the truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.model.clean import overstated
from quietbeam.model.fuse import fuse
from quietbeam.model.stabilise import Stabiliser
from quietbeam.offline.calibrated import spatial_noise
from quietbeam.offline.passes import Blind
from quietbeam.offline.patches import Place, TrainingSet
from quietbeam.offline.quality import noise_variance

Float = NDArray[np.float32]

_CLASSICAL_MEMORY = 40
"""Frames a denoiser without weights gets to settle on before the one it is judged by."""
_EDGE_PX = 8
"""A patch has no neighbours: its rim is not judged."""
_OUTLIER = 3.0
_ZINGER_SD = 6.0
_TOGETHER = 8


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """How one denoiser did on the guard patches; one number each, in the same order.

    Attributes:
        risk: Mean squared error of what would be written, stabilised units
            (noise is 1), estimated; with impulses the mean absolute blind
            residual, cut at 3, in its place.
        raw_risk: The same of the measured frames as they are: 1 in a video; of
            single images the noise is measured in each patch.
        blind_mse: Of the blind estimate about the truth, stabilised units.
        mse: As ``risk``, in counts squared; meaningless with impulses.
        noise: Variance of the measured data, counts squared.
        low: Half a percent of the cleaned pixels are below this, counts.
        high: Half a percent are above this, counts.
        told: What ``mse`` should be by the predicted s.d., counts squared; 0 if not predicted.
    """

    risk: NDArray[np.float64]
    raw_risk: NDArray[np.float64]
    blind_mse: NDArray[np.float64]
    mse: NDArray[np.float64]
    noise: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    told: NDArray[np.float64]

    @property
    def overstated(self) -> float:
        """How many times larger the predicted s.d. is than the measured error; 1 if not known."""
        known = np.isfinite(self.mse) & (self.told > 0)
        if known.sum() < 2:
            return 1.0
        mse, told = self.mse[known], self.told[known]
        spread = mse - told * (mse.mean() / told.mean())
        deviation = float(spread.std(ddof=1) / np.sqrt(spread.size))
        return overstated(float(mse.mean()), deviation, float(told.mean()))

    @property
    def peak(self) -> float:
        """Span of the cleaned patches, counts: what a PSNR refers to; NaN if there are none."""
        if not np.isfinite(self.low).any():
            return float("nan")
        return float(np.nanmax(self.high) - np.nanmin(self.low))

    def gain_over(self, other: Verdict | None) -> tuple[float, float]:
        """(mean, standard error) of how much smaller the risk is than that of ``other``, paired.

        None stands for the measured frames as they are.
        """
        difference = (self.raw_risk if other is None else other.risk) - self.risk
        difference = difference[np.isfinite(difference)]
        if difference.size < 2:
            return float(difference.mean()) if difference.size else float("nan"), float("nan")
        return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(difference.size))


class Judge:
    """Guard patches, the same for every denoiser.

    Args:
        data: Where they come from.
        stabiliser: Its noise model tells whether squares can be trusted.
        count: How many.
        side: Of a patch in pixels.
        seed: Of their places.
    """

    def __init__(
        self,
        data: TrainingSet,
        stabiliser: Stabiliser,
        *,
        count: int = 16,
        side: int = 96,
        seed: int = 0,
    ) -> None:
        self._data, self._stabiliser, self._side = data, stabiliser, side
        rng = np.random.default_rng([seed, 8])
        # A patch as large as the image is the same patch again: one is evidence, two are not more.
        self.places = list(dict.fromkeys(data.places(count, side, rng, guards=True)))

    def __call__(self, denoiser: StreamingDenoiser) -> Verdict:
        """Judge ``denoiser``, a torch module with its weights; on the CPU."""
        past = max(0, denoiser.window - 1 - denoiser.lag)
        if not denoiser.trainable:
            past = max(past, _CLASSICAL_MEMORY)
        rows = []
        for start in range(0, len(self.places), _TOGETHER):
            places = self.places[start : start + _TOGETHER]
            clips, valid = self._data.clips(places, self._side, past, denoiser.lag)
            mean, variance = _blind(denoiser, clips, past)
            for n, place in enumerate(places):
                rows.append(self._row(place, clips[n, past], valid[n, past], mean[n], variance[n]))
        return Verdict(*np.array(rows, np.float64).reshape(-1, 8).T)

    def _row(
        self, place: Place, y: Float, ok: NDArray[np.bool_], mean: Float, variance: Float
    ) -> tuple[float, ...]:
        judged = self._data.learnable(place, self._side, 0, 0, guards=True)
        use = ok & np.broadcast_to(judged, (1, *y.shape))[0] & self._inner(y.shape)
        if self._data.images:
            return _row((mean, variance, y, use), self._stabiliser, None, self._own_noise(y))
        around, valid = self._data.clips([place], self._side, 1, 1)
        noise = _noise(around[0], use & valid[0].all(0), self._stabiliser)
        return _row((mean, variance, y, use), self._stabiliser, noise, 1.0)

    def _inner(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """All but the rim, unless the patch is the whole image."""
        inner = np.zeros(shape, np.bool_)
        edge = 0 if max(self._data.shape) <= self._side or min(shape) < 4 * _EDGE_PX else _EDGE_PX
        inner[edge : shape[0] - edge, edge : shape[1] - edge] = True
        return inner

    def _own_noise(self, z: Float) -> float:
        """Noise variance of one patch, stabilised units: unrelated images may differ in gain."""
        model = spatial_noise([z], [np.ones(z.shape, np.bool_)])
        return float(model.variance(z).mean(dtype=np.float64))


def judge_frames(answers: Iterable[Blind], stabiliser: Stabiliser) -> Verdict:
    """Judge blind estimates of consecutive frames; the first and the last are left out."""
    rows = []
    known = list(answers)
    for (before, *_), (here, mean, variance), (after, *_) in zip(
        known, known[1:], known[2:], strict=False
    ):
        usable = here.valid & before.valid & after.valid
        noise = _noise(np.stack([before.z, here.z, after.z]), usable, stabiliser)
        rows.append(_row((mean, variance, here.z, here.valid), stabiliser, noise, 1.0))
    return Verdict(*np.array(rows, np.float64).reshape(-1, 8).T)


def _row(
    estimate: tuple[Float, Float, Float, NDArray[np.bool_]],
    stabiliser: Stabiliser,
    noise: float | None,
    raw_risk: float,
) -> tuple[float, ...]:
    """Give one number of each kind that a ``Verdict`` has.

    Args:
        estimate: Blind mean, its variance, measured frame, where it is judged; (h, w) each.
        stabiliser: Of these frames.
        noise: Variance of the measured pixels, counts squared; None takes the fitted one.
        raw_risk: Of the measured frame as it is.
    """
    mean, variance, y, use = estimate
    if not use.any():
        return (np.nan,) * 8
    z, posterior, weight = fuse(mean, variance, y, use)
    clean, slope = stabiliser.inverse_and_slope(z)
    local = stabiliser.noise.variance(clean)
    fitted = float(local[use].mean())
    noise = fitted if noise is None else noise
    shared = 2 * float((weight * local)[use].mean(dtype=np.float64)) * noise / max(fitted, 1e-30)
    # Zingers are in every residual alike; cut, they do not drown all else.
    limit = _ZINGER_SD**2 * max(raw_risk, 1e-6)
    squares = float(np.minimum((y - z)[use].astype(np.float64) ** 2, limit).mean())
    blind = (y - mean)[use].astype(np.float64)
    risk = squares - raw_risk + 2 * float(weight[use].mean())
    if stabiliser.noise.impulsive:
        risk = float(np.minimum(np.abs(blind), _OUTLIER).mean())
    in_counts = float(
        ((measured_counts(y, stabiliser) - clean)[use].astype(np.float64) ** 2).mean()
    )
    return (
        risk,
        raw_risk,
        float(np.minimum(blind**2, limit).mean()) - raw_risk,
        in_counts - noise + shared,
        noise,
        *map(float, np.percentile(clean[use], (0.5, 99.5))),
        float((posterior * slope**2)[use].mean(dtype=np.float64)),
    )


def _noise(around: Float, use: NDArray[np.bool_], stabiliser: Stabiliser) -> float | None:
    """Noise variance of the middle one of three frames (3, h, w), counts squared.

    An error of a percent here is one of decibels in a good estimate.  Of the second
    differences only the one that shares the measured frame's own noise is taken: most of that
    noise then drops out of the estimate.  None where nothing can be used.
    """
    counts = measured_counts(around, stabiliser)
    return noise_variance(counts[:, None, use]) if use.any() else None


def measured_counts(z: Float, stabiliser: Stabiliser) -> Float:
    """Undo ``Stabiliser.forward`` exactly: for measured pixels, not for means.

    Counts that were cut at the lower end of the transform stay cut.
    """
    noise = stabiliser.noise
    if noise.gain <= 0:
        return stabiliser.inverse(z)
    pedestal = max(0.0, -noise.offset_variance / noise.gain)
    read = max(0.0, noise.offset_variance) / noise.gain**2
    return np.asarray(noise.gain * (z**2 / 4 - 0.375 - read) + pedestal, np.float32)


def _blind(denoiser: StreamingDenoiser, clips: Float, target: int) -> tuple[Float, Float]:
    """(mean, variance) of frame ``target`` of (n, t, h, w), made without it; ``lag`` follow.

    Returns:
        (n, h, w) each.
    """
    frames = torch.from_numpy(clips)
    with torch.inference_mode():
        if not denoiser.blind:
            means = [denoiser.blind_estimate(clip)[target] for clip in frames]
            return torch.stack(means).numpy(), np.zeros_like(clips[:, 0])
        state = denoiser.initial_state(len(frames), *clips.shape[2:])
        mean = variance = frames[:, :1]
        for i in range(clips.shape[1]):
            mean, variance, state = denoiser.forward(frames[:, i : i + 1], state)
        return mean[:, 0].numpy(), variance[:, 0].numpy()
