"""Prior weights: imagined scenes, their exposure, and the training on them."""

from __future__ import annotations

import numpy as np
import pytest

from quietbeam import EngineError
from quietbeam.model import checkpoint
from quietbeam.offline.pretrain import pretrain
from quietbeam.testing.imagined import expose, imagine
from quietbeam_plugins.denoisers.kalman import Kalman
from quietbeam_plugins.denoisers.quiet import Quiet


def scene(seed, frames=12, size_px=48):
    return imagine(np.random.default_rng(seed), frames, size_px)


def test_scenes_are_finite_within_zero_and_one_and_each_its_own():
    scenes = [scene(seed) for seed in range(12)]
    for one in scenes:
        assert one.shape == (12, 48, 48)
        assert one.dtype == np.float32
        assert one.min() >= 0
        assert one.max() <= 1
        assert np.ptp(one) > 0.5
    assert len({one.tobytes() for one in scenes}) == len(scenes)
    assert np.array_equal(scenes[3], scene(3))


def test_some_scenes_move_and_some_do_not():
    change = [float(np.abs(np.diff(scene(seed), axis=0)).mean()) for seed in range(24)]
    assert min(change) < 1e-3
    assert max(change) > 5e-3


def test_noise_has_unit_variance_around_the_truth_unless_it_is_impulsive():
    spread = []
    for seed in range(30):
        noisy, truth = expose(np.random.default_rng(seed), scene(1, frames=20))
        assert noisy.shape == truth.shape
        middle = np.percentile(noisy - truth, [15.87, 50, 84.13])
        spread.append((middle[2] - middle[0]) / 2)
        assert abs(float(middle[1])) < 0.3
    assert np.median(spread) == pytest.approx(1, abs=0.03)


def test_the_same_seed_gives_the_same_prior_and_it_can_be_loaded(tmp_path):
    def few_scenes(rng, frames, size_px):
        return np.broadcast_to(scene(0, 1, size_px), (frames, size_px, size_px))

    def build():
        return Quiet(prior=False).build()

    one, again = (pretrain(build, few_scenes, expose, steps=2, seed=4) for _ in range(2))
    assert all(np.array_equal(one[name], again[name]) for name in one)
    path = tmp_path / "prior.safetensors"
    checkpoint.save(path, one, {"denoiser": "quiet"})
    net = build()
    net.load_prior(path)
    assert net.pretrained


def test_a_denoiser_that_learns_nothing_from_truth_is_refused():
    with pytest.raises(EngineError, match="supervised"):
        pretrain(Kalman().build, imagine, expose, steps=1)
