"""On a GPU: every engine gives what torch gives, and flips between two frames."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from quietbeam.core.plugin import DenoiserPlugin
from quietbeam.model import gpu, tensorrt_library
from quietbeam.model.cuda_engine import cuda_engine
from quietbeam.model.engines import cache_directory
from quietbeam.model.tensorrt_engine import tensorrt_engine
from quietbeam.model.torch_engine import TorchEngine, weights_of
from quietbeam.registry import find

pytestmark = pytest.mark.gpu
SHAPE = (256, 320)


@pytest.fixture(autouse=True)
def needs_gpu():
    found = gpu.driver()
    if not found.usable or not torch.cuda.is_available():
        pytest.skip(f"no usable GPU: {found.detail or 'torch has no CUDA'}")


def module(name):
    settings = {"size": "L"} if name == "quiet" else {}
    return find("denoisers", name, DenoiserPlugin)(**settings).build()


@pytest.fixture(params=["cuda", "inputs", "refit"])
def build(request):
    if request.param == "cuda":
        return lambda net, precision: cuda_engine(net, SHAPE, precision)
    if not tensorrt_library.installed():
        pytest.skip("TensorRT is not installed")
    return lambda net, precision: tensorrt_engine(
        net, SHAPE, cache=cache_directory(), precision=precision, swap=request.param
    )


def frames(count):
    rng = np.random.default_rng(0)
    step = np.where(np.arange(SHAPE[1]) < 100, 20, 40)
    return (step + rng.standard_normal((count, *SHAPE))).astype(np.float32)


@pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", ["quiet", "umvd", "n2v"])
def test_a_run_of_sixty_frames_comes_out_as_in_torch(build, name, precision):
    net = module(name)
    engine, reference = build(net, precision), TorchEngine(net, SHAPE, threads=8)
    for number, frame in enumerate(frames(60)):  # so many that captured graphs are replayed
        (got, variance), (want, _) = engine(frame), reference(frame)
        assert np.isfinite(variance).all()
        if number > 2 * engine.lag + 1:
            assert np.abs(got - want).max() < 1e-2 * np.abs(want).max()


def test_ten_thousand_flips_give_no_wrong_frame(build):
    net = module("n2v")
    engine = build(net, "f16")
    sets = [weights_of(net), {k: 1.2 * v for k, v in weights_of(net).items()}]
    frame, expected = frames(1)[0], []
    for weights in sets:
        engine.stage(weights)
        engine.flip()
        engine.reset()
        expected.append(engine(frame)[0])
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    for number in range(10_000):
        engine.flip()
        assert np.array_equal(engine(frame)[0], expected[number % 2])


def test_staging_in_another_thread_disturbs_no_frame(build):
    net = module("n2v")
    engine = build(net, "f16")
    frame = frames(1)[0]
    before, stop = engine(frame)[0], threading.Event()

    def stage():
        while not stop.is_set():
            engine.stage({name: 1.1 * array for name, array in weights_of(net).items()})

    thread = threading.Thread(target=stage)
    thread.start()
    try:
        for _ in range(500):
            assert np.array_equal(engine(frame)[0], before)
    finally:
        stop.set()
        thread.join()


def test_a_burst_gives_what_single_frames_give(build):
    engine = build(module("quiet"), "f16")
    series = frames(20)
    single = [engine(frame) for frame in series]
    engine.reset()
    for (mean, variance), (mean_1, variance_1) in zip(engine.burst(series), single, strict=True):
        assert np.array_equal(mean, mean_1)
        assert np.array_equal(variance, variance_1)
