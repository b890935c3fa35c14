"""Calibration and stabilisation: analytic cases, then Monte Carlo."""

import numpy as np
import pytest

from quietbeam.model.stabilise import NoiseModel, PhotonTransfer, Stabiliser, is_impulsive

GAIN_AND_OFFSET = [(1.0, 0.0), (1.0, 4.0), (2.5, 30.0), (0.3, -30.0)]


def noisy(rng, mean, gain, offset):
    pedestal, read = max(0.0, -offset / gain), max(0.0, offset)
    photons = rng.poisson((mean - pedestal) / gain)
    return (gain * photons + pedestal + rng.normal(0, np.sqrt(read), mean.shape)).astype(np.float32)


def scene(gain, offset, size=128):
    pedestal = max(0.0, -offset / gain)
    levels = np.linspace(3, 60, size) * gain + pedestal
    return np.tile(levels, (size, 1))


def fit(frames):
    transfer = PhotonTransfer()
    for frame in frames:
        transfer.add(frame, np.ones(frame.shape, bool))
    return transfer.fit()


@pytest.mark.parametrize(("gain", "offset"), GAIN_AND_OFFSET)
def test_the_fit_finds_gain_and_offset_within_five_percent(gain, offset):
    rng = np.random.default_rng(0)
    mean = scene(gain, offset)
    noise = fit([noisy(rng, mean, gain, offset) for _ in range(16)])
    assert noise.gain == pytest.approx(gain, rel=0.05)
    assert noise.variance(mean).mean() == pytest.approx(gain * mean.mean() + offset, rel=0.02)
    assert not noise.impulsive


def test_the_fit_is_not_fooled_by_a_linear_change_in_time():
    rng = np.random.default_rng(1)
    mean = scene(1.0, 0.0)
    noise = fit([noisy(rng, mean * (1 + 0.02 * t), 1.0, 0.0) for t in range(16)])
    assert noise.gain == pytest.approx(1.0, rel=0.05)


def test_signal_independent_noise_gives_gain_zero():
    rng = np.random.default_rng(2)
    mean = scene(1.0, 0.0) / 60
    noise = fit([(mean + rng.normal(0, 0.2, mean.shape)).astype(np.float32) for _ in range(16)])
    assert noise.gain == 0
    assert noise.offset_variance == pytest.approx(0.04, rel=0.03)


def test_impulse_noise_is_flagged_and_sparse_photons_are_not():
    rng = np.random.default_rng(3)
    mean = scene(1.0, 0.0) / 60
    frames = []
    for _ in range(8):
        frame = mean + rng.normal(0, 0.02, mean.shape)
        hit = rng.random(mean.shape) < 0.1
        frames.append(np.where(hit, rng.integers(0, 2, mean.shape), frame).astype(np.float32))
    assert fit(frames).impulsive
    assert not fit([rng.poisson(0.05, mean.shape).astype(np.float32) for _ in range(8)]).impulsive


@pytest.mark.parametrize("frames", [2, 4, 5, 20])
@pytest.mark.parametrize(("share", "impulsive"), [(0.0, False), (0.001, False), (0.05, True)])
def test_impulses_are_noticed_in_any_number_of_frames(frames, share, impulsive):
    rng = np.random.default_rng(8)
    video = 100 + 2 * rng.standard_normal((frames, 64, 64))
    video[rng.random(video.shape) < share] = 255
    assert is_impulsive(video) is impulsive


def test_impulses_alone_are_noticed():
    rng = np.random.default_rng(11)
    ramp = np.linspace(50, 150, 48)[None, :, None] + 0.2 * np.arange(40)[:, None, None]
    video = np.where(rng.random((40, 48, 48)) < 0.2, 0, ramp)
    assert is_impulsive(video)


@pytest.mark.parametrize("mean", [0.02, 0.3, 5, 500])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_photon_noise_is_not_impulsive_at_any_level(mean, dtype):
    rng = np.random.default_rng(9)
    assert not is_impulsive(rng.poisson(mean, (16, 64, 64)).astype(dtype))


def test_a_sharp_edge_that_passes_is_no_impulse():
    rng = np.random.default_rng(10)
    x = np.arange(64)
    frames = [np.broadcast_to(100.0 * (x < 5 + 2 * t), (64, 64)) for t in range(20)]
    assert not is_impulsive(np.stack(frames) + rng.standard_normal((20, 64, 64)))


def test_pixels_that_mean_nothing_are_no_impulses():
    rng = np.random.default_rng(12)
    video = rng.standard_normal((12, 48, 48)).astype(np.float32)
    video[:, :20] = np.nan
    assert not is_impulsive(video)
    assert not is_impulsive(np.full((12, 8, 8), np.nan))
    assert not is_impulsive(video[:1])


def test_invalid_pixels_do_not_enter_the_fit():
    rng = np.random.default_rng(4)
    mean = scene(1.0, 0.0)
    transfer = PhotonTransfer()
    for _ in range(16):
        frame, valid = noisy(rng, mean, 1.0, 0.0), np.ones(mean.shape, bool)
        frame[:40] = rng.normal(0, 1e6, frame[:40].shape)
        valid[:40] = False
        transfer.add(frame, valid)
    assert transfer.fit().gain == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(("gain", "offset"), GAIN_AND_OFFSET)
def test_stabilised_noise_has_unit_variance(gain, offset):
    rng = np.random.default_rng(5)
    mean = scene(gain, offset)[:, 40:]  # above about 20 photons
    stabiliser = Stabiliser(NoiseModel(gain, offset))
    z = np.stack([stabiliser.forward(noisy(rng, mean, gain, offset)) for _ in range(64)])
    assert z.var(0).mean() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("photons", [0.2, 1.0, 4.0, 30.0, 140.0, 160.0, 3000.0])
@pytest.mark.parametrize("read", [0.0, 3.0])
def test_the_inverse_of_the_mean_is_unbiased(photons, read):
    rng = np.random.default_rng(6)
    stabiliser = Stabiliser(NoiseModel(2.0, 4.0 * read))
    counts = 2.0 * (rng.poisson(photons, 400_000) + rng.normal(0, np.sqrt(read), 400_000))
    mean_z = stabiliser.forward(counts.astype(np.float32)).astype(np.float64).mean()
    back = stabiliser.inverse(np.array([mean_z], np.float32))[0]
    standard_error = 2.0 * np.sqrt((photons + read) / 400_000)
    assert back == pytest.approx(2.0 * photons, abs=5 * standard_error)


def test_the_algebraic_inverse_would_have_been_biased():
    stabiliser = Stabiliser(NoiseModel(1.0, 0.0))
    counts = np.random.default_rng(7).poisson(1.0, 100_000).astype(np.float32)
    mean_z = float(stabiliser.forward(counts).mean())
    assert abs((mean_z / 2) ** 2 - 0.375 - 1.0) > 0.1


def test_the_slope_is_the_derivative_of_the_inverse():
    stabiliser = Stabiliser(NoiseModel(1.5, 2.0))
    z = np.linspace(4, 40, 50).astype(np.float32)
    numeric = (stabiliser.inverse(z + 0.05) - stabiliser.inverse(z - 0.05)) / 0.1
    np.testing.assert_allclose(stabiliser.inverse_and_slope(z)[1], numeric, rtol=0.02)
