"""Which channels a frame has, what they are called, and which of them are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from quietbeam.core.planes import MAX_CHANNELS, stacked
from quietbeam_plugins.sources.payload import RefusedError, sizes_of

Wanted = Literal["all"] | Annotated[tuple[str, ...], Field(min_length=1)]
"""Names in the order they are taken in, or all there are."""

_COLOURS = ("red", "green", "blue", "alpha")
# areaDetector's NDColorMode: where the colours are once axes are slowest first
_COLOUR_AXIS = {2: 2, 3: 1, 4: 0, "RGB1": 2, "RGB2": 1, "RGB3": 0}
_MAX_NAME = 64


def channel_names(value: Any) -> tuple[str, ...]:
    """Check the names of channels.

    Raises:
        RefusedError: They are no different, printable names, or too many.
    """
    if not isinstance(value, list | tuple) or not value:
        raise RefusedError("malformed", f"channels are {value!r:.60}, expected a list of names")
    if len(value) > MAX_CHANNELS:
        raise RefusedError("oversized", f"{len(value)} channels; at most {MAX_CHANNELS} are read")
    for name in value:
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _MAX_NAME:
            raise RefusedError("malformed", f"channel {name!r:.60} is not a name")
    if len(set(value)) < len(value):
        raise RefusedError("malformed", f"channels {value!r:.200}: a name twice")
    return tuple(value)


def chosen(names: Sequence[str], wanted: Wanted) -> tuple[str, ...]:
    """Give the names of the channels to take.

    Raises:
        RefusedError: One that is wanted is not there.
    """
    if wanted == "all":
        return tuple(names)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise RefusedError("malformed", f"no channel {missing[0]!r} in {list(names)}")
    return wanted


def together(images: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Put the images of several channels together: (c, h, w), or (h, w) for one.

    Raises:
        RefusedError: They differ in shape or dtype.
    """
    first = images[0]
    for image in images[1:]:
        if image.shape != first.shape:
            raise RefusedError("shape", f"channels of {first.shape} and {image.shape} in one image")
        if image.dtype != first.dtype:
            detail = f"channels of {first.dtype} and {image.dtype} in one image; choose `channels`"
            raise RefusedError("dtype", detail)
    return stacked(images)


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array of the wire becomes a frame.

    Attributes:
        sizes: As on the wire, slowest axis first; 2 or 3 of them.
        axis: Of the channels; None where there is one.
        taken: Positions on that axis, in the order they are taken in.
        channels: Their names; empty for one.
    """

    sizes: tuple[int, ...]
    axis: int | None = None
    taken: tuple[int, ...] = ()
    channels: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Give that of the frame: (h, w), or (c, h, w) where several channels are taken."""
        image = tuple(size for axis, size in enumerate(self.sizes) if axis != self.axis)
        return (len(self.taken), *image) if len(self.taken) > 1 else image

    def frame(self, array: NDArray[Any]) -> NDArray[Any]:
        """Give the frame, C order, of an array of ``sizes``."""
        if self.axis is None:
            return array
        picked = np.moveaxis(array, self.axis, 0)[list(self.taken)]
        return np.ascontiguousarray(picked).reshape(self.shape)


def layout_of(shape: Any, names: Any, colour_mode: Any, wanted: Wanted) -> Layout:
    """Read how an image array is laid out; leading axes of length 1 are dropped.

    Args:
        shape: Sizes, slowest axis first.
        names: Of the channels on the first of three axes, or None.
        colour_mode: areaDetector's ``ColorMode``, or None.
        wanted: Which channels to take.

    Raises:
        RefusedError: It is not one image, or has not the channels wanted.
    """
    sizes = sizes_of(shape)
    while len(sizes) > 2 and sizes[0] == 1:
        sizes = sizes[1:]
    if len(sizes) == 2:
        return Layout(sizes)
    axis = _channel_axis(sizes, names, colour_mode)
    if axis is None:
        detail = (
            f"shape {shape!r:.60} is not one image [height, width], nor one of several channels"
        )
        raise RefusedError("shape", detail)
    count = sizes[axis]
    is_colour = count in {3, 4} and (axis == 2 or colour_mode in _COLOUR_AXIS)
    if names is not None:
        known = channel_names(names)
    else:
        known = _COLOURS[:count] if is_colour else tuple(f"channel_{n + 1}" for n in range(count))
    taken = chosen(known, wanted)
    positions = tuple(known.index(name) for name in taken)
    return Layout(sizes, axis, positions, taken if len(taken) > 1 else ())


def _channel_axis(sizes: tuple[int, ...], names: Any, colour_mode: Any) -> int | None:
    if len(sizes) != 3:
        return None
    if isinstance(names, list):
        return 0 if sizes[0] == len(names) else None
    told = _COLOUR_AXIS.get(colour_mode) if isinstance(colour_mode, int | str) else None
    if told is not None and sizes[told] == 3:
        return told
    if sizes[2] in {1, 3, 4}:
        return 2
    return 0 if sizes[0] <= MAX_CHANNELS else None
