"""The built-in denoisers against analytic cases and slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from helpers.streams import mse, noise, stream
from quietbeam_plugins.denoisers._shared import (
    UNKNOWN,
    blind_windows,
    box_mean,
    is_impulsive,
    local_mean,
    masked_mean,
    smallest_first,
)
from quietbeam_plugins.denoisers.kalman import Kalman
from quietbeam_plugins.denoisers.median import Median
from quietbeam_plugins.denoisers.n2v import N2V
from quietbeam_plugins.denoisers.umvd import UMVD, temporal_filter

# ---- kalman


def test_kalman_averages_a_still_scene_almost_as_well_as_the_plain_mean():
    frames = 50 + noise(60, 48, 48)
    mean, variance = stream(Kalman().build(), frames)
    best = 1 / 59
    assert best * 0.9 < mse(mean[-1], 50) < 2 * best
    assert mse(mean[-1], 50) == pytest.approx(variance[-1].mean(), rel=0.5)


def test_kalman_finds_the_best_gain_of_a_random_walk():
    rng = np.random.default_rng(3)
    q = 0.05
    truth = 20 + np.cumsum(rng.normal(0, np.sqrt(q), (150, 48, 48)), 0)
    mean, variance = stream(Kalman().build(), truth + noise(150, 48, 48))
    best = q / 2 + np.sqrt(q**2 / 4 + q)  # prior variance of the steady filter: p^2 = q (p + 1)
    assert mse(mean[100:], truth[100:]) < 1.15 * best
    assert variance[100:].mean() == pytest.approx(best, rel=0.25)


def test_kalman_ignores_impulses():
    rng = np.random.default_rng(1)
    truth = 20 + 10 * (np.arange(48) % 16 > 8) * np.ones((60, 48, 48))
    frames = truth + noise(60, 48, 48)
    hit = rng.random(frames.shape) < 0.2
    frames[hit] = np.where(rng.random(hit.sum()) < 0.5, 0, 60)
    mean, _ = stream(Kalman().build(), frames)
    assert mse(mean[30:], truth[30:]) < 0.5
    assert mse(ndimage.uniform_filter1d(frames, 7, 0)[30:], truth[30:]) > 5


def test_kalman_follows_a_step_of_the_whole_scene_within_two_frames():
    truth = np.full((40, 32, 32), 20.0)
    truth[20:] = 28
    mean, _ = stream(Kalman().build(), truth + noise(40, 32, 32))
    assert mse(mean[19], 20) < 0.15
    assert mse(mean[20], 28) > 50  # it is a prediction
    assert mse(mean[22], 28) < 1.2


def test_kalman_follows_a_single_pixel_that_changes_for_good():
    truth = np.full((40, 32, 32), 20.0)
    truth[20:, 16, 16] = 40
    mean, _ = stream(Kalman().build(), truth + noise(40, 32, 32))
    assert abs(mean[19, 16, 16] - 20) < 1.5
    assert abs(mean[24, 16, 16] - 40) < 3
    assert abs(mean[24, 16, 19] - 20) < 1.5


def test_kalman_does_better_than_the_best_fixed_gain_on_a_scene_that_is_partly_moving():
    truth = np.full((120, 64, 64), 20.0)
    phase = np.arange(120)[:, None, None] * 0.15 + np.arange(64) * 0.2
    truth[:, 32:] += 4 * np.sin(phase)
    frames = truth + noise(120, 64, 64)
    mean, _ = stream(Kalman().build(), frames)

    def fixed(gain):
        estimate, out = frames[0], []
        for frame in frames:
            out.append(estimate)
            estimate = estimate + gain * (frame - estimate)
        return mse(np.array(out)[40:], truth[40:])

    assert mse(mean[40:], truth[40:]) < min(fixed(gain) for gain in np.arange(0.05, 1, 0.05))


def test_before_the_first_frame_nothing_is_known():
    for denoiser in (Kalman().build(), Median().build()):
        mean, variance = stream(denoiser, noise(1, 16, 16))
        assert np.array_equal(mean[0], np.zeros((16, 16)))
        assert (variance[0] == UNKNOWN).all()


# ---- median


@pytest.mark.parametrize("k", [3, 6, 7])
def test_median_is_the_median_of_the_frames_before(k):
    frames = 10 + noise(k + 4, 18, 21)
    mean, _ = stream(Median(frames=k).build(), frames)
    for i in range(1, len(frames)):
        assert np.allclose(mean[i], np.median(frames[max(0, i - k) : i], 0), atol=1e-6)


def test_median_knows_its_error():
    frames = 10 + noise(30, 64, 64)
    mean, variance = stream(Median().build(), frames)
    assert variance[20:].mean() == pytest.approx(mse(mean[20:], 10), rel=0.35)


# ---- umvd


def test_umvd_has_the_parameters_of_the_paper():
    def count(lag):
        return sum(p.numel() for p in UMVD(lag=lag).build().parameters())

    assert count(3) == 1_786_191
    assert count(2) == 1_731_759


def test_umvd_never_weighs_the_centre_frame():
    assert temporal_filter(7, 1) == pytest.approx((1, 2 / 3, 1 / 3, 0, 1 / 3, 2 / 3, 1))
    assert temporal_filter(7, 64) == pytest.approx((1, 1, 1, 0, 1, 1, 1))
    assert temporal_filter(7, 64)[3] == 0


def test_umvd_streams_what_it_was_trained_on():
    torch.manual_seed(0)
    net = UMVD().build().requires_grad_(requires_grad=False)
    clip = torch.from_numpy(30 + noise(1, 7, 24, 27))
    mean, _ = stream(net, clip[0].numpy())
    valid = torch.ones_like(clip, dtype=torch.bool)
    loss = net.training_loss(clip, valid, torch.Generator())
    assert mse(mean[6], clip[0, 3].numpy()) == pytest.approx(float(loss), rel=1e-4)
    assert np.allclose(net.blind_estimate(clip[0])[3], mean[6], atol=1e-4)


def test_umvd_scales_with_the_contrast():
    torch.manual_seed(0)
    net = UMVD().build().requires_grad_(requires_grad=False)
    frames = noise(7, 20, 24)
    low, high = stream(net, frames)[0][6], stream(net, 3 * frames)[0][6]
    assert np.allclose(3 * low, high, atol=1e-4)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_umvd_takes_the_loss_it_is_told(loss):
    torch.manual_seed(0)
    net = UMVD(loss=loss).build()
    clip = torch.from_numpy(noise(1, 7, 20, 20))
    error = clip[:, 3] - torch.from_numpy(stream(net, clip[0].numpy())[0][6])
    want = error.abs().mean() if loss == "l1" else (error**2).mean()
    got = net.training_loss(clip, torch.ones_like(clip, dtype=torch.bool), torch.Generator())
    assert float(got.detach()) == pytest.approx(float(want.detach()), rel=1e-4)


# ---- n2v


def reference_hidden(frame, y, x, axis):
    """Median of the 5 x 5 pixels around (y, x), mirrored at the edges, but related ones."""
    padded = np.pad(frame, 2, mode="reflect")
    values = [
        padded[y + 2 + dy, x + 2 + dx]
        for dy in range(-2, 3)
        for dx in range(-2, 3)
        if not {"none": dy == dx == 0, "x": dy == 0, "y": dx == 0}[axis]
    ]
    return np.median(values)


@pytest.mark.parametrize("axis", ["none", "x", "y"])
def test_n2v_hides_a_pixel_and_those_its_noise_goes_with(axis):
    frame = noise(20, 24)
    asked = torch.zeros(1, 1, 20, 24, dtype=torch.bool)
    asked[0, 0, 7, 9] = True
    net = N2V(noise_axis=axis, noise_span_px=3).build()
    hidden = net.hide(torch.from_numpy(frame)[None, None], asked)[0, 0].numpy()
    changed = {(int(y), int(x)) for y, x in zip(*np.nonzero(hidden != frame), strict=True)}
    reach = range(-3, 4)
    expected = {
        "none": {(7, 9)},
        "x": {(7, 9 + d) for d in reach},
        "y": {(7 + d, 9) for d in reach},
    }[axis]
    assert changed == expected
    for y, x in expected:
        assert hidden[y, x] == pytest.approx(reference_hidden(frame, y, x, axis), abs=1e-6)


def test_n2v_for_judging_never_sees_the_line_a_pixel_lies_in():
    torch.manual_seed(0)
    net = N2V(noise_axis="x", noise_span_px=2).build()
    frame = torch.from_numpy(20 + noise(1, 24, 24))
    other = frame.clone()
    other[0, 10, 9:12] += 7  # noise that runs along x
    before, after = net.blind_estimate(frame), net.blind_estimate(other)
    assert torch.equal(before[0, 10, 9:12], after[0, 10, 9:12])
    assert not torch.equal(before[0, 11], after[0, 11])


def test_n2v_learns_only_from_valid_pixels():
    net = N2V().build()
    clip = torch.from_numpy(noise(2, 1, 32, 32))
    valid = torch.ones_like(clip, dtype=torch.bool)
    valid[0, 0, 20:] = False
    loss = net.training_loss(clip, valid, torch.Generator().manual_seed(1))
    clip[~valid] = 1e4
    spoiled = net.training_loss(clip, valid, torch.Generator().manual_seed(1))
    assert float(loss.detach()) < 3
    # Bad pixels still are neighbours of good ones, but never targets: those are errors of 1e8.
    assert float(spoiled.detach()) < 1e7


# ---- what they share


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 8])
def test_box_mean_is_a_uniform_filter(radius):
    image = noise(19, 23)
    got = box_mean(torch.from_numpy(image)[None, None], radius)[0, 0].numpy()
    want = ndimage.uniform_filter(image.astype(float), 2 * radius + 1, mode="nearest")
    assert np.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_smallest_first_sorts(k):
    planes = torch.from_numpy(noise(k, 6, 7))
    assert torch.equal(torch.stack(smallest_first(list(planes))), planes.sort(0).values)


@pytest.mark.parametrize("t", [2, 3, 4, 7, 12])
def test_no_frame_stands_in_its_own_window(t):
    for i, window in enumerate(blind_windows(t, 3)):
        assert len(window) == 7
        assert window[3] == i
        assert i not in window[:3] + window[4:]
        assert all(0 <= j < t for j in window)
    if t > 8:
        assert blind_windows(t, 3)[5] == [2, 3, 4, 5, 6, 7, 8]


def test_local_mean_keeps_a_level_and_lets_single_pixels_go():
    frame = torch.full((1, 1, 37, 50), 7.0)
    assert torch.allclose(local_mean(frame), frame)
    frame[0, 0, 20, 20] += 256
    assert float((local_mean(frame) - 7).max()) <= 1.0001


def test_masked_mean_of_nothing_is_zero():
    values = torch.tensor([1.0, 2.0, 6.0])
    assert float(masked_mean(values, torch.tensor([True, False, True]))) == 3.5
    assert float(masked_mean(values, torch.zeros(3, dtype=torch.bool))) == 0


def test_impulses_are_told_from_noise_and_from_edges():
    edges = 10.0 * (np.arange(64) % 12 > 5) * np.ones((7, 64, 64), np.float32)
    frames = (edges + noise(7, 64, 64)).astype(np.float32)
    assert not is_impulsive(torch.from_numpy(frames)[None])
    hit = np.random.default_rng(0).random(frames.shape) < 0.05
    frames[hit] = 40
    assert is_impulsive(torch.from_numpy(frames)[None])
