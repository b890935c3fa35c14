"""The two ways to cross a thread: the writer waits for room, or gives up by a policy."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

Policy = Literal["newest", "every-nth", "lossless"]
GivenUp = Literal["superseded", "every_nth", "full"]

_MARKS = 64


class Channel(Generic[T]):
    """A queue that can be closed: iteration ends once it is closed and empty.

    A full one slows its writer down.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._items: deque[T] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        """Nothing more can be put in."""
        return self._closed

    def put(self, item: T) -> bool:
        """Add ``item``, when there is room; a closed channel refuses it (False)."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self.capacity)
            if not self._closed:
                self._items.append(item)
            self._changed.notify_all()
            return not self._closed

    def close(self) -> None:
        """End the stream; what is already in it can still be read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._items))
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


@dataclass(frozen=True, slots=True)
class Delivery:
    """What an output does when it cannot keep up.

    Attributes:
        policy: ``newest`` gives up the oldest frame that waits, ``lossless`` the
            one that comes; ``every-nth`` takes only every n-th and is else ``newest``.
        frames: That may wait.
        every_nth: 1 takes every frame.
    """

    policy: Policy = "lossless"
    frames: int = 64
    every_nth: int = 1


class Outbox(Generic[T]):
    """What waits for one consumer.  Its writer never waits, and learns what was given up.

    Marks (starts and ends of runs) have room of their own and are never given up for a frame.

    Attributes:
        lost: Frames given up for want of room; those passed over on purpose are not.
            The writer may add those that it gave up before.
    """

    def __init__(self, delivery: Delivery) -> None:
        self.lost = 0
        self._delivery = delivery
        self._items: deque[tuple[T, bool]] = deque()
        self._frames = self._seen = 0
        self._closed_s: float | None = None
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed_for_s(self) -> float | None:
        """Time since it was closed, or None while it is open."""
        return None if self._closed_s is None else time.monotonic() - self._closed_s

    def put_frame(self, item: T) -> GivenUp | None:
        """Add a frame; give why one, this or another, was given up for it."""
        with self._changed:
            self._seen += 1
            if (self._seen - 1) % self._delivery.every_nth:
                return "every_nth"
            is_full = self._frames >= self._delivery.frames
            self.lost += is_full
            if is_full and self._delivery.policy == "lossless":
                return "full"
            if is_full:
                self._give_up_oldest()
            self._items.append((item, True))
            self._frames += 1
            self._changed.notify_all()
            return "superseded" if is_full else None

    def put_mark(self, item: T) -> None:
        """Add the start or the end of a run."""
        with self._changed:
            if len(self._items) - self._frames < _MARKS:
                self._items.append((item, False))
            self._changed.notify_all()

    def close(self) -> None:
        """End the stream; what is already in it can still be read."""
        with self._changed:
            if self._closed_s is None:
                self._closed_s = time.monotonic()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed_s is not None or bool(self._items))
                if not self._items:
                    return
                item, is_frame = self._items.popleft()
                self._frames -= is_frame
            yield item

    def _give_up_oldest(self) -> None:
        oldest = next(i for i, (_, is_frame) in enumerate(self._items) if is_frame)
        del self._items[oldest]
        self._frames -= 1
