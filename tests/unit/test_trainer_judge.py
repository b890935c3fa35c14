"""Guard frames are kept with what it takes to judge on them, and judged as they would run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from helpers.trainer_toys import ToyNet
from quietbeam.model.stabilise import NoiseModel, Stabiliser
from quietbeam.trainer.guard import BEFORE, MAX_FRAMES, GuardSet
from quietbeam.trainer.history import Recent as RecentFrames
from quietbeam.trainer.history import View, guard_tiles, is_guard
from quietbeam.trainer.judge import Judge, estimates

UNIT = {"r": (Stabiliser(NoiseModel(0.0, 1.0)),)}


def guard_set(shape=(64, 64), window=3, after=1):
    return GuardSet(shape, window=window, after=after, budget_bytes=64 << 20)


def fill(guards, indices, shape=(64, 64), picture=None, valid=None):
    recent = RecentFrames(View(0, 0, *shape), np.float32, 64 << 20)
    rng = np.random.default_rng(0)
    valid = np.ones(shape, bool) if valid is None else valid
    for index in indices:
        pixels = np.full(shape, index) if picture is None else picture(index, rng)
        recent.append("r", index, pixels.astype(np.float32), valid)
        guards.look(recent)
    return guards


def noisy(index, rng):
    scene = gaussian_filter(np.random.default_rng(3).normal(size=(64, 64)), 3) * 40
    return 10 + scene + rng.normal(size=(64, 64))


class Running(torch.nn.Module):
    """Blind estimate: the mean of all frames before; variance of that mean."""

    lag, window, blind, trainable = 0, 2, True, False

    def initial_state(self, n, h, w):
        return torch.zeros(n, 1, h, w), torch.zeros(())

    def forward(self, frame, state):
        total, count = state
        mean = total / count.clamp(min=1)
        variance = torch.ones_like(frame) / count.clamp(min=1)
        return mean, variance, (total + frame, count + 1)


def test_a_guard_frame_is_kept_with_its_past_and_the_frames_it_waits_for():
    guards = fill(guard_set(after=2), range(120))
    assert len(guards.recent) == 7
    crop = guards.recent[-1].crops[0]
    index = crop.clip.pixels[:, 0, 0].astype(int)
    assert is_guard(int(index[crop.guard]))
    assert index[crop.guard] == 111
    assert list(index) == list(range(111 - BEFORE, 114))


def test_a_guard_frame_is_not_kept_across_a_gap():
    guards = fill(guard_set(), [*range(10), *range(13, 31), *range(32, 60)])
    assert [int(f.crops[0].clip.pixels[f.crops[0].guard, 0, 0]) for f in guards.recent] == [47]


def test_what_is_no_longer_recent_goes_to_the_older_ones():
    guards = fill(guard_set(), range(16 * 40))
    assert len(guards.recent) == len(guards.older) == MAX_FRAMES
    recent = {frame.serial for frame in guards.recent}
    older = {frame.serial for frame in guards.older}
    assert not recent & older
    assert max(older) < min(recent)


def test_on_a_large_image_the_guard_tiles_are_what_is_judged():
    shape = (256, 256)
    guards = fill(guard_set(shape), range(100), shape)
    places = guard_tiles(shape)
    for frame in guards.recent:
        scored = frame.crops[0].scored
        inside = [
            (top, left)
            for top, left in places
            if scored.top <= top < scored.top + scored.h
            and scored.left <= left < scored.left + scored.w
        ]
        assert inside
        whole = frame.crops[0].clip.view
        assert whole.top <= scored.top
        assert scored.top + scored.h <= whole.top + whole.h


def test_estimates_are_those_of_the_stream():
    frames = torch.randn(2, 9, 16, 16)
    mean, variance = estimates(Running(), frames, guard=8)
    assert mean.shape == variance.shape == (2, 2, 16, 16)
    assert np.allclose(mean[:, 1], frames[:, :8].mean(1), atol=1e-6)
    assert np.allclose(mean[:, 0], frames[:, :7].mean(1), atol=1e-6)
    assert variance[0, 1, 0, 0] == pytest.approx(1 / 8)


@pytest.mark.parametrize("lag", [1, 2])
def test_a_denoiser_that_waits_is_judged_on_the_right_frame(lag):
    torch.manual_seed(0)
    network = ToyNet(lag)
    torch.nn.init.normal_(network.second.weight, std=0.1)
    frames = torch.randn(1, 12 + lag, 16, 16)
    mean, _ = estimates(network, frames, guard=11)
    with torch.no_grad():
        direct = network.blind_estimate(frames[0])
    assert np.allclose(mean[0], direct[10:12], atol=1e-5)


def test_a_denoiser_that_is_not_blind_is_judged_by_its_blind_estimate():
    network = ToyNet()
    network.blind = False
    frames = torch.randn(2, 13, 16, 16)
    mean, variance = estimates(network, frames, guard=11)
    with torch.no_grad():
        direct = network.blind_estimate(frames[1])
    assert np.allclose(mean[1], direct[10:12], atol=1e-5)
    assert not variance.any()


def test_the_risk_found_is_the_true_error():
    guards = fill(guard_set(), range(200), picture=noisy)
    scores = Judge((64, 64), UNIT).scores(Running(), list(guards.recent))
    # the mean of k frames fused with one more: error 1 / (k + 1)
    past = [frame.crops[0].guard for frame in guards.recent]
    assert scores.risk().mean() == pytest.approx(np.mean([1 / (k + 1) for k in past]), abs=0.01)


def test_dead_pixels_do_not_count():
    valid = np.ones((64, 64), bool)
    valid[:, 40:] = False

    def picture(index, rng):
        return np.where(valid, noisy(index, rng), 1e6)

    guards = fill(guard_set(), range(100), picture=picture, valid=valid)
    scores = Judge((64, 64), UNIT).scores(Running(), list(guards.recent))
    assert scores.power.max() < 2


def test_a_named_denoiser_is_run_once_on_each_frame():
    guards = fill(guard_set(), range(100), picture=noisy)
    judge, frames = Judge((64, 64), UNIT), list(guards.recent)
    network = ToyNet()
    first = judge.scores(network, frames, "live")
    torch.nn.init.constant_(network.second.bias, 3.0)
    assert np.array_equal(judge.scores(network, frames, "live").power, first.power)
    assert judge.scores(network, frames).power.mean() > first.power.mean() + 1
    judge.forget(frames, set())
    assert judge.scores(network, frames, "live").power.mean() > first.power.mean() + 1


def test_scores_come_in_the_order_of_the_frames_whatever_their_past():
    guards = fill(guard_set(), range(200), picture=noisy)
    frames = list(guards.recent)
    scores = Judge((64, 64), UNIT).scores(Running(), frames)
    assert list(dict.fromkeys(scores.frame)) == [frame.serial for frame in frames]
