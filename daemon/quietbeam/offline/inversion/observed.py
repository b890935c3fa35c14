"""Reads a recording for an inversion: composition, noise, times; or says what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from quietbeam.core.errors import DataError
from quietbeam.model.stabilise import NoiseModel, PhotonTransfer
from quietbeam.offline.inversion.model import Array
from quietbeam.offline.recording import Recording

LEAST_FRAMES = 8
KEY = "inversion"
"""Under this key of a run's metadata a source may say what an inversion has to know."""

_SATURATED = 0.01
_BEYOND = 0.02
_UNCHANGED = 1.15
_SMOOTH = (1.0, 1.2, 1.2)
"""S.d. of the Gaussian, in frames and pixels, that gives the starts where nothing was denoised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What turns counts, pixels and frames into physics; None: look in the recording.

    Attributes:
        low: Counts where c = 0.
        high: Counts where c = 1.
        pixel_size_m: Side of a pixel.
        frame_time_s: From one frame to the next, where the recorded times are not to be used.
    """

    low: float | None = None
    high: float | None = None
    pixel_size_m: float | None = None
    frame_time_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """Frames in units of composition, times in units of the median interval.

    Attributes:
        raw: (t, h, w) float64 measured.
        clean: (t, h, w) float64 denoised, of the same frames.
        valid: (t, h, w) bool.
        noise: Variance of ``raw`` by its mean.
        times: (t,).
        interval_s: The unit of ``times``.
        pixel_size_m: Side of a pixel.
        denoised: ``clean`` comes from the recording; else it is ``raw``, smoothed.
        given: What the run's metadata say under ``inversion``.
        sha256: Of the raw frames, for provenance.
    """

    raw: Array
    clean: Array
    valid: NDArray[np.bool_]
    noise: NoiseModel
    times: Array
    interval_s: float
    pixel_size_m: float
    denoised: bool
    given: Mapping[str, Any]
    sha256: str


def observe(
    path: Path | str, calibration: Calibration | None = None, *, use_clean: bool = True
) -> Observed:
    """Read a recording of ours.

    Raises:
        DataError: Something that the inversion needs is missing or makes no sense.
    """
    calibration = calibration or Calibration()
    with Recording(path) as recording:
        if not recording.has_raw:
            raise DataError(f"{path}: has no raw frames; the inversion compares with measured data")
        if recording.channels:
            names = ", ".join(recording.channels)
            raise DataError(f"{path}: has channels {names}; expected one image of composition")
        run = recording.run_start()
        ids = recording.column("raw/frame_id")
        raw = np.asarray(recording.raw[:], np.float64)
        valid = _valid(path, raw, run.nodata, run.saturation, run.mask)
        times = _times(
            path, recording, ids, calibration.frame_time_s or run.frame_time_s, calibration
        )
        clean = _clean(recording, ids, raw.shape) if use_clean else None
        given = find_given(run.metadata)
        digest = sha256(np.ascontiguousarray(recording.raw[:]).data).hexdigest()
    low = calibration.low if calibration.low is not None else given.get("low_counts")
    high = calibration.high if calibration.high is not None else given.get("high_counts")
    pixel = calibration.pixel_size_m or given.get("pixel_size_m") or run.pixel_size_m
    _ask(path, low=low, high=high, pixel=pixel)
    span = float(high) - float(low)  # type: ignore[arg-type]
    return arrange(
        (raw - float(low)) / span,  # type: ignore[arg-type]
        times,
        float(pixel),  # type: ignore[arg-type]
        clean=None if clean is None else (clean - float(low)) / span,  # type: ignore[arg-type]
        valid=valid,
        given=given,
        source=str(path),
        digest=digest,
    )


def arrange(
    raw: Array,
    times_s: Array,
    pixel_size_m: float,
    *,
    clean: Array | None = None,
    valid: NDArray[np.bool_] | None = None,
    given: Mapping[str, Any] | None = None,
    source: str = "array",
    digest: str = "",
) -> Observed:
    """Check frames that are in units of composition, (t, h, w), and measure their noise.

    Raises:
        DataError: Too few frames, no times, no dynamics, or no composition.
    """
    raw = np.asarray(raw, np.float64)
    if raw.ndim != 3 or len(raw) < LEAST_FRAMES:
        raise DataError(
            f"{source}: frames of shape {raw.shape}; expected (t, h, w) with at least "
            f"{LEAST_FRAMES} frames"
        )
    times_s = np.asarray(times_s, np.float64)
    if (
        times_s.shape != (len(raw),)
        or not np.isfinite(times_s).all()
        or (np.diff(times_s) <= 0).any()
    ):
        raise DataError(
            f"{source}: the times do not increase from frame to frame; give --frame-time"
        )
    valid = np.isfinite(raw) if valid is None else valid & np.isfinite(raw)
    raw = np.where(valid, raw, 0.5)
    noise = _noise(raw, valid)
    smooth = gaussian_filter(raw, _SMOOTH) if clean is None else np.asarray(clean, np.float64)
    smooth = np.where(np.isfinite(smooth), smooth, raw)
    _check_units(source, smooth)
    _check_dynamics(source, raw, valid, noise)
    interval = float(np.median(np.diff(times_s)))
    return Observed(
        raw=raw,
        clean=smooth,
        valid=valid,
        noise=noise,
        times=(times_s - times_s[0]) / interval,
        interval_s=interval,
        pixel_size_m=pixel_size_m,
        denoised=clean is not None,
        given=dict(given or {}),
        sha256=digest or sha256(np.ascontiguousarray(raw).data).hexdigest(),
    )


def find_given(metadata: Mapping[str, Any], depth: int = 4) -> Mapping[str, Any]:
    """Look for ``inversion`` in nested metadata; wire formats put user data at different depths."""
    if isinstance(found := metadata.get(KEY), Mapping):
        return found
    inner = [value for value in metadata.values() if isinstance(value, Mapping)]
    return next((g for one in inner if depth and (g := find_given(one, depth - 1))), {})


def _valid(
    path: Path | str,
    raw: Array,
    nodata: float | None,
    saturation: float | None,
    mask: NDArray[np.bool_] | None,
) -> NDArray[np.bool_]:
    valid = np.isfinite(raw)
    if nodata is not None:
        valid &= raw < nodata
    if mask is not None:
        valid &= ~mask
    if saturation is not None:
        full = valid & (raw >= saturation)
        share = float(full.sum() / max(1, valid.sum()))
        if share > _SATURATED:
            raise DataError(
                f"{path}: {share:.0%} of the pixels are saturated (at {saturation:g} counts or "
                f"more); expected at most {_SATURATED:.0%}: their composition is not known"
            )
        valid &= ~full
    return valid


def _times(
    path: Path | str,
    recording: Recording,
    ids: NDArray[Any],
    frame_time_s: float | None,
    calibration: Calibration,
) -> Array:
    """Give seconds: the detector's clock, else numbers of frames times their distance."""
    if calibration.frame_time_s is None:
        clock = np.asarray(recording.column("raw/time"), np.float64)
        clock = clock * (1e-9 if recording.unit("raw/time") in {"ns", ""} else 1.0)
        if len(clock) > 1 and np.isfinite(clock).all() and (np.diff(clock) > 0).all():
            return clock - clock[0]
    if frame_time_s is None:
        raise DataError(f"{path}: tells no time of its frames; give --frame-time in seconds")
    return (ids - ids[0]).astype(np.float64) * frame_time_s


def _clean(recording: Recording, ids: NDArray[Any], shape: tuple[int, ...]) -> Array | None:
    """Give the clean frames in the order of the raw ones; None where they are not all there."""
    if not recording.has_clean:
        return None
    known = {int(one): row for row, one in enumerate(recording.column("clean/frame_id"))}
    if any(int(one) not in known for one in ids):
        return None
    rows = [known[int(one)] for one in ids]
    clean = np.asarray(recording.clean[:], np.float64)[rows]
    return clean if clean.shape == shape else None


def _ask(path: Path | str, *, low: Any, high: Any, pixel: Any) -> None:
    missing = []
    if low is None or high is None or low == high:
        missing.append("--low and --high, the counts where the composition is 0 and 1")
    if not pixel:
        missing.append("--pixel-size, metres")
    if missing:
        raise DataError(f"{path}: does not say, so give: {'; '.join(missing)}")


def _noise(raw: Array, valid: NDArray[np.bool_]) -> NoiseModel:
    transfer = PhotonTransfer()
    for frame, good in list(zip(raw, valid, strict=True))[-32:]:
        transfer.add(frame.astype(np.float32), good)
    return transfer.fit()


def _check_units(source: str, clean: Array) -> None:
    beyond = float(((clean < -0.2) | (clean > 1.2)).mean())
    if beyond > _BEYOND:
        raise DataError(
            f"{source}: {beyond:.0%} of the denoised pixels have a composition beyond 0..1 "
            f"(from {clean.min():.3g} to {clean.max():.3g}); check --low and --high"
        )


def _check_dynamics(source: str, raw: Array, valid: NDArray[np.bool_], noise: NoiseModel) -> None:
    """Refuse a series whose first and last thirds are the same but for noise."""
    third = len(raw) // 3
    first, last = raw[:third].mean(0), raw[-third:].mean(0)
    good = valid[:third].all(0) & valid[-third:].all(0)
    variance = np.maximum(noise.variance((first + last) / 2), 1e-12) * 2 / third
    change = float(((first - last) ** 2 / variance)[good].mean()) if good.any() else 0.0
    if change < _UNCHANGED:
        raise DataError(
            f"{source}: no dynamics: first and last third of the frames differ by {change:.2f} "
            f"times their noise (variance); expected more than {_UNCHANGED}"
        )
