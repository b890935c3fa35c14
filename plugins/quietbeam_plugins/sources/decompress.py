"""Decompresses images to where they shall be.

Decompression is dectris-compression's, because it reports damage as an error;
``bitshuffle`` crashes the process on truncated input.  Its C function is called
where the wheel has it, for it writes to any memory and so spares a copy; its
Python function makes a new object of every image.
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import dectris.compression
import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from quietbeam_plugins.sources.refused import RefusedError

Bytes = bytes | memoryview
Codec = Literal["", "lz4", "bslz4", "bszstd", "zlib", "blosc"]

_HEADER = struct.Struct(">QI")
_LENGTH = struct.Struct(">I")
_BLOSC_HEADER = struct.Struct("<BBBBIII")  # versions, flags, item, whole, block, packed
_BLANK = bytes(_HEADER.size)
_BLOCK_BYTES = 8192
_NUMBERS = {"bslz4": 0, "lz4": 1}
"""Of the algorithms, in the C interface; that of bszstd is not documented."""


def decompress(blob: Bytes, codec: Codec, pixels: NDArray[Any]) -> None:
    """Fill an array with the uncompressed bytes; rubbish after the compressed ones is ignored.

    Args:
        blob: With or without the header of HDF5's filters.
        codec: Not "".
        pixels: C order; its size and that of its items say what is expected.

    Raises:
        RefusedError: The blob is damaged, or does not give as many bytes.
    """
    itemsize, size = pixels.itemsize, pixels.nbytes
    if not len(blob):
        raise RefusedError("truncated", "the compressed image is empty")
    if codec == "zlib":
        _put(_inflate(blob, size), pixels)
    elif codec == "blosc":
        _put(_unblosc(blob, size), pixels)
    elif codec in {"bslz4", "bszstd"} and size < 8 * itemsize:
        _put(_stored(blob, size), pixels)
    elif len(blob) >= _HEADER.size and int.from_bytes(blob[:8], "big") == size:
        _framed(blob, codec, pixels)
    elif codec == "bslz4":
        # libertem-dectris' simulator sends the header, but leaves it blank.
        blocks = blob[_HEADER.size :] if bytes(blob[: _HEADER.size]) == _BLANK else blob
        end = _blocks_end(blocks, itemsize, size)
        _framed(_HEADER.pack(size, _BLOCK_BYTES) + blocks[:end], codec, pixels)
    elif codec == "lz4":
        _bare_lz4(blob, pixels)
    else:
        raise RefusedError("compression", f"{codec}: no header that declares {size} bytes")


def _put(data: Bytes, pixels: NDArray[Any]) -> None:
    pixels.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)


def _framed(blob: Bytes, codec: Codec, pixels: NDArray[Any]) -> None:
    """Decompress what has the header of HDF5's filters."""
    size, direct = pixels.nbytes, _c_function()
    if direct is not None and codec in _NUMBERS:
        source = np.frombuffer(blob, np.uint8)
        number, target = _NUMBERS[codec], pixels.ctypes.data
        given = direct(number, target, size, source.ctypes.data, source.size, pixels.itemsize)
        if given != size:
            raise RefusedError("compression", f"{codec}: {len(blob)} bytes do not give {size}")
        return
    _put(_as_bytes(blob, codec, pixels.itemsize, size), pixels)


def _as_bytes(blob: Bytes, codec: Codec, itemsize: int, size: int) -> bytes:
    """Decompress to an object of its own."""
    try:
        data = dectris.compression.decompress(blob, codec, elem_size=itemsize)
    except (RuntimeError, ValueError, MemoryError) as error:
        detail = f"{codec}: {len(blob)} bytes do not give {size}: {error}"
        raise RefusedError("compression", detail) from None
    if len(data) != size:
        raise RefusedError("compression", f"{codec}: {len(data)} bytes, expected {size}")
    return data


@cache
def _c_function() -> Callable[..., int] | None:
    """Give ``compression_decompress_buffer``, which never writes beyond its target.

    Declared in ``compression.h`` of dectris-compression: (algorithm, target,
    its size, source, its size, bytes of an item) to the bytes written.
    """
    try:
        function = ctypes.CDLL(dectris.compression.__file__).compression_decompress_buffer
    except (AttributeError, OSError):
        return None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, size, pointer, size, size]
    function.restype = size
    return function


def _stored(blob: Bytes, size: int) -> Bytes:
    """Bitshuffle leaves fewer than 8 items as they are, so that they may look like a header."""
    start = _HEADER.size if len(blob) >= _HEADER.size + size else 0
    if len(blob) < size:
        raise RefusedError("truncated", f"{len(blob)} bytes that are not compressed, of {size}")
    return blob[start : start + size]


def _inflate(blob: Bytes, size: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(blob, size)
        more = inflater.decompress(inflater.unconsumed_tail, 1)
    except zlib.error as error:
        raise RefusedError("compression", f"zlib: {error}") from None
    if len(data) < size:
        raise RefusedError("truncated", f"zlib gives {len(data)} bytes, expected {size}")
    if more:
        raise RefusedError("oversized", f"zlib gives more than the expected {size} bytes")
    return data


def _unblosc(blob: Bytes, size: int) -> bytes:
    """Let HDF5's filter do it, after a look at the header that it would believe."""
    if len(blob) < _BLOSC_HEADER.size:
        raise RefusedError("truncated", f"blosc: {len(blob)} bytes")
    *_, whole_size, _, packed_size = _BLOSC_HEADER.unpack_from(blob)
    if whole_size != size or packed_size > len(blob):
        detail = f"blosc declares {packed_size} bytes for {whole_size}; got {len(blob)} for {size}"
        raise RefusedError("compression", detail)
    with h5py.File(f"blosc-{id(blob)}", "w", driver="core", backing_store=False) as file:
        filters = hdf5plugin.Blosc(shuffle=hdf5plugin.Blosc.NOSHUFFLE)
        dataset: Any = file.create_dataset("x", (size,), "u1", chunks=(size,), **filters)
        dataset.id.write_direct_chunk((0,), bytes(blob[:packed_size]))
        try:
            return dataset[()].tobytes()
        except OSError as error:
            raise RefusedError("compression", f"blosc: {error}") from None


def _blocks_end(blocks: Bytes, itemsize: int, size: int) -> int:
    """Find where bitshuffled LZ4 blocks end: areaDetector sends rubbish after them."""
    block_items = _BLOCK_BYTES // itemsize
    full, rest = divmod(size // itemsize, block_items)
    at = 0
    try:
        for _ in range(full + (rest >= 8)):
            at += 4 + _LENGTH.unpack_from(blocks, at)[0]
    except struct.error:
        return len(blocks)
    return at + rest % 8 * itemsize  # what fills no 8 items is not compressed


def _bare_lz4(blob: Bytes, pixels: NDArray[Any]) -> None:
    """Decompress one block without a header, by putting HDF5's before it."""
    size = pixels.nbytes
    block = bytes(blob[: _block_end(blob, size)])
    if len(block) != size:
        _framed(_HEADER.pack(size, size) + _LENGTH.pack(len(block)) + block, "lz4", pixels)
        return
    # HDF5 takes a block as long as its content for a stored one, so such a
    # block gets a harmless start: 1 literal, then a match of the 4 bytes after it.
    block, total = b"\x10\x00\x01\x00" + block, size + 5
    longer = np.empty(total, np.uint8)
    _framed(_HEADER.pack(total, total) + _LENGTH.pack(len(block)) + block, "lz4", longer)
    _put(longer[5:].data, pixels)


def _block_end(blob: Bytes, size: int) -> int:
    """Find where an LZ4 block of ``size`` bytes ends: areaDetector sends rubbish after it."""
    if len(blob) < size:  # it sends as many bytes as the uncompressed image has
        return len(blob)
    at, out = 0, 0
    try:
        while out < size:
            token = blob[at]
            literals, at = _length(blob, at + 1, token >> 4)
            at, out = at + literals, out + literals
            if out >= size:
                break
            match, at = _length(blob, at + 2, token & 15)
            out += match + 4
    except IndexError:
        return len(blob)
    return at


def _length(blob: Bytes, at: int, nibble: int) -> tuple[int, int]:
    """Read a length of an LZ4 sequence: (length, next position)."""
    length = nibble
    while nibble == 15:
        extra = blob[at]
        at, length = at + 1, length + extra
        if extra != 255:
            break
    return length, at
