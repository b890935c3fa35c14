"""The network quiet: its fixed filters, memories, spikes, preview, variances and prior weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.streams import noise
from helpers.streams import stream as numpy_stream
from quietbeam import EngineError
from quietbeam.model.fuse import fuse
from quietbeam.testing.imagined import expose, imagine
from quietbeam_plugins.denoisers._bank import FilterBank
from quietbeam_plugins.denoisers._filters import Blurs, fold, median_3x3, unfold
from quietbeam_plugins.denoisers.quiet import (
    Memory,
    Quiet,
    calm,
    has_outliers,
    noise_power,
    without_spikes,
)


def drifting(frames, side, seed):
    """A random texture that moves by a pixel a frame, (frames, side, side)."""
    texture = normal(1, 1, side, side + frames, seed=1000 + seed)
    for _ in range(3):
        texture = torch.nn.functional.avg_pool2d(texture, 3, 1, 1)
    return 20 + 8 * torch.stack([texture[0, 0, :, i : i + side] for i in range(frames)])


def normal(*shape, seed=0):
    return torch.from_numpy(noise(*shape, seed=seed))


def stream(net, frames):
    """Means and variances of all calls, (t, h, w) each, as tensors."""
    return tuple(map(torch.from_numpy, numpy_stream(net, frames)))


class TestFilters:
    @pytest.mark.parametrize("shape", [(16, 24), (13, 21)])
    def test_unfolding_gives_back_what_was_folded(self, shape):
        image = normal(2, 1, *shape)
        assert torch.equal(unfold(fold(image), *shape), image)

    def test_the_median_is_that_of_nine_pixels(self):
        image = normal(1, 1, 20, 30)
        padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
        nine = padded.unfold(2, 3, 1).unfold(3, 3, 1).reshape(1, 1, 20, 30, 9)
        assert torch.equal(median_3x3(image), nine.median(-1).values)

    def test_blurs_keep_the_level_and_leave_the_energy_they_say(self):
        blurs = Blurs()
        energies = blurs.get_buffer("energies")[..., 0, 0]
        level = blurs(torch.full((1, 4, 16, 16), 7.0))
        noise = blurs(fold(normal(1, 1, 512, 512)))
        for i, (flat, blurred) in enumerate(zip(level, noise, strict=True)):
            assert torch.allclose(flat, torch.tensor(7.0))
            assert float(blurred.var()) == pytest.approx(float(energies[i, i]), rel=0.05)
            shared = float((blurred * noise[0]).mean())
            assert shared == pytest.approx(float(energies[0, i]), abs=0.01)


class TestMemory:
    def remember(self, frames):
        memory = Memory.empty(1, 8, 8)
        for frame in frames:
            memory = memory.absorb(frame, torch.ones(1, 1, 1, 1))
        return memory

    def test_the_noise_left_is_what_it_says(self):
        memory = self.remember(normal(80, 1, 4, 8, 8))
        fast, slow = memory.variances()
        assert float(memory.fast.var()) == pytest.approx(float(fast), rel=0.35)
        assert float(memory.slow.var()) == pytest.approx(float(slow.mean()), rel=0.35)

    def test_it_begins_anew_only_where_the_scene_changes(self):
        frames = normal(80, 1, 4, 8, 8)
        frames[60:, :, :, :, 4:] += 5
        memory = self.remember(frames)
        still, changed = memory.since[..., :3], memory.since[..., 5:]
        assert float(still.min()) > 60
        assert float(changed.max()) < 40
        assert float(memory.slow[..., 5:].mean()) == pytest.approx(5, abs=0.4)

    def test_a_frame_that_is_not_used_changes_nothing(self):
        memory = self.remember(normal(5, 1, 4, 8, 8))
        same = memory.absorb(torch.full((1, 4, 8, 8), 99.0), torch.zeros(1, 1, 1, 1))
        assert all(torch.equal(a, b) for a, b in zip(memory, same, strict=True))


class TestSpikes:
    def test_a_cosmic_ray_goes_and_noise_stays(self):
        frame, before = normal(1, 1, 32, 32), [normal(1, 1, 32, 32, seed=s) for s in (1, 2, 3)]
        hit = frame.clone()
        hit[0, 0, 9, 9] = 50.0
        cleaned = without_spikes(hit, before)
        assert float(cleaned[0, 0, 9, 9].abs()) < 3
        cleaned[0, 0, 9, 9] = frame[0, 0, 9, 9]
        assert torch.equal(cleaned, frame)

    def test_a_bright_pixel_that_stays_is_kept(self):
        before = [normal(1, 1, 32, 32, seed=s) for s in range(4)]
        for frame in before:
            frame[0, 0, 9, 9] += 50
        assert float(without_spikes(before[0], before[1:])[0, 0, 9, 9]) > 40

    def test_a_clip_without_spikes_is_left_alone(self):
        clip = normal(2, 8, 32, 32)
        assert calm(clip) is clip
        clip[:, 4, ::5, ::5] = 60.0
        assert float(calm(clip).max()) < 10

    def test_impulses_are_told_from_noise(self):
        clip = normal(2, 12, 32, 32)
        everywhere = torch.ones(clip.shape, dtype=torch.bool)
        assert not has_outliers(clip, everywhere)
        clip[torch.rand(clip.shape, generator=torch.Generator().manual_seed(0)) < 0.05] = 40
        assert has_outliers(clip, everywhere)


class TestNoisePower:
    def test_it_follows_the_brightness_and_ignores_a_moving_edge(self):
        level = torch.linspace(0, 30, 64).expand(1, 30, 64, 64)
        spread = torch.where(level < 7.5, 0.8, 1.0)
        clip = level + spread * normal(1, 30, 64, 64)
        power = noise_power(clip, torch.ones(clip.shape, dtype=torch.bool))
        assert float(power[..., :12].mean()) == pytest.approx(0.64, rel=0.05)
        assert float(power[..., 20:].mean()) == pytest.approx(1.0, rel=0.05)

    def test_one_or_two_frames_tell_nothing(self):
        clip = normal(1, 2, 16, 16)
        assert torch.equal(noise_power(clip, clip < 99), torch.ones(1, 1, 16, 16))


class TestPreview:
    def test_it_answers_at_once_from_earlier_frames_only(self):
        net = Quiet(preview=True).build()
        assert net.lag == 0
        frames = normal(20, 32, 32) + 10
        changed = frames.clone()
        changed[-1] += 100
        ours, theirs = stream(net, frames)[0], stream(net, changed)[0]
        assert torch.equal(ours[-1], theirs[-1])

    def test_the_same_weights_do_both(self):
        science, preview = Quiet().build(), Quiet(preview=True).build()
        preview.load_state_dict(science.state_dict())

    def test_it_is_not_far_behind(self):
        rng = np.random.default_rng(5)
        scene = torch.from_numpy(imagine(rng, 60, 64)) * 8 + 10
        frames = scene + normal(60, 64, 64)
        science, preview = Quiet().build(), Quiet(preview=True).build()
        late, early = stream(science, frames)[0][43:], stream(preview, frames)[0][40:57]
        worse = ((early - scene[40:57]) ** 2).mean() / ((late - scene[40:57]) ** 2).mean()
        assert float(worse) < 2.5


class TestBlindFrames:
    def test_neighbours_that_share_noise_are_never_looked_at(self):
        net = Quiet(blind_frames=1).build()
        assert net.lag == 4
        frames = normal(24, 32, 32) + 10
        for hidden in (14, 15, 16):
            changed = frames.clone()
            changed[hidden] += 100
            ours, theirs = stream(net, frames)[0], stream(net, changed)[0]
            assert torch.equal(ours[15 + net.lag], theirs[15 + net.lag])


class TestPrior:
    def test_the_weights_that_come_along_clean_before_any_training(self):
        net, fresh = Quiet().build(), Quiet(prior=False).build()
        assert net.pretrained
        assert not fresh.pretrained
        errors, plain, means = [], [], []
        for seed in range(6):
            rng = np.random.default_rng([seed, 99])
            noisy, truth = expose(rng, imagine(rng, 50, 64))
            at = slice(40, 47)
            frames = torch.from_numpy(noisy)
            for module, out in ((net, errors), (fresh, plain)):
                estimate = stream(module, frames)[0].numpy()[43:]
                out.append(np.mean((estimate - truth[at]) ** 2))
            means.append(np.mean((noisy[at] - truth[at]) ** 2))
        assert np.median(np.array(errors) / plain) < 0.8
        assert np.median(np.array(errors) / means) < 0.1

    def test_another_size_has_none_and_says_nothing(self):
        assert Quiet(lag=2).prior_path() is None
        assert not Quiet(lag=2).build().pretrained

    def test_a_damaged_file_is_named(self, tmp_path):
        path = tmp_path / "prior.safetensors"
        path.write_bytes(b"not weights")
        with pytest.raises(EngineError, match=r"prior\.safetensors"):
            Quiet(prior=False).build().load_prior(path)


@pytest.mark.parametrize("gap", [0, 1])
def test_a_preview_says_little_before_it_has_seen_enough(gap):
    truth = 20 + 5 * torch.sin(torch.arange(48) / 5).expand(24, 48, 48)
    net = Quiet(preview=True, prior=False, blind_frames=gap).build()
    measured = truth + normal(24, 48, 48)
    means, variances = stream(net, measured)
    fused = np.stack(
        [fuse(*(x.numpy() for x in one))[0] for one in zip(means, variances, measured, strict=True)]
    )
    errors = ((fused - truth.numpy()) ** 2).mean((1, 2))
    assert errors[: 1 + gap] == pytest.approx(1, abs=0.1)  # nothing before: as measured
    assert (errors[1 + gap :] < 0.8).all()
    assert errors[12:].mean() < 0.3
    told = variances.mean((1, 2)).numpy()
    assert (told[: 1 + gap] > 100).all()
    assert (np.diff(told[1 + gap : 7 + gap]) < 1e-6).all()


class TestFilterBank:
    def test_it_gives_the_mean_of_the_network_before_it_is_fitted(self):
        bank, images = FilterBank(3), [normal(1, 4, 8, 8, seed=s) for s in range(3)]
        for preview in (False, True):
            torch.testing.assert_close(bank(Blurs(), images, preview=preview), images[0])

    def test_what_it_gives_is_the_weighted_sum_of_its_terms(self):
        bank, blurs = FilterBank(3), Blurs()
        images = [normal(2, 4, 8, 8, seed=s) for s in range(3)]
        weights = torch.randn(12, generator=torch.Generator().manual_seed(0))
        bank.take(weights, preview=True)
        expected = torch.einsum("f,fnchw->nchw", weights, bank.terms(blurs, images))
        torch.testing.assert_close(bank(blurs, images, preview=True), expected)
        assert torch.equal(bank.weights(preview=True).float(), weights)
        torch.testing.assert_close(bank(blurs, images, preview=False), images[0])

    def test_fitting_finds_the_best_filter_without_the_truth(self):
        truth = normal(100_000)
        errors = torch.stack([normal(100_000, seed=s) for s in range(1, 5)])
        moments = FilterBank(1).moments()
        terms = truth + errors * torch.tensor([[1.0], [0.5], [2.0], [4.0]])
        moments.add(terms, truth + normal(100_000, seed=9))
        best = torch.tensor([1.0, 4.0, 0.25, 0.0625], dtype=torch.float64)
        torch.testing.assert_close(moments.solve(), best / best.sum(), atol=0.02, rtol=0)

    def test_few_pixels_leave_the_terms_alike(self):
        moments = FilterBank(1).moments()
        moments.add(normal(4, 20), normal(20, seed=1))
        torch.testing.assert_close(
            moments.solve(), torch.full((4,), 0.25, dtype=torch.float64), atol=0.1, rtol=0
        )

    def test_a_slow_scene_is_cleaner_after_fitting_without_any_training(self):
        truth = 20 + 3 * torch.sin(torch.arange(64) / 3).expand(64, 64) * torch.ones(60, 1, 1)
        measured = truth + normal(60, 64, 64)
        net = Quiet().build()
        clips = measured.unfold(0, net.window, 3).permute(0, 3, 1, 2)
        before = stream(net, measured)[0]
        net.calibrate([(clips, torch.ones(clips.shape, dtype=torch.bool))])
        after = stream(net, measured)[0]
        errors = [float(((f - truth)[45:-3] ** 2).mean()) for f in (before, after)]
        assert errors[1] < 0.6 * errors[0]


class TestVariance:
    def test_without_training_it_is_that_of_the_filter(self):
        net = Quiet(prior=False).build()
        means, variances = stream(net, normal(120, 48, 48) + 5)
        error = float(((means[60:, 8:-8, 8:-8] - 5) ** 2).mean())
        assert float(variances[60:].mean()) == pytest.approx(error, rel=0.15)

    def test_calibration_brings_a_wrong_scale_back(self):
        net = Quiet(prior=False).build()
        everywhere = torch.ones(8, net.window, 64, 64, dtype=torch.bool)
        with torch.no_grad():
            net.scale += 3.0
        batches = [
            (torch.stack([drifting(net.window, 64, 8 * s + n) for n in range(8)]), everywhere)
            for s in range(6)
        ]
        noisy = [(clip + normal(*clip.shape, seed=n), ok) for n, (clip, ok) in enumerate(batches)]
        for _ in range(3):  # it goes a decade at a time
            net.calibrate(noisy)
        truth = drifting(80, 64, 99)
        means, variances = stream(net, truth + normal(80, 64, 64, seed=9))
        error = float(((means[net.lag :] - truth[: -net.lag])[40:, 8:-8, 8:-8] ** 2).mean())
        assert abs(np.log(float(variances[40:].mean()) / error)) < 0.7

    @pytest.mark.parametrize("seed", range(4))
    def test_what_few_pixels_say_is_hardly_believed(self, seed):
        net = Quiet(prior=False).build()
        clip = normal(1, net.window, 16, 16, seed=seed)
        net.calibrate([(clip, clip < 99)])  # they may well say a tenth or ten times
        assert abs(float(net.scale.detach())) < 0.3


def test_masked_pixels_are_not_trained_on():
    net = Quiet().build()
    clip = normal(2, net.window, 32, 32) + 10
    valid = torch.ones(clip.shape, dtype=torch.bool)
    valid[:, :, 8:12, 8:12] = False
    spoiled = clip.clone()
    at = clip.shape[1] - 1 - net.lag
    spoiled[:, at, 8:12, 8:12] = 12.0  # nothing that would be taken for a spike
    losses = [
        float(net.training_loss(each, valid, torch.Generator().manual_seed(1)).detach())
        for each in (clip, spoiled)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
