"""One record as bytes: a JSON head with dtypes and shapes, then the arrays."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGN = 16  # arrays start there, as numpy and its friends like it
_PREFIX = struct.Struct("<II")


class Kind(IntEnum):
    """What a record is; only ``FRAME`` records count in the accounts."""

    START = 1
    FRAME = 2
    END = 3


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One record, copied out of the ring."""

    seq: int
    kind: Kind
    meta: dict[str, Any]
    arrays: tuple[NDArray[Any], ...]


def encode(
    kind: Kind, meta: dict[str, Any], arrays: Sequence[NDArray[Any]]
) -> list[bytes | memoryview]:
    """Give the pieces of a record; ``meta`` must survive JSON (numpy's numbers may)."""
    described = [[a.dtype.str, list(a.shape)] for a in arrays]
    head = _JSON.encode({"m": meta, "a": described}).encode()
    head += b" " * (-(_PREFIX.size + len(head)) % _ALIGN)
    pieces: list[bytes | memoryview] = [_PREFIX.pack(int(kind), len(head)), head]
    for array in arrays:
        if array.size:
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            pieces += [flat.data, bytes(-flat.size % _ALIGN)]
    return pieces


def decode(seq: int, data: bytes | bytearray) -> Record:
    """Read back what ``encode`` gave; arrays are views of ``data``."""
    kind, length = _PREFIX.unpack_from(data)
    offset = _PREFIX.size + length
    head = json.loads(bytes(data[_PREFIX.size : offset]))
    arrays = []
    for dtype_text, shape in head["a"]:
        dtype = np.dtype(dtype_text)
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(data, dtype, count, offset).reshape(shape))
        size = count * dtype.itemsize
        offset += size + -size % _ALIGN
    return Record(seq, Kind(kind), head["m"], tuple(arrays))


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be put into a record")


_JSON = json.JSONEncoder(default=_plain)
"""``json.dumps`` would make one for every frame."""
