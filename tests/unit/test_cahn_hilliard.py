from __future__ import annotations

import numpy as np
import pytest

from quietbeam.testing.cahn_hilliard import NOISES, CahnHilliard, Noise

MODEL = CahnHilliard(size_px=32)


@pytest.fixture(scope="module")
def video():
    return MODEL.simulate(25, until=0.12)


def test_a_small_wave_grows_at_the_rate_of_linear_theory():
    model = CahnHilliard(size_px=32, step=1e-5)
    k = 2 * np.pi * 1 / (32 * model.pixel)
    x = np.arange(32) * model.pixel
    start = 0.5 + 1e-4 * np.cos(k * x)[None, :] * np.ones((32, 1))
    duration = 2e-3
    end = model.advance(start, duration)
    # dc/dt = -M k^2 (mu' + kappa k^2) c with M = 1/4 and mu' = 4 - 2 W at c = 1/2.
    rate = -0.25 * k**2 * (4 - 2 * model.interaction + model.kappa * k**2)
    growth = np.log(np.ptp(end) / np.ptp(start)) / duration
    assert growth == pytest.approx(rate, rel=0.01)


def test_mass_is_conserved(video):
    assert np.abs(video.mean((1, 2), np.float64) - 0.5).max() < 1e-6


def test_free_energy_never_grows(video):
    energy = np.array([MODEL.free_energy(frame) for frame in video])
    assert (np.diff(energy) < 1e-9).all()
    assert energy[0] - energy[-1] > 0.01


def test_the_phases_reach_the_compositions_of_the_common_tangent(video):
    # mu = 0 for W = 3: ln(c / (1 - c)) = -3 (1 - 2c), c = 0.0707; curvature moves it a little.
    assert video[-1].min() == pytest.approx(0.071, abs=0.03)
    assert video[-1].max() == pytest.approx(0.929, abs=0.03)


def test_halving_the_step_halves_the_error():
    start = CahnHilliard(size_px=32).simulate(2, until=0.06)[-1].astype(np.float64)

    def after(step):
        return CahnHilliard(size_px=32, step=step).advance(start, 4e-3)

    reference = after(1e-6)
    coarse, fine = (np.abs(after(step) - reference).mean() for step in (2e-4, 1e-4))
    assert coarse / fine == pytest.approx(2, rel=0.25)


def test_a_shifted_start_gives_a_shifted_result():
    start = CahnHilliard(size_px=32).simulate(2, until=0.05)[-1].astype(np.float64)
    moved = MODEL.advance(np.roll(start, (5, -3), (0, 1)), 1e-3)
    assert np.allclose(moved, np.roll(MODEL.advance(start, 1e-3), (5, -3), (0, 1)), atol=1e-12)


def test_the_same_seed_gives_the_same_video_and_another_seed_another():
    one, again = (MODEL.simulate(3, until=1e-3, seed=4) for _ in range(2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, MODEL.simulate(3, until=1e-3, seed=5))


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("gaussian", 0.04),
        ("poisson", 0.3 / 20),
        ("impulse", 0.2 * (0.5 * 0.3**2 + 0.5 * 0.7**2)),
        # Impulses overwrite 5 % of the pixels.
        ("mixed", 0.95 * (0.3 / 40 + 0.01) + 0.05 * (0.5 * 0.3**2 + 0.5 * 0.7**2)),
    ],
)
def test_each_noise_has_the_mean_square_of_its_definition(name, variance):
    clean = np.full((8, 128, 128), 0.3, np.float32)
    noisy = NOISES[name].apply(clean)
    assert np.mean((noisy - clean) ** 2) == pytest.approx(variance, rel=0.03)
    assert np.array_equal(noisy, NOISES[name].apply(clean))
    assert noisy.dtype == np.float32


def test_no_noise_changes_nothing():
    clean = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 3, 4)
    assert np.array_equal(Noise().apply(clean), clean)
