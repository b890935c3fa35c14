"""Which denoiser's estimate goes out: the classical one always runs, a network may take over."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from quietbeam.core.engine import Engine
from quietbeam.model.clean import EngineStream, Estimate, Prepared


@dataclass(frozen=True, slots=True)
class Model:
    """What is live.  Version 0 is the classical fallback."""

    denoiser: str
    version: int


@dataclass(frozen=True, slots=True)
class Warm:
    """A network that has seen the frames up to ``position``."""

    stream: EngineStream
    position: int


class Switch:
    """Runs the classical denoiser and, once there is one, a network, over one run.

    Every frame goes out exactly once and in order, whatever is switched when:
    the network's first estimates are skipped until it has caught up with what
    the classical one has given, and the classical ones of the network's lag
    are kept so that it can step in without a gap.
    """

    def __init__(self, classical: Engine, name: str, recent_frames: int = 40) -> None:
        self._fallback = Model(name, 0)
        self._classical = EngineStream(classical)
        self._kept: deque[Estimate] = deque()
        self._recent: deque[Prepared] = deque(maxlen=recent_frames)
        self._lock = threading.Lock()  # of ``_recent``, which another thread may copy
        self._network: EngineStream | None = None
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
        stream = EngineStream(engine)
        for prepared in recent:
            stream.push(prepared)
        return Warm(stream, recent[-1].position if recent else -1)

    def promote(self, warm: Warm, model: Model) -> None:
        """Let a warm network go live from the next frame on."""
        for prepared in self._recent:
            if prepared.position > warm.position:
                warm.stream.push(prepared)
        self._network, self._model = warm.stream, model

    def demote(self) -> None:
        """Back to the classical denoiser from the next frame on."""
        self._network, self._model = None, self._fallback

    def push(self, prepared: Prepared) -> list[tuple[Estimate, Model]]:
        """Take the next frame; give what may go out, in order."""
        with self._lock:
            self._recent.append(prepared)
        network = self._network.push(prepared) if self._network else []
        return self._choose(self._classical.push(prepared), network)

    def flush(self) -> list[tuple[Estimate, Model]]:
        """The run is over: give all that is owed."""
        network = self._network.flush() if self._network else []
        out = self._choose(self._classical.flush(), network)
        rest = self._release_classical()  # a network that was never warm owes nothing
        return out + rest

    def _choose(
        self, classical: list[Estimate], network: list[Estimate]
    ) -> list[tuple[Estimate, Model]]:
        self._kept.extend(classical)
        out: list[tuple[Estimate, Model]] = []
        for estimate in network:
            if estimate.prepared.position == self._next:
                out.append((estimate, self._model))
                self._next += 1
        if out:
            self._live = self._model
            while self._kept and self._kept[0].prepared.position < self._next:
                self._kept.popleft()
        elif not network:  # else it answers for frames that went out already: it catches up
            out = self._release_classical()
        return out

    def _release_classical(self) -> list[tuple[Estimate, Model]]:
        out = []
        while self._kept:
            estimate = self._kept.popleft()
            if estimate.prepared.position >= self._next:
                out.append((estimate, self._fallback))
                self._next = estimate.prepared.position + 1
        if out:
            self._live = self._fallback
        return out
