"""Training itself: it learns, and it survives what is not a number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.trainer_toys import ToyNet
from quietbeam.config import TrainerConfig
from quietbeam.core.errors import EngineError
from quietbeam.model.torch_engine import load_weights
from quietbeam.trainer.loop import (
    DECAY_STEPS,
    FLOOR,
    MAX_BAD_STEPS,
    WARM_UP_STEPS,
    Training,
    ema_decay,
    learning_rate,
)


def batch(seed=0, n=8, size=16):
    rng = np.random.default_rng(seed)
    truth = np.sin(np.arange(size) / 2) * 4
    clip = (truth + rng.normal(size=(n, 3, size, size))).astype(np.float32)
    return clip, np.ones(clip.shape, bool)


def training(**settings):
    torch.manual_seed(0)
    return Training(ToyNet(), TrainerConfig(**settings))


def poisoned():
    clip, valid = batch()
    clip[0, 0, 0, 0] = np.nan
    return clip, valid


def test_the_loss_falls():
    network = training()
    losses = [network.step(*batch(seed)) for seed in range(150)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.04
    assert network.steps == 150


def test_the_learning_rate_warms_up_decays_and_never_ends():
    rates = [learning_rate(step, 2e-3) for step in range(WARM_UP_STEPS + DECAY_STEPS + 100)]
    assert rates[0] < 1e-4
    assert max(rates) == rates[WARM_UP_STEPS] == pytest.approx(2e-3)
    assert all(np.diff(rates[WARM_UP_STEPS:]) <= 0)
    assert rates[-1] == pytest.approx(FLOOR * 2e-3)


def test_the_mean_of_the_weights_follows_quickly_at_first():
    assert ema_decay(0, 0.99) == pytest.approx(0.1)
    assert ema_decay(10_000, 0.99) == 0.99


def test_the_candidate_lies_between_first_and_last_weights():
    network = training()
    before = network.weights()
    for seed in range(30):
        network.step(*batch(seed))
    mean, now = network.mean_weights(), network.weights()
    name = "first.weight"
    assert 0 < np.abs(mean[name] - now[name]).max() < np.abs(before[name] - now[name]).max()


def test_a_step_with_nan_in_its_data_is_skipped_and_counted():
    network = training()
    network.step(*batch())
    before = network.weights()
    assert network.step(*poisoned()) is None
    after = network.weights()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert (network.steps, network.bad_steps) == (1, 1)


def test_after_many_bad_steps_training_goes_on_from_the_mean():
    network = training()
    for seed in range(20):
        network.step(*batch(seed))
    mean = network.mean_weights()
    with torch.no_grad():
        network.network.get_parameter("first.weight").fill_(torch.nan)
    for _ in range(MAX_BAD_STEPS):
        assert network.step(*batch()) is None
    assert network.step(*batch()) is not None
    after = network.mean_weights()
    assert np.isfinite(after["first.weight"]).all()
    assert np.abs(after["first.weight"] - mean["first.weight"]).max() < 0.05


def test_training_goes_on_where_it_stood():
    first = training()
    for seed in range(60):
        first.step(*batch(seed))
    second = training()
    second.restore(first.weights(), first.mean_weights(), first.steps)
    assert second.steps == 60
    for given, taken in (
        (first.weights(), second.weights()),
        (first.mean_weights(), second.mean_weights()),
    ):
        assert all(np.array_equal(given[name], taken[name]) for name in given)
    loss = second.step(*batch(99))
    assert loss == pytest.approx(first.step(*batch(99)), rel=0.05)


@pytest.mark.parametrize("damage", ["nan", "shape", "name"])
def test_weights_that_do_not_fit_are_refused_and_change_nothing(damage):
    network = training()
    before = network.weights()
    bad = network.weights()
    if damage == "nan":
        bad["first.bias"][0] = np.nan
    elif damage == "shape":
        bad["first.bias"] = bad["first.bias"][:-1]
    else:
        bad["other"] = bad.pop("first.bias")
    with pytest.raises(EngineError):
        network.restore(bad, bad, 7)
    with pytest.raises(EngineError):
        network.restore(before, bad, 7)
    with pytest.raises(EngineError):
        load_weights(network.module, bad)
    after = network.weights()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert network.steps == 0


def test_a_reset_gives_the_first_weights_again():
    network = training()
    before = network.weights()
    for seed in range(5):
        network.step(*batch(seed))
    network.reset()
    after = network.mean_weights()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert network.steps == 0


def test_the_same_seed_trains_the_same_weights():
    results = []
    for _ in range(2):
        network = training(seed=4)
        for seed in range(10):
            network.step(*batch(seed))
        results.append(network.weights()["first.weight"])
    assert np.array_equal(*results)
