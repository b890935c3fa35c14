"""What the trainer remembers of the stream, in bounded memory.

* ``Recent``: the newest frames, in order.
* ``Reservoir``: short clips, every moment since the start equally likely
  (Vitter 1985, algorithm R).

What is never a training target: every 16th frame (``is_guard``) and about 6 %
of the 32 px tiles of the image (``guard_tiles``).  Both follow from the index
and the shape alone, so a restarted trainer keeps the same promise.

Frames are kept as corrected counts, holes filled, and not stabilised: only the
patches that are drawn ever are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from quietbeam.core.planes import planes

GUARD_PERIOD = 16
GUARD_FRACTION = 0.06
TILE_PX = 32
TILE_MARGIN_PX = 4
_MIN_TILES = 8
_MIN_FRAMES = 64

Pixels = NDArray[Any]
Valid = NDArray[np.bool_]
T = TypeVar("T")


def is_guard(index: int) -> bool:
    """Frame ``index`` (the detector's number) is only ever judged on."""
    return index % GUARD_PERIOD == GUARD_PERIOD - 1


def guard_tiles(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """(top, left) of the guard tiles of an image: the same for every run of that shape.

    An image of fewer than eight whole tiles has none: too much would be lost.
    """
    rows, columns = shape[0] // TILE_PX, shape[1] // TILE_PX
    total = rows * columns
    if total < _MIN_TILES:
        return []
    generator = np.random.default_rng([shape[0], shape[1], GUARD_PERIOD])
    count = max(1, round(GUARD_FRACTION * total))
    chosen = np.sort(generator.choice(total, count, replace=False))
    return [(int(n // columns) * TILE_PX, int(n % columns) * TILE_PX) for n in chosen]


def tile_mask(shape: tuple[int, int], margin_px: int) -> Valid:
    """(h, w), True on guard tiles and ``margin_px`` around them."""
    mask = np.zeros(shape, np.bool_)
    for top, left in guard_tiles(shape):
        low_row, low_column = max(0, top - margin_px), max(0, left - margin_px)
        mask[low_row : top + TILE_PX + margin_px, low_column : left + TILE_PX + margin_px] = True
    return mask


@dataclass(frozen=True, slots=True)
class View:
    """The part of the image that is kept, in pixels of the image."""

    top: int
    left: int
    h: int
    w: int

    def cut(self, image: NDArray[Any]) -> NDArray[Any]:
        """The view of ``image`` (..., h, w)."""
        return image[..., self.top : self.top + self.h, self.left : self.left + self.w]


def choose_view(
    shape: tuple[int, int], pixel_bytes: int, budget_bytes: int, generator: np.random.Generator
) -> View:
    """The whole image if 64 frames of it fit the budget; else a random part that does."""
    h, w = shape
    share = budget_bytes / (_MIN_FRAMES * h * w * pixel_bytes)
    if share >= 1:
        return View(0, 0, h, w)
    side = math.sqrt(share)
    sizes = [min(n, max(4 * TILE_PX, int(n * side) // TILE_PX * TILE_PX)) for n in shape]
    places = [
        int(generator.integers((n - size) // TILE_PX + 1)) * TILE_PX
        for n, size in zip(shape, sizes, strict=True)
    ]
    return View(places[0], places[1], sizes[0], sizes[1])


def random_channel(channels: int, generator: np.random.Generator) -> int:
    """Any of so many channels."""
    return int(generator.integers(channels)) if channels > 1 else 0


def random_part(view: View, h: int, w: int, generator: np.random.Generator) -> View:
    """Any part of ``view`` of (h, w), or as large as the view allows."""
    h, w = min(h, view.h), min(w, view.w)
    top = view.top + int(generator.integers(view.h - h + 1))
    return View(top, view.left + int(generator.integers(view.w - w + 1)), h, w)


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Consecutive frames of one part of the image.

    Attributes:
        run: Name of the run.
        first: Index of the first frame.
        top: Row of the image at which it was cut.
        left: Column of the image at which it was cut.
        pixels: (t, h, w) corrected counts.
        valid: (t, h, w), or None where every pixel is valid.
        channel: Of the frames, 0 where there is only one.
    """

    run: str
    first: int
    top: int
    left: int
    pixels: Pixels
    valid: Valid | None
    channel: int = 0

    def cut(self, part: View) -> Clip:
        """A part of it (views, not copies); ``part`` is in pixels of the image."""
        top, left = part.top - self.top, part.left - self.left
        rows, columns = slice(top, top + part.h), slice(left, left + part.w)
        valid = None if self.valid is None else self.valid[:, rows, columns]
        pixels = self.pixels[:, rows, columns]
        return Clip(self.run, self.first, part.top, part.left, pixels, valid, self.channel)

    @property
    def view(self) -> View:
        """Where in the image it was cut."""
        return View(self.top, self.left, *self.pixels.shape[1:])


class Recent:
    """The newest frames of one view, preallocated; the oldest give way."""

    def __init__(self, view: View, dtype: DTypeLike, budget_bytes: int, channels: int = 1) -> None:
        self.view = view
        self.channels = channels
        self.dtype = np.dtype(dtype)
        per_frame = channels * view.h * view.w * self.dtype.itemsize
        self.capacity = max(_MIN_FRAMES, min(4096, budget_bytes // per_frame))
        self.count = 0
        # paged in as it fills
        self._pixels = np.zeros((self.capacity, channels, view.h, view.w), dtype)
        self._valid: list[Valid | None] = [None] * self.capacity
        self._index = np.full(self.capacity, -1, np.int64)
        self._length = np.zeros(self.capacity, np.int64)
        self._run = np.zeros(self.capacity, np.int64)
        self._runs: list[str] = []

    def __len__(self) -> int:
        return min(self.count, self.capacity)

    @property
    def newest(self) -> int:
        """Index of the newest frame, -1 if there is none."""
        return int(self._index[(self.count - 1) % self.capacity]) if self.count else -1

    @property
    def contiguous(self) -> int:
        """Frames without a gap, up to the newest."""
        return int(self._length[(self.count - 1) % self.capacity]) if self.count else 0

    def append(self, run: str, index: int, pixels: Pixels, valid: Valid) -> None:
        """Take the next frame, (h, w) of the view, or (c, h, w)."""
        slot, last = self.count % self.capacity, (self.count - 1) % self.capacity
        if not self._runs or self._runs[-1] != run:
            self._begin(run)
        number = len(self._runs) - 1
        follows = bool(self.count and self._index[last] == index - 1 and self._run[last] == number)
        self._length[slot] = min(self._length[last] + 1, self.capacity) if follows else 1
        self._index[slot], self._run[slot] = index, number
        self._pixels[slot] = _as_stored(pixels, self.dtype)
        self._valid[slot] = self._shared(valid, self._valid[last])
        self.count += 1

    def _begin(self, run: str) -> None:
        """Number a new run; forget those of which no frame is left."""
        if len(self._runs) > 2 * self.capacity:
            oldest = int(self._run.min())
            del self._runs[:oldest]
            self._run -= oldest
        self._runs.append(run)

    def windows(self, window: int, target: int, known: set[str]) -> NDArray[np.int64]:
        """Positions of the last frames of all windows that may be trained on.

        Args:
            window: Frames of a window.  Up to 15 it holds no guard frame at
                all; a longer one may, as input (its ``valid`` says so), but
                never at ``target``.
            target: Position in the window of the frame that is predicted.
            known: Runs that have a calibration.
        """
        oldest = self.count - len(self)
        last = np.arange(oldest + window - 1, self.count)
        if not len(last):
            return last
        slots = last % self.capacity
        phase = self._index[slots] % GUARD_PERIOD
        if window < GUARD_PERIOD:
            clear = (phase >= window - 1) & (phase != GUARD_PERIOD - 1)
        else:
            clear = (self._index[slots] - (window - 1 - target)) % GUARD_PERIOD != GUARD_PERIOD - 1
        named = np.array([run in known for run in self._runs])
        return last[clear & (self._length[slots] >= window) & named[self._run[slots]]]

    def clip(self, last: int, frames: int, part: View, channel: int = 0) -> Clip:
        """Copy ``frames`` frames up to position ``last``; ``part`` is in pixels of the image."""
        slots = np.arange(last - frames + 1, last + 1) % self.capacity
        top, left = part.top - self.view.top, part.left - self.view.left
        rows, columns = slice(top, top + part.h), slice(left, left + part.w)
        pixels = self._pixels[slots, channel, rows, columns]
        masks = [self._valid[slot] for slot in slots]
        valid = None
        if masks[0] is not None and all(mask is masks[0] for mask in masks):
            valid = np.broadcast_to(planes(masks[0])[channel][rows, columns], pixels.shape)
        elif any(mask is not None for mask in masks):
            valid = np.ones(pixels.shape, np.bool_)
            for frame, mask in zip(valid, masks, strict=True):
                if mask is not None:
                    frame[:] = planes(mask)[channel][rows, columns]
        run = self._runs[self._run[slots[0]]]
        first = int(self._index[slots[0]])
        return Clip(run, first, part.top, part.left, pixels, valid, channel)

    @staticmethod
    def _shared(valid: Valid, last: Valid | None) -> Valid | None:
        """Masks hardly ever change: keep one copy, and none where all is valid."""
        if valid.all():
            return None
        return last if last is not None and np.array_equal(valid, last) else valid.copy()


def _as_stored(pixels: Pixels, dtype: np.dtype[Any]) -> Pixels:
    """Round where the store holds integers: then only filled holes are not whole already."""
    if dtype.kind == "f":
        return pixels
    limits = np.iinfo(dtype)
    return np.clip(np.rint(pixels), limits.min, limits.max).astype(dtype)


class Reservoir(Generic[T]):
    """Clips, each moment since the start kept with the same probability."""

    def __init__(self, capacity: int, generator: np.random.Generator) -> None:
        self.capacity = capacity
        self.seen = 0
        self.clips: list[T] = []
        self._generator = generator

    def __len__(self) -> int:
        return len(self.clips)

    def resize(self, capacity: int) -> None:
        """Hold so many; what no longer fits is dropped at random."""
        self.capacity = capacity
        while len(self.clips) > capacity:
            self.clips.pop(int(self._generator.integers(len(self.clips))))

    def place(self) -> int | None:
        """Where the next clip goes (None: nowhere).  Asked first, so that few are copied."""
        self.seen += 1
        if len(self.clips) < self.capacity:
            return len(self.clips)
        place = int(self._generator.integers(self.seen))
        return place if place < self.capacity else None

    def put(self, place: int, clip: T) -> None:
        """Keep ``clip`` at ``place``."""
        if place == len(self.clips):
            self.clips.append(clip)
        else:
            self.clips[place] = clip


class History:
    """Recent frames and the reservoir of one frame shape, under one memory bound.

    A clip of the reservoir is of one channel, any of them equally likely.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        window: int,
        target: int,
        clip_px: int,
        budget_bytes: int,
        seed: int = 0,
    ) -> None:
        self.shape = shape
        self.window = window
        self.target = target
        self._generator = np.random.default_rng([seed, 1])
        self._recent_bytes = budget_bytes * 6 // 10
        self.size = (shape[-2], shape[-1])
        self._channels = math.prod(shape[:-2])
        self._clip = (min(self.size[0], clip_px), min(self.size[1], clip_px))
        self.recent: Recent | None = None
        offset = window - 1 - target if window >= GUARD_PERIOD else 0
        self._phase = GUARD_PERIOD - 2 - int(offset % GUARD_PERIOD == GUARD_PERIOD - 1)
        self._reservoir_bytes = budget_bytes - self._recent_bytes
        self.reservoir = Reservoir[Clip](0, self._generator)

    def start(self, dtype: DTypeLike) -> None:
        """A run begins whose frames are kept as ``dtype``; the reservoir stays."""
        if self.recent is None or self.recent.dtype != dtype:
            self._renew(np.dtype(dtype))
            frame_bytes = self._clip[0] * self._clip[1] * (np.dtype(dtype).itemsize + 1)
            room = self._reservoir_bytes // (self.window * frame_bytes)
            self.reservoir.resize(max(8, min(1024, room)))

    def append(self, run: str, index: int, pixels: Pixels, valid: Valid) -> None:
        """Take the next corrected frame, (h, w) or (c, h, w), of the whole image."""
        recent = self.recent
        if recent is None:
            raise RuntimeError("a frame before any run started")
        partial = (recent.view.h, recent.view.w) != self.size
        if partial and recent.count >= 8 * recent.capacity:
            recent = self._renew(recent.dtype)  # look elsewhere
        recent.append(run, index, recent.view.cut(pixels), recent.view.cut(valid))
        # once in a guard period, where a window just fits before the guard frame
        if index % GUARD_PERIOD == self._phase and recent.contiguous >= self.window:
            self._offer(recent)

    def _renew(self, dtype: np.dtype[Any]) -> Recent:
        pixel_bytes = self._channels * dtype.itemsize
        view = choose_view(self.size, pixel_bytes, self._recent_bytes, self._generator)
        self.recent = Recent(view, dtype, self._recent_bytes, self._channels)
        return self.recent

    def _offer(self, recent: Recent) -> None:
        place = self.reservoir.place()
        if place is None:
            return
        room = min(GUARD_PERIOD - 1, recent.contiguous) - self.window
        back = int(self._generator.integers(room + 1)) if room > 0 else 0
        part = random_part(recent.view, *self._clip, self._generator)
        channel = random_channel(recent.channels, self._generator)
        clip = recent.clip(recent.count - 1 - back, self.window, part, channel)
        self.reservoir.put(place, clip)
