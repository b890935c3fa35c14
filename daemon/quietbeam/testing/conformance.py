"""What every denoiser must hold, as a test class that plugin authors subclass.

    class TestMine(DenoiserContract, EngineContract):
        plugin = Mine()

pytest collects the inherited tests.  A denoiser that passes runs in every
engine, can be trained by the trainer, and is judged rightly by the gate.
"""

# ruff: noqa: S101 - the asserts are the point

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quietbeam.config import EngineConfig
from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.errors import EngineError
from quietbeam.core.plugin import DenoiserPlugin
from quietbeam.model.engines import build_engine, cache_directory
from quietbeam.model.export import export
from quietbeam.model.openvino_engine import OpenVinoEngine
from quietbeam.model.torch_engine import TorchEngine

Float = NDArray[np.float32]


class _Contract:
    """What the contracts share."""

    plugin: ClassVar[Any]
    """A ``DenoiserPlugin``."""
    steps: ClassVar[int] = 40
    """Training steps within which the loss must have fallen; fewer if one step of yours is slow."""
    patch_px: ClassVar[int] = 32
    shape: ClassVar[tuple[int, int]] = (61, 83)
    """Odd on purpose."""

    @pytest.fixture
    def frames(self) -> Float:
        """A drifting phantom in stabilised units, (t, h, w): contrast 8, noise 1, level 30."""
        return phantom(self.shape, 48)

    @pytest.fixture
    def denoiser(self) -> Any:
        """The denoiser after a little training."""
        return trained(self.plugin, self.shape, self.steps, self.patch_px)[0].eval()


class DenoiserContract(_Contract):
    """Subclass it and set ``plugin``."""

    def test_it_is_a_module_that_says_what_it_is(self) -> None:
        """Members and their ranges."""
        assert isinstance(self.plugin, DenoiserPlugin)
        denoiser: Any = self.plugin.build()
        assert isinstance(denoiser, nn.Module)
        assert isinstance(denoiser, StreamingDenoiser)
        assert denoiser.lag >= 0
        assert denoiser.window >= 1
        assert denoiser.trainable == bool(denoiser.state_dict())

    @pytest.mark.parametrize(("h", "w"), [(16, 16), (17, 31), (61, 83)])
    def test_shapes_are_kept(self, h: int, w: int) -> None:
        """Results have the frame's shape, the state keeps its own; n streams at once."""
        denoiser: Any = self.plugin.build()
        state = denoiser.initial_state(2, h, w)
        shapes = [tensor.shape for tensor in state]
        for _ in range(2):
            mean, variance, state = run(denoiser, torch.randn(2, 1, h, w) + 20, state)
            assert mean.shape == variance.shape == (2, 1, h, w)
            assert [tensor.shape for tensor in state] == shapes
            assert all(tensor.dtype == torch.float32 for tensor in (mean, variance, *state))
            assert float(variance.min()) >= 0

    def test_streams_do_not_mix(self, denoiser: Any, frames: Float) -> None:
        """Two streams side by side give what each gives alone."""
        a, b = torch.from_numpy(frames[:10]), torch.from_numpy(frames[20:30].copy())
        together = stream(denoiser, torch.stack((a, b), 1))
        assert torch.allclose(together[:, :1], stream(denoiser, a[:, None]), atol=1e-3)
        assert torch.allclose(together[:, 1:], stream(denoiser, b[:, None]), atol=1e-3)

    def test_a_call_gives_the_estimate_of_the_frame_lag_calls_before(
        self, denoiser: Any, frames: Float
    ) -> None:
        """Another frame i changes estimates around i; that of i itself only if it is not blind."""
        i, end = 20, 22 + 2 * denoiser.lag
        frames = frames[:end]
        changed = frames.copy()
        changed[i] += np.random.default_rng(1).normal(0, 3, self.shape).astype(np.float32)
        before = stream_both(denoiser, torch.from_numpy(frames)[:, None])
        after = stream_both(denoiser, torch.from_numpy(changed)[:, None])
        moved = [float(d) for d in (after - before).abs().flatten(1).amax(1)]
        at = i + denoiser.lag
        assert not any(moved[:i])
        if denoiser.blind:
            assert moved[at] == 0
            assert moved[at + 1] > 0
            assert denoiser.lag == 0 or moved[at - 1] > 0
        else:
            assert int(np.argmax(moved)) == at

    @pytest.mark.parametrize("i", [0, 1, 3, -2, -1])
    def test_the_estimate_for_judging_is_blind_even_at_the_ends(
        self, denoiser: Any, frames: Float, i: int
    ) -> None:
        """``blind_estimate``: other pixels, the same estimate of just these pixels."""
        some = torch.from_numpy(frames[:8, :24, :20].copy())
        changed = some.clone()
        where = (slice(None), slice(None)) if denoiser.blind else (slice(9, 10), slice(13, 14))
        changed[i][where] += 5.0
        before, after = denoiser.blind_estimate(some), denoiser.blind_estimate(changed)
        assert before.shape == some.shape
        assert torch.equal(before[i][where], after[i][where])
        assert i != 3 or not torch.equal(before, after)  # but it does look

    def test_training_lowers_the_loss(self) -> None:
        """Finite, and lower at the end than at the start."""
        denoiser, values = trained(self.plugin, self.shape, self.steps, self.patch_px)
        if not denoiser.trainable:
            clip = torch.zeros(1, denoiser.window, 32, 32)
            with pytest.raises(EngineError):
                denoiser.training_loss(clip, clip == 0, torch.Generator())
            return
        assert np.isfinite(values).all()
        fifth = len(values) // 5
        assert np.mean(values[-fifth:]) < 0.9 * np.mean(values[:fifth])

    def test_every_weight_is_learned_and_randomness_comes_from_the_generator(
        self, frames: Float
    ) -> None:
        """Finite gradients for every weight; the same generator gives the same loss."""
        denoiser: Any = self.plugin.build()
        if not denoiser.trainable:
            pytest.skip("nothing to train")
        fill_zero_weights(denoiser)
        clip = torch.from_numpy(clips(frames, denoiser.window, self.patch_px, 2, seed=1))
        valid = torch.ones_like(clip, dtype=torch.bool)
        first, second = (
            denoiser.training_loss(clip, valid, torch.Generator().manual_seed(5)) for _ in range(2)
        )
        assert first.item() == second.item()
        first.backward()
        for name, weight in denoiser.named_parameters():
            assert weight.grad is not None, name
            assert bool(torch.isfinite(weight.grad).all()), name
            assert float(weight.grad.abs().max()) > 0, name

    def test_nothing_valid_to_learn_from_is_no_accident(self, frames: Float) -> None:
        """A clip without one valid pixel gives a finite loss that teaches nothing."""
        denoiser: Any = self.plugin.build()
        if not denoiser.trainable:
            pytest.skip("nothing to train")
        clip = torch.from_numpy(clips(frames, denoiser.window, self.patch_px, 1, seed=2))
        loss = denoiser.training_loss(
            clip, torch.zeros_like(clip, dtype=torch.bool), torch.Generator().manual_seed(0)
        )
        assert float(loss.detach()) == 0.0

    def test_a_constant_scene_stays_constant(self, denoiser: Any) -> None:
        """A flat noisy field at any level comes out flat, at that level."""
        for level in (0.0, 400.0):
            noise = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(0))
            out = stream(denoiser, noise + level)[12:]
            assert abs(float(out.mean()) - level) < 1
            assert float(out.std()) < 0.9

    def test_a_shift_of_the_level_shifts_the_estimate(self, denoiser: Any, frames: Float) -> None:
        """The level of a detector is arbitrary."""
        series = torch.from_numpy(frames[:16])[:, None]
        low, high = stream(denoiser, series)[10:], stream(denoiser, series + 100)[10:]
        assert float((high - low - 100).abs().max()) < 0.05

    @pytest.mark.parametrize("case", ["zeros", "huge", "impulses", "step"])
    def test_it_never_gives_nan(self, denoiser: Any, case: str) -> None:
        """Whatever finite frames come."""
        frames = torch.zeros(12, 1, 32, 32)
        if case == "huge":
            frames += 1e6
        if case == "impulses":
            chance = torch.rand(frames.shape, generator=torch.Generator().manual_seed(0))
            frames[chance < 0.3] = 5e4
        if case == "step":
            frames[6:] = 1e4
        assert bool(torch.isfinite(stream_both(denoiser, frames)).all())


class EngineContract(_Contract):
    """As ``DenoiserContract``; the first run exports the network, which takes a while."""

    def test_openvino_gives_what_torch_gives(self, denoiser: Any, frames: Float) -> None:
        """Over a run at an odd shape, with a reset in between: 1e-3 of the contrast."""
        config = EngineConfig(kind="openvino", precision="f32")
        engine = build_engine(denoiser, self.shape, config)
        reference = TorchEngine(denoiser, self.shape)
        assert isinstance(engine, OpenVinoEngine)
        contrast = float(np.ptp(frames))
        for _ in range(2):
            for frame in frames[: 2 * denoiser.lag + 5]:
                (mean, variance), (mean0, variance0) = engine(frame), reference(frame)
                assert np.abs(mean - mean0).max() < 1e-3 * contrast
                assert np.allclose(variance, variance0, rtol=1e-3, atol=1e-6)
            engine.reset()
            reference.reset()

    def test_one_exported_file_serves_every_shape(self, denoiser: Any) -> None:
        """The graph keeps h and w open, holds no weights and is found again."""
        path = export(denoiser, cache_directory())
        assert path.stat().st_size < 64 << 10
        assert export(self.plugin.build(), cache_directory()) == path


def phantom(shape: tuple[int, int], frames: int) -> Float:
    """A slowly moving two-phase scene with unit noise: (t, h, w), level 30, contrast 8."""
    noise = np.random.default_rng(0).standard_normal((frames, *shape), np.float32)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    scene = [
        np.sin(0.31 * (x - 0.3 * i)) + np.sin(0.23 * (y + 0.2 * i)) + np.sin(0.17 * (x + y))
        for i in range(frames)
    ]
    return (30 + 8 / (1 + np.exp(-4 * np.stack(scene))) + noise).astype(np.float32)


def clips(frames: Float, window: int, patch_px: int, n: int, seed: int) -> Float:
    """Cut ``n`` clips (n, window, patch, patch) from random places of ``frames``."""
    rng = np.random.default_rng(seed)
    t, h, w = frames.shape
    if t < window:
        raise EngineError(f"the phantom has {t} frames; a window of {window} does not fit")
    side = min(patch_px, h, w)
    out = []
    for _ in range(n):
        i, y, x = (int(rng.integers(0, size + 1)) for size in (t - window, h - side, w - side))
        out.append(frames[i : i + window, y : y + side, x : x + side])
    return np.stack(out)


@functools.lru_cache
def trained(
    plugin: Any, shape: tuple[int, int], steps: int, patch_px: int
) -> tuple[Any, tuple[float, ...]]:
    """A denoiser trained on the phantom of ``shape``, once per process, and its losses."""
    torch.manual_seed(0)
    denoiser: Any = plugin.build()
    if not denoiser.trainable:
        return denoiser, ()
    losses = train(denoiser, phantom(shape, 48), steps, patch_px)
    return denoiser.requires_grad_(requires_grad=False), tuple(losses)


def train(denoiser: Any, frames: Float, steps: int, patch_px: int) -> list[float]:
    """Train as the trainer does, in short; give the loss of every step."""
    optimizer = torch.optim.Adam(denoiser.parameters(), 2e-3, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 20)
        clip = torch.from_numpy(clips(frames, denoiser.window, patch_px, 2, seed=100 + step))
        loss = denoiser.training_loss(clip, torch.ones_like(clip, dtype=torch.bool), generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def fill_zero_weights(denoiser: nn.Module) -> None:
    """Give layers that start at zero, and so pass no gradient on, some small values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in denoiser.parameters():
            if not bool(weight.any()):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)


@torch.no_grad()
def run(denoiser: Any, frame: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
    """One call without gradients."""
    return denoiser(frame, state)


def stream(denoiser: Any, frames: Tensor) -> Tensor:
    """Means of all calls for frames (t, n, h, w), shape (t, n, h, w); no priming, no flushing."""
    return stream_both(denoiser, frames)[:, 0]


def stream_both(denoiser: Any, frames: Tensor) -> Tensor:
    """Mean and variance of all calls for frames (t, n, h, w): (t, 2, n, h, w)."""
    _, n, h, w = frames.shape
    state = denoiser.initial_state(n, h, w)
    out = []
    for frame in frames:
        mean, variance, state = run(denoiser, frame[:, None], state)
        out.append(torch.stack((mean[:, 0], variance[:, 0])))
    return torch.stack(out)
