"""All that is remembered of one frame shape, under one memory bound."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quietbeam.config import TrainerConfig
from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.model.stabilise import Stabilisers
from quietbeam.trainer.guard import GuardSet
from quietbeam.trainer.history import History
from quietbeam.trainer.judge import Judge
from quietbeam.trainer.sampler import Sampler, target_position

_HISTORY_SHARE = 0.8  # the rest is for guard frames


class Memory:
    """What is trained on, and what is judged on.

    Args:
        shape: (h, w) of the frames; (c, h, w) with several channels.
        config: The table ``[trainer]``.
        denoiser: The one that is trained: its window and lag count.
        classical_lag: Frames that the slowest of the classical denoisers waits.
        stabilisers: By run; grows while this lives.  Frames of runs that are
            not in it are kept but not used.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        config: TrainerConfig,
        denoiser: StreamingDenoiser,
        classical_lag: int,
        stabilisers: Stabilisers,
    ) -> None:
        self.shape = shape
        budget = config.history_mib * 2**20
        history = int(budget * _HISTORY_SHARE)
        self.history = History(
            shape,
            window=denoiser.window,
            target=target_position(denoiser),
            clip_px=2 * config.patch_px,
            budget_bytes=history,
            seed=config.seed,
        )
        self.guards = GuardSet(
            shape,
            window=denoiser.window,
            after=max(denoiser.lag, classical_lag),
            budget_bytes=budget - history,
            seed=config.seed,
        )
        self.judge = Judge(shape, stabilisers)
        self.sampler = Sampler(
            self.history,
            stabilisers,
            batch=config.batch,
            patch_px=config.patch_px,
            seed=config.seed,
        )

    def append(
        self, run: str, index: int, pixels: NDArray[np.float32], valid: NDArray[np.bool_]
    ) -> None:
        """Take one corrected frame, both of ``shape``, holes filled."""
        self.history.append(run, index, pixels, valid)
        if self.history.recent is not None:
            self.guards.look(self.history.recent)
