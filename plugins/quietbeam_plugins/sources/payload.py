"""Turns the bytes of an image message into pixels, and refuses what does not fit.

Sizes are checked before anything is allocated: a message may declare
whatever it likes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from quietbeam.core import place
from quietbeam.core.events import Event, RejectReason
from quietbeam_plugins.sources.decompress import Bytes, Codec, decompress
from quietbeam_plugins.sources.pickles import who_pickled
from quietbeam_plugins.sources.refused import RefusedError

__all__ = ["Bytes", "Codec", "Decoder", "RefusedError"]

_DTYPES = {np.dtype(name).name for name in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")}
_DTYPES |= {"float16", "float32", "float64"}
_CODECS: Mapping[str, Codec] = {
    "": "",
    "none": "",
    "lz4": "lz4",
    "lz4hdf5": "lz4",
    "bslz4": "bslz4",
    "bitshuffle_lz4": "bslz4",
    "bszstd": "bszstd",
    "zlib": "zlib",
    "blosc": "blosc",
}
_DECTRIS_ENCODING = re.compile(r"(?:(bs)(\d*))?-?(lz4)?([<>]?)")
_MAX_JSON_BYTES = 4 << 20
_MAX_JSON_ITEMS = 100_000
_MAX_JSON_DEPTH = 32
_MAX_AXES = 8


class Decoder(Protocol):
    """Turns the parts of one stream into events; does no input or output itself."""

    def feed(
        self, part: Bytes, received_ns: int, *, starts_message: bool = True
    ) -> Iterable[Event]:
        """Take the next part.

        Args:
            part: One part of a message, or a whole single-part one.
            received_ns: Our monotonic clock at its arrival.
            starts_message: It was the first of its ZMQ message.  Only used to
                count damage once per message: proxies regroup parts at will.
        """
        ...

    def idle(self, now_ns: int) -> Iterable[Event]:
        """Nothing came; time has passed."""
        ...

    def finish(self) -> Iterable[Event]:
        """Nothing will come any more."""
        ...


def refuse_pickle(part: Bytes) -> None:
    """Raise if a part is a Python object.

    Raises:
        RefusedError: It is one; the detail names who sends such.
    """
    found = who_pickled(part)
    if found is not None:
        raise RefusedError("unsafe", f"{found}; never loaded, because that runs code")


def parse_json(part: Bytes) -> dict[str, Any]:
    """Read a JSON object, as tolerantly as areaDetector needs it.

    ADZMQ prints NaN as ``nan`` and does not escape the texts of ``ndattr``,
    its last key; that key is given up where it cannot be read.

    Raises:
        RefusedError: Not a JSON object, or larger or deeper than any header.
    """
    _check_json_size(part)
    try:
        found = orjson.loads(part)
    except orjson.JSONDecodeError:
        found = _parse_tolerantly(bytes(part))
    if not isinstance(found, dict):
        raise RefusedError("malformed", f"header is {type(found).__name__}, expected a JSON object")
    if not _is_shallow(found, _MAX_JSON_DEPTH):
        raise RefusedError("malformed", f"header is nested deeper than {_MAX_JSON_DEPTH}")
    return found


def _check_json_size(part: Bytes) -> None:
    """Refuse what is short on the wire and large in memory: an empty list takes 2 bytes there."""
    if len(part) > _MAX_JSON_BYTES:
        raise RefusedError("oversized", f"header of {len(part)} bytes; at most {_MAX_JSON_BYTES}")
    if len(part) > _MAX_JSON_ITEMS:
        text = bytes(part)
        items = sum(text.count(mark) for mark in (b",", b"[", b"{"))
        if items > _MAX_JSON_ITEMS:
            raise RefusedError("oversized", f"header of {items} items; at most {_MAX_JSON_ITEMS}")


def _is_shallow(container: dict[str, Any] | list[Any], levels: int) -> bool:
    """Tell whether containers are nested no deeper than ``levels``."""
    items = container.values() if isinstance(container, dict) else container
    inside = [item for item in items if isinstance(item, (dict, list))]
    return not inside or (levels > 1 and all(_is_shallow(item, levels - 1) for item in inside))


def _parse_tolerantly(part: bytes) -> Any:
    refuse_pickle(part)
    try:
        return _parse_loosely(part.decode())
    except (ValueError, RecursionError) as error:
        start = part.find(b'"ndattr"')
        if start > 0:
            try:
                return orjson.loads(part[:start].rstrip(b" ,\n\r\t") + b"}")
            except orjson.JSONDecodeError:
                pass
        raise RefusedError("malformed", f"neither JSON nor an expected payload: {error}") from None


def _parse_loosely(text: str) -> Any:
    """Read JSON with ``nan`` and ``inf``, which become null."""
    text = re.sub(r"([:\[,]\s*)[-+]?(?:nan|inf)\b", r"\1null", text)
    found = json.loads(text, parse_constant=lambda _name: None, parse_int=_integer)
    json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair cannot be stored
    return found


def _integer(text: str) -> int | float:
    """Read a whole number; one beyond 64 bits as orjson does it."""
    return int(text) if len(text) < 19 else float(text)


def whole(value: Any, what: str, *, least: int = 0) -> int:
    """Read a whole number, also one written as text, that fits 63 bits.

    Raises:
        RefusedError: It is none.
    """
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        shown = repr(value)[:60]
        raise RefusedError("malformed", f"{what} is {shown}, expected a whole number >= {least}")
    return value


def positive(table: Mapping[str, Any], key: str) -> float | None:
    """Read a positive number of a header; None where there is none."""
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        return None
    return float(value)


def sizes_of(value: Any) -> tuple[int, ...]:
    """Read the sizes of an array: at most 8 of them, or it is none.

    Raises:
        RefusedError: They are no positive whole numbers.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise RefusedError("shape", f"shape is {value!r:.60}, expected [height, width]")
    if len(value) > _MAX_AXES:
        raise RefusedError("shape", f"shape of {len(value)} axes, expected [height, width]")
    try:
        return tuple(whole(n, "size", least=1) for n in value)
    except RefusedError as error:
        raise RefusedError("shape", f"shape {value!r:.60}: {error}") from None


def image_shape(value: Any) -> tuple[int, int]:
    """Read (h, w); leading axes of length 1 are dropped.

    Raises:
        RefusedError: Not the shape of one image.
    """
    sizes = list(sizes_of(value))
    while len(sizes) > 2 and sizes[0] == 1:
        del sizes[0]
    if len(sizes) != 2:
        raise RefusedError("shape", f"shape {value!r:.60} is not one image [height, width]")
    return sizes[0], sizes[1]


def image_dtype(name: Any, *, big_endian: bool = False) -> np.dtype[Any]:
    """Read the name of a dtype, such as ``uint16``.

    Raises:
        RefusedError: No integer or float of 8 to 64 bits.
    """
    name = {"float": "float32", "double": "float64"}.get(name, name) if isinstance(name, str) else 0
    if name not in _DTYPES:
        raise RefusedError("dtype", f"type {name!r:.60}; expected one of {sorted(_DTYPES)}")
    return np.dtype(name).newbyteorder(">" if big_endian else "<")


def codec_of(name: Any) -> Codec:
    """Read the name of a codec as array-1.0, areaDetector and Stream V2 write it.

    Raises:
        RefusedError: One that we do not decompress.
    """
    codec = _CODECS.get(name) if isinstance(name, str) else None
    if codec is None:
        raise RefusedError("compression", f"codec {name!r:.60}; expected one of {list(_CODECS)}")
    return codec


def dectris_encoding(text: Any, dtype: np.dtype[Any]) -> tuple[Codec, np.dtype[Any]]:
    """Read a Stream V1 encoding such as ``bs16-lz4<``: the codec, and the dtype in its order.

    Raises:
        RefusedError: One that we do not decompress, or other bits than the dtype has.
    """
    match = _DECTRIS_ENCODING.fullmatch(text) if isinstance(text, str) else None
    if match is None or (match[1] and not match[3]):
        raise RefusedError("compression", f"encoding {text!r:.60}; expected like bs16-lz4<")
    if match[2] and match[2] != str(dtype.itemsize * 8):
        raise RefusedError("compression", f"encoding {text!r:.60} of {dtype.itemsize}-byte pixels")
    codec: Codec = "bslz4" if match[1] else "lz4" if match[3] else ""
    return codec, dtype.newbyteorder(">" if match[4] == ">" else "<")


def image(
    blob: Bytes, shape: tuple[int, ...], dtype: np.dtype[Any], codec: Codec, max_bytes: int
) -> NDArray[Any]:
    """Turn a blob into pixels of ``shape`` in native byte order.

    Raises:
        RefusedError: Too large, too small, or damaged.
    """
    size = prod(shape) * dtype.itemsize
    if size > max_bytes:
        raise RefusedError(
            "oversized", f"image {shape} {dtype.name}: {size} bytes; max_frame_bytes is {max_bytes}"
        )
    if codec != "":
        pixels = place.pixels(shape, dtype)
        decompress(blob, codec, pixels)
    elif len(blob) == size:
        pixels = np.frombuffer(blob, dtype).reshape(shape)
    else:
        reason: RejectReason = "truncated" if len(blob) < size else "oversized"
        raise RefusedError(
            reason, f"{len(blob)} bytes for {shape} {dtype.name}, expected {size} bytes"
        )
    return pixels.astype(dtype.newbyteorder("="), copy=False)
