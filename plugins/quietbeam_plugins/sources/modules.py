"""Puts the modules of a detector together into frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam_plugins.sources.payload import RefusedError

_MOST_WAITING = 32


@dataclass(frozen=True, slots=True)
class Module:
    """Where the pixels of a module belong.

    Attributes:
        number: Of the frame.
        row: From 0, below ``grid[0]``.
        column: From 0, below ``grid[1]``.
        grid: (rows, columns) of modules in the detector.
        time_ns: Detector clock.
    """

    number: int
    row: int
    column: int
    grid: tuple[int, int]
    time_ns: int


@dataclass(slots=True)
class Mosaic:
    """A frame, as far as its modules have come.

    Attributes:
        number: Of the frame.
        pixels: (h, w); the dtype's maximum where a module is missing.
        missing: (row, column) of every module that has not come.
        time_ns: Detector clock of the first module.
        received_ns: Our monotonic clock at the first module.
    """

    number: int
    pixels: NDArray[Any]
    missing: list[tuple[int, int]]
    time_ns: int
    received_ns: int


class Assembler:
    """Collects modules; gives frames in the order of their numbers.

    Every receiver sends its modules in order.  So when a frame is complete,
    what lacks in earlier ones will not come any more.

    Args:
        timeout_s: How long a frame waits for its last module.
        max_bytes: Larger frames are refused.

    Attributes:
        given: The highest number given so far; -1 before the first.
    """

    def __init__(self, timeout_s: float, max_bytes: int) -> None:
        self.given = -1
        self._timeout_ns = round(timeout_s * 1e9)
        self._max_bytes = max_bytes
        self._mosaics: dict[int, Mosaic] = {}

    @property
    def waiting(self) -> int:
        """How many frames wait for modules."""
        return len(self._mosaics)

    def add(self, module: Module, pixels: NDArray[Any], received_ns: int) -> Iterator[Mosaic]:
        """Place a module (h, w); give the frames that wait for nothing more.

        Raises:
            RefusedError: It came already or too late, or does not fit its frame.
        """
        if module.number <= self.given:
            detail = f"a module of frame {module.number}, which was given already"
            raise RefusedError("duplicate", detail)
        mosaic = self._mosaics.get(module.number) or self._begin(module, pixels, received_ns)
        place = module.row, module.column
        (rows, columns), (h, w) = module.grid, pixels.shape
        if mosaic.pixels.shape != (rows * h, columns * w):
            detail = f"a module {(h, w)} of frame {module.number}, which is {mosaic.pixels.shape}"
            raise RefusedError("shape", detail)
        if mosaic.pixels.dtype != pixels.dtype:
            detail = f"a module of {pixels.dtype} in a frame of {mosaic.pixels.dtype}"
            raise RefusedError("dtype", detail)
        if place not in mosaic.missing:
            raise RefusedError("duplicate", f"module {place} of frame {module.number}")
        mosaic.missing.remove(place)
        mosaic.pixels[module.row * h :][:h, module.column * w :][:, :w] = pixels
        self._mosaics[module.number] = mosaic
        if not mosaic.missing:
            yield from self._give(n for n in self._mosaics if n <= module.number)
        elif len(self._mosaics) > _MOST_WAITING:
            yield from self._give([min(self._mosaics)])

    def overdue(self, now_ns: int) -> Iterator[Mosaic]:
        """Give the frames that waited too long, and those before them."""
        late = (n for n, m in self._mosaics.items() if now_ns - m.received_ns > self._timeout_ns)
        newest = max(late, default=-1)
        yield from self._give(n for n in self._mosaics if n <= newest)

    def flush(self) -> Iterator[Mosaic]:
        """Give all that wait: nothing more comes."""
        yield from self._give(self._mosaics)

    def _begin(self, module: Module, pixels: NDArray[Any], received_ns: int) -> Mosaic:
        rows, columns = module.grid
        h, w = pixels.shape
        size = rows * columns * pixels.nbytes
        if size > self._max_bytes:
            detail = f"{rows} x {columns} modules of {(h, w)}: more than {self._max_bytes} bytes"
            raise RefusedError("oversized", detail)
        nothing = np.iinfo(pixels.dtype).max
        canvas = np.full((rows * h, columns * w), nothing, pixels.dtype)
        places = [(row, column) for row in range(rows) for column in range(columns)]
        return Mosaic(module.number, canvas, places, module.time_ns, received_ns)

    def _give(self, numbers: Any) -> Iterator[Mosaic]:
        for number in sorted(numbers):
            self.given = max(self.given, number)
            yield self._mosaics.pop(number)
