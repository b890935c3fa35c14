"""STINS, the stream of MAX IV's detectors, and that of their Xspress3, which is a dialect of it.

A header, images and the end of a series, each a JSON object with ``htype``; an
image is followed by its bytes, one part for each threshold, which is a channel
of its own.  Xspress3 adds a
pickled part with its dead times; it is passed over and never loaded.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.events import Event, Rejected, RunStart
from quietbeam.core.planes import MAX_CHANNELS
from quietbeam_plugins.sources.channels import chosen, together
from quietbeam_plugins.sources.json_pairs import JsonPairs
from quietbeam_plugins.sources.payload import (
    Bytes,
    Codec,
    RefusedError,
    codec_of,
    image,
    image_dtype,
    image_shape,
    parse_json,
    positive,
    whole,
)
from quietbeam_plugins.sources.series import SeriesKey, SeriesMachine, stamped
from quietbeam_plugins.sources.zmq_parts import ChannelSource

_MAX_THRESHOLDS = MAX_CHANNELS


class Stins(ChannelSource):
    """MAX IV's STINS (streaming-receiver and its detectors) and Xspress3.

    Several thresholds are the channels ``threshold_1``, ``threshold_2`` and so on.
    """

    nodata_at_maximum: bool = True
    """Integer pixels at the dtype's maximum hold no data (as DECTRIS detectors do it)."""

    def decoder(self) -> StinsDecoder:
        """Give a fresh decoder."""
        return StinsDecoder(self)


@dataclass(slots=True)
class _Unit:
    """A header or an image, as far as its parts have come."""

    number: int | None = None
    """Of the frame; None for a header."""
    shape: tuple[int, int, int] = (1, 1, 1)
    taken: tuple[int, ...] = (0,)
    """Which thresholds, from 0."""
    channels: tuple[str, ...] = ()
    """What they are called; empty for one."""
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype("u1"))
    codec: Codec = ""
    blobs: int = 1
    exposure_s: float | None = None
    came: int = 0
    images: dict[int, NDArray[Any]] = field(default_factory=dict)
    """By threshold: those that came so far."""


class StinsDecoder(JsonPairs[_Unit]):
    """Parts to events; see ``payload.Decoder``."""

    header_keys = (b"htype",)

    def __init__(self, settings: Stins) -> None:
        super().__init__(SeriesMachine(settings.run_timeout_s, settings.grace_s))
        self._settings = settings
        self._series = 0
        self._ended: int | None = None
        self._about: dict[str, Any] = {}

    @property
    def _key(self) -> SeriesKey:
        return "", self._series

    def header(self, part: Bytes, received_ns: int) -> Generator[Event, None, _Unit | None]:
        """Take a header, the description of an image, or an end."""
        message = parse_json(part)
        match message.get("htype"):
            case "header":
                self._next_series(message)
                yield from self._machine.announce(self._key)
                return _Unit()
            case "image":
                return self._image(message)
            case "series_end":
                yield from self._machine.end(self._key, received_ns)
                self._ended = _order(message)
            case htype:
                raise RefusedError("unknown_type", f"htype {htype!r:.60}; expected 'image'")
        return None

    def data(self, waiting: _Unit, part: Bytes, received_ns: int) -> Generator[Event, None, _Unit]:
        """Take what describes a series, or the pixels of one threshold."""
        if waiting.number is None:
            self._about |= parse_json(part)
            return waiting
        at, waiting.came = waiting.came, waiting.came + 1
        if at > waiting.blobs:  # one more may be the dead times of Xspress3
            raise RefusedError("malformed", f"frame {waiting.number}: more data than described")
        if at < waiting.blobs and (waiting.blobs == 1 or at in waiting.taken):
            try:
                yield from self._data(waiting, at, part, received_ns)
            except RefusedError as refused:
                yield refused.event  # what follows still belongs to this image
        return waiting

    def without_data(self, waiting: _Unit) -> Iterator[Event]:
        """Say that data are missing; more than enough parts are the dialect of Xspress3."""
        if waiting.number is not None and waiting.came < waiting.blobs:
            detail = f"frame {waiting.number}: {waiting.came} of {waiting.blobs} data parts came"
            yield Rejected(reason="truncated", detail=detail)

    def _next_series(self, about: dict[str, Any]) -> None:
        self._series += 1
        self._ended = None
        self._about = about

    def _image(self, message: dict[str, Any]) -> _Unit:
        order = _order(message)
        if self._ended is not None and (order < 0 or order > self._ended):
            self._next_series({})  # its header was missed
        number = whole(message.get("frame"), "frame")
        if message.get("discard"):
            raise RefusedError("preview", f"frame {number} is marked to be discarded")
        sizes = message.get("shape")
        shape = image_shape(sizes[-2:] if isinstance(sizes, list) else sizes)
        thresholds = _thresholds(sizes)
        dtype = image_dtype(message.get("type"))
        names = [f"threshold_{n + 1}" for n in range(thresholds)]
        taken = chosen(names, self._settings.channels)
        size = thresholds * shape[0] * shape[1] * dtype.itemsize
        if size > self._settings.max_frame_bytes:
            detail = f"frame {number}: {size} bytes; max_frame_bytes is "
            raise RefusedError("oversized", detail + str(self._settings.max_frame_bytes))
        return _Unit(
            number=number,
            shape=(thresholds, *shape),
            taken=tuple(names.index(name) for name in taken),
            channels=taken if len(taken) > 1 else (),
            dtype=dtype,
            codec=codec_of(message.get("compression") or ""),
            blobs=thresholds if message.get("chunks") else 1,
            exposure_s=positive(message, "exptime"),
        )

    def _data(self, unit: _Unit, at: int, part: Bytes, received_ns: int) -> Iterator[Event]:
        """Read one part; give the frame once all that is taken of it has come."""
        thresholds, h, w = unit.shape
        stacked = thresholds // unit.blobs
        limit = self._settings.max_frame_bytes
        images = image(part, (stacked * h, w), unit.dtype, unit.codec, limit)
        unit.images |= enumerate(images.reshape(stacked, h, w), at)
        if not set(unit.taken) <= set(unit.images):
            return
        pixels = together([unit.images[n] for n in unit.taken])
        unit.images.clear()
        yield from self._machine.frame(
            self._key,
            unit.number or 0,
            pixels,
            time_ns=received_ns,  # the format tells no time
            received_ns=received_ns,
            describe=lambda: self._describe(unit, pixels),
        )

    def _describe(self, unit: _Unit, pixels: NDArray[Any]) -> RunStart:
        about = self._about
        path = about.get("filename")
        label = PurePath(path).stem if isinstance(path, str) else ""
        energy_ev = positive(about, "photon_energy")
        is_count = pixels.dtype.kind in "ui" and self._settings.nodata_at_maximum
        exposure_s = unit.exposure_s or positive(about, "exptime") or positive(about, "count_time")
        return RunStart(
            run=stamped(label[:64] or "stins"),
            shape=pixels.shape,
            channels=unit.channels,
            dtype=pixels.dtype,
            exposure_s=exposure_s,
            frames_expected=_count(about.get("nimages")),
            energy_kev=None if energy_ev is None else energy_ev / 1000,
            nodata=float(np.iinfo(pixels.dtype).max) if is_count else None,
            saturation=positive(about, "countrate_correction_count_cutoff"),
            metadata={
                "format": "stins",
                "thresholds": [n + 1 for n in unit.taken],
                "header": about,
            },
        )


def _order(message: dict[str, Any]) -> int:
    """Read the number that orders messages; -1 if there is none (Xspress3)."""
    number = message.get("msg_number")
    return -1 if number is None else whole(number, "msg_number")


def _thresholds(sizes: Any) -> int:
    """Read the leading axis of (threshold, y, x); 1 if there is none."""
    if not isinstance(sizes, list) or len(sizes) < 3:
        return 1
    if len(sizes) > 3:
        raise RefusedError("shape", f"shape {sizes!r:.60}; expected [height, width]")
    number = whole(sizes[0], "number of thresholds", least=1)
    if number > _MAX_THRESHOLDS:
        raise RefusedError("shape", f"{number} thresholds; at most {_MAX_THRESHOLDS}")
    return number


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 2**63 else None
