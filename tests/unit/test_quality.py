from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, uniform_filter1d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from quietbeam.offline.quality import (
    blind_quality,
    local_sd,
    local_sd_ratio,
    mse,
    noise_variance,
    psnr,
    ssim,
    whiteness,
)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def scene(shape=(40, 48, 48), speed=0.0):
    t, y, x = np.indices(shape)
    return 100 + 20 * np.sin(0.2 * x + speed * t) * np.cos(0.15 * y)


def test_psnr_of_a_constant_error_is_analytic():
    truth = np.zeros((2, 4, 4))
    assert psnr(truth + 0.1, truth, 1.0) == pytest.approx(20.0)
    assert psnr(truth, truth, 1.0) == np.inf


def test_pixels_that_are_not_finite_are_left_out():
    truth = np.zeros((1, 2, 2))
    estimate = np.array([[[0.1, np.nan], [0.1, 0.1]]])
    assert mse(estimate, truth) == pytest.approx(0.01)
    assert np.isnan(mse(np.full_like(truth, np.nan), truth))


def test_psnr_and_ssim_agree_with_scikit_image(rng):
    truth = rng.random((60, 70))
    estimate = truth + 0.1 * rng.standard_normal(truth.shape)
    expected = structural_similarity(
        truth, estimate, data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    assert ssim(estimate, truth, 1.0) == pytest.approx(float(expected), abs=1e-9)
    assert psnr(estimate, truth, 1.0) == pytest.approx(
        float(peak_signal_noise_ratio(truth, estimate, data_range=1.0))
    )


def test_ssim_is_one_for_equal_images_and_averages_frames(rng):
    video = rng.random((3, 30, 30))
    assert ssim(video, video, 1.0) == pytest.approx(1)
    other = rng.random((3, 30, 30))
    frames = [ssim(a, b, 1.0) for a, b in zip(video, other, strict=True)]
    assert ssim(video, other, 1.0) == pytest.approx(np.mean(frames))


def test_noise_variance_ignores_a_linear_change_of_the_scene(rng):
    ramp = np.arange(30)[:, None, None] * np.ones((30, 64, 64)) * 5
    noise = 3 * rng.standard_normal(ramp.shape)
    assert noise_variance(ramp + noise) == pytest.approx(9, rel=0.03)
    assert noise_variance(ramp) == pytest.approx(0, abs=1e-20)


def test_noise_variance_of_two_frames_and_of_one(rng):
    noise = 2 * rng.standard_normal((2, 200, 200))
    assert noise_variance(noise) == pytest.approx(4, rel=0.05)
    assert np.isnan(noise_variance(noise[:1]))


@pytest.mark.parametrize("noise", ["gaussian", "poisson"])
def test_estimated_psnr_of_a_blind_estimate_is_near_the_true_one(rng, noise):
    truth = scene(speed=0.05)
    measured = truth + 10 * rng.standard_normal(truth.shape)
    if noise == "poisson":
        measured = rng.poisson(truth).astype(float)
    around = (uniform_filter1d(measured, 7, axis=0) * 7 - measured) / 6
    # Mirrored ends would contain the frame itself.
    truth, measured, around = truth[3:-3], measured[3:-3], around[3:-3]
    quality = blind_quality(measured, around)
    assert quality.psnr(40.0) == pytest.approx(psnr(around, truth, 40.0), abs=0.3)
    assert quality.raw_psnr(40.0) == pytest.approx(psnr(measured, truth, 40.0), abs=0.2)
    assert abs(quality.mse - mse(around, truth)) < 4 * quality.standard_error
    assert quality.trusted


def test_an_estimate_no_better_than_noise_has_no_db():
    quality = blind_quality(np.zeros((5, 8, 8)), np.zeros((5, 8, 8)), noise=1.0)
    assert quality.mse == -1
    assert np.isnan(quality.psnr(1.0))


def test_local_sd_of_white_noise_and_of_a_constant(rng):
    noise = 5 * rng.standard_normal((12, 40, 40)) + 1e6
    # The mean of the sample standard deviation of 27 numbers (divided by n).
    assert local_sd(noise).mean() == pytest.approx(5 * np.sqrt(26 / 27) * 0.9904, rel=0.02)
    assert not local_sd(np.full((4, 5, 5), 3.0)).any()


def test_local_sd_matches_a_loop(rng):
    video = rng.random((5, 6, 7))
    block = video[1:4, 2:5, 3:6]
    assert local_sd(video)[2, 3, 4] == pytest.approx(block.std(), rel=1e-5)


def test_local_sd_ratio_of_half_the_noise_is_one_half(rng):
    noise = rng.standard_normal((8, 30, 30))
    assert local_sd_ratio(noise / 2, noise) == pytest.approx(0.5)
    holed = noise.copy()
    holed[:, 3, 3] = np.nan
    assert local_sd_ratio(holed, noise) == pytest.approx(1, rel=0.02)


def test_white_noise_is_white(rng):
    white = whiteness(rng.standard_normal((20, 50, 50)) + 7)
    limit = 4 * white.standard_error
    assert max(abs(white.x), abs(white.y), abs(white.t)) < limit


def test_each_direction_of_structure_is_told_apart(rng):
    noise = rng.standard_normal((30, 60, 60))
    # A mean of two neighbours has lag-1 correlation 1/2.
    for axis, name in enumerate("tyx"):
        residual = noise + np.roll(noise, 1, axis)
        found = whiteness(residual)
        assert getattr(found, name) == pytest.approx(0.5, abs=0.05)
        assert all(abs(getattr(found, other)) < 0.03 for other in "tyx" if other != name)
    smooth = whiteness(gaussian_filter(noise, 1.0))
    assert min(smooth.x, smooth.y, smooth.t) > 0.5


def test_one_frame_has_no_temporal_correlation(rng):
    assert np.isnan(whiteness(rng.random((1, 8, 8))).t)
