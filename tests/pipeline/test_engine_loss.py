"""A GPU that fails, hangs or is gone costs an estimate's quality, never a frame."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from quietbeam import ConfigError, EngineError
from quietbeam.model.engines import build_engine
from quietbeam.model.guarded import Guarded
from quietbeam.pipeline import networks

from .test_pipeline import CONFIG, Collect, balanced, make, phantom_run, run_to_end, save_weights

__all__ = ["make"]


class Gpu:
    """What stands for engines on a device: the real network, until the device fails."""

    def __init__(self):
        self.built = 0
        self.trouble = None
        self.gone = False
        self.release = threading.Event()

    def build(self, module, shape, config, **rest):
        engine = build_engine(module, shape, config.model_copy(update={"kind": "torch"}), **rest)
        if config.kind == "torch":  # the classical denoisers
            return engine
        if self.gone:
            raise EngineError("CUDA error: no device")
        self.built += 1
        return Guarded(lambda: Failing(engine, self), answer_s=5.0)


class Failing:
    """Fails as its device does."""

    def __init__(self, engine, device):
        self._engine, self._device = engine, device
        self.lag, self.blind = engine.lag, engine.blind
        self.reset, self.stage, self.flip = engine.reset, engine.stage, engine.flip

    def __call__(self, frame):
        trouble, self._device.trouble = self._device.trouble, None
        if trouble == "hangs":
            self._device.release.wait(60)
        elif trouble:
            raise EngineError(trouble)
        return self._engine(frame)


@pytest.fixture
def device(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(networks, "build_engine", gpu.build)
    yield gpu
    gpu.release.set()


def wait_for(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)


@pytest.mark.parametrize("trouble", ["CUDA out of memory", "device lost", "hangs"])
def test_the_classical_denoiser_steps_in_and_the_network_comes_back(
    make, device, tmp_path, trouble
):
    sink, done = Collect(), threading.Event()
    pipeline = make(phantom_run("a", done), [sink], pause_s=0.03)
    pipeline.recovery.delays_s = (1.0,)
    path = save_weights(pipeline, tmp_path / "w.safetensors")

    def lose():
        pipeline.offer(None, path, 1).result(90)
        sink.wait_for(denoiser="quiet")
        device.trouble = trouble
        wait_for(lambda: pipeline.alarms.is_active("engine_lost"), "the alarm")
        said = pipeline.alarms.active()["engine_lost"]["message"]
        assert ("did not answer" if trouble == "hangs" else trouble) in said
        before = len(sink.results)
        wait_for(lambda: not pipeline.alarms.is_active("engine_lost"), "recovery")
        wait_for(lambda: len(sink.results) > before + 10, "frames")
        wait_for(lambda: sink.results[-1].denoiser == "quiet", "the network")

    run_to_end(pipeline, lose, done)
    assert device.built >= 2
    assert [r.index for r in sink.results] == list(range(len(sink.results)))
    seen = [(r.denoiser, r.model_version) for r in sink.results]
    changes = [seen[0], *(b for a, b in pairwise(seen) if a != b)]
    assert changes[-3:] == [("quiet", 1), ("kalman", 0), ("quiet", 1)]
    assert all(np.isfinite(r.clean).all() for r in sink.results)
    assert balanced(pipeline)


def test_a_device_that_stays_away_is_tried_again_and_the_stream_goes_on(make, device, tmp_path):
    sink, done = Collect(), threading.Event()
    pipeline = make(phantom_run("a", done), [sink], pause_s=0.03)
    pipeline.recovery.delays_s = (0.05,)
    path = save_weights(pipeline, tmp_path / "w.safetensors")

    def lose():
        pipeline.offer(None, path, 1).result(90)
        sink.wait_for(denoiser="quiet")
        device.gone, device.trouble = True, "device lost"
        wait_for(lambda: pipeline.alarms.is_active("engine_lost"), "the alarm")
        built, before = device.built, len(sink.results)
        wait_for(lambda: len(sink.results) > before + 20, "frames")
        assert device.built == built
        assert pipeline.alarms.is_active("engine_lost")
        device.gone = False
        wait_for(lambda: not pipeline.alarms.is_active("engine_lost"), "recovery")

    run_to_end(pipeline, lose, done)
    assert [r.index for r in sink.results] == list(range(len(sink.results)))
    assert balanced(pipeline)


def test_an_engine_that_is_asked_for_and_never_there_leaves_the_classical_one(make, tmp_path):
    sink, done = Collect(), threading.Event()
    text = CONFIG + '[engine]\nkind = "tensorrt"\n'
    pipeline = make(phantom_run("a", done), [sink], text=text, pause_s=0.03)
    path = save_weights(pipeline, tmp_path / "w.safetensors")

    def offer():
        sink.wait_for(index=3)
        with pytest.raises(ConfigError, match='kind = "tensorrt": no usable GPU'):
            pipeline.offer(None, path, 1).result(90)

    run_to_end(pipeline, offer, done)
    assert {r.denoiser for r in sink.results} == {"kalman"}
    assert balanced(pipeline)
