"""The windowed SVD against truth, plain references and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.streams import mse, noise, stream
from quietbeam.model.fuse import fuse
from quietbeam.testing.cahn_hilliard import CahnHilliard
from quietbeam_plugins.denoisers._shared import UNKNOWN
from quietbeam_plugins.denoisers.kalman import Kalman
from quietbeam_plugins.denoisers.median import Median
from quietbeam_plugins.denoisers.svd import (
    _NOISE,
    SVD,
    _blurred,
    _followed,
    _regression,
    _shifted,
)

SIGMA = 0.2


def put_out(denoiser, frames):
    """What the pipeline makes of it: fused with the measured frames."""
    estimates = zip(*stream(denoiser, frames), frames, strict=True)
    return np.array([fuse(mean, variance, frame)[0] for mean, variance, frame in estimates])


@pytest.fixture(scope="module")
def phases():
    """A Cahn-Hilliard scene that coarsens slowly, in units of its noise: (t, h, w)."""
    return CahnHilliard(size_px=96).simulate(70, since=0.065, until=0.1) / SIGMA


def test_a_slow_scene_comes_out_2_db_better_than_from_the_other_filters(phases):
    frames = phases + noise(*phases.shape)
    error = {
        type(plugin).__name__: mse(put_out(plugin.build(), frames)[40:], phases[40:])
        for plugin in (SVD(), Kalman(), Median())
    }
    assert error["SVD"] < 0.63 * min(error["Kalman"], error["Median"])


def test_its_risk_without_the_truth_is_the_true_one(phases):
    """Stein's estimate, as the gate uses it; and the variance is that of the error."""
    frames = phases + noise(*phases.shape)
    mean, variance = (stack[40:] for stack in stream(SVD().build(), frames))
    share = variance / (1 + variance)
    fused = mean + share * (frames[40:] - mean)
    risk = np.mean((frames[40:] - fused) ** 2 + 2 * share - 1)
    assert risk == pytest.approx(mse(fused, phases[40:]), abs=0.005)
    chi2 = np.mean((frames[40:] - mean) ** 2 / (1 + variance))
    assert chi2 == pytest.approx(1, abs=0.02)


def test_a_still_scene_is_averaged_as_far_as_its_memory_reaches():
    frames = 50 + noise(90, 48, 48)
    mean, _ = stream(SVD(memory=64).build(), frames)
    assert mse(mean[-1], 50) < 1.4 / 64


def test_the_first_frames_are_plain_means_and_before_them_nothing_is_known():
    frames = 30 + noise(6, 20, 24)
    mean, variance = stream(SVD().build(), frames)
    assert not mean[0].any()
    assert (variance[0] == UNKNOWN).all()
    for i in range(1, 6):
        assert np.allclose(mean[i], frames[:i].mean(0), atol=1e-4)


def test_a_scene_that_is_replaced_is_followed_after_three_frames():
    truth = np.full((60, 48, 48), 20.0)
    truth[40:] += 15 * np.where(np.arange(48) % 24 > 12, 1, -1)
    mean, _ = stream(SVD().build(), truth + noise(60, 48, 48))
    assert mse(mean[40], truth[40]) > 50  # it is a prediction
    assert mse(mean[43], truth[43]) < 1.5
    assert mse(mean[50:], truth[50:]) < 0.3


def test_a_particle_that_appears_is_seen_after_three_frames_and_nothing_else_changes():
    truth = np.full((60, 48, 48), 20.0)
    truth[40:, 20:23, 20:23] += 10
    frames = truth + noise(60, 48, 48)
    mean, _ = stream(SVD().build(), frames)
    assert mse(mean[43:, 20:23, 20:23], truth[43:, 20:23, 20:23]) < 0.6
    assert mse(mean[40:, :, 30:], 20) < 0.05


def test_impulses_are_left_out():
    truth = 20 + 3 * (np.arange(48) % 16 > 8) * np.ones((60, 48, 48))
    frames = truth + noise(60, 48, 48)
    hit = np.random.default_rng(1).random(frames.shape) < 0.05
    frames[hit] = 60
    mean, _ = stream(SVD().build(), frames)
    assert mse(mean[30:], truth[30:]) < 0.2


def test_one_bad_frame_does_not_cost_the_memory():
    truth = 20 + 5 * np.sin(np.arange(48) / 4) * np.ones((70, 48, 1))
    frames = truth + noise(70, 48, 48)
    frames[50] = 0
    mean, _ = stream(SVD().build(), frames)
    assert mse(mean[51:], truth[51:]) < 0.1


def test_one_cosmic_ray_changes_nothing_around_it():
    frames = 20 + noise(60, 48, 48)
    hit = frames.copy()
    hit[50, 20, 20] += 1e4
    before, after = stream(SVD().build(), frames)[0], stream(SVD().build(), hit)[0]
    away = np.ones((48, 48), bool)
    away[14:27, 14:27] = False
    assert np.abs(after - before)[51:, away].max() < 0.5


def test_the_singular_vectors_are_those_of_an_eigendecomposition():
    rng = np.random.default_rng(0)
    loads = rng.normal(size=(16, 2)) @ np.diag([3.0, 1.5])
    gram = loads @ loads.T + 0.01 * np.eye(16)
    basis = torch.eye(16, 4)[None]
    matrix = torch.from_numpy(gram.astype(np.float32))[None]
    for _ in range(20):  # one per frame
        basis = _followed(matrix, basis)
    size, vectors = np.linalg.eigh(gram)
    products = rng.normal(size=(16, 1))
    edge = 0.1
    weights = _regression(basis, torch.from_numpy(products.astype(np.float32))[None], edge)
    kept = vectors[:, size > edge]
    expected = kept @ ((kept.T @ products) / size[size > edge][:, None])
    assert kept.shape[1] == 2
    assert np.allclose(weights[0].numpy(), expected, rtol=1e-3, atol=1e-4)


def test_one_row_per_frame_keeps_the_gram_matrix_right():
    planes = np.random.default_rng(0).normal(size=(9, 30)).astype(np.float32)
    gram = torch.zeros(1, 4, 4)
    window = planes[:4]
    for i in range(4, 9):
        window = planes[i - 3 : i + 1][::-1].copy()  # newest first
        gram = _shifted(gram, torch.from_numpy(window @ window[0])[None, :, None])
    assert np.allclose(gram[0].numpy(), window @ window.T, atol=2e-3)


def test_the_blur_leaves_the_noise_that_is_reckoned_with():
    blurred = _blurred(torch.from_numpy(noise(1, 1, 256, 256)))
    assert float(blurred.var()) == pytest.approx(_NOISE, rel=0.05)
