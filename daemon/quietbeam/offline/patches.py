"""Patches of a recording to learn from, and guards to judge by.

Every 16th frame (more often in a short recording) is a *guard*: networks may
look at it, as a neighbour of others, but never learn from it.  In a set of
unrelated images, guards are tiles instead.  All judging is done on guards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quietbeam.offline.calibrated import CalibratedSeries

Float = NDArray[np.float32]
Valid = NDArray[np.bool_]

_BLOCK_FRAMES = 64
_TILE_PX = 16


def guard_period(frames: int) -> int:
    """Every how many frames one is a guard: 16, fewer so that short recordings have some."""
    return min(16, max(3, frames // 6))


def is_guard(index: int, frames: int) -> bool:
    """Tell whether frame ``index`` of a video is a guard; the first and the last never are."""
    period = guard_period(frames)
    return index % period == period // 2 and index != frames - 1


def guard_tiles(shape: tuple[int, int]) -> Valid:
    """(h, w), True on the tiles of unrelated images that are guards: one in sixteen."""
    row, column = (np.arange(side) // _TILE_PX for side in shape)
    return (5 * row[:, None] + 3 * column[None, :]) % 16 == 5


def clip_indices(target: int, frames: int, past: int, lag: int) -> NDArray[np.intp]:
    """Frames of the clip that shows ``target`` after ``past`` and before ``lag`` others.

    Before the start and after the end stand frames from inside that no target
    near that end has in its own window yet, so ``target`` occurs only at its
    own place: an estimate made from the others is blind.

    Returns:
        (past + 1 + lag,), within 0..frames - 1; ``frames`` must be 2 or more.
    """
    index = np.arange(target - past, target + lag + 1)
    index = np.where(index < 0, lag - 1 - index, index)
    index = np.where(index >= frames, 2 * frames - 1 - lag - index, index)
    period = max(1, 2 * (frames - 1))
    index = np.abs(index) % period
    index = np.where(index >= frames, period - index, index)
    itself = index == target
    itself[past] = False
    return np.where(itself, target + 1 if target + 1 < frames else target - 1, index)


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Consecutive frames, or a part of them, in memory.

    ``z`` (t, h, w) stabilised; ``valid`` the same shape, None where all is.
    """

    first: int
    top: int
    left: int
    z: Float
    valid: Valid | None


@dataclass(frozen=True, slots=True)
class Place:
    """A patch of one target frame: which block, frame within it, corner within it."""

    block: int
    target: int
    top: int
    left: int


class TrainingSet:
    """Patches of a recording, in bounded memory.

    A recording that does not fit is represented by blocks of consecutive
    frames spread evenly over it, and if need be by parts of the image.
    """

    def __init__(self, recording: CalibratedSeries, memory_bytes: int, seed: int = 0) -> None:
        self.images = recording.images
        self.shape = recording.shape
        self._frames = len(recording)
        self._tiles = guard_tiles(recording.shape) if self.images else None
        rng = np.random.default_rng([seed, 5])
        self._blocks = [
            self._read(recording, first, count, corner, size)
            for first, count, corner, size in _cover(recording, memory_bytes, rng)
        ]

    def places(
        self, count: int, side: int, rng: np.random.Generator, *, guards: bool
    ) -> list[Place]:
        """Draw ``count`` patches of ``side`` px whose targets are guards, or are not."""
        choices = [
            (b, i)
            for b, block in enumerate(self._blocks)
            for i in range(len(block.z))
            if self.images or is_guard(block.first + i, self._frames) == guards
        ]
        if not choices:
            return []
        # All guards before any twice: few patches must still show the whole recording.
        order = [rng.permutation(len(choices)) for _ in range(-(-count // len(choices)))]
        picked = [choices[int(n)] for n in np.concatenate(order)[:count]]
        return [self._corner(block, target, side, rng) for block, target in picked]

    def clips(self, places: Sequence[Place], side: int, past: int, lag: int) -> tuple[Float, Valid]:
        """Give (values, valid), each (n, past + 1 + lag, h, w): the targets in their time."""
        size = self._side(side)
        values = np.empty((len(places), past + 1 + lag, *size), np.float32)
        valid = np.ones(values.shape, np.bool_)
        for n, place in enumerate(places):
            block = self._blocks[place.block]
            part = np.s_[place.top : place.top + size[0], place.left : place.left + size[1]]
            index = np.array([place.target])
            if past + lag:
                index = clip_indices(place.target, len(block.z), past, lag)
            values[n] = block.z[index][(slice(None), *part)]
            if block.valid is not None:
                valid[n] = block.valid[index][(slice(None), *part)]
        return values, valid

    def batch(
        self, count: int, side: int, past: int, lag: int, rng: np.random.Generator, *, guards: bool
    ) -> tuple[Float, Valid]:
        """Draw clips to learn from, or to be judged by: ``valid`` only where that is allowed.

        Learning clips are turned, mirrored and, half of them, played backwards.
        """
        places = self.places(count, side, rng, guards=guards)
        values, valid = self.clips(places, side, past, lag)
        for n, place in enumerate(places):
            valid[n] &= self.learnable(place, side, past, lag, guards=guards)
        if guards:
            return values, valid
        for n in range(count):
            values[n], valid[n] = _augment(values[n], valid[n], rng)
        return values, valid

    def learnable(self, place: Place, side: int, past: int, lag: int, *, guards: bool) -> Valid:
        """Give (t, h, w) or what broadcasts to it: where a clip may be learned from (judged by)."""
        block = self._blocks[place.block]
        h, w = self._side(side)
        if self._tiles is not None:
            top, left = block.top + place.top, block.left + place.left
            tiles = self._tiles[top : top + h, left : left + w]
            return tiles if guards else ~tiles
        index = np.array([place.target])
        if past + lag and len(block.z) > 1:
            index = clip_indices(place.target, len(block.z), past, lag)
        held = np.array([is_guard(block.first + int(i), self._frames) for i in index])
        return (held if guards else ~held)[:, None, None]

    def _side(self, side: int) -> tuple[int, int]:
        h, w = self._blocks[0].z.shape[1:]
        return min(side, h), min(side, w)

    def _corner(self, block: int, target: int, side: int, rng: np.random.Generator) -> Place:
        h, w = self._blocks[block].z.shape[1:]
        size = self._side(side)
        top, left = int(rng.integers(h - size[0] + 1)), int(rng.integers(w - size[1] + 1))
        return Place(block, target, top, left)

    @staticmethod
    def _read(
        recording: CalibratedSeries,
        first: int,
        count: int,
        corner: tuple[int, int],
        size: tuple[int, int],
    ) -> _Block:
        (top, left), (h, w) = corner, size
        z = np.empty((count, h, w), np.float32)
        valid = np.empty((count, h, w), np.bool_)
        for i in range(count):
            prepared = recording.prepared(first + i)
            z[i] = prepared.z[top : top + h, left : left + w]
            valid[i] = prepared.valid[top : top + h, left : left + w]
        return _Block(first, top, left, z, None if valid.all() else valid)


def _cover(
    recording: CalibratedSeries, memory_bytes: int, rng: np.random.Generator
) -> list[tuple[int, int, tuple[int, int], tuple[int, int]]]:
    """Choose (first frame, frames, corner, size) of the blocks that fit the memory."""
    t, (h, w) = len(recording), recording.shape
    frame_bytes = 5 * h * w  # float32 and bool
    if t * frame_bytes <= memory_bytes:
        return [(0, t, (0, 0), (h, w))]
    length = min(t, _BLOCK_FRAMES)
    share = min(1.0, math.sqrt(memory_bytes / (4 * length * frame_bytes)))
    rows, columns = (min(n, max(64, int(n * share))) for n in (h, w))
    length = int(np.clip(memory_bytes // (20 * rows * columns), 16, length))
    count = max(1, min(t // length, memory_bytes // (5 * length * rows * columns)))
    blocks = []
    for first in np.linspace(0, t - length, count).astype(int):
        corner = int(rng.integers(h - rows + 1)), int(rng.integers(w - columns + 1))
        blocks.append((int(first), length, corner, (rows, columns)))
    return blocks


def _augment(values: Float, valid: Valid, rng: np.random.Generator) -> tuple[Float, Valid]:
    rows, columns, turn = rng.integers(2, size=3)
    if rows:
        values, valid = values[:, ::-1], valid[:, ::-1]
    if columns:
        values, valid = values[:, :, ::-1], valid[:, :, ::-1]
    if turn and values.shape[1] == values.shape[2]:
        values, valid = values.transpose(0, 2, 1), valid.transpose(0, 2, 1)
    return values.copy(), valid.copy()
