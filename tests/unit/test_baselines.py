from __future__ import annotations

import numpy as np
import pytest

from quietbeam.offline import baselines
from quietbeam.offline.baselines import BASELINES, best_causal, best_classical, tune
from quietbeam.offline.quality import psnr


@pytest.fixture
def truth():
    t, y, x = np.indices((24, 20, 22))
    return (0.5 + 0.4 * np.sin(0.3 * x + 0.03 * t) * np.cos(0.25 * y)).astype(np.float32)


@pytest.fixture
def noisy(truth):
    noise = np.random.default_rng(3).standard_normal(truth.shape)
    return (truth + 0.2 * noise).astype(np.float32)


@pytest.mark.parametrize("name", BASELINES)
def test_a_constant_stays_a_constant(name):
    video = np.full((24, 12, 13), 3.5, np.float32)
    for settings in BASELINES[name].settings[:2]:
        out = BASELINES[name].filter(video, **settings)
        assert out.dtype == np.float32
        assert np.allclose(out, 3.5, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, one in BASELINES.items() if one.causal])
def test_a_causal_filter_never_looks_ahead(name, noisy):
    changed = noisy.copy()
    changed[15:] = np.random.default_rng(1).random(changed[15:].shape)
    for settings in BASELINES[name].settings[-2:]:
        one, other = (BASELINES[name].filter(video, **settings) for video in (noisy, changed))
        # The Kalman filter's noise level alone comes from the whole video (it is an oracle).
        tolerance = 0.3 if name == "kalman" else 1e-5
        assert np.abs(one[:15] - other[:15]).max() < tolerance
        assert not np.allclose(one[15:], other[15:])


@pytest.mark.parametrize("name", [name for name, one in BASELINES.items() if not one.causal])
def test_the_other_filters_do_look_ahead(name, noisy):
    changed = noisy.copy()
    changed[15:] = 0
    settings = BASELINES[name].settings[0]
    one, other = (BASELINES[name].filter(video, **settings) for video in (noisy, changed))
    assert not np.allclose(one[:15], other[:15])


def test_the_causal_mean_is_the_mean_of_the_newest_frames(noisy):
    out = baselines.causal_mean(noisy, 5)
    assert np.allclose(out[10], noisy[6:11].mean(0), atol=1e-6)
    assert np.allclose(out[2], noisy[:3].mean(0), atol=1e-6)


def test_the_causal_median_is_the_median_of_the_newest_frames(noisy):
    out = baselines.causal_median(noisy, 5, 1)
    assert np.allclose(out[10], np.median(noisy[6:11], axis=0))


def test_the_exponential_mean_forgets_at_its_rate():
    video = np.zeros((60, 1, 1), np.float32)
    video[30:] = 1
    out = baselines.ema(video, rate=0.2)[:, 0, 0]
    assert out[29] == 0
    assert np.allclose(1 - out[30:], 0.8 ** np.arange(1, 31), atol=1e-5)


def test_the_kalman_filter_reaches_its_steady_gain(noisy):
    noise = np.random.default_rng(0).standard_normal((400, 16, 16)).astype(np.float32)
    out = baselines.kalman(noise, process=0.02, gate_sd=50)
    # Steady state of a random walk: p = (-q + sqrt(q^2 + 4 q)) / 2 for r = 1.
    q = 0.02
    expected = (-q + np.sqrt(q**2 + 4 * q)) / 2
    # Output variance of an exponential mean with that gain.
    assert out[100:].var() == pytest.approx(expected / (2 - expected), rel=0.15)


def test_the_kalman_filter_ignores_one_outlier_and_follows_a_step():
    video = np.random.default_rng(0).standard_normal((60, 8, 8)).astype(np.float32)
    video[30, 4, 4] = 100
    video[40:, 2, 2] += 50
    out = baselines.kalman(video, process=0.02)
    assert abs(out[30, 4, 4] - out[29, 4, 4]) < 1
    assert out[42, 2, 2] == pytest.approx(50, abs=3)


def test_svd_recovers_a_video_of_low_rank():
    rng = np.random.default_rng(2)
    truth = np.einsum("tk,khw->thw", rng.standard_normal((40, 2)), rng.random((2, 30, 30)))
    noisy = truth + 0.3 * rng.standard_normal(truth.shape)
    out = baselines.svd(noisy.astype(np.float32))
    assert psnr(out, truth, 1.0) > psnr(noisy, truth, 1.0) + 8


def test_tuning_finds_the_best_setting(noisy, truth):
    best = tune("ema", noisy, truth, peak=1.0)
    scores = [
        psnr(BASELINES["ema"].filter(noisy, **settings), truth, 1.0)
        for settings in BASELINES["ema"].settings
    ]
    assert best.psnr == pytest.approx(max(scores))
    assert best.psnr == pytest.approx(psnr(best.clean, truth, 1.0))


def test_the_best_causal_filter_is_causal_and_never_worse_than_raw(noisy, truth):
    causal, any_filter = best_causal(noisy, truth), best_classical(noisy, truth)
    assert BASELINES[causal.name].causal
    assert psnr(noisy, truth, float(np.ptp(truth))) < causal.psnr <= any_filter.psnr


def test_without_noise_nothing_beats_raw(truth):
    assert best_causal(truth, truth).name == "raw"


def test_single_image_filters_see_one_frame_only(noisy):
    changed = noisy.copy()
    changed[11] = 0
    for name in baselines.SINGLE_IMAGE:
        one, other = (
            BASELINES[name].filter(v, **BASELINES[name].settings[-1]) for v in (noisy, changed)
        )
        assert np.array_equal(np.delete(one, 11, 0), np.delete(other, 11, 0))
