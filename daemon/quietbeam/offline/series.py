"""Reads a series of images from a file, one frame at a time.

HDF5, NeXus (the default signal, or ``file.h5:/path/to/dataset``), TIFF stacks
and ``.npy``.  Nothing is loaded before it is asked for.  Frames of several channels
are found where the file says so: NXdata whose second axis is ``channel``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.errors import DataError

HDF5_SUFFIXES = {".h5", ".hdf5", ".hdf", ".nxs", ".nx5", ".nexus", ".part", ".cxi"}
TIFF_SUFFIXES = {".tif", ".tiff", ".btf", ".tf8"}
Node = Any
"""A file, group or dataset of h5py, whose own annotations name all of them at once."""

_SIGNAL_NAMES = ("data", "frames", "images", "image")
_SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0}
_SECONDS |= {"ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0}


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """An open series of images; frames are read when they are indexed.

    Attributes:
        source: File and dataset, for messages and provenance.
        shape: (t, h, w); (t, c, h, w) with several channels.
        dtype: Of every frame, native byte order.
        frame_time_s: From one frame to the next, or None if the file does not tell.
        read: Gives frame i, 0 <= i < t; used through indexing.
        channels: Their names; empty where there is one.
    """

    source: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    frame_time_s: float | None
    read: Callable[[int], NDArray[Any]]
    channels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> NDArray[Any]:
        """Give frame ``index`` as a C-ordered array; negative counts from the end.

        Raises:
            IndexError: There is no such frame.
            DataError: The file is damaged there.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.source}: frame {index} of {len(self)}")
        try:
            pixels = self.read(index % len(self))
        except (OSError, ValueError, RuntimeError, LookupError, struct.error) as error:
            raise DataError(f"{self.source}: frame {index} cannot be read: {error}") from error
        if pixels.shape != self.shape[1:]:
            raise DataError(
                f"{self.source}: frame {index} has shape {pixels.shape}, expected {self.shape[1:]}"
            )
        return np.ascontiguousarray(pixels, dtype=self.dtype)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for index in range(len(self)):
            yield self[index]

    def channel(self, name: str | None) -> Series:
        """Give one channel of several as a series; one that is alone fits any name.

        Raises:
            DataError: There is none of that name.
        """
        if not self.channels:
            return self
        if name not in self.channels:
            wanted = "one image" if name is None else f"channel {name!r}"
            raise DataError(f"{self.source}: has channels {list(self.channels)}; expected {wanted}")
        number, (t, _, h, w) = self.channels.index(name), self.shape
        source, read = f"{self.source}[{name}]", self.read
        return Series(source, (t, h, w), self.dtype, self.frame_time_s, lambda i: read(i)[number])


@contextmanager
def open_series(spec: str | Path) -> Iterator[Series]:
    """Open ``file`` or ``file:/dataset`` (HDF5 and NeXus only).

    Raises:
        DataError: The file is missing, damaged or holds no image series; the
            message says what was found and what would do.
    """
    path, dataset = split_spec(spec)
    suffix = path.suffix.lower()
    if not path.is_file():
        what = "is a directory, expected a file" if path.is_dir() else "does not exist"
        raise DataError(f"{path}: {what}")
    with ExitStack() as stack:
        if dataset is not None or suffix in HDF5_SUFFIXES:
            series = _open_hdf5(path, dataset, stack)
        elif suffix in TIFF_SUFFIXES:
            series = _open_tiff(path, stack)
        elif suffix == ".npy":
            series = _open_npy(path)
        else:
            known = ", ".join(sorted(HDF5_SUFFIXES | TIFF_SUFFIXES | {".npy"}))
            raise DataError(f"{path}: unknown kind of file {suffix!r}; expected one of {known}")
        yield series


def split_spec(spec: str | Path) -> tuple[Path, str | None]:
    """Split ``file:/dataset`` into its parts; the dataset is None where none is named."""
    text = str(spec)
    head, colon, tail = text.rpartition(":")
    if colon and tail.startswith("/") and not Path(text).exists():
        return Path(head), tail
    return Path(text), None


def _series(
    source: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    read: Callable[[int], NDArray[Any]],
    frame_time_s: float | None = None,
    channels: tuple[str, ...] = (),
) -> Series:
    """Check that these are grey images; a single one is a series of one."""
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != (4 if channels else 3) or 0 in shape:
        raise DataError(
            f"{source}: shape {shape} is not an image series; expected (frames, height, width)"
            + (", one grey value per pixel, not colour" if shape[-1:] in {(3,), (4,)} else "")
        )
    if dtype.kind not in "uif":
        raise DataError(f"{source}: dtype {dtype} is not a count; expected integers or floats")
    return Series(source, shape, dtype.newbyteorder("="), frame_time_s, read, channels)


def _open_npy(path: Path) -> Series:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a complete .npy file of numbers: {error}") from error
    stack = array[None] if array.ndim == 2 else array
    return _series(str(path), array.shape, array.dtype, lambda i: stack[i])


def _open_tiff(path: Path, stack: ExitStack) -> Series:
    import tifffile

    try:
        file = stack.enter_context(tifffile.TiffFile(path))
        series = file.series[0]
        shape = tuple(n for n, axis in zip(series.shape, series.axes, strict=True) if n > 1)
        if len(shape) < 2:
            shape = tuple(series.shape)
        dtype = np.dtype(series.dtype)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, struct.error) as error:
        raise DataError(f"{path}: not a complete TIFF file: {error}") from error
    same = [one for one in file.series if (one.shape, one.dtype) == (series.shape, series.dtype)]
    if len(shape) == 2 and len(same) > 1:  # pages written one by one: a series each
        return _series(
            str(path), (len(same), *shape), dtype, lambda i: np.squeeze(same[i].asarray())
        )
    frames = 1 if len(shape) == 2 else shape[0]
    if len(series.pages) == frames:  # one page a frame: the usual stack
        return _series(str(path), shape, dtype, lambda i: np.squeeze(_page(series.pages[i])))
    if series.dataoffset is None:
        raise DataError(f"{path}: {len(series.pages)} pages for {shape}; expected one for a frame")
    # ImageJ writes one page and lets all frames follow it.
    try:
        whole = np.memmap(path, dtype.newbyteorder(file.byteorder), "r", series.dataoffset, shape)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: shorter than its header says: {error}") from error
    return _series(str(path), shape, dtype, lambda i: whole[i] if whole.ndim == 3 else whole)


def _page(page: Any) -> NDArray[Any]:
    if page is None:
        raise ValueError("the page is missing")
    return page.asarray()


def _open_hdf5(path: Path, name: str | None, stack: ExitStack) -> Series:
    import h5py
    import hdf5plugin  # noqa: F401  registers the compression filters

    try:
        # 64 MiB: chunks of many frames are decompressed once, not once for a frame.
        file: Node = stack.enter_context(h5py.File(path, "r", rdcc_nbytes=64 << 20))
    except OSError as error:
        raise DataError(f"{path}: not a complete HDF5 file: {error}") from error
    try:
        dataset: Node = _default_signal(file) if name is None else file.get(name)
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(f"{path}: damaged HDF5 file: {error}") from error
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: {_advice(file, name)}")

    def read(index: int) -> NDArray[Any]:
        return dataset[()] if dataset.ndim == 2 else dataset[index]

    source, channels = f"{path}:{dataset.name}", _channels(dataset)
    return _series(source, dataset.shape, dataset.dtype, read, _frame_time(dataset), channels)


def _channels(dataset: Node) -> tuple[str, ...]:
    """Read the names on the second axis of four, where the file tells them."""
    axes, names = dataset.parent.attrs.get("axes"), dataset.parent.get("channel")
    named = isinstance(axes, np.ndarray | list | tuple) and len(axes) == dataset.ndim == 4
    if not named or _text(axes[1]) != "channel" or names is None:
        return ()
    found = tuple(_text(name) for name in np.atleast_1d(names[()]))
    return found if len(found) == dataset.shape[1] > 1 else ()


def _default_signal(file: Node) -> Any:
    """Follow NeXus from the root to the default signal; else take the obvious dataset."""
    group = _nexus_default(file, "NXentry")
    group = group and _nexus_default(group, "NXdata")
    if group is not None:
        signal = _text(group.attrs.get("signal"))
        if signal in group and _is_image_series(group[signal]):
            return group[signal]
        for item in group.values():  # before 2014 the attribute was on the dataset
            if _text(item.attrs.get("signal")) == "1":
                return item
    choices = _image_datasets(file)
    named = [choice for choice in choices if choice.name.rsplit("/", 1)[-1] in _SIGNAL_NAMES]
    if len(choices) == 1 or len(named) == 1:
        return (named or choices)[0]
    return None


def _is_image_series(item: Any) -> bool:
    return item.ndim in {2, 3} or bool(_channels(item))


def _nexus_default(group: Node, nexus_class: str) -> Any:
    """Give the default child of a NeXus class, or the first one, or None."""
    import h5py

    default = _text(group.attrs.get("default"))
    if default and isinstance(group.get(default), h5py.Group):
        return group[default]
    for item in group.values():
        if isinstance(item, h5py.Group) and _text(item.attrs.get("NX_class")) == nexus_class:
            return item
    return None


def _image_datasets(file: Node) -> list[Any]:
    """Every dataset that could be a series of images."""
    import h5py

    found: list[Any] = []

    def look(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == 3 and item.dtype.kind in "uif":
            found.append(item)

    file.visititems(look)
    return found


def _advice(file: Node, name: str | None) -> str:
    choices = ", ".join(item.name for item in _image_datasets(file)) or "none"
    if name is not None:
        return f"there is no dataset {name!r}; image series in this file: {choices}"
    return (
        f"no default image series; name one as {file.filename}:/path/to/dataset; "
        f"image series in this file: {choices}"
    )


def _frame_time(dataset: Node) -> float | None:
    """Read the spacing of the time axis beside the signal, where there is one."""
    group = dataset.parent
    axes = group.attrs.get("axes")
    first = _text(axes[0]) if isinstance(axes, np.ndarray | list | tuple) and len(axes) else ""
    for name in (first, "time"):
        axis = group.get(name) if name else None
        if axis is None or getattr(axis, "shape", None) != dataset.shape[:1] or len(axis) < 2:
            continue
        scale = _SECONDS.get(_text(axis.attrs.get("units")).lower())
        step = float(np.median(np.diff(axis[()].astype(float))))
        if scale is not None and step > 0:
            return step * scale
    return None


def _text(value: Any) -> str:
    """Read an attribute that may be text, bytes, a number or an array of one."""
    if isinstance(value, np.ndarray):
        value = value.flat[0] if value.size else ""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)
