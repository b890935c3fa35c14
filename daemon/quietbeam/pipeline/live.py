"""Which denoiser's estimate goes out: the classical one's until, and whenever, no network's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from quietbeam.core.engine import Engine
from quietbeam.core.errors import EngineError
from quietbeam.model.clean import EngineStream, Estimate, Prepared


@dataclass(frozen=True, slots=True)
class Model:
    """What is live.  Version 0 is the classical fallback."""

    denoiser: str
    version: int


@dataclass(frozen=True, slots=True)
class Warm:
    """An engine that has seen the frames up to ``position``.

    ``owed`` are its estimates of frames that had not gone out yet.
    """

    stream: EngineStream
    position: int
    owed: list[Estimate]


class Switch:
    """Runs the classical denoiser or, once there is one, a network, over one run.

    Every frame goes out exactly once and in order, whatever is switched when:
    the network's first estimates are skipped until it has caught up with what
    the classical one has given; from then on the classical one rests.  When it
    is needed again it is shown the recent frames, those that the network still
    owed among them, so that it steps in without a gap.  So it does when the
    network's engine fails in the middle of a run.

    Attributes:
        on_lost: Told why, when the network's engine has failed and is used no more.
    """

    def __init__(self, classical: Engine, name: str, recent_frames: int = 40) -> None:
        self.on_lost: Callable[[EngineError], None] = lambda _error: None
        self._fallback = Model(name, 0)
        self._classical = EngineStream(classical)
        self._kept: deque[tuple[Estimate, Model]] = deque()
        self._recent: deque[Prepared] = deque(maxlen=recent_frames)
        self._lock = threading.Lock()  # of ``_recent``, which another thread may copy
        self._network: EngineStream | None = None
        self._resting = False  # the classical denoiser costs nothing while a network answers
        self._model = self._fallback
        self._live = self._fallback
        self._next = 0  # position of the next frame to go out

    @property
    def live(self) -> Model:
        """What made the last estimate that went out."""
        return self._live

    def warm(self, engine: Engine) -> Warm:
        """Run a new engine over the recent frames.  Any thread; takes its time.

        A network keeps features of past frames: they must be its own, so a new
        set of weights starts on past frames, not on another network's state.
        """
        with self._lock:
            recent = list(self._recent)
        warm = Warm(EngineStream(engine), -1, [])
        return self._catch_up(warm, recent)

    def promote(self, warm: Warm, model: Model) -> None:
        """Let a warm network go live from the next frame on."""
        self._network, self._model = self._catch_up(warm, list(self._recent)).stream, model

    def change_fallback(self, warm: Warm, name: str) -> None:
        """Let another classical denoiser, warm, stand in from the next frame on."""
        warm = self._catch_up(warm, list(self._recent))
        fallback = Model(name, 0)
        if self._model is self._fallback:
            self._model = fallback
        self._classical, self._fallback = warm.stream, fallback
        # The new one may wait longer or shorter than the old one: each frame once, in order.
        kept = {item[0].prepared.position: item for item in self._kept}
        kept |= {estimate.prepared.position: (estimate, fallback) for estimate in warm.owed}
        self._kept = deque(kept[position] for position in sorted(kept))

    def demote(self) -> None:
        """Back to the classical denoiser from the next frame on."""
        self._network, self._model = None, self._fallback
        if self._resting:
            self._wake()

    def _wake(self) -> None:
        """Show the classical denoiser the recent frames; it owes those not gone out yet."""
        self._resting = False
        warm = self._catch_up(Warm(EngineStream(self._classical.engine), -1, []), [*self._recent])
        self._classical = warm.stream
        self._kept = deque((estimate, self._fallback) for estimate in warm.owed)

    def _catch_up(self, warm: Warm, frames: list[Prepared]) -> Warm:
        """Show an engine those of the frames that it has not seen."""
        owed = list(warm.owed)
        for prepared in frames:
            if prepared.position > warm.position:
                owed += warm.stream.push(prepared)
                owed = [estimate for estimate in owed if estimate.prepared.position >= self._next]
        return Warm(warm.stream, frames[-1].position if frames else warm.position, owed)

    def push(self, prepared: Prepared) -> list[tuple[Estimate, Model]]:
        """Take the next frame; give what may go out, in order."""
        with self._lock:
            self._recent.append(prepared)
        classical = [] if self._resting else self._classical.push(prepared)
        network = self._of_network(lambda stream: stream.push(prepared))
        return self._choose(classical, network)

    def flush(self) -> list[tuple[Estimate, Model]]:
        """The run is over: give all that is owed."""
        network = self._of_network(EngineStream.flush)
        out = self._choose([] if self._resting else self._classical.flush(), network)
        rest = self._release_classical()  # a network that was never warm owes nothing
        return out + rest

    def _of_network(self, ask: Callable[[EngineStream], list[Estimate]]) -> list[Estimate]:
        """Ask the network, if there is one; if its engine fails, the classical one steps in."""
        if self._network is None:
            return []
        try:
            return ask(self._network)
        except Exception as error:  # noqa: BLE001 - a device, or a plugin's module, fails in any way
            self.demote()
            self.on_lost(error if isinstance(error, EngineError) else EngineError(repr(error)))
            return []

    def _choose(
        self, classical: list[Estimate], network: list[Estimate]
    ) -> list[tuple[Estimate, Model]]:
        self._kept.extend((estimate, self._fallback) for estimate in classical)
        out: list[tuple[Estimate, Model]] = []
        for estimate in network:
            if estimate.prepared.position == self._next:
                out.append((estimate, self._model))
                self._next += 1
        if out:
            self._live = self._model
            self._resting = True
            self._kept.clear()
        elif not network:  # else it answers for frames that went out already: it catches up
            out = self._release_classical()
        return out

    def _release_classical(self) -> list[tuple[Estimate, Model]]:
        out = []
        while self._kept:
            estimate, model = self._kept.popleft()
            if estimate.prepared.position >= self._next:
                out.append((estimate, model))
                self._next = estimate.prepared.position + 1
        if out:
            self._live = out[-1][1]
        return out
