"""Training batches: half of them recent, half drawn from the whole run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.model.stabilise import Stabilisers
from quietbeam.trainer.history import (
    GUARD_PERIOD,
    TILE_MARGIN_PX,
    Clip,
    History,
    is_guard,
    random_channel,
    random_part,
    tile_mask,
)

Batch = tuple[NDArray[np.float32], NDArray[np.bool_]]
_TRIES = 4
_MIN_VALID = 0.25


def target_position(denoiser: StreamingDenoiser) -> int:
    """Where in a training clip the predicted frame is: with ``lag`` frames behind it."""
    return max(0, denoiser.window - 1 - denoiser.lag)


class Sampler:
    """Cuts random patches out of a ``History``, each of one channel, stabilised and augmented.

    ``valid`` is False on bad pixels, on guard tiles and on guard frames (which
    only occur inside windows longer than 15): those may be looked at, never
    learned from.
    """

    def __init__(
        self,
        history: History,
        stabilisers: Stabilisers,
        *,
        batch: int,
        patch_px: int,
        seed: int = 0,
    ) -> None:
        self._history = history
        self._stabilisers = stabilisers
        self._batch = batch
        self._patch = (min(history.size[0], patch_px), min(history.size[1], patch_px))
        self._learn = ~tile_mask(history.size, TILE_MARGIN_PX)
        self._generator = np.random.default_rng([seed, 2])

    def draw(self) -> Batch | None:
        """Give (clip, valid), each (n, t, h, w), or None while there is too little.

        Stabilised units, float32; every value is finite.
        """
        windows = self._windows()
        clips = [clip for clip in self._history.reservoir.clips if clip.run in self._stabilisers]
        if not len(windows):
            return None
        h, w = self._patch
        shape = (self._batch, self._history.window, h, w)
        values, valid = np.empty(shape, np.float32), np.empty(shape, np.bool_)
        for n in range(self._batch):
            old = clips if n % 2 else []
            values[n], valid[n] = self._augment(*self._patch_of(windows, old))
        return values, valid

    def _patch_of(self, windows: NDArray[np.int64], clips: list[Clip]) -> Batch:
        """A patch of one of ``clips``, or of a recent window if there are none."""
        best: Batch | None = None
        for _ in range(_TRIES):  # a patch of dead pixels teaches nothing
            best = self._prepare(self._old_patch(clips) if clips else self._recent_patch(windows))
            if best[1].mean() >= _MIN_VALID:
                break
        assert best is not None  # noqa: S101
        return best

    def _windows(self) -> NDArray[np.int64]:
        history = self._history
        if history.recent is None:
            return np.empty(0, np.int64)
        known = set(self._stabilisers)
        return history.recent.windows(history.window, history.target, known)

    def _old_patch(self, clips: list[Clip]) -> Clip:
        clip = clips[int(self._generator.integers(len(clips)))]
        return clip.cut(random_part(clip.view, *self._patch, self._generator))

    def _recent_patch(self, windows: NDArray[np.int64]) -> Clip:
        recent = self._history.recent
        assert recent is not None  # noqa: S101  # draw() has seen windows of it
        last = int(windows[self._generator.integers(len(windows))])
        part = random_part(recent.view, *self._patch, self._generator)
        channel = random_channel(recent.channels, self._generator)
        return recent.clip(last, self._history.window, part, channel)

    def _prepare(self, clip: Clip) -> Batch:
        """Stabilise one patch; (t, h, w) each."""
        t, h, w = clip.pixels.shape
        counts = clip.pixels.reshape(t * h, w).astype(np.float32)
        stabiliser = self._stabilisers[clip.run][clip.channel]
        values = stabiliser.forward(counts).reshape(t, h, w)
        learn = self._learn[clip.top : clip.top + h, clip.left : clip.left + w]
        valid = np.broadcast_to(learn, (t, h, w)) if clip.valid is None else clip.valid & learn
        if t >= GUARD_PERIOD:
            valid = valid.copy()
            valid[[is_guard(clip.first + i) for i in range(t)]] = False
        return values, valid

    def _augment(self, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> Batch:
        """Flip and turn; time keeps its direction."""
        rows, columns, turn = self._generator.integers(2, size=3)
        if rows:
            values, valid = values[:, ::-1], valid[:, ::-1]
        if columns:
            values, valid = values[:, :, ::-1], valid[:, :, ::-1]
        if turn and values.shape[1] == values.shape[2]:
            values, valid = values.transpose(0, 2, 1), valid.transpose(0, 2, 1)
        return values, valid
