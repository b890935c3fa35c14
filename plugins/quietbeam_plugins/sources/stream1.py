"""DECTRIS Stream V1: parts with a JSON ``htype``, blobs between them.

Parts are taken one by one.  Real proxies and simulators send every part as a
message of its own; multipart boundaries, where there are any, only tell where
damage ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from quietbeam.core.events import Event, Rejected, RunStart
from quietbeam_plugins.sources.payload import (
    Bytes,
    Codec,
    RefusedError,
    dectris_encoding,
    image,
    image_dtype,
    image_shape,
    parse_json,
    positive,
    whole,
)
from quietbeam_plugins.sources.series import SeriesKey, SeriesMachine, stamped

_log = structlog.get_logger()
_BEGINS_UNIT = ("dheader-1.0", "dimage-1.0", "dseries_end-1.0")
_ARRAYS = {
    "dflatfield-1.0": "flatfield",
    "flatfield-1.0": "flatfield",
    "dpixelmask-1.0": "mask",
    "pixelmask-1.0": "mask",
    "dcountrate_table-1.0": "table",
    "countrate_table-1.0": "table",
}
_MAX_TEXT = 65536
_TIMES_MAY_TAKE_NS = 250_000_000


@dataclass(slots=True)
class _Header:
    """A global header, as far as its parts have come."""

    key: SeriesKey
    config: dict[str, Any] | None = None
    mask: NDArray[np.bool_] | None = None
    appendix: str | None = None

    @property
    def shape(self) -> tuple[int, int] | None:
        sizes = [(self.config or {}).get(f"{axis}_pixels_in_detector") for axis in "yx"]
        if not all(isinstance(size, int) and 0 < size < 2**31 for size in sizes):
            return None
        return int(sizes[0] or 0), int(sizes[1] or 0)


@dataclass(slots=True)
class _Image:
    """A frame, as far as its parts have come."""

    key: SeriesKey
    number: int
    received_ns: int
    shape: tuple[int, int] | None = None
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype("u1"))
    codec: Codec = ""
    size_bytes: int | None = None
    pixels: NDArray[Any] | None = None


class Stream1:
    """Parts to events.

    Args:
        machine: Keeps the runs; shared with Stream V2 where both may come.
        max_frame_bytes: Larger images are refused.
    """

    def __init__(self, machine: SeriesMachine, max_frame_bytes: int) -> None:
        self._machine = machine
        self._max_frame_bytes = max_frame_bytes
        self._header: _Header | None = None
        self._image: _Image | None = None
        self._array: tuple[str, tuple[int, int]] | None = None
        self._unit: Literal["header", "image", "refused"] | None = None
        self._multipart = False
        self._message_refused = False

    @property
    def expects_data(self) -> bool:
        """The next part is the bytes of an array, whatever they look like."""
        image = self._image
        return self._array is not None or (
            image is not None and image.shape is not None and image.pixels is None
        )

    def part(self, part: Bytes, received_ns: int, *, starts_message: bool) -> Iterator[Event]:
        """Take one part.

        Raises:
            RefusedError: It cannot be accepted; what it began is forgotten.
        """
        self._multipart = self._multipart or not starts_message
        if starts_message:
            self._message_refused = False
            if self._multipart:
                yield from self.settle()
        elif self._message_refused:
            return
        try:
            yield from self._part(part, received_ns)
        except RefusedError:
            self._message_refused = True
            self._image, self._array = None, None
            self._unit = "refused" if self._unit else None
            raise

    def idle(self, now_ns: int) -> Iterator[Event]:
        """Give a frame whose times never came."""
        image = self._image
        if image is None or image.pixels is None:
            return
        if now_ns - image.received_ns > _TIMES_MAY_TAKE_NS:
            yield from self.settle()

    def settle(self) -> Iterator[Event]:
        """Nothing more belongs to the unit going on: give its frame, or say what is missing."""
        image = self._image
        self._image, self._array, self._unit = None, None, None
        if image is None:
            return
        if image.pixels is None:
            detail = f"frame {image.number}: its data never came"
            yield Rejected(reason="truncated", detail=detail)
        else:
            yield from self._frame(image, image.received_ns)

    def _part(self, part: Bytes, received_ns: int) -> Iterator[Event]:
        start = bytes(part[:256])
        is_json = start[:1] == b"{"
        if self.expects_data and not (is_json and b'"htype"' in start):
            self._data(part)
            return
        if not is_json and self._unit is not None:
            self._appendix(part)
            return
        header = parse_json(part)
        if header.get("htype") in _BEGINS_UNIT:
            yield from self.settle()
            yield from self._unit_begins(header, received_ns)
        elif self._unit != "refused":  # else it is the rest of what was refused already
            yield from self._unit_goes_on(header, part)

    def _unit_begins(self, header: dict[str, Any], received_ns: int) -> Iterator[Event]:
        match header["htype"]:
            case "dheader-1.0":
                self._unit = "header"
                self._header = _Header(_key(header))
                # The dtype follows the exposure time and headers have lied about
                # the shape: the first frame decides both.
                yield from self._machine.announce(self._header.key)
            case "dimage-1.0":
                self._unit = "image"
                number = whole(header.get("frame"), "frame")
                self._image = _Image(_key(header), number, received_ns)
            case _:
                yield from self._machine.end(_key(header), received_ns)

    def _unit_goes_on(self, header: dict[str, Any], part: Bytes) -> Iterator[Event]:
        match header.get("htype"):
            case "dimage_d-1.0":
                self._describe_image(header, columns_first=True)
            case "dimaged-1.0":
                self._describe_image(header, columns_first=False)
            case "dconfig-1.0":
                yield from self._times(header)
            case None if self._unit is not None:
                self._config_or_appendix(header, part)
            case str() as htype if htype in _ARRAYS:
                self._array = _ARRAYS[htype], image_shape(_turned(header.get("shape")))
            case htype:
                reason = "malformed" if htype is None else "unknown_type"
                raise RefusedError(reason, f"a part with htype {htype!r:.60}")

    def _config_or_appendix(self, found: dict[str, Any], part: Bytes) -> None:
        if self._unit == "header" and self._header is not None and self._header.config is None:
            self._header.config = found
        else:
            self._appendix(part)

    def _appendix(self, part: Bytes) -> None:
        """Keep what users attach to a header; what they attach to images is not ours."""
        if self._unit == "header" and self._header is not None:
            self._header.appendix = bytes(part[:_MAX_TEXT]).decode(errors="replace")
        if self._unit != "refused":
            self._unit = None  # it is the last part

    def _describe_image(self, header: dict[str, Any], *, columns_first: bool) -> None:
        image = self._image
        if image is None or image.shape is not None:
            raise RefusedError("no_run", "the description of an image without its announcement")
        sizes = header.get("shape")
        shape = image_shape(_turned(sizes) if columns_first else sizes)
        expected = self._expected_shape(image.key)
        if expected is not None and shape != expected:
            if shape[::-1] != expected:
                detail = f"frame {image.number} is {shape}, the header says {expected}"
                raise RefusedError("shape", detail)
            shape = expected  # simulators disagree about the order of the axes
        dtype = image_dtype(header.get("type"))
        image.codec, image.dtype = dectris_encoding(header.get("encoding", ""), dtype)
        size = header.get("size")
        image.size_bytes = None if size is None else whole(size, "size")
        image.shape = shape

    def _expected_shape(self, key: SeriesKey) -> tuple[int, int] | None:
        header = self._header
        return header.shape if header is not None and header.key == key else None

    def _data(self, part: Bytes) -> None:
        if self._array is not None:
            (kind, shape), self._array = self._array, None
            if kind == "mask" and self._header is not None:
                self._header.mask = _mask(part, shape)
            return
        waiting = self._image
        if waiting is None or waiting.shape is None:
            return
        if waiting.size_bytes not in {None, len(part)}:
            reason = "truncated" if len(part) < (waiting.size_bytes or 0) else "oversized"
            detail = f"frame {waiting.number}: {len(part)} bytes, declared {waiting.size_bytes}"
            raise RefusedError(reason, detail)
        waiting.pixels = image(
            part, waiting.shape, waiting.dtype, waiting.codec, self._max_frame_bytes
        )

    def _times(self, header: dict[str, Any]) -> Iterator[Event]:
        image = self._image
        if image is None:
            if self._unit != "image":
                raise RefusedError("no_run", "the times of an image that was not announced")
            return  # a second one
        if image.pixels is None:
            raise RefusedError("truncated", f"frame {image.number}: its data never came")
        start = header.get("start_time")
        time_ns = image.received_ns if start is None else whole(start, "start_time")
        self._image = None
        yield from self._frame(image, time_ns)

    def _frame(self, image: _Image, time_ns: int) -> Iterator[Event]:
        pixels = image.pixels
        if pixels is None:
            return
        yield from self._machine.frame(
            image.key,
            image.number,
            pixels,
            time_ns=time_ns,
            received_ns=image.received_ns,
            describe=lambda: self._describe(image.key, pixels),
        )

    def _describe(self, key: SeriesKey, pixels: NDArray[Any]) -> RunStart:
        known = self._header if self._header is not None and self._header.key == key else None
        header = known or _Header(key)
        config = header.config or {}
        mask = header.mask
        if mask is not None and mask.shape != pixels.shape:
            _log.warning("pixel_mask_unreadable", series=key[1], shape=mask.shape)
            mask = None
        dtype = pixels.dtype
        energy_ev = positive(config, "photon_energy")
        return RunStart(
            run=stamped(f"series-{key[1]}"),
            shape=(pixels.shape[0], pixels.shape[1]),
            dtype=dtype,
            frame_time_s=positive(config, "frame_time"),
            exposure_s=positive(config, "count_time"),
            frames_expected=_frames(config),
            first_index=0,
            pixel_size_m=positive(config, "x_pixel_size"),
            energy_kev=None if energy_ev is None else energy_ev / 1000,
            distance_m=positive(config, "detector_distance"),
            mask=mask,
            nodata=float(np.iinfo(dtype).max) if dtype.kind in "ui" else None,
            saturation=positive(config, "countrate_correction_count_cutoff"),
            metadata={
                "format": "dectris-v1",
                "series": key[1],
                "header": config,
                "header_appendix": header.appendix,
            },
        )


def _key(header: dict[str, Any]) -> SeriesKey:
    return "", whole(header.get("series"), "series")


def _turned(shape: Any) -> Any:
    """Stream V1 counts x first."""
    return shape[::-1] if isinstance(shape, list) else shape


def _mask(part: Bytes, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Read the pixel mask; a broken one is told about, and done without."""
    try:
        return image(part, shape, np.dtype("<u4"), "", 4 * shape[0] * shape[1]) != 0
    except RefusedError as error:
        _log.warning("pixel_mask_unreadable", error=str(error))
        return None


def _frames(config: dict[str, Any]) -> int | None:
    images, triggers = config.get("nimages"), config.get("ntrigger", 1)
    if isinstance(images, int) and isinstance(triggers, int) and 0 < images * triggers < 2**63:
        return images * triggers
    return None
