"""One frame as a file: everything that was measured, with how it came about."""

from __future__ import annotations

import io
import json
import re
from typing import Any, Literal

import numpy as np

from quietbeam import __version__
from quietbeam.core.errors import DataError
from quietbeam_plugins.sinks.web.entries import Entry

Format = Literal["tiff", "h5", "npy"]
MEDIA = {
    "tiff": "image/tiff",
    "h5": "application/x-hdf5",
    "npy": "application/octet-stream",
}


def snapshot(entry: Entry, kind: Format) -> bytes:
    """Give one frame in full resolution.

    ``tiff``: float32 pages raw, clean, sd with names and metadata (JSON in the
    description).  ``h5``: NeXus, datasets in their own dtypes, and maps.
    ``npy``: clean alone, or raw where it was not cleaned.

    Raises:
        DataError: There are no pixels.
    """
    if entry.raw is None and entry.clean is None:
        raise DataError(f"frame {entry.index} holds no pixels")
    write = {"tiff": _tiff, "h5": _h5, "npy": _npy}[kind]
    return write(entry)


def filename(entry: Entry, kind: Format) -> str:
    """Name the file: run and frame number, nothing that could be a path."""
    run = re.sub(r"[^A-Za-z0-9._+=-]+", "_", entry.run).lstrip(".")[:80] or "run"
    return f"{run}_{entry.index}.{kind}"


def about(entry: Entry) -> dict[str, Any]:
    """Describe the frame as JSON."""
    start = entry.start
    return {
        "program": "quietbeam",
        "version": __version__,
        "run": entry.run,
        "frame": entry.index,
        "time_s": entry.time_s,
        "unix_time_s": entry.unix_s,
        "denoiser": entry.denoiser,
        "model_version": entry.model_version,
        "unit": "counts",
        "channels": list(start.channels),
        "pixel_size_m": start.pixel_size_m,
        "energy_kev": start.energy_kev,
        "exposure_s": start.exposure_s,
        "distance_m": start.distance_m,
        "metrics": {name: float(v) for name, v in entry.metrics.items() if np.ndim(v) == 0},
    }


def _pixels(entry: Entry) -> dict[str, Any]:
    found = {"raw": entry.raw, "clean": entry.clean, "sd": entry.sd}
    return {name: pixels for name, pixels in found.items() if pixels is not None}


def _tiff(entry: Entry) -> bytes:
    import tifffile

    stream = io.BytesIO()
    size = entry.start.pixel_size_m
    resolution = None if not size else (0.01 / size, 0.01 / size)
    with tifffile.TiffWriter(stream) as file:
        for name, pixels in _pixels(entry).items():
            text = json.dumps({"plane": name, **about(entry)})
            file.write(
                pixels.astype(np.float32),
                photometric="minisblack",
                description=text,
                metadata=None,
                software=f"quietbeam {__version__}",
                extratags=[(285, 2, None, name, True)],  # PageName
                resolution=resolution,
                resolutionunit=None if resolution is None else "CENTIMETER",
            )
    return stream.getvalue()


def _h5(entry: Entry) -> bytes:
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.attrs["default"] = "entry"
        group = file.create_group("entry")
        group.attrs.update({"NX_class": "NXentry", "default": "data"})
        data = group.create_group("data")
        signal = "clean" if entry.clean is not None else "raw"
        data.attrs.update({"NX_class": "NXdata", "signal": signal})
        for name, pixels in _pixels(entry).items():
            stored = "clean_errors" if name == "sd" else name
            data.create_dataset(stored, data=pixels).attrs["units"] = "counts"
        for name, image in entry.maps.items():
            group.create_dataset(f"maps/{name}", data=image)
        process = group.create_group("process")
        process.attrs["NX_class"] = "NXprocess"
        process["about"] = json.dumps(about(entry))
    return stream.getvalue()


def _npy(entry: Entry) -> bytes:
    stream = io.BytesIO()
    pixels = _pixels(entry)
    np.save(stream, pixels["clean"] if "clean" in pixels else pixels["raw"], allow_pickle=False)
    return stream.getvalue()
