"""Compresses images as detectors do, with HDF5's own filters: they define the framing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

_Codec = Literal["bslz4", "bszstd", "lz4"]


def packed(pixels: NDArray[Any], compression: Literal["none", "lz4", "bslz4"]) -> bytes:
    """As they are, or with the framing of HDF5's filters."""
    packers = {"none": lambda p: p.tobytes(), "lz4": lz4, "bslz4": bslz4}
    return packers[compression](pixels)


def bslz4(pixels: NDArray[Any]) -> bytes:
    """Bitshuffle and LZ4, with the 12-byte header of HDF5's filter."""
    return _dataset("bslz4", pixels.shape, pixels.dtype.str).compress(pixels)


def bszstd(pixels: NDArray[Any]) -> bytes:
    """Bitshuffle and Zstandard, with the same header."""
    return _dataset("bszstd", pixels.shape, pixels.dtype.str).compress(pixels)


def lz4(pixels: NDArray[Any]) -> bytes:
    """LZ4 with the header of HDF5's filter: total, block size, then sized blocks."""
    return _dataset("lz4", pixels.shape, pixels.dtype.str).compress(pixels)


def bare_lz4(pixels: NDArray[Any]) -> bytes:
    """One LZ4 block without any header (Stream V1, areaDetector)."""
    framed = lz4(pixels)
    block = framed[16:]
    if len(block) == pixels.nbytes:  # stored: the block is no LZ4 but the bytes themselves
        return _literals(block)
    return block


def _literals(data: bytes) -> bytes:
    """Write an LZ4 block that is one run of literals."""
    rest = len(data) - 15
    if rest < 0:
        return bytes([len(data) << 4]) + data
    return b"\xf0" + b"\xff" * (rest // 255) + bytes([rest % 255]) + data


class _Dataset:
    """An HDF5 dataset in memory whose one chunk is the compressed image."""

    def __init__(self, codec: str, shape: tuple[int, ...], dtype: str) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        name = f"{codec}-{shape}-{dtype}"
        file = h5py.File(name, "w", driver="core", backing_store=False)
        filters = {
            "bslz4": hdf5plugin.Bitshuffle(),
            "bszstd": hdf5plugin.Bitshuffle(cname="zstd"),
            "lz4": hdf5plugin.LZ4(nbytes=size),
        }[codec]
        self._dataset: Any = file.create_dataset("x", shape, dtype, chunks=shape, **filters)
        self._origin = (0,) * len(shape)

    def compress(self, pixels: NDArray[Any]) -> bytes:
        self._dataset[...] = pixels
        self._dataset.file.flush()
        mask, chunk = self._dataset.id.read_direct_chunk(self._origin)
        if mask:
            raise RuntimeError("HDF5 left the filter out")
        return bytes(chunk)


@lru_cache(maxsize=8)
def _dataset(
    codec: Literal["bslz4", "bszstd", "lz4"], shape: tuple[int, ...], dtype: str
) -> _Dataset:
    return _Dataset(codec, shape, dtype)
