"""How a denoiser is executed: one engine, one frame shape, one stream of frames.

Of frames (c, h, w) each channel is a stream of its own: it has its own state
and its estimate depends on that channel alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Weights = Mapping[str, NDArray[np.float32]]
"""By the name in the module's ``state_dict``."""


class Engine(Protocol):
    """Runs one denoiser.  ``stage`` may be called from any one thread; all else from one."""

    lag: int
    blind: bool

    def reset(self) -> None:
        """Forget all frames: a run starts, or frames are missing."""
        ...

    def __call__(
        self, frame: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take frame i, give mean and variance of frame i - lag.

        All three are (h, w), or all (c, h, w).
        """
        ...

    def stage(self, weights: Weights) -> None:
        """Copy ``weights`` beside the live ones; frames go on meanwhile.

        Raises:
            EngineError: Names or shapes do not fit, or a value is not finite.
        """
        ...

    def flip(self) -> None:
        """Use the staged weights from the next frame on; staged and live change places."""
        ...
