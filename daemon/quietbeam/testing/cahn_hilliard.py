"""The paper's simulated data: Cahn-Hilliard phase separation, and four kinds of noise.

Equation, in units of kT and of the diffusivity:

    dc/dt = div( c (1 - c) grad mu ),   mu = ln(c / (1 - c)) + W (1 - 2c) - kappa lap c

with c the fraction of one phase (0..1), W = 3 (regular solution, phases at
c = 0.071 and 0.929), kappa = 0.002, 128 x 128 pixels of 0.01 and c = 0.5 + 0.01 N(0, 1)
at the start: the example of the source paper's own inversion code, except for
its time axis; with this mobility the phases separate at t = 0.04..0.06 and
coarsen after that, so 100 frames up to t = 0.1 are the default here.
Periodic, Fourier space, first-order semi-implicit with a constant part of the
fourth-order term taken implicitly (Zhu, Chen, Shen & Tikare, Phys. Rev. E 60,
3564 (1999)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

NoiseName = Literal["gaussian", "poisson", "impulse", "mixed"]
Field = NDArray[np.floating]

_EDGE = 1e-6  # the logarithm is not asked nearer than this to 0 and 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CahnHilliard:
    """The material and the grid; lengths and times are dimensionless.

    Attributes:
        size_px: Side of the square, periodic image.
        pixel: Length of a pixel.
        kappa: Gradient energy; the interface is about ``sqrt(kappa)`` wide.
        interaction: W; two phases exist for W > 2.
        mean: Average c, conserved.
        fluctuation: Standard deviation of c at the start.
        step: Time step, at most (a frame interval is cut into equal steps).
        implicit: Mobility of the implicit part; half the largest one (0.25) or more is stable.
    """

    size_px: int = 128
    pixel: float = 0.01
    kappa: float = 0.002
    interaction: float = 3.0
    mean: float = 0.5
    fluctuation: float = 0.01
    step: float = 5e-5
    implicit: float = 0.15

    def simulate(
        self, frames: int = 100, *, until: float = 0.1, since: float = 0.0, seed: int = 0
    ) -> NDArray[np.float32]:
        """Give c at ``frames`` equidistant times from ``since`` to ``until``, both included.

        Returns:
            (t, h, w) float32, within 0..1; the same seed gives the same numbers.
        """
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((self.size_px, self.size_px))
        c = self.mean + self.fluctuation * (noise - noise.mean())
        out = np.empty((frames, self.size_px, self.size_px), np.float32)
        times = np.linspace(since, until, frames)
        now = 0.0
        for i, time in enumerate(times):
            c = self.advance(c, time - now)
            out[i], now = c, time
        return out

    def advance(self, c: Field, duration: float) -> Field:
        """Give c after ``duration``; (h, w) float64 in, the same out."""
        steps = int(np.ceil(duration / self.step - 1e-9))
        if steps <= 0:
            return c
        dt = duration / steps
        kx, ky, k2 = self._waves()
        stiff = self.implicit * self.kappa * k2**2
        for _ in range(steps):
            mu = np.fft.rfft2(self._chemical(c)) + self.kappa * k2 * np.fft.rfft2(c)
            mobility = np.clip(c * (1 - c), 0, None)
            flux_x = np.fft.rfft2(mobility * np.fft.irfft2(1j * kx * mu, s=c.shape))
            flux_y = np.fft.rfft2(mobility * np.fft.irfft2(1j * ky * mu, s=c.shape))
            rate = 1j * kx * flux_x + 1j * ky * flux_y
            c = c + np.fft.irfft2(dt * rate / (1 + dt * stiff), s=c.shape)
        return c

    def free_energy(self, c: NDArray[np.floating]) -> float:
        """Give the mean of ``c ln c + (1-c) ln(1-c) + W c (1-c) + kappa/2 |grad c|^2``.

        It never grows in time (the second law), whatever the mobility.
        """
        field = np.asarray(c, np.float64)
        inside = np.clip(field, _EDGE, 1 - _EDGE)
        mixing = inside * np.log(inside) + (1 - inside) * np.log1p(-inside)
        kx, ky, _ = self._waves()
        spectrum = np.fft.rfft2(field)
        gradient = sum(np.fft.irfft2(1j * k * spectrum, s=field.shape) ** 2 for k in (kx, ky))
        energy = mixing + self.interaction * field * (1 - field) + self.kappa / 2 * gradient
        return float(energy.mean())

    def _chemical(self, c: Field) -> Field:
        inside = np.clip(c, _EDGE, 1 - _EDGE)
        return np.log(inside / (1 - inside)) + self.interaction * (1 - 2 * c)

    def _waves(self) -> tuple[Field, Field, Field]:
        kx = 2 * np.pi * np.fft.rfftfreq(self.size_px, self.pixel)[None, :]
        ky = 2 * np.pi * np.fft.fftfreq(self.size_px, self.pixel)[:, None]
        return kx, ky, kx**2 + ky**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Poisson counts, then Gaussian read-out noise, then impulses, each where its level is set.

    Attributes:
        counts: Photons at c = 1; None for no photon noise.
        sigma: Standard deviation of the Gaussian part, in c.
        impulse: Fraction of the pixels replaced, half by 0 and half by 1 (salt and pepper).
    """

    counts: float | None = None
    sigma: float = 0.0
    impulse: float = 0.0

    def apply(self, clean: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
        """Give a noisy copy of ``clean`` (any shape, nominally 0..1), float32, not clipped."""
        rng = np.random.default_rng(seed)
        noisy = np.asarray(clean, np.float32)
        if self.counts is not None:
            photons = rng.poisson(np.clip(noisy, 0, None) * self.counts)
            noisy = (photons / self.counts).astype(np.float32)
        if self.sigma > 0:
            noisy = noisy + self.sigma * rng.standard_normal(noisy.shape, np.float32)
        if self.impulse > 0:
            draw = rng.random(noisy.shape, np.float32)
            noisy = np.where(draw < self.impulse / 2, np.float32(0), noisy)
            noisy = np.where(draw > 1 - self.impulse / 2, np.float32(1), noisy)
        return np.array(noisy, np.float32)


NOISES: dict[NoiseName, Noise] = {
    "gaussian": Noise(sigma=0.2),
    "poisson": Noise(counts=20),
    "impulse": Noise(impulse=0.2),
    "mixed": Noise(counts=40, sigma=0.1, impulse=0.05),
}
"""The four cases of the paper's figure 2."""
