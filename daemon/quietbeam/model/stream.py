"""Runs an engine over a run of frames: one estimate per frame, in order, ends mirrored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.engine import Engine

Float = NDArray[np.float32]
Estimate = tuple[Float, Float]


class Streamer:
    """Feeds one engine with one run.

    An engine of lag k answers frame i with the estimate of frame i - k.  At
    both ends the missing frames are mirrored about the end (``2 1 | 0 1 2``).
    The end frame itself stays blind; frames nearer to it than the lag meet
    themselves once in the mirrored part, which is the price of having them.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._recent: list[Float] = []  # the newest lag + 1 frames
        self._primed = False
        engine.reset()

    def push(self, frame: Float) -> list[Estimate]:
        """Take the next frame, (h, w) or (c, h, w); give the estimates now ready, oldest first."""
        lag = self.engine.lag
        self._recent = [*self._recent, frame][-(lag + 1) :]
        if self._primed:
            return [self.engine(frame)]
        return self._prime() if len(self._recent) == lag + 1 else []

    def flush(self) -> list[Estimate]:
        """The run is over: give the estimates still owed."""
        estimates: list[Estimate] = []
        if not self._primed:
            if not self._recent:
                return []
            owed = len(self._recent)
            self._pad_short()
            estimates = self._prime()
        else:
            owed = self.engine.lag
        for frame in self._mirrored_tail():
            estimates.append(self.engine(frame))
        self._recent, self._primed = [], False
        return estimates[:owed]

    def _prime(self) -> list[Estimate]:
        """Start the engine on the mirrored past, then on what has come so far."""
        for frame in reversed(self._recent[1:]):
            self.engine(frame)
        self._primed = True
        answers = [self.engine(frame) for frame in self._recent]
        return answers[self.engine.lag :]

    def _pad_short(self) -> None:
        """A run shorter than the lag goes back and forth over what there is."""
        frames, forth = self._recent, list(self._recent)
        back = frames[-2:0:-1] if len(frames) > 2 else frames[:1]
        while len(forth) < self.engine.lag + 1:
            forth += back + frames
        self._recent = forth[: self.engine.lag + 1]

    def _mirrored_tail(self) -> list[Float]:
        return self._recent[-2::-1] if self.engine.lag else []
