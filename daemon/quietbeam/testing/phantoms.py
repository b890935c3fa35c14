"""A simulated operando cell that knows its own truth.

Phase separation (Cahn-Hilliard) seen through a beam that dips once, by a
detector with Poisson photon noise, Gaussian read noise, a gain and a pedestal,
while the sample drifts.  Deterministic: frame i of a seed is always the same,
in any process, so that what a daemon recorded can be compared with the truth.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Float = NDArray[np.float32]


def spinodal(size: tuple[int, int], snapshots: int, seed: int, substeps: int = 20) -> Float:
    """Cahn-Hilliard phase separation from a noisy mixture, values about 0 to 1.

    dc/dt = laplacian(c^3 - c - laplacian(c)), c in [-1, 1], periodic, by a
    semi-implicit spectral scheme with a convex splitting (Eyre 1998); steps
    grow with time because coarsening slows down as t^(1/3).

    Args:
        size: (h, w).
        snapshots: How many to give.
        seed: Of the initial mixture.
        substeps: Solver steps between two snapshots.

    Returns:
        (snapshots, h, w) float32.
    """
    rng = np.random.default_rng(seed)
    ky = 2 * np.pi * fft.fftfreq(size[0])[:, None]
    kx = 2 * np.pi * fft.rfftfreq(size[1])[None, :]
    k2 = (ky**2 + kx**2).astype(np.float32)
    c = np.asarray(fft.rfft2(rng.normal(0, 0.05, size).astype(np.float32)))
    out = np.empty((snapshots, *size), np.float32)
    warm_up = 150
    step = np.float32(1.5)
    for number in range(-warm_up, snapshots * substeps):
        real = np.asarray(fft.irfft2(c, size))
        bulk = np.asarray(fft.rfft2(real**3 - 3 * real))
        c = (c - step * k2 * bulk) / (1 + step * k2 * (2 + k2))
        if number >= 0 and number % substeps == 0:
            out[number // substeps] = np.asarray(fft.irfft2(c, size))
    return np.asarray((out + 1) / 2, np.float32)


class Phantom:
    """The simulated cell as a detector sees it.

    Args:
        shape: (h, w) in pixels.
        frames: Length of the series.
        seed: Of everything.
        photons: (low, high) expected photons per pixel in the two phases.
        gain: Counts per photon.
        read_noise: Counts, standard deviation.
        pedestal: Counts added to everything.
        drift_px: Largest displacement of the sample, which moves to and fro.
        dip: Share of the beam that is lost in the middle of the dip.
        frame_time_s: Written to headers; nothing here waits.
    """

    def __init__(
        self,
        shape: tuple[int, int] = (256, 256),
        frames: int = 2400,
        seed: int = 0,
        *,
        photons: tuple[float, float] = (4.0, 16.0),
        gain: float = 2.0,
        read_noise: float = 3.0,
        pedestal: float = 20.0,
        drift_px: float = 12.0,
        dip: float = 0.3,
        frame_time_s: float = 0.05,
    ) -> None:
        self.shape, self.frames, self.seed = shape, frames, seed
        self.photons, self.gain, self.read_noise = photons, gain, read_noise
        self.pedestal, self.drift_px, self.dip = pedestal, drift_px, dip
        self.frame_time_s = frame_time_s

    def __len__(self) -> int:
        return self.frames

    @property
    def noise(self) -> tuple[float, float]:
        """(gain, offset variance) of ``variance = gain * mean + offset_variance``."""
        return self.gain, self.read_noise**2 - self.gain * self.pedestal

    def truth(self, i: int) -> Float:
        """Expected counts of frame ``i``: (h, w) float32."""
        low, high = self.photons
        scene = low + (high - low) * self._composition(i)
        return (self.gain * self._beam(i) * scene + self.pedestal).astype(np.float32)

    def frame(self, i: int) -> NDArray[np.uint16]:
        """Measured counts of frame ``i``: (h, w) uint16."""
        rng = np.random.default_rng([self.seed, 1 + i])
        photons = rng.poisson((self.truth(i) - self.pedestal) / self.gain)
        read = rng.standard_normal(self.shape, np.float32) * np.float32(self.read_noise)
        counts = np.rint(self.gain * photons + self.pedestal + read)
        return np.clip(counts, 0, 65_534).astype(np.uint16)

    @cached_property
    def _snapshots(self) -> Float:
        return np.clip(spinodal(self.shape, self.frames // self._every + 2, self.seed), 0, 1)

    @property
    def _every(self) -> int:
        """Frames from one solved snapshot to the next; between them it is interpolated."""
        return 20

    def _composition(self, i: int) -> Float:
        before, share = divmod(i, self._every)
        a, b = self._snapshots[before], self._snapshots[before + 1]
        mixed = a + np.float32(share / self._every) * (b - a)
        phase = 2 * np.pi * i / 600
        return _shift(mixed, self.drift_px * np.sin(phase), self.drift_px / 2 * np.sin(1.7 * phase))

    def _beam(self, i: int) -> float:
        """Relative intensity: a smooth dip of about 60 frames at two thirds of the series."""
        distance = (i - 2 * self.frames / 3) / 30
        return float(1 - self.dip * np.exp(-(distance**2)))


def _shift(image: Float, dy: float, dx: float) -> Float:
    """Move a periodic image by a fraction of a pixel, bilinear."""
    for axis, distance in ((0, dy), (1, dx)):
        whole = int(np.floor(distance))
        part = np.float32(distance - whole)
        moved = np.roll(image, whole, axis)
        image = np.asarray((1 - part) * moved + part * np.roll(moved, 1, axis), np.float32)
    return image
