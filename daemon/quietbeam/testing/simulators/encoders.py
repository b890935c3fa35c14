"""Events to messages, in every format that our sources read; no input or output here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import cbor2
import numpy as np
from numpy.typing import NDArray

from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.planes import planes
from quietbeam.testing.simulators import compress

Message = list[bytes]
Compression = Literal["none", "lz4", "bslz4"]

_EPICS_EPOCH_S = 631_152_000
_CLOCK_HZ = 50_000_000  # of a DECTRIS detector's time stamps
_TYPED_ARRAY_TAGS = {
    "|u1": 64,
    "<u2": 69,
    "<u4": 70,
    "<u8": 71,
    "|i1": 72,
    "<i2": 77,
    "<i4": 78,
    "<i8": 79,
    "<f4": 85,
    "<f8": 86,
}


class Encoder(Protocol):
    """Gives the messages of one event each."""

    def start(self, run: RunStart) -> list[Message]:
        """What is sent when a series is armed."""
        ...

    def frame(self, frame: Frame) -> list[Message]:
        """What is sent for one image."""
        ...

    def end(self, end: RunEnd) -> list[Message]:
        """What is sent when a series is over."""
        ...


class DectrisV1:
    """Stream V1.

    Args:
        compression: ``lz4`` is a bare block, ``bslz4`` has its 12-byte header.
        flattened: Every part is a message of its own, as some proxies do it.
        series: Number of the first series.
    """

    def __init__(
        self, compression: Compression = "none", *, flattened: bool = False, series: int = 1
    ) -> None:
        self._compression = compression
        self._flattened = flattened
        self._series = series - 1

    def start(self, run: RunStart) -> list[Message]:
        """Global header; with flat field, mask and count-rate table if the run has a mask."""
        self._series += 1
        detail = "basic" if run.mask is None else "all"
        parts = [
            json_bytes(htype="dheader-1.0", series=self._series, header_detail=detail),
            json_bytes(**_v1_config(run)),
        ]
        if run.mask is not None:
            shape = list(run.shape[::-1])
            flat = np.ones(run.shape, "<f4").tobytes()
            table = np.zeros((2, 4), "<f4").tobytes()
            parts += [json_bytes(htype="dflatfield-1.0", shape=shape, type="float32"), flat]
            parts += [json_bytes(htype="dpixelmask-1.0", shape=shape, type="uint32")]
            parts += [run.mask.astype("<u4").tobytes()]
            parts += [json_bytes(htype="dcountrate_table-1.0", shape=[2, 4], type="float32"), table]
        return self._grouped(parts)

    def frame(self, frame: Frame) -> list[Message]:
        """Four parts: announcement, description, pixels, times."""
        pixels = little_endian(frame.pixels)
        bits = pixels.dtype.itemsize * 8
        encodings = {"none": "<", "lz4": "lz4<", "bslz4": f"bs{bits}-lz4<"}
        packers: Mapping[str, Callable[[NDArray[Any]], bytes]] = {
            "none": lambda p: p.tobytes(),
            "lz4": compress.bare_lz4,
            "bslz4": compress.bslz4,
        }
        blob = packers[self._compression](pixels)
        description = json_bytes(
            htype="dimage_d-1.0",
            shape=list(pixels.shape[::-1]),
            type=pixels.dtype.name,
            encoding=encodings[self._compression],
            size=len(blob),
        )
        times = json_bytes(
            htype="dconfig-1.0", start_time=frame.time_ns, stop_time=frame.time_ns, real_time=0
        )
        announcement = json_bytes(
            htype="dimage-1.0", series=self._series, frame=frame.index, hash=""
        )
        return self._grouped([announcement, description, blob, times])

    def end(self, end: RunEnd) -> list[Message]:  # noqa: ARG002  the format tells no reason
        """One part."""
        return self._grouped([json_bytes(htype="dseries_end-1.0", series=self._series)])

    def _grouped(self, parts: Message) -> list[Message]:
        return [[part] for part in parts] if self._flattened else [parts]


class DectrisV2:
    """Stream V2: CBOR.

    Args:
        compression: Both with the framing of HDF5's filters.
        series: Number of the first series.
        channel: Name of the channel of a run that names none.
    """

    def __init__(
        self,
        compression: Compression = "none",
        *,
        series: int = 1,
        channel: str = "threshold_1",
    ) -> None:
        self._compression: Compression = compression
        self._only = (channel,)
        self._channels = self._only
        self._ids = {"series_id": series - 1, "series_unique_id": ""}

    def start(self, run: RunStart) -> list[Message]:
        """The start message; the run's name becomes the series' unique id."""
        self._ids = {"series_id": self._ids["series_id"] + 1, "series_unique_id": run.run}
        self._channels = run.channels or self._only
        energy_ev = None if run.energy_kev is None else run.energy_kev * 1000
        message = {
            "channels": list(self._channels),
            "count_time": run.exposure_s,
            "frame_time": run.frame_time_s,
            "image_dtype": run.dtype.name,
            "image_size_x": run.shape[-1],
            "image_size_y": run.shape[-2],
            "incident_energy": energy_ev,
            "number_of_images": run.frames_expected,
            "pixel_size_x": run.pixel_size_m,
            "pixel_size_y": run.pixel_size_m,
            "saturation_value": None if run.saturation is None else round(run.saturation),
            "user_data": dict(run.metadata),
        }
        if run.mask is not None:
            masks = [plane.mask for plane in run.planes() if plane.mask is not None]
            coded = [self._array(mask.astype("<u4"), "none") for mask in masks]
            message |= {"pixel_mask": dict(zip(self._channels, coded, strict=True))}
            message |= {"pixel_mask_enabled": True}
        known = {key: value for key, value in message.items() if value is not None}
        return self.message("start", known)

    def frame(self, frame: Frame) -> list[Message]:
        """One image message."""
        return self.message("image", self.image(frame))

    def image(self, frame: Frame) -> dict[str, Any]:
        """What an image message says."""
        images = planes(little_endian(frame.pixels))
        coded = [self._array(image, self._compression) for image in images]
        return {
            "image_id": frame.index,
            "start_time": [frame.time_ns * _CLOCK_HZ // 1_000_000_000, _CLOCK_HZ],
            "data": dict(zip(self._channels, coded, strict=True)),
        }

    def end(self, end: RunEnd) -> list[Message]:  # noqa: ARG002  the format tells no reason
        """The end message."""
        return self.message("end", {})

    def message(self, kind: str, content: dict[str, Any]) -> list[Message]:
        """Give a message of this series."""
        message = {"type": kind, **self._ids, **content}
        return [[cbor2.dumps(cbor2.CBORTag(55799, message))]]

    @staticmethod
    def _array(pixels: NDArray[Any], compression: Compression) -> cbor2.CBORTag:
        data: Any = pixels.tobytes()
        if compression == "bslz4":
            data = cbor2.CBORTag(56500, ["bslz4", pixels.dtype.itemsize, compress.bslz4(pixels)])
        elif compression == "lz4":
            data = cbor2.CBORTag(56500, ["lz4", 0, compress.lz4(pixels)])
        typed = cbor2.CBORTag(_TYPED_ARRAY_TAGS[pixels.dtype.str], data)
        return cbor2.CBORTag(40, [list(pixels.shape), typed])


class ArrayV1:
    """array-1.0: a JSON header and the bytes; neither start nor end.

    Args:
        compression: Named in ``encoding``; with HDF5's framing.
    """

    def __init__(self, compression: Compression = "none") -> None:
        self._compression: Compression = compression

    def start(self, run: RunStart) -> list[Message]:  # noqa: ARG002  the format has none
        """Nothing."""
        return []

    def frame(self, frame: Frame) -> list[Message]:
        """Two parts."""
        pixels = little_endian(frame.pixels)
        encoding = "" if self._compression == "none" else self._compression
        header = json_bytes(
            htype="array-1.0",
            shape=list(pixels.shape),
            type=pixels.dtype.name,
            frame=frame.index,
            encoding=encoding,
            endianness="little",
            source="quietbeam",
            tags=[],
        )
        return [[header, compress.packed(pixels, self._compression)]]

    def end(self, end: RunEnd) -> list[Message]:  # noqa: ARG002  the format has none
        """Nothing."""
        return []


class AdZmq(ArrayV1):
    """areaDetector's NDPluginZMQ, with its peculiarities.

    EPICS time, an attribute that is ``nan``, compressed data without any
    header and followed by rubbish up to the uncompressed size.
    """

    def frame(self, frame: Frame) -> list[Message]:
        """Two parts."""
        pixels = little_endian(frame.pixels)
        encoding = "" if self._compression == "none" else self._compression
        blob = pixels.tobytes()
        if self._compression == "lz4":
            blob = compress.bare_lz4(pixels).ljust(pixels.nbytes, b"\xaa")
        elif self._compression == "bslz4":
            blob = compress.bslz4(pixels)[12:].ljust(pixels.nbytes, b"\xaa")
        header = (
            f'{{"htype":"array-1.0", "type":"{pixels.dtype.name}", '
            f'"shape":[{pixels.shape[0]},{pixels.shape[1]}], "frame":{frame.index}, '
            f'"timeStamp":{time.time() - _EPICS_EPOCH_S:.6f}, "encoding":"{encoding}", '
            '"ndattr":{"ColorMode":0, "Temperature":nan}}'
        )
        return [[header.encode(), blob]]


def _v1_config(run: RunStart) -> dict[str, Any]:
    config = {
        "bit_depth_image": run.dtype.itemsize * 8,
        "nimages": run.frames_expected,
        "ntrigger": 1,
        "count_time": run.exposure_s,
        "frame_time": run.frame_time_s,
        "photon_energy": None if run.energy_kev is None else run.energy_kev * 1000,
        "x_pixels_in_detector": run.shape[1],
        "y_pixels_in_detector": run.shape[0],
        "x_pixel_size": run.pixel_size_m,
        "y_pixel_size": run.pixel_size_m,
        "detector_distance": run.distance_m,
        "countrate_correction_count_cutoff": run.saturation,
    }
    return {key: value for key, value in config.items() if value is not None}


def little_endian(pixels: NDArray[Any]) -> NDArray[Any]:
    """In C order, least significant byte first."""
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))


def json_bytes(**fields: Any) -> bytes:
    """Give a JSON object."""
    return json.dumps(fields, separators=(",", ":")).encode()
