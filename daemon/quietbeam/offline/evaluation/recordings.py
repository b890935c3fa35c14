"""Real recordings that know something near the truth: a target, or repeats of one scene.

A recording is named ``FILE``, ``FILE:/dataset``, ``FILE:/dataset[a:b]`` or
``FILE:/dataset[a:b, top:bottom, left:right]`` with Python's slices, and its target by
``@/dataset[...]`` after that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, median_filter

from quietbeam.core.errors import ConfigError, DataError
from quietbeam.offline.quality import noise_variance
from quietbeam.offline.series import HDF5_SUFFIXES, TIFF_SUFFIXES, open_series, split_spec

Float = NDArray[np.float32]
Part = tuple[slice, slice, slice]

_TARGET = "target"
_SPOT_SD = 5.0
_DRIFT = 1.2
_ALL = slice(None)


@dataclass(frozen=True, slots=True, eq=False)
class Repeats:
    """Noisy frames, and what they are compared with.

    Attributes:
        name: As it was asked for, without the folder.
        noisy: (t, h, w) float32, NaN where a pixel is bad.
        target: (t, h, w) float32, for each noisy frame; its scale may be another one.
        target_variance: Of the noise that is left in the target, its units squared.
        images: The frames are unrelated images, not a video.
        notes: What a reader of the figures has to know.
    """

    name: str
    noisy: Float
    target: Float
    target_variance: float
    images: bool
    notes: tuple[str, ...] = ()


def open_all(
    places: Sequence[str], *, images: bool = False, spots: bool = False
) -> tuple[list[Repeats], list[str]]:
    """Read the recordings named, and all in the folders named; settings as for ``open_repeats``.

    Returns:
        The recordings, and a note for each file of a folder that is of no use.

    Raises:
        ConfigError: Brackets cannot be read.
        DataError: A recording that was named, or all in the folders, cannot be compared.
    """
    opened: list[Repeats] = []
    notes: list[str] = []
    for place in places:
        for spec in recordings_in(place):
            try:
                opened.append(open_repeats(spec, images=images, spots=spots))
            except DataError as error:
                if spec == place:
                    raise
                notes.append(f"left out: {error}")
    if not opened:
        raise DataError("no recording with repeats or a target: " + "; ".join(notes))
    return opened, notes


def recordings_in(place: str) -> list[str]:
    """Give the recordings in a folder, by name; ``place`` itself where it is no folder.

    Raises:
        DataError: There is none in the folder.
    """
    folder = Path(place)
    if not folder.is_dir():
        return [place]
    known = HDF5_SUFFIXES | TIFF_SUFFIXES | {".npy"}
    found = sorted(str(file) for file in folder.iterdir() if file.suffix.lower() in known)
    if not found:
        raise DataError(f"{folder}: no recording in this folder; expected {', '.join(known)}")
    return found


def open_repeats(spec: str, *, images: bool = False, spots: bool = False) -> Repeats:
    """Read a recording and what it can be compared with.

    That is the target that was named, else the dataset ``target`` beside the
    frames, else the frames themselves: every second one is to be cleaned and
    the mean of the others, which no denoiser sees, is the target.  (The mean
    of *all* others would hold the same noise as the estimate of a frame, which
    is made from its neighbours: a plain mean would look perfect.)

    Args:
        spec: See above.
        images: The frames are unrelated images; so they are, too, where each
            has a target of its own.
        spots: Take isolated spots (gamma hits) out: bad pixels of the noisy
            frames, and not compared in the target.

    Raises:
        ConfigError: The brackets cannot be read.
        DataError: There are no images, no repeats, or the target does not fit.
    """
    asked, _, wanted = spec.partition("@")
    where, part = _split(asked)
    frames, source = _read(where, part)
    target = _target(source, wanted, part, len(frames))
    notes: list[str] = []
    if target is None:
        if images or len(frames) < 4:
            raise DataError(f"{spec}: no target and no 4 repeats of one scene to compare with")
        notes += _drift(frames)
        variance = noise_variance(frames) / len(frames[1::2])
        target = frames[1::2].mean(0, dtype=np.float64).astype(np.float32)[None]
        frames = frames[::2]
    else:
        variance = 0.0
        images = images or len(target) > 1
    if target.shape[1:] != frames.shape[1:]:
        raise DataError(f"{spec}: target of {target.shape[1:]}, frames of {frames.shape[1:]}")
    if spots:
        frames = np.stack([_without_spots(frame) for frame in frames])
        target = np.stack([_without_spots(frame) for frame in target])
    whole = np.broadcast_to(target, frames.shape)
    folder = split_spec(where)[0].parent
    name = spec.removeprefix(f"{folder}/")
    return Repeats(name, frames, whole, variance, images, tuple(notes))


def _target(source: str, wanted: str, part: Part, count: int) -> Float | None:
    """(1 or ``count``, h, w): what was named, or what stands beside the frames; None if nothing."""
    file, dataset = split_spec(source)
    if wanted:
        name, own = _split(wanted)
        crop = own[1:] if own[1:] != (_ALL, _ALL) else part[1:]
        images, _ = _read(f"{file}:{name}", (own[0], *crop))
    elif dataset is not None:
        beside = f"{file}:{dataset.rpartition('/')[0]}/{_TARGET}"
        try:
            with open_series(beside) as series:
                one = len(series) == 1
        except DataError:
            return None
        images, _ = _read(beside, (_ALL if one else part[0], *part[1:]))
    else:
        return None
    if len(images) in {1, count}:
        return images
    return images.mean(0, dtype=np.float64).astype(np.float32)[None]


def _split(spec: str) -> tuple[str, Part]:
    """Take the brackets off; a file that really has them in its name stays whole."""
    match = re.fullmatch(r"(.+)\[([^\[\]]*)\]", spec.strip())
    if match is None or Path(spec).exists():
        return spec.strip(), (_ALL, _ALL, _ALL)
    pieces = match[2].split(",")
    if len(pieces) > 3:
        raise ConfigError(f"{spec}: expected at most [frames, rows, columns]")
    parts = [_slice(piece, spec) for piece in pieces]
    parts += [_ALL] * (3 - len(parts))
    return match[1], (parts[0], parts[1], parts[2])


def _slice(text: str, spec: str) -> slice:
    try:
        numbers = [int(one) if one.strip() else None for one in text.split(":")]
    except ValueError as error:
        raise ConfigError(f"{spec}: {text!r} is no slice; expected as in Python, 0:10") from error
    if len(numbers) == 1 and numbers[0] is not None:
        return slice(numbers[0], numbers[0] + 1 or None)
    return slice(*numbers) if 1 < len(numbers) <= 3 else _ALL


def _read(where: str, part: Part) -> tuple[Float, str]:
    with open_series(where) as opened:
        series = opened.channel(None)
        chosen = range(len(series))[part[0]]
        frames = [series[i][part[1], part[2]].astype(np.float32) for i in chosen]
        source = series.source
    if not frames or 0 in frames[0].shape:
        raise DataError(f"{where}: nothing of {series.shape} is left by the slices")
    return np.stack(frames), source


def _drift(frames: Float) -> list[str]:
    """Warn of a scene that is not static: changes beyond noise that a gain cannot explain."""
    level = frames.mean((1, 2), keepdims=True)
    steady = frames * (level.mean() / np.where(level == 0, 1, level))
    noise = noise_variance(frames)
    change = float(steady.var(axis=0, ddof=1).mean())
    if noise <= 0 or change <= _DRIFT * noise:
        return []
    return [f"not a static scene: it changes by {change / noise - 1:.0%} more than its noise"]


def _without_spots(image: Float) -> Float:
    away = np.abs(image - median_filter(image, 5))
    spots = binary_dilation(away > _SPOT_SD * max(float(np.median(away)), 1e-12) / 0.6745)
    return np.where(spots, np.float32(np.nan), image)
