"""The gate: unbiased risk, honest errors, and nothing poisoned gets through."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from quietbeam.trainer.gate import (
    Decision,
    Noise,
    Rules,
    best_classical,
    choose_fallback,
    decide,
    estimate,
    measured_noise,
    paired_gain,
    residual,
)
from quietbeam.trainer.scores import Scores, concatenate, score

FRAMES = 8


class World:
    """Guard frames of a known scene: a truth, unit noise, and errors made to order."""

    def __init__(self, seed=0, frames=FRAMES, size=64):
        self.rng = np.random.default_rng(seed)
        self.shape = (frames, 2, size, size)  # the guard frame and the one before
        scene = gaussian_filter(self.rng.normal(size=(size, size)), 3)
        self.truth = np.broadcast_to(10 + 30 * scene / scene.std() / 10, self.shape)
        self.measure(1.0)
        self.guard = np.zeros((size, size), bool)

    def measure(self, noise_sd, blur=0.0):
        """Take the pictures: three in a row of which the last is the guard frame."""
        n, _, h, w = self.shape
        noise = gaussian_filter(self.rng.normal(size=(n, 3, h, w)), (0, 0, 0, blur))
        truth = np.concatenate([self.truth[:, :1], self.truth], 1)
        self.three = (truth + noise / noise.std() * noise_sd).astype(np.float32)
        self.valid = np.ones(self.three.shape, bool)

    @property
    def noisy(self):
        """The two that are estimated."""
        return self.three[:, 1:]

    def noise(self, sd=1.0):
        return self.rng.normal(0, sd, self.shape)

    def smooth(self, sd, px):
        """Errors that neighbouring pixels share."""
        field = gaussian_filter(self.noise(), (0, 0, px, px))
        return field / field.std() * sd

    def scores(self, mean, variance=None) -> Scores:
        variance = (
            np.zeros(self.shape) if variance is None else np.broadcast_to(variance, mean.shape)
        )
        parts = [
            score(
                self.three[n],
                mean[n].astype(np.float32),
                variance[n].astype(np.float32),
                self.valid[n],
                frame=n,
                origin=(0, 0),
                guard=self.guard,
            )
            for n in range(self.shape[0])
        ]
        return concatenate(parts)

    def off_by(self, sd) -> Scores:
        """A denoiser with white errors of ``sd`` that knows its variance."""
        return self.scores(self.truth + self.noise(sd), sd**2)


def action(*args, **options):
    decision = decide(*args, **options)
    return None if decision is None else decision.action


@pytest.mark.parametrize(("sd", "claimed"), [(0.5, 0.25), (0.5, 0.0), (0.3, 0.4), (1.0, 0.2)])
def test_the_risk_is_the_true_squared_error_of_the_fused_output(sd, claimed):
    world = World(frames=40, size=128)
    mean = world.truth + world.noise(sd)
    fused = (mean + claimed * world.noisy) / (1 + claimed)
    true = np.mean((fused - world.truth)[:, 1] ** 2)
    assert world.scores(mean, claimed).risk().mean() == pytest.approx(true, abs=0.012)


def test_a_blind_loss_less_one_is_what_is_left_without_a_variance():
    world = World()
    mean = world.truth + world.noise(0.4)
    blind = np.mean((world.noisy - mean)[:, 1] ** 2) - 1
    assert world.scores(mean).risk().mean() == pytest.approx(blind, abs=1e-5)


def test_a_crop_is_counted_in_tiles_of_32_px_known_by_frame_and_place():
    world = World(frames=1, size=96)
    world.guard[32:64, :32] = True
    scores = world.off_by(0.1)
    assert len(scores) == 9
    assert len(set(scores.place)) == 9
    assert scores.guard_tile.sum() == 1


def test_invalid_pixels_do_not_count_and_empty_tiles_are_left_out():
    world = World(frames=1)
    world.valid[..., :32, :32] = False
    world.valid[..., 40, 40] = False
    world.three[~world.valid] = np.nan
    scores = world.scores(world.truth)
    assert len(scores) == 3
    assert scores.finite


def test_the_standard_error_is_that_of_repeated_experiments():
    means, errors = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        frame, place = np.repeat(np.arange(12), 16), np.tile(np.arange(16), 12)
        values = rng.normal(size=12)[frame] + rng.normal(size=192)  # frames share an error
        gain = estimate(values, frame, place)
        means.append(gain.mean)
        errors.append(gain.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(means) * np.sqrt(11 / 9), rel=0.2)


def test_three_frames_prove_nothing_however_many_tiles_they_have():
    frame, place = np.repeat(np.arange(3), 16), np.tile(np.arange(16), 3)
    assert estimate(np.ones(48), frame, place).standard_error == np.inf


def test_equally_good_denoisers_are_hardly_ever_told_apart():
    promoted = 0
    for seed in range(60):
        world = World(seed)
        a, b = (world.scores(world.truth + world.smooth(0.3, 6)) for _ in range(2))
        promoted += paired_gain(a, b, Noise()).exceeds(2)
    assert promoted <= 5  # one-sided 2 s.e. is 2.3 %


def test_scores_of_different_tiles_are_not_compared():
    world = World()
    a, b = world.off_by(0.5), world.off_by(0.2)
    with pytest.raises(ValueError, match="different tiles"):
        paired_gain(a, b.where(b.frame > 0), Noise())


def test_a_candidate_that_beats_live_and_classical_is_promoted_with_its_numbers():
    world = World()
    decision = decide(world.off_by(0.2), world.off_by(0.4), world.off_by(0.6))
    assert decision is not None
    assert decision.action == "promote"
    assert decision.gain > 2 * decision.standard_error > 0
    assert decision.loss_candidate < decision.loss_live < decision.loss_classical
    assert decision.chi2 == pytest.approx(1, abs=0.05)


def test_a_candidate_no_better_than_live_is_rejected():
    world = World()
    assert action(world.off_by(0.4), world.off_by(0.4), world.off_by(0.6)) == "reject"


def test_a_candidate_better_than_live_but_not_than_classical_is_rejected():
    world = World()
    decision = decide(world.off_by(0.4), world.off_by(0.405), world.off_by(0.4))
    assert decision is not None
    assert decision.action != "promote"


def test_live_is_demoted_when_classical_is_better_and_the_candidate_is_not():
    world = World()
    assert action(world.off_by(0.7), world.off_by(0.8), world.off_by(0.4)) == "demote"
    assert action(None, world.off_by(0.8), world.off_by(0.4)) == "demote"


def test_a_good_candidate_takes_over_from_a_bad_live_model_directly():
    world = World()
    assert action(world.off_by(0.2), world.off_by(0.8), world.off_by(0.4)) == "promote"


def test_live_output_that_is_not_finite_is_demoted_at_once():
    world = World()
    broken = world.scores(np.full(world.shape, np.nan))
    assert action(None, broken, world.off_by(0.5)) == "demote"
    assert action(broken, broken, world.off_by(0.5)) == "demote"


def test_nothing_is_said_before_there_are_four_guard_frames():
    world = World(frames=3)
    assert decide(world.off_by(0.1), None, world.off_by(0.6)) is None


def test_nothing_is_said_of_a_good_live_model_while_training_is_frozen():
    world = World()
    assert decide(None, world.off_by(0.3), world.off_by(0.6)) is None


def test_the_surely_better_classical_denoiser_becomes_the_fallback_with_its_numbers():
    world = World()
    classical = {"kalman": world.off_by(0.5), "median": world.off_by(0.7), "svd": world.off_by(0.3)}
    assert best_classical(classical) == "svd"
    choice = choose_fallback(classical, "kalman")
    assert choice is not None
    assert (choice.action, choice.classical) == ("fallback", "svd")
    assert choice.gain > 2 * choice.standard_error > 0
    assert choice.loss_classical < choice.loss_live
    assert choose_fallback(classical, "svd") is None


def test_a_fallback_that_is_hardly_worse_stays():
    world = World()
    mean = world.truth + world.noise(0.4)
    classical = {"kalman": world.scores(mean, 0.16), "svd": world.scores(mean, 0.17)}
    assert all(choose_fallback(classical, name) is None for name in classical)


def test_a_fallback_that_is_not_finite_is_replaced_and_one_that_is_not_is_never_chosen():
    world = World()
    broken = world.scores(np.full(world.shape, np.nan))
    classical = {"kalman": broken, "svd": world.off_by(0.9)}
    choice = choose_fallback(classical, "kalman")
    assert choice is not None
    assert "not finite" in choice.reason
    assert choose_fallback(classical, "svd") is None
    assert choose_fallback({"kalman": broken, "svd": broken}, "kalman") is None


def test_three_guard_frames_choose_no_fallback():
    world = World(frames=3)
    assert choose_fallback({"a": world.off_by(0.9), "b": world.off_by(0.1)}, "a") is None


def test_among_impulses_the_fallback_is_chosen_by_the_robust_loss():
    world = World()
    hit = world.rng.random(world.three.shape) < 0.2
    world.three[hit] = 60.0
    pulled = world.truth + 0.2 * (60 - world.truth) + world.noise(0.1)
    classical = {"kalman": world.scores(pulled), "median": world.scores(world.truth)}
    choice = choose_fallback(classical, "kalman", impulsive=True)
    assert choice is not None
    assert choice.classical == "median"


GOOD = 0.1


def with_pixel(world, value):
    mean = world.truth + world.noise(GOOD)
    mean[3, 1, 5, 5] = value
    return mean


def shuffled(world):
    flat = (world.truth + world.noise(GOOD)).reshape(*world.shape[:2], -1)
    return world.rng.permuted(flat, axis=-1).reshape(world.shape)


def sound(world):
    return world.truth + world.noise(GOOD)


POISON = {
    "nan": lambda world: (with_pixel(world, np.nan), GOOD**2),
    "infinite": lambda world: (with_pixel(world, np.inf), GOOD**2),
    "negative variance": lambda world: (sound(world), -0.5),
    "infinite variance": lambda world: (sound(world), np.inf),
    "constant": lambda world: (np.full(world.shape, world.truth.mean()), GOOD**2),
    "shuffled pixels": lambda world: (shuffled(world), GOOD**2),
    "another scene": lambda world: (sound(World(seed=99)), GOOD**2),
    "shifted": lambda world: (np.roll(sound(world), 4, axis=-1), GOOD**2),
    "copies the frame": lambda world: (world.noisy.astype(float), GOOD**2),
    "half copies the frame": lambda world: ((world.noisy + world.truth) / 2, GOOD**2),
    "copies the frame and claims to know nothing": lambda world: (world.noisy.astype(float), 0.0),
}


@pytest.mark.parametrize("kind", POISON)
def test_a_poisoned_candidate_is_rejected(kind):
    world = World()
    poisoned = world.scores(*POISON[kind](world))
    decision = decide(poisoned, None, world.off_by(0.5))
    assert decision is not None
    assert decision.action == "reject"
    assert decision.reason


def test_the_same_candidate_without_poison_is_promoted():
    world = World()
    assert action(world.off_by(GOOD), None, world.off_by(0.5)) == "promote"


def rejected_because(candidate, classical, **options) -> str:
    decision = decide(candidate, None, classical, **options)
    assert decision is not None
    assert decision.action == "reject"
    return decision.reason


def test_a_biased_candidate_is_rejected_though_its_error_is_small():
    world = World()
    biased = world.scores(world.truth + 0.3 + world.noise(0.1), 0.1)
    assert "residual mean" in rejected_because(biased, world.off_by(0.8))


def test_a_candidate_that_leaves_structure_in_the_residual_is_rejected():
    world = World()
    blurred = world.scores(world.truth + world.smooth(0.6, 2), 0.36)
    assert "spatial" in rejected_because(blurred, world.off_by(0.9))


def test_a_candidate_that_trails_behind_is_rejected():
    world = World()
    same = np.repeat(world.noise(0.6)[:, :1], 2, axis=1)
    late = world.scores(world.truth + same, 0.36)
    assert "temporal" in rejected_because(late, world.off_by(0.9))


def test_a_candidate_that_is_far_too_sure_of_itself_is_rejected():
    world = World()
    sure = world.scores(world.truth + world.noise(0.7), 0.001)
    assert "chi2" in rejected_because(sure, world.scores(world.truth + world.noise(1.3), 1.7))


@pytest.mark.parametrize("variance", [0.5, 0.8, 1.3, 2.0])
def test_a_wrong_calibration_is_not_held_against_the_candidate(variance):
    world = World()
    world.measure(np.sqrt(variance))
    assert action(world.off_by(0.1), None, world.off_by(0.7)) == "promote"


def test_a_calibration_that_fits_the_data_is_trusted_and_another_is_replaced():
    world = World()
    assert measured_noise(world.off_by(0.2)).variance == 1.0
    world.measure(np.sqrt(2))
    assert measured_noise(world.off_by(0.6)).variance == pytest.approx(2, rel=0.05)


def test_a_scene_that_moves_is_not_taken_for_noise():
    world = World()
    steps = 3 * world.smooth(1.0, 4)[:, 0]
    world.three[:, 2] += steps
    classical = world.off_by(1.0)
    assert classical.raw_power.mean() > 1.5
    assert measured_noise(classical).variance == 1.0


def test_correlated_detector_noise_is_not_held_against_the_candidate():
    world = World()
    world.measure(1.0, blur=0.6)
    candidate = world.off_by(0.1)
    assert residual(candidate).spatial.mean == pytest.approx(0, abs=0.05)
    assert action(candidate, None, world.off_by(0.7)) == "promote"


def test_a_candidate_that_forgot_older_frames_is_rejected():
    world, older = World(), World(seed=5)

    def replay():
        return older.off_by(0.3), older.off_by(0.5)

    reason = rejected_because(world.off_by(0.1), world.off_by(0.6), replay=replay)
    assert "older frames" in reason


def test_older_frames_are_only_looked_at_when_all_else_has_passed():
    world, asked = World(), []

    def replay():
        asked.append(1)

    assert action(world.off_by(0.6), None, world.off_by(0.6), replay=replay) == "reject"
    assert not asked
    assert action(world.off_by(0.1), None, world.off_by(0.6), replay=replay) == "promote"
    assert asked


def test_a_candidate_worse_on_tiles_never_trained_on_is_rejected():
    world = World(size=192)
    world.guard[:32, :32] = True
    mean = np.array(world.truth + world.noise(0.1))
    mean[..., :32, :32] = (world.truth + world.noise(0.9))[..., :32, :32]
    assert "never trained" in rejected_because(world.scores(mean, 0.01), world.off_by(0.5))


def test_one_cosmic_ray_does_not_decide():
    world = World()
    world.three[2, 2, 10:12, 10:12] += 5000
    assert action(world.off_by(0.1), None, world.off_by(0.5)) == "promote"
    assert action(world.off_by(0.5), None, world.off_by(0.5)) == "reject"


def test_impulsive_noise_is_compared_by_a_robust_loss():
    """A mean-type filter is pulled towards the impulses; the better one ignores them."""
    world = World()
    hit = world.rng.random(world.three.shape) < 0.2
    world.three[hit] = 60.0
    pulled = world.scores(world.truth + 0.2 * (60 - world.truth) + world.noise(0.1))
    steady = world.scores(world.truth + world.noise(0.1))
    gain = paired_gain(pulled, steady, Noise(impulsive=True))
    assert gain.exceeds(2)
    assert action(steady, None, pulled, impulsive=True) == "promote"
    assert action(pulled, None, steady, impulsive=True) == "reject"


def test_stricter_rules_want_more():
    world = World()
    candidate, classical = world.off_by(0.3), world.off_by(0.5)
    assert action(candidate, None, classical) == "promote"
    assert action(candidate, None, classical, rules=Rules(sigmas=100)) == "reject"
    assert action(candidate, None, classical, rules=Rules(min_frames=9)) is None


def test_a_decision_without_numbers_says_so():
    assert np.isnan(Decision("reject", "no reason").gain)


def test_what_one_channel_gains_another_must_not_pay_for():
    world = World(frames=16)
    good, bad, classical = world.off_by(0.1), world.off_by(0.5), world.off_by(0.4)
    two = [replace(classical, channel=classical.channel + n) for n in (0, 1)]
    both = [good, replace(good, channel=good.channel + 1)]
    assert action(concatenate(both), None, concatenate(two)) == "promote"
    both[1] = replace(bad, channel=bad.channel + 1)
    decision = decide(concatenate(both), None, concatenate(two))
    assert (decision.action, "in channels [1]" in decision.reason) == ("reject", True)
