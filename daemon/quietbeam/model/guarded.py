"""An engine in a thread of its own: a device that hangs does not hang the stream."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.engine import Engine, Weights
from quietbeam.core.errors import EngineError

T = TypeVar("T")
Float = NDArray[np.float32]

ANSWER_S = 1.0
"""A frame that takes a GPU longer is not coming: with the change to the classical
denoiser that makes less than two seconds."""

STAGE_S = 30.0
BUILD_S = 900.0  # a plan, its time limit included


class Guarded:
    """Passes calls on to an engine that lives in another thread, and waits so long and no longer.

    Once a call has failed to return, the engine and its thread are given up:
    every further call fails at once.  (A call into a hung driver cannot be
    ended; the thread is a daemon and holds up no exit.)

    Args:
        build: Makes the engine, in its thread.
        answer_s: How long a frame may take.

    Raises:
        EngineError: What building raises, or that it does not end.
    """

    def __init__(self, build: Callable[[], Engine], *, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._lost: str | None = None
        self._calls: queue.SimpleQueue[tuple[Callable[[], object], Future[object]] | None]
        self._calls = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(self._calls,), name="engine", daemon=True).start()
        self._engine = self._ask(build, BUILD_S)
        self.lag, self.blind = self._engine.lag, self._engine.blind
        self.kind = str(getattr(self._engine, "kind", ""))
        self.precision = str(getattr(self._engine, "precision", "f32"))

    def __del__(self) -> None:
        self._calls.put(None)

    def reset(self) -> None:
        """Forget all frames."""
        self._ask(self._engine.reset, self._answer_s)

    def __call__(self, frame: Float) -> tuple[Float, Float]:
        """Take frame i, give mean and variance of frame i - lag."""
        return self._ask(lambda: self._engine(frame), self._answer_s)

    def stage(self, weights: Weights) -> None:
        """Copy ``weights`` beside the live ones; in the caller's thread, while frames go on."""
        if self._lost:
            raise EngineError(self._lost)
        self._engine.stage(weights)

    def flip(self) -> None:
        """Use the staged weights from the next frame on."""
        self._ask(self._engine.flip, STAGE_S)

    def _ask(self, call: Callable[[], T], limit_s: float) -> T:
        if self._lost:
            raise EngineError(self._lost)
        answer: Future[T] = Future()
        self._calls.put((call, answer))  # type: ignore[arg-type]
        try:
            return answer.result(timeout=limit_s)
        except TimeoutError:
            self._lost = f"the device did not answer within {limit_s:g} s and was given up"
            raise EngineError(self._lost) from None


def _serve(calls: queue.SimpleQueue[tuple[Callable[[], object], Future[object]] | None]) -> None:
    while (asked := calls.get()) is not None:
        call, answer = asked
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001 - belongs to who asked
            answer.set_exception(error)
        del call, asked  # else the last frame, and the engine, would live as long as this thread
