"""Frames of several channels are (c, h, w), of one (h, w); a *plane* is one channel's (h, w)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CHANNELS = 16
"""More are a stack of images, not channels of one."""


def planes(image: NDArray[Any]) -> list[NDArray[Any]]:
    """Give the planes of (h, w) or (c, h, w), as views."""
    return [image] if image.ndim == 2 else list(image)


def stacked(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Put planes (h, w) together: (c, h, w), or (h, w) itself where there is only one."""
    return parts[0] if len(parts) == 1 else np.stack(parts)
