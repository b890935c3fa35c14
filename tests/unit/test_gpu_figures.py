"""What a measurement on a GPU counts, measured here on a processor in its place."""

from __future__ import annotations

import pytest
import torch

from quietbeam.cli import main
from quietbeam.model import engines
from quietbeam.model.cuda_engine import cuda_engine
from quietbeam.offline import gpu_figures as gpu

PX = 48


def on_processor(module, case):
    shape = (case.size_px, case.size_px)
    return cuda_engine(module, shape, device=torch.device("cpu"))


def test_the_cost_of_a_frame_is_that_of_its_convolutions_and_of_its_traffic():
    module = gpu.module_of("n2v")
    needed = gpu.cost(module, PX)
    assert needed["bus_bytes"] == 3 * 4 * PX * PX
    weights = sum(weight.numel() for weight in module.state_dict().values())
    assert needed["device_bytes"] == 4 * (3 * PX * PX + weights)  # no state
    assert gpu.cost(module, 2 * PX)["flop"] == 4 * needed["flop"] > 0


def test_states_that_are_handed_on_are_not_written():
    module = gpu.module_of("umvd")
    state = sum(tensor.numel() for tensor in module.initial_state(1, PX, PX))
    weights = sum(weight.numel() for weight in module.state_dict().values())
    new = 21 * PX * PX  # the features of one window
    expected = 4 * (3 * PX * PX + state + new + weights)
    assert gpu.cost(module, PX)["device_bytes"] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    "training",
    ["off", *(pytest.param(how, marks=pytest.mark.slow) for how in ("process", "stream"))],
)
def test_a_case_is_measured_against_the_floor_with_training_beside_it(training):
    found = gpu.limits("cpu", megabytes=1, side=64)
    case = gpu.GpuCase("n2v", "cuda", PX, training, 0.2)
    row = gpu.measure(case, found, on_processor, "cpu")
    assert row["frames"] >= 2 + 2 * gpu.BURST
    assert row["p99_ms"] >= row["p50_ms"] > 0
    assert row["times_the_floor"] == pytest.approx(1e3 / row["frames_per_s"] / row["floor_ms"])
    assert (row["training_steps_per_s"] is None) == (training == "off")
    assert training == "off" or row["training_steps_per_s"] > 0


def test_without_a_gpu_the_command_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(engines, "why_not", lambda _kind: "no usable GPU: install the driver")
    assert main(["bench", "--gpu", "--json"]) == 78
    assert "--gpu: no usable GPU: install the driver" in capsys.readouterr().err
