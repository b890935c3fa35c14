"""Runs an engine over the frames of a recording, forwards or backwards in time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from quietbeam.config import EngineConfig
from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.engine import Engine
from quietbeam.model.clean import Prepared
from quietbeam.model.engines import build_engine
from quietbeam.offline.calibrated import CalibratedSeries

Blind = tuple[Prepared, NDArray[np.float32], NDArray[np.float32]]
"""A frame, its blind mean (h, w) and the variance of that (h, w), stabilised units."""

_COMPILE_ABOVE = 20_000_000  # pixels: below, compiling an engine takes longer than torch does


class Frames(Protocol):
    """Prepared frames by number."""

    def __len__(self) -> int: ...

    def prepared(self, index: int) -> Prepared:
        """Give frame ``index``."""
        ...


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some frames of a recording, in the order of ``places``, which may run backwards."""

    recording: CalibratedSeries
    places: range

    def __len__(self) -> int:
        return len(self.places)

    def prepared(self, index: int) -> Prepared:
        """Give the frame that is number ``index`` here."""
        return self.recording.prepared(self.places[index])


def engine_for(module: StreamingDenoiser, recording: CalibratedSeries) -> Engine:
    """Give an engine for one pass: compiled where that pays."""
    pixels = len(recording) * recording.shape[0] * recording.shape[1]
    kind = "auto" if pixels > _COMPILE_ABOVE else "torch"
    config = EngineConfig(kind=kind, precision="f32", threads=torch.get_num_threads())
    return build_engine(module, recording.shape, config)


def blind_estimates(engine: Engine, frames: Frames) -> Iterator[Blind]:
    """Run ``engine`` over frames: one answer for each, in order.

    Beyond the ends stand frames from inside that none of the first (last)
    ``lag`` frames has in its window otherwise, so that every estimate is blind
    there too.  The first frames come from a short pass of their own, because
    what stands before the start must not enter the memories.
    """
    total, lag = len(frames), engine.lag
    last = total - 1
    head = min(lag, total)

    def inside(index: int) -> int:
        period = max(1, 2 * last)
        index = abs(index) % period
        return period - index if index > last else index

    engine.reset()
    if head:
        for before in range(lag, 0, -1):
            engine(frames.prepared(inside(lag - 1 + before)).z)
        for i in range(lag + head):
            answer = engine(frames.prepared(inside(i)).z)
            if i >= lag:
                yield frames.prepared(i - lag), *answer
        engine.reset()
    for i in range(total + lag if total > head else 0):
        index = i if i < total else inside(2 * last + 1 - lag - i)
        answer = engine(frames.prepared(index).z)
        if i - lag >= head:
            yield frames.prepared(i - lag), *answer
