"""Weights on disk: safetensors, written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from quietbeam.core.engine import Weights
from quietbeam.core.errors import EngineError

DIGEST = "content_sha256"
"""Metadata key: the format itself has no checksum, so a flipped bit would pass."""

MAX_BYTES = 4 << 30


def save(path: Path, weights: Weights, metadata: Mapping[str, str]) -> str:
    """Write ``weights`` to ``path``; after a crash the file is the old one or the new one.

    Args:
        path: Replaced if it exists; its folder is made.
        weights: Float32, all finite.
        metadata: Provenance: denoiser, settings (JSON), version, steps,
            config_sha256, parent, created.

    Returns:
        The file's SHA-256 in hexadecimal.

    Raises:
        EngineError: A weight is not finite, or the file cannot be written.
    """
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise EngineError(f"{path}: weight {broken[0]} is not finite; refused to save it")
    data = safetensors.numpy.save(arrays, {**metadata, DIGEST: _digest(arrays, metadata)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data)
    except OSError as error:
        raise EngineError(f"{path}: checkpoint cannot be written: {error.strerror}") from error
    return hashlib.sha256(data).hexdigest()


def load(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """Read what ``save`` wrote: weights and metadata.  Nothing in the file is ever executed.

    Raises:
        EngineError: The file is missing, truncated, damaged in any bit of
            what it says, or not a checkpoint of ours.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise EngineError(f"{path}: larger than {MAX_BYTES} bytes; not a checkpoint of ours")
        data = path.read_bytes()
        arrays = safetensors.numpy.load(data)
        metadata = _metadata(data)
    except OSError as error:
        raise EngineError(f"{path}: checkpoint cannot be read: {error.strerror}") from error
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise EngineError(
            f"{path}: not a whole safetensors file ({error}); use another checkpoint"
        ) from error
    if DIGEST not in metadata:
        raise EngineError(f"{path}: has no {DIGEST}; it was not written by quietbeam")
    if _digest(arrays, metadata) != metadata.pop(DIGEST):
        raise EngineError(f"{path}: the weights or their provenance are damaged; use another one")
    wrong = [name for name, array in arrays.items() if array.dtype != np.float32]
    if wrong:
        raise EngineError(f"{path}: weight {wrong[0]} is {arrays[wrong[0]].dtype}, not float32")
    return arrays, metadata


def sha256(path: Path) -> str:
    """SHA-256 of the file in hexadecimal.

    Raises:
        EngineError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EngineError(f"{path}: checkpoint cannot be read: {error.strerror}") from error


def _digest(arrays: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for key in sorted(set(metadata) - {DIGEST}):
        digest.update(f"{key}={metadata[key]}\n".encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _metadata(data: bytes) -> dict[str, str]:
    """Read the header of a file that safetensors has already accepted."""
    (length,) = struct.unpack("<Q", data[:8])
    found = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return {str(key): str(value) for key, value in found.items()}


def _replace(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}-", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)
