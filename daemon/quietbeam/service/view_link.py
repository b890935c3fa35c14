"""What a view sees of the daemon: frames of both rings, the status, commands, its own account."""

from __future__ import annotations

import hmac
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

import structlog

from quietbeam.core import records
from quietbeam.core.errors import QuietbeamError
from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.result import Result
from quietbeam.core.ring import Record, RingReader

ANSWER_S = 30.0
SILENT_S = 1.5
"""A daemon that has said nothing for so long is taken for dead; it speaks every half second."""

_BATCH = 32
_POLL_S = 0.002
_RUNS_KEPT = 16

Item = RunStart | RunEnd | Frame | Result


class ViewLane:
    """One ring as a view reads it: only the newest ``backlog`` frames, in order.

    Attributes:
        behind: Frames passed over because the view is slower than the stream.
    """

    def __init__(self, ring: Path, name: str, backlog: int, *, clean: bool) -> None:
        self.reader = RingReader(ring, name)
        self.behind = 0
        self._runs = records.RunReader(self.reader)
        self._backlog, self._clean = backlog, clean

    def take(self) -> Iterator[Item]:
        """Give what waits, at most a batch of records."""
        self.reader.beat()
        for _ in range(_BATCH):
            self._pass_over()
            if self.reader.backlog <= 0:
                return
            for item in self._runs.poll(0.0):
                yield self._read(item)

    def _pass_over(self) -> None:
        while self.reader.backlog > self._backlog and self.reader.skip_frame():
            self.behind += self._backlog > 0  # what was never wanted is not missed

    def _read(self, item: RunStart | RunEnd | Record) -> Item:
        if not isinstance(item, Record):
            return item
        return records.result(item) if self._clean else records.frame(item)


class ViewLink:
    """Implements ``core.plugin.Link``.  ``hear`` belongs to the thread of the socket.

    Args:
        name: Of the view: its name as a reader of the rings.
        raw_backlog: Raw frames that may wait; see ``ViewSink``.
        clean_backlog: The same for cleaned ones.
        token: File of the daemon's control token; every daemon writes its own.
    """

    def __init__(
        self, name: str, raw_backlog: int, clean_backlog: int, token: Path | None = None
    ) -> None:
        self.stopping = False
        self.given = 0
        """Frames handed to the view."""
        self.facts: Mapping[str, Any] = {}
        """What the view says of itself."""
        self._name, self._token = name, token
        self._backlogs = {"raw": raw_backlog, "clean": clean_backlog}
        self._say: Callable[[Mapping[str, Any]], None] | None = None
        self._heard_s = 0.0
        self._status: Mapping[str, Any] = {}
        self._lanes: dict[str, ViewLane] = {}
        self._next: dict[str, ViewLane] | None = None
        """Those of a daemon that has just come; the view's thread changes over to them."""
        self._started: deque[str] = deque(maxlen=_RUNS_KEPT)
        self._lock = threading.Lock()
        self._dropped: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Mapping[str, Any]]] = {}

    # -- what a view calls ----------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """A daemon lives and has spoken within the last 1.5 s."""
        return self._say is not None and time.monotonic() - self._heard_s < SILENT_S

    def poll(self, timeout_s: float) -> Sequence[Item]:
        """Give what has come, in order of arrival within each ring; wait if nothing."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._change_over()
            items = self._taken()
            if items or self.stopping or time.monotonic() >= deadline_s:
                return items
            time.sleep(_POLL_S)

    def status(self) -> Mapping[str, Any]:
        """Give the newest snapshot of the daemon; {} before the first."""
        return self._status

    def command(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have the daemon carry out a command; from any thread.

        Raises:
            QuietbeamError: It was refused, failed, or nobody answers.
        """
        say = self._say
        if say is None:
            raise QuietbeamError(f"{name}: the daemon is not there; try again when it is back")
        number, answer = next(self._numbers), Future[Mapping[str, Any]]()
        self._waiting[number] = answer
        try:
            say({"type": "command", "id": number, "name": name, "arguments": dict(arguments)})
            return answer.result(ANSWER_S)
        except (FutureTimeoutError, OSError) as error:
            raise QuietbeamError(f"{name}: the daemon did not answer") from error
        finally:
            self._waiting.pop(number, None)

    def verify(self, token: str) -> bool:
        """Tell whether this is the daemon's control token; from any thread."""
        try:
            known = "" if self._token is None else self._token.read_text().strip()
        except OSError:  # no daemon is there
            return False
        return bool(known) and hmac.compare_digest(token.encode(), known.encode())

    def account(self, **counts: int) -> None:
        """Add frames that this view gave up, by reason; from any thread."""
        with self._lock:
            self._dropped.update(counts)

    def tell(self, **facts: Any) -> None:
        """Put JSON values into the daemon's status, under this view; from any thread."""
        self.facts = {**self.facts, **facts}

    # -- what the process calls -------------------------------------------------------------

    def attached(self, say: Callable[[Mapping[str, Any]], None], rings: Mapping[str, str]) -> None:
        """A daemon is there; every frame it writes to ``rings`` from now on can be polled."""
        self._next = dict(self._opened(rings))
        self._heard_s = time.monotonic()
        self._say = say

    def left(self) -> None:
        """The daemon is gone: what it was asked will never be answered."""
        self._say = None
        for answer in list(self._waiting.values()):
            _refuse(answer, "the daemon has gone")

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take one message of the daemon."""
        self._heard_s = time.monotonic()
        match message["type"]:
            case "status":
                self._status = message["status"]
            case "answer":
                answer = self._waiting.get(message["id"])
                if answer is not None and "error" in message:
                    _refuse(answer, str(message["error"]))
                elif answer is not None:
                    answer.set_result(message["result"])
            case other:
                structlog.get_logger().warning("unknown_message", got=str(other))

    def dropped(self) -> dict[str, int]:
        """Give the frames this view did not take, by reason."""
        with self._lock:
            counts = Counter(self._dropped)
        counts["behind"] += sum(lane.behind for lane in self._lanes.values())
        return {reason: frames for reason, frames in counts.items() if frames}

    # -- frames ---------------------------------------------------------------------------

    def _opened(self, rings: Mapping[str, str]) -> Iterator[tuple[str, ViewLane]]:
        for kind, backlog in self._backlogs.items():
            try:
                yield kind, ViewLane(Path(rings[kind]), self._name, backlog, clean=kind == "clean")
            except OSError as error:  # that daemon is gone again already
                structlog.get_logger().warning("ring_not_there", ring=rings[kind], error=str(error))

    def _change_over(self) -> None:
        """Read the rings of the newest daemon; in the view's thread, which alone reads."""
        lanes, self._next = self._next, None
        if lanes is None:
            return
        with self._lock:
            self._dropped["behind"] += sum(lane.behind for lane in self._lanes.values())
            self._lanes = lanes

    def _taken(self) -> list[Item]:
        """Read both rings, the clean one first: the raw frame of what is cleaned is there by then.

        Given are raw frames first, so that a cleaned one never comes before its own.
        """
        taken = {kind: list(lane.take()) for kind, lane in reversed(self._lanes.items())}
        return [item for kind in self._lanes for item in self._new(kind, taken[kind])]

    def _new(self, kind: str, taken: Iterable[Item]) -> Iterator[Item]:
        for item in taken:
            match item:
                case RunStart():
                    if item.run in self._started:
                        continue
                    self._started.append(item.run)
                case RunEnd():
                    if kind == "raw":  # cleaned frames of the run still come
                        continue
                case _:
                    self.given += 1
            yield item


def _refuse(answer: Future[Mapping[str, Any]], why: str) -> None:
    if not answer.done():
        answer.set_exception(QuietbeamError(why))
