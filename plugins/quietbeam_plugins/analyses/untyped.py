"""Libraries whose type stubs say less, or other, than their documentation."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from scipy import fft as _fft
from scipy import ndimage as _ndimage

fft: Any = _fft
ndimage: Any = _ndimage


def skimage(module: str) -> Any:
    """Give a module of scikit-image; it is imported only when it is needed."""
    return import_module(f"skimage.{module}")
