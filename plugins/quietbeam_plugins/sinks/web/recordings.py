"""Finished runs: what is in a directory, how whole it is, and its frames as pictures."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.errors import DataError
from quietbeam.offline.recording import Recording
from quietbeam_plugins.sinks.web import planes as pl
from quietbeam_plugins.sinks.web.file_pictures import opened_pictures

_ENDINGS = (".h5", ".hdf5", ".nxs", ".h5.part", ".hdf5.part", ".nxs.part")
_MOST = 500
_RANGES = 100
_POINTS = 1000


class Recordings:
    """The recordings of one directory, by name; nothing outside it can be named.

    Used by threads of the server.

    Args:
        directory: Searched with its subdirectories; None: there are none.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = None if directory is None else directory.resolve()
        self._described: OrderedDict[tuple[str, int, int], dict[str, Any]] = OrderedDict()
        self._thumbnails: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def all(self) -> list[dict[str, Any]]:
        """Describe every recording, newest first."""
        return [self._described_once(name, path) for name, path in self._files()]

    def path(self, name: str) -> Path:
        """Give the file behind a name of ``all``.

        Raises:
            DataError: There is no such recording.  ``name`` is compared, never
                made a path of: it cannot lead elsewhere.
        """
        for known, path in self._files():
            if known == name:
                return path
        raise DataError(f"there is no recording {name[:120]!r}; see the list of recordings")

    def describe(self, name: str) -> dict[str, Any]:
        """Describe one recording with its provenance and metrics.

        Raises:
            DataError: There is no such recording, or it cannot be read.
        """
        path = self.path(name)
        with Recording(path) as file:
            told = file.provenance
            metrics = {n: v for n, v in file.metrics.items() if v.ndim == 1}
            thin = _thinned(len(file.clean)) if file.has_clean else slice(0)
            return {
                **self._described_once(name, path),
                "provenance": {
                    "version": told.version,
                    "config_sha256": told.config_sha256,
                    "config": told.config,
                    "weights": [
                        {"version": w.version, "denoiser": w.denoiser, "sha256": w.sha256}
                        for w in told.weights
                    ],
                    "decisions": [d for d in told.decisions if "annotation" not in d][-50:],
                    "annotations": [d for d in told.decisions if "annotation" in d],
                    "counts": told.counts,
                },
                "frame_id": file.column("clean/frame_id")[thin].tolist() if file.has_clean else [],
                "time_s": file.column("clean/time")[thin].tolist() if file.has_clean else [],
                "metrics": {n: _listed(v[thin]) for n, v in metrics.items()},
            }

    def thumbnail(self, name: str) -> bytes:
        """Give raw beside clean of the middle frame as a JPEG of 512 × 256 pixels.

        Raises:
            DataError: As for ``describe``.
        """
        path = self.path(name)
        key = _identity(name, path)
        with self._lock:
            known = self._thumbnails.get(key)
        if known is None:
            known = _thumbnail(path)
            with self._lock:
                self._thumbnails[key] = known
                while len(self._thumbnails) > _MOST:
                    self._thumbnails.popitem(last=False)
        return known

    def _files(self) -> list[tuple[str, Path]]:
        directory = self._directory
        if directory is None or not directory.is_dir():
            return []
        found = [
            path for path in directory.rglob("*") if path.name.endswith(_ENDINGS) and path.is_file()
        ]
        found = [path for path in found if path.resolve().is_relative_to(directory)]
        newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:_MOST]
        return [(str(path.relative_to(directory)).replace("/", "~"), path) for path in newest]

    def _described_once(self, name: str, path: Path) -> dict[str, Any]:
        key = _identity(name, path)
        with self._lock:
            known = self._described.get(key)
        if known is None:
            known = {"name": name, "bytes": key[2], **described(path)}
            with self._lock:
                self._described[key] = known
                while len(self._described) > 2 * _MOST:
                    self._described.popitem(last=False)
        return known


def described(path: Path) -> dict[str, Any]:
    """Give what a list shows of one file; one that cannot be read says so."""
    try:
        with Recording(path) as file:
            return _figures(file)
    except (DataError, OSError, KeyError, ValueError) as error:
        return {"verdict": "unreadable", "problem": str(error), "run": path.name}


def _figures(file: Recording) -> dict[str, Any]:
    told, missing = file.provenance, file.missing
    count = int((missing[:, 1] - missing[:, 0] + 1).sum()) if len(missing) else 0
    raw = len(file.raw) if file.has_raw else 0
    clean = len(file.clean) if file.has_clean else 0
    verdict, problem = _verdict(told.end_reason, told.counts, count, live=file.live)
    shape = (file.clean if file.has_clean else file.raw).shape
    return {
        "run": file.run,
        "verdict": verdict,
        "problem": problem,
        "missing": missing[:_RANGES].tolist(),
        "missing_frames": max(count, told.counts.get("missing", 0)),
        "started": told.started,
        "ended": told.ended,
        "end_reason": told.end_reason,
        "segment": told.segment,
        "frames_raw": raw,
        "frames_clean": clean,
        "shape": list(shape[-2:]),
        "channels": list(file.channels),
        "seconds": _seconds(told.started, told.ended),
        "denoisers": sorted(set(file.denoisers.tolist())) if clean else [],
        "model_version": int(file.column("clean/model_version").max()) if clean else 0,
        "psnr_estimated_db": _median(file, "metrics/quality.psnr_estimated_db"),
        "latency_s": _median(file, "clean/latency") if clean else None,
    }


def _verdict(
    reason: str, counts: dict[str, int], missing: int, *, live: bool
) -> tuple[str, str | None]:
    if not reason:
        return ("recording", None) if live else ("incomplete", "its writer never closed it")
    if reason != "completed":
        return "incomplete", f"the run ended as {reason}"
    lost = max(missing, counts.get("missing", 0))
    if lost:
        return "incomplete", f"{lost} raw frames are missing"
    if counts.get("overrun"):
        return "incomplete", f"{counts['overrun']} frames were lost to a slow disk"
    return "complete", None


def _median(file: Recording, column: str) -> float | None:
    try:
        values = file.column(column)
    except DataError:
        return None
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else None


def _seconds(started: str, ended: str) -> float | None:
    try:
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    except ValueError:
        return None


def _thinned(frames: int) -> slice:
    return slice(None, None, max(1, -(-frames // _POINTS)))


def _listed(values: NDArray[Any]) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _identity(name: str, path: Path) -> tuple[str, int, int]:
    about = path.stat()
    return name, about.st_mtime_ns, about.st_size


def _thumbnail(path: Path) -> bytes:
    from PIL import Image

    with opened_pictures(path.name, path) as pictures:
        entry = pictures.get(len(pictures) // 2)
    canvas = np.full((256, 512), 24, np.uint8)
    for place, what in enumerate(("raw", "clean")):
        pixels = None if entry is None else entry.plane(what, None)
        if pixels is not None:
            canvas[:, 256 * place : 256 * place + 255] = _small(pixels.astype(np.float32))
    stream = io.BytesIO()
    Image.fromarray(canvas).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _small(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Give (256, 255) grey between the 1 and 99 % limits, keeping the picture's sides."""
    from PIL import Image

    _, factor = pl.fitting_box((pixels.shape[0], pixels.shape[1]), None, (510, 512))
    plane = pl.float_plane(pixels, factor)
    limits = pl.stats(plane)["p"]
    low, high = limits.get("1", 0.0), limits.get("99", 1.0)
    grey = np.clip((np.nan_to_num(plane.values, nan=low) - low) / ((high - low) or 1), 0, 1)
    image = Image.fromarray(np.rint(255 * grey).astype(np.uint8))
    scale = min(255 / image.width, 256 / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("L", (255, 256), 24)
    canvas.paste(image.resize(size), ((255 - size[0]) // 2, (256 - size[1]) // 2))
    return np.asarray(canvas)
