"""Guard frames with what is needed to judge a denoiser on them, and only that.

Of each channel of a guard frame a few crops are kept, with the frames before it that a
denoiser needs to get going and those after it that it waits for.  The newest
make up the *recent* set; what falls out of it goes to a reservoir over the
whole run, the *older* set, which a candidate must not do worse on.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from quietbeam.trainer.history import TILE_PX, Clip, Recent, Reservoir, View, guard_tiles, is_guard
from quietbeam.trainer.scores import BLOCK_PX

SCORED_PX = 2 * BLOCK_PX
CROP_PX = SCORED_PX + 16
BEFORE = 32
"""Frames before the guard frame, where there are so many: memories need them."""
MIN_BEFORE = 14
CROPS = 1
"""Per guard frame and channel; other frames give other places."""
MAX_FRAMES = 12


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One part of one guard frame and of its neighbours in time.

    Attributes:
        clip: All frames; the guard frame is at ``guard``.
        scored: The part of the image that is judged; the rest is context.
        guard: Position of the guard frame in the clip.
    """

    clip: Clip
    scored: View
    guard: int


@dataclass(frozen=True, slots=True, eq=False)
class GuardFrame:
    """A guard frame; ``serial`` is its number in this process."""

    serial: int
    run: str
    crops: tuple[Crop, ...]


class GuardSet:
    """Recent and older guard frames of one frame shape.

    Args:
        shape: (h, w) of the frames; (c, h, w) with several channels.
        window: Frames before a guard frame without which it is not kept (at most 14).
        after: Frames after it that are kept: the largest lag of all denoisers.
        budget_bytes: Bounds how many are kept, not below four of each sort.
        seed: For the choice of crops and of what stays in the older set.
    """

    def __init__(
        self, shape: tuple[int, ...], *, window: int, after: int, budget_bytes: int, seed: int = 0
    ) -> None:
        self._least, self._after = min(window, MIN_BEFORE), after
        self._generator = np.random.default_rng([seed, 3])
        h, w = shape[-2:]
        self._places = guard_tiles((h, w)) or _all_tiles((h, w))
        area = math.prod(shape[:-2]) * min(CROP_PX, h) * min(CROP_PX, w)
        frame_bytes = CROPS * area * (BEFORE + 1 + after) * 5  # float32 and a mask at most
        count = max(4, min(MAX_FRAMES, budget_bytes // (2 * frame_bytes)))
        self.recent: deque[GuardFrame] = deque()
        self._count = count
        self._older = Reservoir[GuardFrame](count, self._generator)
        self._serials = itertools.count(1)

    @property
    def older(self) -> list[GuardFrame]:
        """Guard frames of the whole run, without the recent ones."""
        return self._older.clips

    def look(self, recent: Recent) -> bool:
        """After each new frame: keep the guard frame that has just become complete, if any."""
        guard = recent.newest - self._after
        before = min(BEFORE, recent.contiguous - 1 - self._after)
        if not is_guard(guard) or before < max(2, self._least):
            return False
        if len(self.recent) == self._count:
            self._retire(self.recent.popleft())
        frames = before + 1 + self._after
        places = self._in_view(recent.view)
        order = self._generator.permutation(len(places))
        wanted = range(CROPS * recent.channels)  # each channel at other places, if there are
        crops = tuple(
            self._crop(recent, places[order[n % len(order)]], frames, before, n // CROPS)
            for n in wanted
        )
        self.recent.append(GuardFrame(next(self._serials), crops[0].clip.run, crops))
        return True

    def _retire(self, frame: GuardFrame) -> None:
        place = self._older.place()
        if place is not None:
            self._older.put(place, frame)

    def _in_view(self, view: View) -> list[tuple[int, int]]:
        inside = [
            (top, left)
            for top, left in self._places
            if view.top <= top < view.top + view.h and view.left <= left < view.left + view.w
        ]
        return inside or [(view.top, view.left)]

    def _crop(
        self, recent: Recent, place: tuple[int, int], frames: int, before: int, channel: int
    ) -> Crop:
        scored = _within(recent.view, place, SCORED_PX)
        margin = (CROP_PX - SCORED_PX) // 2
        corner = (scored.top - margin, scored.left - margin)
        part = _within(recent.view, corner, CROP_PX)
        return Crop(recent.clip(recent.count - 1, frames, part, channel), scored, before)


def _within(view: View, corner: tuple[int, int], side: int) -> View:
    """A square of ``side`` at ``corner``, moved and cut so that it lies in ``view``."""
    h, w = min(side, view.h), min(side, view.w)
    top = min(max(corner[0], view.top), view.top + view.h - h)
    left = min(max(corner[1], view.left), view.left + view.w - w)
    return View(top, left, h, w)


def _all_tiles(shape: tuple[int, int]) -> list[tuple[int, int]]:
    rows, columns = (range(0, max(1, size - TILE_PX + 1), TILE_PX) for size in shape)
    return list(itertools.product(rows, columns))
