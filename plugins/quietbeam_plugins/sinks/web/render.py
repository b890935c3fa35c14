"""Makes the binary message of a frame, and shares what viewers with equal views have in common."""

from __future__ import annotations

import asyncio
import json
import math
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from quietbeam_plugins.sinks.web import planes as pl
from quietbeam_plugins.sinks.web.entries import Entry
from quietbeam_plugins.sinks.web.messages import View

MAGIC = b"QBF1"
_PREFIX = struct.Struct("<4sI")
_ALIGN = 8
_CACHE_BYTES = 96 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """A frame for one view: header without what is personal, and the data of its pieces."""

    header: dict[str, Any]
    planes: tuple[pl.Encoded, ...]
    maps: tuple[pl.Encoded, ...]

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return sum(len(piece.data) for piece in (*self.planes, *self.maps)) + 4096


def rendered(entry: Entry, view: View) -> Rendered:
    """Bin and encode one frame for one view; costs milliseconds, any thread."""
    box, factor = pl.fitting_box(entry.shape, view.region, view.size)
    x0, y0, x1, y1 = box
    part = (slice(y0, y1), slice(x0, x1))
    made = {name: _plane(entry, name, view.channel, part, factor) for name in view.planes}
    found = {name: plane for name, plane in made.items() if plane is not None}
    header = {
        "id": entry.id,
        "run": entry.run,
        "index": entry.index,
        "time_s": entry.time_s,
        "unix_time_s": entry.unix_s,
        "shape": list(entry.shape),
        "region": list(box),
        "bin": factor,
        "size": [-(-(y1 - y0) // factor), -(-(x1 - x0) // factor)],
        "channel": view.channel,
        "denoiser": entry.denoiser,
        "model_version": entry.model_version,
        "latency_s": entry.latency_s,
        "unit": "counts",
        "metrics": {name: v for name, v in entry.metrics.items() if np.ndim(v) == 0},
    }
    encoded = tuple(_encoded(name, plane, view) for name, plane in found.items())
    maps = {name: entry.maps[name] for name in view.maps if name in entry.maps}
    return Rendered(header, encoded, tuple(_map(n, m[part], factor) for n, m in maps.items()))


def message(frame: Rendered, personal: dict[str, Any]) -> bytes:
    """Put one binary message together."""
    pieces = (*frame.planes, *frame.maps)
    header: dict[str, Any] = {**frame.header, **personal}
    described = [{**piece.header, "bytes": len(piece.data)} for piece in pieces]
    length, ats = 0, [0] * len(pieces)
    while True:  # where data begin depends on the header's length, which holds it
        for piece, at in zip(described, ats, strict=True):
            piece["at"] = at
        header["planes"] = described[: len(frame.planes)]
        header["maps"] = described[len(frame.planes) :]
        text = _json(header)
        needed = len(text) + -(_PREFIX.size + len(text)) % _ALIGN
        if needed <= length:
            break
        length = needed + 8 * len(pieces) + 8
        length += -(_PREFIX.size + length) % _ALIGN
        ats = _places(_PREFIX.size + length, frame)
    parts = [_PREFIX.pack(MAGIC, length), text.ljust(length)]
    for piece in pieces:
        parts += [piece.data, bytes(-len(piece.data) % _ALIGN)]
    return b"".join(parts)


def opened(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read a message back: its header and the data of its pieces by name.

    Raises:
        ValueError: It is no such message.
    """
    magic, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"not a frame message: it begins with {magic!r}, expected {MAGIC!r}")
    header = json.loads(data[_PREFIX.size : _PREFIX.size + length])
    pieces = [*header["planes"], *header["maps"]]
    return header, {p["name"]: data[p["at"] : p["at"] + p["bytes"]] for p in pieces}


def _places(begin: int, frame: Rendered) -> list[int]:
    ats = []
    for piece in (*frame.planes, *frame.maps):
        ats.append(begin)
        begin += len(piece.data) + -len(piece.data) % _ALIGN
    return ats


def _json(content: Any) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _plane(
    entry: Entry, name: str, channel: str | None, part: tuple[slice, slice], factor: int
) -> pl.Plane | None:
    if name == "difference":
        raw = _plane(entry, "raw", channel, part, 1)
        clean = entry.plane("clean", channel)
        if raw is None or clean is None:
            return None
        difference = raw.values - clean[part]
        if raw.valid is not None:
            difference[~raw.valid] = np.nan
        return pl.float_plane(difference, factor)
    pixels = entry.plane(name, channel)
    if pixels is None:
        return None
    if name != "raw":
        return pl.float_plane(pixels[part], factor, squares=name == "sd")
    mask, start = entry.mask(channel), entry.start
    here = None if mask is None or not mask[part].any() else mask[part]
    return pl.raw_plane(pixels[part], here, start.nodata, start.saturation, factor)


def _encoded(name: str, plane: pl.Plane, view: View) -> pl.Encoded:
    numbers = pl.stats(plane)
    if view.encoding == "u16":
        piece = pl.encode_u16(plane)
    else:
        usual = (numbers["p"].get("1", 0.0), numbers["p"].get("99", 1.0))
        limits = view.limits.get(name, usual)  # type: ignore[call-overload]  # a plane's name
        piece = pl.encode_jpeg(plane, limits, view.transfer, view.quality)
    return replace(piece, header={"name": name, **piece.header, "stats": numbers})


def _map(name: str, labels: NDArray[Any], factor: int) -> pl.Encoded:
    if labels.dtype.kind == "f":
        piece = pl.encode_u16(pl.float_plane(labels.astype(np.float32), factor))
        return replace(piece, header={"name": name, **piece.header})
    thin = pl.nearest_binned(labels, factor)
    if thin.dtype.itemsize == 1:
        return pl.Encoded(thin.astype(np.uint8).tobytes(), {"name": name, "encoding": "u8"})
    short = np.where((thin != 0) & (thin % 65536 == 0), 1, thin % 65536).astype("<u2")
    return pl.Encoded(short.tobytes(), {"name": name, "encoding": "u16"})


def exact(entry: Entry, x: int, y: int, channel: str | None) -> dict[str, Any]:
    """Give the exact values of one pixel; None where there is none or it is not valid."""
    height, width = entry.shape
    if not (0 <= x < width and 0 <= y < height):
        return {"raw": None, "clean": None, "sd": None, "maps": {}}
    mask, raw = entry.mask(channel), entry.plane("raw", channel)
    bad = mask is not None and bool(mask[y, x])
    counts = None if raw is None or bad or raw[y, x] == entry.start.nodata else raw[y, x].item()
    clean, sd = (entry.plane(name, channel) for name in ("clean", "sd"))
    return {
        "raw": counts,
        "clean": _at(clean, x, y),
        "sd": _at(sd, x, y),
        "maps": {name: _at(image, x, y) for name, image in entry.maps.items()},
    }


def _at(image: NDArray[Any] | None, x: int, y: int) -> float | int | None:
    value = None if image is None else image[y, x].item()
    return None if value is None or not math.isfinite(value) else value


class Shared:
    """Encodes each frame once for each view, however many viewers have that view.

    Used by the event loop only; the work is done in threads.
    """

    def __init__(self, capacity_bytes: int = _CACHE_BYTES) -> None:
        self._capacity = capacity_bytes
        self._made: OrderedDict[tuple[object, ...], asyncio.Task[Rendered]] = OrderedDict()
        self.encoded = 0

    async def get(self, source: str, entry: Entry, view: View) -> Rendered:
        """Give the frame for the view."""
        key = (source, entry.id, entry.clean is None, entry.raw is None, *view.key)
        task = self._made.get(key)
        if task is None or (task.done() and task.exception() is not None):
            task = asyncio.create_task(self._work(entry, view))
            self._made[key] = task
        self._made.move_to_end(key)
        try:
            return await asyncio.shield(task)
        finally:
            self._forget()

    async def _work(self, entry: Entry, view: View) -> Rendered:
        done = await asyncio.to_thread(rendered, entry, view)
        self.encoded += 1
        return done

    def _forget(self) -> None:
        sizes: Sequence[int] = [t.result().nbytes if _usable(t) else 0 for t in self._made.values()]
        total = sum(sizes)
        for key, size in zip(list(self._made), sizes, strict=True):
            if total <= self._capacity and len(self._made) <= 64:
                return
            if self._made[key].done():
                del self._made[key]
                total -= size


def _usable(task: asyncio.Task[Rendered]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
