"""Random scenes and noise to pretrain networks on: what an instrument might see.

Nothing here is meant to be a particular sample; together they hold what
operando scenes are made of: phases that separate, fronts, particles that come
and go, textures that drift, steps that stay, light that flickers or dips.
Deterministic by the generator given.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.stats import poisson

from quietbeam.testing.phantoms import spinodal

Float = NDArray[np.float32]
Generator = np.random.Generator


def imagine(rng: Generator, frames: int, size_px: int) -> Float:
    """Give one scene, (frames, size_px, size_px), values 0..1."""
    scene = _draw(rng)(rng, frames, size_px)
    if rng.random() < 0.4:
        share = np.float32(rng.uniform(0.2, 0.8))
        scene = share * scene + (1 - share) * _draw(rng)(rng, frames, size_px)
    scene = scene * _light(rng, frames)
    low, high = float(scene.min()), float(scene.max())
    return np.asarray((scene - low) / max(high - low, 1e-6), np.float32)


def _draw(rng: Generator) -> Callable[[Generator, int, int], Float]:
    return _SCENES[int(rng.integers(len(_SCENES)))]


def _phases(rng: Generator, frames: int, size_px: int) -> Float:
    """Phase separation, slow or fast, with interfaces of different width."""
    every = int(rng.choice([2, 4, 8, 16, 40]))
    snapshots = frames // every + 2
    solved = spinodal((size_px, size_px), snapshots + 20, int(rng.integers(1 << 31)), substeps=8)
    solved = solved[int(rng.integers(20)) :][:snapshots]
    if rng.random() < 0.5:
        solved = 0.5 + 0.5 * np.tanh(rng.uniform(1, 4) * (2 * solved - 1))
    place = np.arange(frames) / every
    before = place.astype(int)
    share = (place - before)[:, None, None].astype(np.float32)
    still = (1 - share) * solved[before] + share * solved[before + 1]
    return _moved(np.asarray(still, np.float32), rng, fastest=0.3)


def _texture(rng: Generator, frames: int, size_px: int) -> Float:
    """A random field of any roughness that drifts, or stays."""
    spectrum = np.hypot(fft.fftfreq(size_px)[:, None], fft.fftfreq(size_px)[None]) + 1 / size_px
    noise = np.asarray(fft.fft2(rng.standard_normal((size_px, size_px))))
    field = np.real(np.asarray(fft.ifft2(noise * spectrum ** -rng.uniform(1.5, 3.5))))
    if rng.random() < 0.4:  # grains with sharp edges
        levels = np.quantile(field, np.sort(rng.random(int(rng.integers(1, 5)))))
        field = np.digitize(field, levels).astype(float)
    image = _unit(field)
    return _moved(np.broadcast_to(image, (frames, *image.shape)), rng, fastest=1.5)


def _fronts(rng: Generator, frames: int, size_px: int) -> Float:
    """A wavy front that moves through, with a width of one to eight pixels."""
    y, x = np.mgrid[:size_px, :size_px].astype(np.float32)
    angle, width = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 8)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    wave = rng.uniform(0, 6) * np.sin(2 * np.pi * across / rng.uniform(20, 80))
    speed, start = rng.uniform(-2, 2), rng.uniform(-0.2, 0.9) * size_px
    time = np.arange(frames, dtype=np.float32)[:, None, None]
    place = (along + wave - start - speed * time) / width
    return np.asarray(0.5 + 0.5 * np.tanh(place), np.float32)


def _particles(rng: Generator, frames: int, size_px: int) -> Float:
    """Blobs and discs that move, appear and vanish, on a quiet background."""
    y, x = np.mgrid[:size_px, :size_px].astype(np.float32)
    time = np.arange(frames)
    out = np.zeros((frames, size_px, size_px), np.float32)
    for _ in range(int(rng.integers(3, 14))):
        place, speed = rng.uniform(0, size_px, 2), rng.normal(0, rng.choice([0.05, 0.5, 1.5]), 2)
        radius, height = rng.uniform(1.2, 9), rng.uniform(0.2, 1) * rng.choice([1, 1, -1])
        begin, end = np.sort(rng.integers(-frames, 2 * frames, 2))
        for t in time[(time >= begin) & (time <= end)]:
            centre = (place + speed * t) % size_px
            distance = np.hypot(y - centre[0], x - centre[1])
            out[t] += np.float32(height) / (1 + np.exp(np.clip((distance - radius) * 2, -30, 30)))
    return _unit(out)


def _steps(rng: Generator, frames: int, size_px: int) -> Float:
    """Half planes laid over one another: wedges, cells, windows that do not move."""
    y, x = np.mgrid[:size_px, :size_px].astype(np.float32)
    out = np.zeros((size_px, size_px), np.float32)
    for _ in range(int(rng.integers(2, 8))):
        angle = rng.uniform(0, 2 * np.pi)
        edge = np.cos(angle) * x + np.sin(angle) * y - rng.uniform(-0.2, 1) * size_px
        out += rng.uniform(-1, 1) * 0.5 * (1 + np.tanh(edge / rng.uniform(0.3, 2)))
    return _moved(np.broadcast_to(_unit(out), (frames, size_px, size_px)), rng, fastest=0.1)


_SCENES = (_phases, _phases, _texture, _fronts, _particles, _steps)


def _light(rng: Generator, frames: int) -> Float:
    """Intensity of every frame: steady, flickering by some per cent, or with a dip."""
    kind = rng.random()
    light = np.ones(frames)
    if kind < 0.15:
        light += rng.uniform(0.002, 0.03) * rng.standard_normal(frames)
    elif kind < 0.35:
        distance = (np.arange(frames) - rng.uniform(0, frames)) / rng.uniform(2, 20)
        light -= rng.uniform(0.05, 0.5) * np.exp(-(distance**2))
    elif kind < 0.4:
        light[int(rng.integers(frames)) :] *= rng.uniform(0.4, 0.9)
    return light.astype(np.float32)[:, None, None]


def _moved(video: Float, rng: Generator, fastest: float) -> Float:
    """Shift every frame a little further than the one before, periodic; often not at all."""
    if rng.random() < 0.5:
        return np.asarray(video, np.float32)
    speed = rng.uniform(-fastest, fastest, 2)
    rows = fft.fftfreq(video.shape[1])[:, None]
    columns = fft.rfftfreq(video.shape[2])[None]
    out = np.empty(video.shape, np.float32)
    for t, image in enumerate(video):
        phase = np.exp(-2j * np.pi * t * (speed[0] * rows + speed[1] * columns))
        out[t] = np.asarray(fft.irfft2(np.asarray(fft.rfft2(image)) * phase, image.shape))
    return out


def _unit(image: NDArray[np.floating]) -> Float:
    low, high = float(image.min()), float(image.max())
    return np.asarray((image - low) / max(high - low, 1e-6), np.float32)


def expose(rng: Generator, scene: Float) -> tuple[Float, Float]:
    """Measure a scene: (noisy, truth), both in stabilised units, of the scene's shape.

    Mostly white noise of unit variance at a random contrast; also few photons,
    impulses, and lines of a scan whose noise is correlated along the row.
    """
    kind = rng.random()
    if kind < 0.3:
        peak = np.exp(rng.uniform(np.log(2), np.log(60)))
        photons = peak * (rng.uniform(0, 0.3) + 0.7 * scene)
        measured = rng.poisson(photons)
        return _anscombe(measured), np.interp(photons, _PHOTONS, _MEANS).astype(np.float32)
    truth = (np.exp(rng.uniform(np.log(0.7), np.log(40))) * scene + rng.uniform(0, 20)).astype(
        np.float32
    )
    noisy = truth + rng.standard_normal(scene.shape, np.float32)
    if kind < 0.4:
        noisy = truth + _lines(rng, scene.shape)
    elif kind < 0.5:
        hit = rng.random(scene.shape) < rng.uniform(0.001, 0.2)
        extreme = np.where(rng.random(scene.shape) < 0.5, truth.min() - 3, truth.max() + 3)
        noisy = np.where(hit, extreme, noisy)
    return noisy.astype(np.float32), truth


def _lines(rng: Generator, shape: tuple[int, ...]) -> Float:
    """Unit noise with a correlation that falls exponentially along the rows."""
    correlation = rng.uniform(0.2, 0.8)
    noise = rng.standard_normal(shape, np.float32)
    for i in range(1, shape[2]):
        noise[..., i] *= np.sqrt(1 - correlation**2)
        noise[..., i] += correlation * noise[..., i - 1]
    return noise


def _anscombe(counts: NDArray[np.integer] | NDArray[np.float64]) -> Float:
    return (2 * np.sqrt(counts + 0.375)).astype(np.float32)


_PHOTONS = np.linspace(0, np.sqrt(80), 400) ** 2
_COUNTS = np.arange(160)
_MEANS = poisson.pmf(_COUNTS[None], _PHOTONS[:, None]) @ _anscombe(_COUNTS)
