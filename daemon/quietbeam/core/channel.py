"""The two ways to cross a thread: every item counts, or only the newest does."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, Literal, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """A queue that can be closed: iteration ends once it is closed and empty.

    ``when_full="wait"`` slows the writer down; ``"drop_oldest"`` keeps the
    newest items and counts the others in ``dropped``.
    """

    def __init__(self, capacity: int, when_full: Literal["wait", "drop_oldest"]) -> None:
        self.capacity = capacity
        self.when_full = when_full
        self.dropped = 0
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
        """Add ``item``; a closed channel refuses it (False)."""
        with self._changed:
            if self.when_full == "wait":
                self._changed.wait_for(lambda: self._closed or len(self._items) < self.capacity)
            elif len(self._items) >= self.capacity:
                self._items.popleft()
                self.dropped += 1
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


class Latest(Generic[T]):
    """A slot for the newest item: one writer sets it, readers pull it."""

    def __init__(self) -> None:
        self._entry: tuple[int, T] | None = None

    def set(self, item: T) -> None:
        """Replace the item; only ever called from one thread."""
        version = 0 if self._entry is None else self._entry[0]
        self._entry = (version + 1, item)

    def newer_than(self, version: int) -> tuple[int, T] | None:
        """Give (version, item) if it changed since ``version``, else None."""
        entry = self._entry
        return entry if entry is not None and entry[0] > version else None
