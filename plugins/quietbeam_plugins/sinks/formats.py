"""Results as messages of public formats: array-1.0 (PSI) and DECTRIS Stream V2.

Other software reads them, and so does a second quietbeam.  Beyond what the
formats ask for, every image carries the name of the run, a number ``seq`` that
counts every message of this output (a consumer sees its own gaps), which
model made it, and the estimated quality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal, Protocol

import cbor2
import numpy as np
import orjson
from numpy.typing import NDArray

from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.planes import planes
from quietbeam.core.result import Result

Message = list[bytes | memoryview]
What = Literal["clean", "raw", "sd"]
Compression = Literal["none", "bslz4"]

_SELF_DESCRIBED, _ROW_MAJOR, _COMPRESSED = 55799, 40, 56500
_SELF_DESCRIPTION = b"\xd9\xd9\xf7"
_TYPED_ARRAYS = {"u1": 64, "u2": 69, "u4": 70, "u8": 71, "i1": 72, "i2": 77, "i4": 78, "i8": 79}
_TYPED_ARRAYS |= {"f2": 84, "f4": 85, "f8": 86}
_NS = 1_000_000_000
_HDF5_HEADER_BYTES = 12


class Format(Protocol):
    """Gives the message for one item, or None where the format has none."""

    def start(self, run: RunStart, dtype: np.dtype[Any]) -> Message | None:
        """A run begins; its images will have ``dtype``."""
        ...

    def image(
        self, index: int, time_ns: int, pixels: NDArray[Any], told: Mapping[str, Any]
    ) -> Message:
        """One image, (h, w) or (c, h, w), C order, and what else is ``told`` with it."""
        ...

    def end(self, end: RunEnd) -> Message | None:
        """The run is over."""
        ...

    def topic(self, wanted: bytes) -> bytes:
        """What messages begin with that a subscriber to ``wanted`` gets: never ``repeated``."""
        ...

    def repeated(self, start: Message) -> Message:
        """The same start in other bytes, for one who came late; its first byte is its own."""
        ...


def raw_facts(frame: Frame, seq: int) -> dict[str, Any]:
    """Give what every raw image carries besides its pixels."""
    return {"run": frame.run, "seq": seq, "what": "raw", "time_ns": frame.time_ns}


def facts(result: Result, what: What, seq: int) -> dict[str, Any]:
    """Give what every image carries besides its pixels; numbers are finite or None."""
    scalars = {k: _finite(v) for k, v in result.metrics.items() if np.ndim(v) == 0}
    return {
        "run": result.run,
        "seq": seq,
        "what": what,
        "model_version": result.model_version,
        "denoiser": result.denoiser,
        "psnr_db": scalars.get("quality.psnr_estimated_db"),
        "psnr_trusted": scalars.get("quality.trusted"),
        "latency_s": result.latency_s,
        "time_ns": result.time_ns,
        "metrics": scalars,
    }


class Array1:
    """array-1.0: a JSON header and the bytes; runs have neither start nor end."""

    def __init__(self, what: What, compression: Compression) -> None:
        self._what: What = what
        self._compression: Compression = compression
        self._channels: tuple[str, ...] = ()

    def start(self, run: RunStart, dtype: np.dtype[Any]) -> None:
        """Give None: the format has no such message."""
        del dtype
        self._channels = run.channels

    def image(
        self, index: int, time_ns: int, pixels: NDArray[Any], told: Mapping[str, Any]
    ) -> Message:
        """Give header and data."""
        del time_ns
        compressed = self._compression == "bslz4"
        header = {
            "htype": "array-1.0",
            "shape": list(pixels.shape),
            "type": pixels.dtype.name,
            "frame": index,
            "endianness": "little",
            "encoding": "bslz4" if compressed else "",
            "source": "quietbeam",
            "tags": [],
        }
        if self._channels:
            header["channels"] = list(self._channels)
        header |= told
        # areaDetector's "bslz4" is without the header of HDF5's filter
        data = bslz4(pixels)[_HDF5_HEADER_BYTES:] if compressed else _bytes(pixels)
        return [orjson.dumps(header), data]

    def end(self, end: RunEnd) -> None:
        """Give None: the format has no such message."""
        del end

    def topic(self, wanted: bytes) -> bytes:
        """Give what was wanted: there is no start to repeat."""
        return wanted

    def repeated(self, start: Message) -> Message:
        """Give the start; never called, as there is none."""
        return start


class Stream2:
    """DECTRIS Stream V2: one CBOR map for the start, each image and the end."""

    def __init__(self, what: What, compression: Compression) -> None:
        self._what: What = what
        self._compression: Compression = compression
        self._series: dict[str, Any] = {}
        self._channels: tuple[str, ...] = (what,)
        self._exposure_ns = 0

    def start(self, run: RunStart, dtype: np.dtype[Any]) -> Message:
        """Give the start message; keys that are not known are left out."""
        known = len(run.run.encode()) <= 64
        unique = run.run if known else sha256(run.run.encode()).hexdigest()
        number = int.from_bytes(sha256(unique.encode()).digest()[:4]) >> 1
        number = int(run.run) if run.run.isdecimal() and len(run.run) < 10 else number
        self._series = {"series_id": number, "series_unique_id": unique}
        self._exposure_ns = round((run.exposure_s or 0.0) * _NS)
        self._channels = run.channels or (self._what,)
        counts = np.issubdtype(dtype, np.integer)
        optional = {
            "frame_time": run.frame_time_s,
            "count_time": run.exposure_s,
            "pixel_size_x": run.pixel_size_m,
            "pixel_size_y": run.pixel_size_m,
            "incident_energy": None if run.energy_kev is None else run.energy_kev * 1000,
            "detector_translation": None if run.distance_m is None else [0, 0, run.distance_m],
            "saturation_value": run.saturation if counts else None,
        }
        message = {
            "arm_date": datetime.now(UTC),
            "channels": list(self._channels),
            "detector_description": "quietbeam",
            "image_dtype": dtype.name,
            "image_size_x": run.shape[-1],
            "image_size_y": run.shape[-2],
            "number_of_images": run.frames_expected or 0,
            "pixel_mask_enabled": run.mask is not None,
            "user_data": {"source": "quietbeam", "run": run.run, "what": self._what},
        }
        if run.mask is not None:
            masks = [plane.mask for plane in run.planes() if plane.mask is not None]
            coded = [_array(mask.astype(np.uint32), "none") for mask in masks]
            message["pixel_mask"] = dict(zip(self._channels, coded, strict=True))
        message |= {key: value for key, value in optional.items() if value is not None}
        return self._message("start", message)

    def image(
        self, index: int, time_ns: int, pixels: NDArray[Any], told: Mapping[str, Any]
    ) -> Message:
        """Give one image message."""
        coded = [_array(plane, self._compression) for plane in planes(pixels)]
        return self._message(
            "image",
            {
                "image_id": index,
                "real_time": [self._exposure_ns, _NS],
                "start_time": [time_ns, _NS],
                "stop_time": [time_ns + self._exposure_ns, _NS],
                "data": dict(zip(self._channels, coded, strict=True)),
                "user_data": dict(told),
            },
        )

    def end(self, end: RunEnd) -> Message:
        """Give the end message."""
        return self._message("end", {"user_data": {"reason": end.reason}})

    def topic(self, wanted: bytes) -> bytes:
        """All messages begin with the tag of self-described CBOR."""
        return _SELF_DESCRIPTION if _SELF_DESCRIPTION.startswith(wanted) else wanted

    def repeated(self, start: Message) -> Message:
        """Give the start without that tag, which means nothing to a decoder."""
        return [start[0][len(_SELF_DESCRIPTION) :]]

    def _message(self, kind: str, content: Mapping[str, Any]) -> Message:
        message = {"type": kind, **self._series, **content}
        return [cbor2.dumps(cbor2.CBORTag(_SELF_DESCRIBED, message))]


def bslz4(pixels: NDArray[Any]) -> bytes:
    """Compress as HDF5's bitshuffle filter does, with its 12-byte header.

    The filter itself does it, in a file that exists in memory only: no Python
    package gives this framing, and the filter is what detectors were made for.
    """
    dataset = _scratch(pixels.shape, pixels.dtype.str)
    dataset[...] = pixels
    dataset.file.flush()
    return bytes(dataset.id.read_direct_chunk((0,) * pixels.ndim)[1])


@lru_cache(maxsize=4)
def _scratch(shape: tuple[int, ...], dtype: str) -> Any:
    import h5py
    import hdf5plugin

    file = h5py.File(f"bslz4-{shape}-{dtype}", "w", driver="core", backing_store=False)
    return file.create_dataset("x", shape, dtype, chunks=shape, **hdf5plugin.Bitshuffle())


def _array(pixels: NDArray[Any], compression: Compression) -> cbor2.CBORTag:
    """Give a multi-dimensional typed array (RFC 8746)."""
    code = f"{pixels.dtype.kind}{pixels.dtype.itemsize}"
    content: Any = bytes(_bytes(pixels))
    if compression == "bslz4":
        content = ["bslz4", pixels.dtype.itemsize, bslz4(pixels)]
        content = cbor2.CBORTag(_COMPRESSED, content)
    typed = cbor2.CBORTag(_TYPED_ARRAYS[code], content)
    return cbor2.CBORTag(_ROW_MAJOR, [list(pixels.shape), typed])


def _bytes(pixels: NDArray[Any]) -> memoryview:
    little = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
