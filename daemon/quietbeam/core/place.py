"""Where a decoder puts the pixels it makes: a place lent to it, or memory of their own.

Whoever takes a source's frames may lend the very memory that they are to end
in, so that decompressed pixels are never copied.  Sources need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Lender = Callable[[int], NDArray[np.uint8] | None]
"""Gives so many bytes to write into, or None; takes them back when nobody holds them any more."""

_lender: ContextVar[Lender | None] = ContextVar("lender", default=None)


@contextmanager
def lent_by(lender: Lender) -> Iterator[None]:
    """Let ``pixels`` of this thread ask ``lender`` first."""
    token = _lender.set(lender)
    try:
        yield
    finally:
        _lender.reset(token)


def pixels(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Give an array to be filled, C order, of any content."""
    lender = _lender.get()
    lent = None if lender is None else lender(prod(shape) * dtype.itemsize)
    return np.empty(shape, dtype) if lent is None else lent.view(dtype).reshape(shape)
