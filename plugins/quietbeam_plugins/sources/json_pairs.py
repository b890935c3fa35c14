"""What formats share that send a JSON header, then the bytes it describes."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import ClassVar, Generic, TypeVar

from quietbeam.core.events import Event
from quietbeam_plugins.sources.payload import Bytes, RefusedError, parse_json
from quietbeam_plugins.sources.series import SeriesMachine

Waiting = TypeVar("Waiting")
"""A header whose data have not all come."""


class JsonPairs(ABC, Generic[Waiting]):
    """Parts to events; see ``payload.Decoder``.

    Headers and data may be parts of one message, or messages of their own.

    Args:
        machine: Keeps the runs.
    """

    header_keys: ClassVar[tuple[bytes, ...]]
    """A JSON object that has one of these near its start is a header."""

    def __init__(self, machine: SeriesMachine) -> None:
        self._machine = machine
        self._waiting: Waiting | None = None
        self._skip = False
        self._multipart = False

    @abstractmethod
    def header(self, part: Bytes, received_ns: int) -> Generator[Event, None, Waiting | None]:
        """Take a header; return what waits for data, None if none follow.

        Raises:
            RefusedError: It cannot be accepted; what it describes is passed over.
        """

    @abstractmethod
    def data(
        self, waiting: Waiting, part: Bytes, received_ns: int
    ) -> Generator[Event, None, Waiting | None]:
        """Take the next data of a header; return what waits for more of them.

        Raises:
            RefusedError: They cannot be accepted; the rest is passed over.
        """

    @abstractmethod
    def without_data(self, waiting: Waiting) -> Iterator[Event]:
        """Data never came, or not all of them."""

    def feed(
        self, part: Bytes, received_ns: int, *, starts_message: bool = True
    ) -> Iterator[Event]:
        """Take a header, or the next part of what it describes."""
        yield from self.idle(received_ns)
        within = not starts_message
        self._multipart = self._multipart or within
        skip, self._skip = self._skip, False
        if starts_message and self._multipart:
            skip = False
            yield from self._forget_waiting()
        try:
            if self._waiting is not None and (within or not self.is_header(part)):
                waiting, self._waiting = self._waiting, None
                self._skip = within  # if some data are refused, so is the rest of the message
                self._waiting = yield from self.data(waiting, part, received_ns)
                self._skip = False
            elif self.is_header(part):
                self._skip = True  # if the header is refused, so is what it describes
                yield from self._forget_waiting()
                self._waiting = yield from self.header(part, received_ns)
                self._skip = False
            elif skip or (within and not len(part)):
                self._skip = within
            else:
                self._skip = starts_message
                parse_json(part)  # says best what is wrong with it
                raise RefusedError("malformed", "neither a header nor the data of one")
        except RefusedError as refused:
            yield refused.event

    def idle(self, now_ns: int) -> Iterator[Event]:
        """Settle what has waited long enough."""
        return self._machine.tick(now_ns)

    def finish(self) -> Iterator[Event]:
        """Settle everything."""
        yield from self._forget_waiting()
        yield from self._machine.finish()

    def is_header(self, part: Bytes) -> bool:
        """Tell a JSON header from the bytes of an image, which may be anything."""
        if bytes(part[:1]) != b"{":
            return False
        start = bytes(part[:4096])
        return re.match(rb'\{\s*"', start) is not None and any(
            b'"%s"' % key in start for key in self.header_keys
        )

    def _forget_waiting(self) -> Iterator[Event]:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            yield from self.without_data(waiting)
