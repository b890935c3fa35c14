"""Makes the HDF5 file that a ``Layout`` describes."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Literal

import h5py
import hdf5plugin
import numpy as np

from quietbeam.core.recording import Column, Constant, Layout, Slot
from quietbeam.offline.repair import LIBVER, Node, rename_new

Compression = Literal["bslz4", "bszstd", "gzip", "none"]

_CHUNK_BYTES, _CHUNK_ROWS = 65536, 1024


def create(path: Path, layout: Layout, compression: Compression) -> Node:
    """Make ``path`` (which must not exist) with every object in place, in SWMR mode.

    The file has the name ``path`` only once readers can open it.

    Raises:
        OSError: The file exists or cannot be written.
    """
    unready = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.new")
    unready.unlink(missing_ok=True)
    file: Node = h5py.File(unready, "x", libver=LIBVER)
    try:
        for group, attributes in layout.groups.items():
            file.require_group(group).attrs.update(attributes)
        for name, constant in layout.constants.items():
            _constant(file, name, constant)
        for name, column in layout.columns.items():
            _column(file, name, column, compression)
        for name, slot in layout.slots.items():
            _slot(file, name, slot)
        for name, target in layout.links.items():
            file[target].attrs["target"] = target  # how NeXus marks what a hard link points to
            file[name] = file[target]
        file.flush()
        file.swmr_mode = True
        rename_new(unready, path)
    except BaseException:
        file.close()
        unready.unlink(missing_ok=True)
        raise
    return file


def remove_unready(directory: Path) -> None:
    """Remove files whose maker was killed before readers could open them."""
    for path in directory.glob("*.part.*.new"):
        host, _, pid = path.name.split(".")[-2].rpartition("-")
        if host == socket.gethostname() and not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)


def fixed_text(length: int) -> np.dtype[Any]:
    """Give the type of UTF-8 text of ``length`` bytes at most; SWMR allows no other."""
    return h5py.string_dtype("utf-8", max(length, 1))


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return fixed_text(dtype.itemsize) if dtype.kind == "S" else dtype


def _describe(item: Any, unit: str, description: str) -> None:
    if unit:
        item.attrs["units"] = unit
    if description:
        item.attrs["description"] = description


def _constant(file: Node, name: str, constant: Constant) -> None:
    value = constant.value
    if isinstance(value, str):
        encoded = value.encode()
        item = file.create_dataset(name, data=np.bytes_(encoded), dtype=fixed_text(len(encoded)))
    elif isinstance(value, np.ndarray) and value.dtype.kind == "S":
        item = file.create_dataset(name, data=value.astype(fixed_text(value.itemsize)))
    elif isinstance(value, np.ndarray) and value.size > 1:
        chunks = value.shape  # compressed: masks are large and nearly empty
        item = file.create_dataset(name, data=value, chunks=chunks, compression="gzip")
    else:
        item = file.create_dataset(name, data=value)
    _describe(item, constant.unit, constant.description)


def _column(file: Node, name: str, column: Column, compression: Compression) -> None:
    dtype = _native(column.dtype)
    row_bytes = max(1, int(np.prod(column.shape, dtype=np.int64)) * dtype.itemsize)
    rows = 1 if column.pixels else max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // row_bytes))
    item = file.create_dataset(
        name,
        shape=(0, *column.shape),
        maxshape=(None, *column.shape),
        chunks=(rows, *column.shape),
        dtype=dtype,
        **({"fillvalue": column.fill} if column.fill else {}),
        **(_filter(compression) if column.pixels else {}),
    )
    _describe(item, column.unit, column.description)
    item.attrs.update(column.attributes)


def _slot(file: Node, name: str, slot: Slot) -> None:
    dtype = _native(np.dtype(slot.dtype))
    empty = np.bytes_(b"") if dtype.kind == "S" else np.zeros(slot.shape, dtype)
    item = file.create_dataset(name, data=empty, shape=slot.shape, dtype=dtype)
    _describe(item, "", slot.description)


def _filter(compression: Compression) -> dict[str, Any]:
    match compression:
        case "bslz4":
            return dict(hdf5plugin.Bitshuffle(cname="lz4"))
        case "bszstd":
            return dict(hdf5plugin.Bitshuffle(cname="zstd"))
        case "gzip":
            return {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        case "none":
            return {}
