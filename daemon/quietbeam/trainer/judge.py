"""Runs denoisers over guard frames and gives the gate its scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.model.stabilise import Stabilisers
from quietbeam.trainer.guard import Crop, GuardFrame
from quietbeam.trainer.history import tile_mask
from quietbeam.trainer.scores import Scores, concatenate, score

CONTEXT = 24
"""Frames before the judged ones that a network gets at most: every one costs time.

Live it has all the past, as has the classical denoiser, which costs little and
gets all that is kept: if this is unfair, then to the candidate.
"""
_SPARE = 4  # frames beyond the window, for what memory there may be
_STREAMS = 4  # more at once would leave the processor's cache


class Judge:
    """Scores denoisers on guard frames of one frame shape.

    What is asked for by name is remembered per guard frame: a denoiser that
    does not change is run once on each.
    """

    def __init__(self, shape: tuple[int, ...], stabilisers: Stabilisers) -> None:
        self._guard = tile_mask((shape[-2], shape[-1]), 0)
        self._stabilisers = stabilisers
        self._known: dict[tuple[str, int], Scores] = {}

    def scores(
        self, denoiser: StreamingDenoiser, frames: Sequence[GuardFrame], name: str | None = None
    ) -> Scores:
        """One row per tile and frame, in the order of ``frames`` (not empty, all calibrated).

        ``name`` stands for a denoiser that is always the same; None is never remembered.
        """
        done: dict[int, Scores] = {}
        if name is not None:
            known = {f.serial: self._known.get((name, f.serial)) for f in frames}
            done = {serial: scores for serial, scores in known.items() if scores is not None}
        done |= self._run(denoiser, [frame for frame in frames if frame.serial not in done])
        if name is not None:
            self._known |= {(name, serial): scores for serial, scores in done.items()}
        return concatenate([done[frame.serial] for frame in frames])

    def forget(self, keep: Iterable[GuardFrame], names: set[str]) -> None:
        """Drop what is remembered of other guard frames and other denoisers."""
        serials = {frame.serial for frame in keep}
        self._known = {
            key: scores
            for key, scores in self._known.items()
            if key[0] in names and key[1] in serials
        }

    def _run(self, denoiser: StreamingDenoiser, frames: Sequence[GuardFrame]) -> dict[int, Scores]:
        jobs = [(frame, crop) for frame in frames for crop in frame.crops]
        jobs.sort(key=lambda job: (_form(job[1]), job[0].serial))
        parts: dict[int, list[Scores]] = {frame.serial: [] for frame in frames}
        for _, group in groupby(jobs, key=lambda job: _form(job[1])):
            same = list(group)
            for start in range(0, len(same), _STREAMS):
                chunk = same[start : start + _STREAMS]
                for (frame, _), scores in zip(chunk, self._chunk(denoiser, chunk), strict=True):
                    parts[frame.serial].append(scores)
        return {serial: concatenate(scores) for serial, scores in parts.items()}

    def _chunk(
        self, denoiser: StreamingDenoiser, jobs: Sequence[tuple[GuardFrame, Crop]]
    ) -> list[Scores]:
        """Judge crops of one form together."""
        z = np.stack([self._stabilised(crop) for _, crop in jobs])
        guard = jobs[0][1].guard
        mean, variance = estimates(denoiser, torch.from_numpy(z), guard)
        measured = z[:, guard - 2 : guard + 1]
        return [
            self._score(frame, crop, (measured[n], mean[n], variance[n]))
            for n, (frame, crop) in enumerate(jobs)
        ]

    def _stabilised(self, crop: Crop) -> NDArray[np.float32]:
        pixels = crop.clip.pixels
        flat = pixels.reshape(-1, pixels.shape[-1]).astype(np.float32)
        stabiliser = self._stabilisers[crop.clip.run][crop.clip.channel]
        return stabiliser.forward(flat).reshape(pixels.shape)

    def _score(
        self,
        frame: GuardFrame,
        crop: Crop,
        stacks: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    ) -> Scores:
        """Judge one crop; ``stacks`` are measured (3, h, w), mean and variance (2, h, w)."""
        scored, whole = crop.scored, crop.clip.view
        top, left = scored.top - whole.top, scored.left - whole.left
        rows, columns = slice(top, top + scored.h), slice(left, left + scored.w)
        measured, mean, variance = (stack[:, rows, columns] for stack in stacks)
        if crop.clip.valid is None:
            valid = np.ones(measured.shape, np.bool_)
        else:
            valid = crop.clip.valid[crop.guard - 2 : crop.guard + 1, rows, columns]
        return score(
            measured,
            mean,
            variance,
            valid,
            frame=frame.serial,
            origin=(scored.top, scored.left),
            channel=crop.clip.channel,
            guard=scored.cut(self._guard),
        )


def _form(crop: Crop) -> tuple[int, ...]:
    """What crops must have in common to be run together."""
    return (*crop.clip.pixels.shape, crop.guard)


def estimates(
    denoiser: StreamingDenoiser, frames: Tensor, guard: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Blind estimates of frames ``guard - 1`` and ``guard`` of independent streams.

    Args:
        denoiser: If it is not blind it is judged by ``blind_estimate``, with
            variance 0: a little worse than what it does live, never better.
        frames: (n, t, h, w) stabilised units, with ``lag`` frames after the guard frame.
        guard: Position of the guard frame, at least 1.

    Returns:
        (mean, variance), each (n, 2, h, w).
    """
    context = min(denoiser.window + _SPARE, CONTEXT) if denoiser.trainable else guard
    start = max(0, guard - 1 - context)
    frames = frames[:, start : guard + 1 + denoiser.lag]
    wanted = slice(guard - 1 - start, guard + 1 - start)
    with torch.inference_mode():
        if denoiser.blind:
            mean, variance = _stream(denoiser, frames)
        else:
            mean = torch.stack([denoiser.blind_estimate(clip) for clip in frames])
            variance = torch.zeros_like(mean)
        return mean[:, wanted].float().numpy(), variance[:, wanted].float().numpy()


def _stream(denoiser: StreamingDenoiser, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates of all frames but the last ``lag``, (n, t - lag, h, w)."""
    n, t, h, w = frames.shape
    state = denoiser.initial_state(n, h, w)
    means, variances = [], []
    for i in range(t):
        mean, variance, state = denoiser.forward(frames[:, i : i + 1], state)
        if i >= denoiser.lag:
            means.append(mean[:, 0])
            variances.append(variance[:, 0])
    return torch.stack(means, 1), torch.stack(variances, 1)
