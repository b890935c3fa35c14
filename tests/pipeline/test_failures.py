"""A denoiser that fails: nothing else does, and what it cost is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from helpers.overload import Gather, SlowFilter, loaded, numbered
from quietbeam import DenoiserPlugin
from quietbeam.core.events import RunStart
from quietbeam.model.clean import Prepared
from quietbeam.model.correct import Corrections
from quietbeam.model.stabilise import PhotonTransfer
from quietbeam.pipeline.live import Model, Switch

SHAPE = (32, 48)


class Fails(DenoiserPlugin):
    """Gives every frame back, but not in its calls of these numbers."""

    at: tuple[int, ...]

    def build(self) -> Any:
        return FailingFilter(self.at)


class FailingFilter(SlowFilter):
    calls = 0

    def __init__(self, at: tuple[int, ...]) -> None:
        super().__init__(0.0)
        self._at = at

    def forward(self, frame: torch.Tensor, state: Any) -> Any:
        FailingFilter.calls += 1
        if FailingFilter.calls in self._at:
            raise RuntimeError("CUDA error")
        return super().forward(frame, state)


def run_with(tmp_path, at, frames):
    """Run a pipeline whose denoiser fails in these calls; give accounts and what came out."""
    FailingFilter.calls = 0
    sink = Gather()
    load = {"sinks": [sink], "backlog": 4000, "denoiser": Fails(at=tuple(at))}
    with loaded(tmp_path, [(frames, 200.0)], frame_s=0, **load) as running:
        running.start().join()
        running.assert_accounts_are_exact()
        return running.pipeline.ledger.stages(), sink.indices


def test_a_denoiser_that_fails_once_costs_one_frame_and_goes_on(tmp_path):
    stages, came_out = run_with(tmp_path, [20], 60)
    assert stages["ingest"].sent == 60
    assert stages["denoise"].dropped == {"failed": 1}
    assert came_out == [number for number in range(60) if number != 19]


def test_a_denoiser_that_always_fails_leaves_the_run_raw_and_every_frame_counted(tmp_path):
    stages, came_out = run_with(tmp_path, range(1, 1000), 60)
    assert stages["ingest"].sent == 60
    assert came_out == []
    assert stages["denoise"].dropped == {"failed": 4, "no_run": 56}


class Same:
    """An engine of lag 0 that gives each frame back; fails from one call on."""

    lag, blind = 0, False

    def __init__(self, fails_after=10**9):
        self.calls, self._fails_after = 0, fails_after

    def reset(self):
        pass

    def __call__(self, frame):
        self.calls += 1
        if self.calls > self._fails_after:
            raise RuntimeError("CUDA error")
        return frame, np.ones_like(frame)


def test_a_network_that_fails_hands_its_very_frame_to_the_classical_denoiser():
    switch, told, out = Switch(Same(), "old"), [], []
    switch.on_lost = lambda error: told.append(str(error))
    network = Model("new", 3)
    for position in range(12):
        if position == 3:
            switch.promote(switch.warm(Same(fails_after=3 + 5)), network)
        pixels = np.full(SHAPE, position, np.float32)
        prepared = Prepared(position, numbered(position), pixels, pixels >= 0, pixels)
        out += switch.push(prepared)
    out += switch.flush()
    assert [estimate.prepared.position for estimate, _ in out] == list(range(12))
    assert [model.version for _, model in out] == [0] * 3 + [3] * 5 + [0] * 4
    assert told == ["RuntimeError('CUDA error')"]


def test_counts_no_detector_can_give_are_no_measurements():
    run = RunStart(run="r", shape=SHAPE, dtype=np.dtype("f4"))
    pixels = np.random.default_rng(0).normal(100, 5, SHAPE).astype(np.float32)
    pixels[:2] = [[3e38], [-np.inf]]
    transfer = PhotonTransfer()
    with Corrections(run, []) as corrections:
        corrected, valid = corrections(pixels)
        assert not valid[:2].any()
        assert valid[2:].all()
        for _ in range(6):
            transfer.add(*corrections(pixels + np.float32(np.random.default_rng(1).normal())))
    assert np.isfinite(corrected).all()
    assert np.isfinite(transfer.fit().gain)
