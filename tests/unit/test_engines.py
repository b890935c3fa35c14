"""Every engine runs the same function, and changes weights between two frames or not at all."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

from quietbeam import ConfigError, EngineError
from quietbeam.config import EngineConfig
from quietbeam.model import engines, openvino_engine
from quietbeam.model.cuda_engine import cuda_engine
from quietbeam.model.engines import build_engine, engine_kind
from quietbeam.model.openvino_engine import OpenVinoEngine, has_bf16, precision_for
from quietbeam.model.torch_engine import TorchEngine, weights_of

SHAPE = (19, 26)


class Tiny(nn.Module):
    """Lag 1: the mean of a frame's two neighbours, plus what two layers make of them."""

    lag = 1
    window = 3
    blind = True
    trainable = True

    def __init__(self, channels=4):
        super().__init__()
        self.first = nn.Conv2d(2, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, 1, 3, padding=1)
        nn.init.zeros_(self.first.bias)  # two equal biases: an exporter may merge them
        nn.init.zeros_(self.second.bias)

    def initial_state(self, n, h, w):
        zero = torch.zeros(n, 1, h, w)
        return zero, zero.clone(), torch.zeros(n, 1, 1, 1)

    def forward(self, frame, state):
        older, middle, count = state
        pair = torch.cat((older, frame), 1)
        mean = pair.mean(1, keepdim=True) + self.second(torch.relu(self.first(pair - count)))
        return mean, torch.ones_like(mean) * (count + 1), (middle, frame, count + 1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny():
    torch.manual_seed(1)
    return Tiny()


@pytest.fixture(params=["torch", "openvino", "cuda"])
def engine(request, tiny, cache):
    if request.param == "torch":
        return TorchEngine(tiny, SHAPE)
    if request.param == "cuda":  # all of it but the GPU
        return cuda_engine(tiny, SHAPE, device=torch.device("cpu"))
    return OpenVinoEngine(tiny, SHAPE, cache=cache)


def series(n, seed=0):
    rng = np.random.default_rng(seed)
    return (20 + rng.standard_normal((n, *SHAPE))).astype(np.float32)


def other_weights(tiny, seed=2):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(0, 0.5, array.shape).astype(np.float32)
        for name, array in weights_of(tiny).items()
    }


def test_both_engines_give_the_same_over_a_run_and_after_a_reset(tiny, cache):
    a, b = TorchEngine(tiny, SHAPE), OpenVinoEngine(tiny, SHAPE, cache=cache)
    for run in range(3):
        for frame in series(9, run):
            (mean, variance), (mean_ov, variance_ov) = a(frame), b(frame)
            assert np.abs(mean - mean_ov).max() < 1e-3 * np.ptp(mean)
            assert np.array_equal(variance, variance_ov)
        a.reset()
        b.reset()


def test_results_belong_to_the_caller_and_frames_to_nobody(engine):
    first, second = series(2)
    mean, variance = engine(first)
    kept = mean.copy(), variance.copy()
    first[:] = 0
    engine(second)
    engine(second)
    assert np.array_equal(mean, kept[0])
    assert np.array_equal(variance, kept[1])
    again, _ = engine(second)
    again[:] = 1e6  # the state must not be an alias of what was given out
    assert np.abs(engine(second)[0]).max() < 1e3


def test_a_reset_forgets_all_frames(engine):
    frames = series(6)
    before = [engine(frame)[0] for frame in frames]
    engine.reset()
    assert all(np.array_equal(engine(f)[0], b) for f, b in zip(frames, before, strict=True))


def test_training_the_module_later_changes_nothing(engine, tiny):
    frame = series(1)[0]
    before = engine(frame)[0]
    with torch.no_grad():
        for weight in tiny.parameters():
            weight.add_(1.0)
    engine.reset()
    assert np.array_equal(engine(frame)[0], before)


def test_staged_weights_are_used_after_the_flip_and_the_old_ones_after_the_next(engine, tiny):
    frame, weights = series(1)[0], other_weights(tiny)

    def now():
        engine.reset()
        return engine(frame)[0]

    old = now()
    engine.flip()  # nothing staged yet: both sides hold the first weights
    assert np.array_equal(now(), old)
    engine.stage(weights)
    assert np.array_equal(now(), old)
    engine.flip()
    new = now()
    assert np.abs(new - old).max() > 0.1
    with torch.no_grad():
        for name, tensor in tiny.state_dict().items():
            tensor.copy_(torch.from_numpy(weights[name]))
    assert np.allclose(new, TorchEngine(tiny, SHAPE)(frame)[0], rtol=1e-4, atol=1e-3)
    engine.flip()
    assert np.array_equal(now(), old)


def test_a_flip_in_the_middle_of_a_run_keeps_the_state(engine, tiny):
    frames = series(4)
    weights = weights_of(tiny)
    straight = [engine(frame)[0] for frame in frames]
    engine.reset()
    turned = []
    for frame in frames:
        engine.stage(weights)
        engine.flip()
        turned.append(engine(frame)[0])
    assert all(np.array_equal(a, b) for a, b in zip(straight, turned, strict=True))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("first.bias"), r"missing \['first.bias'\]"),
        (lambda w: w.update(extra=np.zeros(1, np.float32)), r"unknown \['extra'\]"),
        (lambda w: w.update({"first.bias": np.zeros(5, np.float32)}), r"first\.bias.*shape \(5,\)"),
        (lambda w: w["second.weight"].fill(np.nan), r"second\.weight is not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_the_staged_ones_stay(engine, tiny, spoil, message):
    frame, good = series(1)[0], other_weights(tiny)
    engine.stage(good)
    bad = {name: array.copy() * 3 for name, array in good.items()}
    spoil(bad)
    with pytest.raises(EngineError, match=message):
        engine.stage(bad)
    engine.flip()
    mean = engine(frame)[0]
    engine.stage(good)
    engine.flip()
    engine.reset()
    assert np.array_equal(engine(frame)[0], mean)


def test_a_frame_of_another_shape_is_refused(engine):
    with pytest.raises(EngineError, match=r"got a frame of shape \(5, 5\), expected \(19, 26\)"):
        engine(np.zeros((5, 5), np.float32))


def test_in_a_storm_of_flips_every_frame_sees_exactly_one_set_of_weights(engine, tiny):
    frame = series(1)[0]
    sets = [weights_of(tiny), other_weights(tiny)]
    expected = []
    for weights in sets:
        engine.stage(weights)
        engine.flip()
        engine.reset()
        expected.append(engine(frame)[0])
    stop = threading.Event()
    staged = [0]

    def stage():
        while not stop.is_set():
            engine.stage(sets[staged[0] % 2])
            staged[0] += 1

    thread = threading.Thread(target=stage)
    thread.start()
    seen = [0, 0]
    try:
        number = 0
        while number < 600 or staged[0] <= 20:
            number += 1
            engine.reset()
            mean = engine(frame)[0]
            fits = [np.allclose(mean, want, rtol=1e-5, atol=1e-4) for want in expected]
            assert fits.count(True) == 1
            seen[fits.index(True)] += 1
            if number % 2 == 0:
                engine.flip()
    finally:
        stop.set()
        thread.join()
    assert min(seen) > 20


def test_auto_takes_openvino_and_torch_is_taken_when_asked(tiny, cache, monkeypatch):
    monkeypatch.setattr(engines, "cache_directory", lambda: cache)
    assert isinstance(build_engine(tiny, SHAPE, EngineConfig()), OpenVinoEngine)
    assert isinstance(build_engine(tiny, SHAPE, EngineConfig(kind="torch")), TorchEngine)


def test_without_openvino_auto_takes_torch_and_openvino_is_refused(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda _name: None)
    assert engine_kind(EngineConfig()) == "torch"
    with pytest.raises(ConfigError, match="openvino is not installed"):
        engine_kind(EngineConfig(kind="openvino"))


def test_bf16_is_refused_where_there_is_none(tiny, monkeypatch):
    with pytest.raises(ConfigError, match="torch engine computes in f32 only"):
        build_engine(tiny, SHAPE, EngineConfig(kind="torch", precision="bf16"))
    monkeypatch.setattr(openvino_engine, "has_bf16", lambda: False)
    with pytest.raises(ConfigError, match="does not compute in bf16"):
        precision_for("bf16", tiny)
    assert precision_for("auto", tiny) == "f32"


def test_bf16_is_for_networks_only(tiny, monkeypatch):
    monkeypatch.setattr(openvino_engine, "has_bf16", lambda: True)
    assert precision_for("auto", tiny) == "bf16"
    assert precision_for("f32", tiny) == "f32"
    tiny.trainable = False  # a filter would lose in bf16 the averages that it builds up
    assert precision_for("auto", tiny) == "f32"


def test_the_level_is_kept_out_of_bf16(tiny, cache):
    # Where the processor has no bf16 OpenVINO computes in f32: this tests the level alone.
    with torch.no_grad():
        tiny.second.weight.zero_()  # a mean of neighbours: a shift of the level shifts it
    a = TorchEngine(tiny, SHAPE)
    b = OpenVinoEngine(tiny, SHAPE, cache=cache, precision="bf16")
    for run, level in enumerate((300.0, -500.0)):
        for number, frame in enumerate(series(6, run) + np.float32(level)):
            (mean, variance), (mean_ov, variance_ov) = a(frame), b(frame)
            assert abs(float(np.median(b._states[0][1].data))) < 1
            assert np.array_equal(variance, variance_ov)
            assert number < 2 or np.abs(mean - mean_ov).max() < 0.02
        a.reset()
        b.reset()


@pytest.mark.skipif(not has_bf16(), reason="this processor does not compute in bf16")
def test_bf16_agrees_with_torch_to_one_percent(tiny, cache):
    a = TorchEngine(tiny, SHAPE)
    b = OpenVinoEngine(tiny, SHAPE, cache=cache, precision="bf16")
    for frame in series(8):
        mean, mean_ov = a(frame)[0], b(frame)[0]
        assert np.abs(mean - mean_ov).max() < 1e-2 * np.abs(mean).max()


_LET_GO_ELSEWHERE = """
import faulthandler, gc, signal, sys, threading
from pathlib import Path
from quietbeam.model.openvino_engine import OpenVinoEngine
from quietbeam_plugins.denoisers.median import Median

faulthandler.enable()  # as a test runner, or a daemon that is looked into, does
signal.signal(signal.SIGHUP, lambda *_: print("reloading"))
held = [OpenVinoEngine(Median().build(), (32, 32), cache=Path(sys.argv[1]))]


def let_go():
    held.clear()
    gc.collect()


thread = threading.Thread(target=let_go)
thread.start()
thread.join()
signal.raise_signal(signal.SIGHUP)
"""


def test_a_signal_after_an_engine_was_let_go_in_another_thread_is_handled(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _LET_GO_ELSEWHERE, str(tmp_path)],
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, "reloading\n"), done.stderr
