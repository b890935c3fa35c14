"""One weights-free file per architecture, found again, never half written."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from quietbeam import EngineError
from quietbeam.model.export import FRAME, STATE, export, export_any, fingerprint, handed_on
from quietbeam.model.openvino_engine import OpenVinoEngine
from quietbeam.model.torch_engine import TorchEngine, weights_of


class Still(nn.Module):
    """Lag 0; two layers with equal biases; the state keeps the last frame as it is."""

    lag = 0
    window = 1
    blind = False
    trainable = True

    def __init__(self, channels=3, gain=1.0):
        super().__init__()
        self.gain = gain
        self.a = nn.Conv2d(1, channels, 3, padding=1)
        self.b = nn.Conv2d(channels, 1, 1)
        nn.init.zeros_(self.a.bias)
        nn.init.zeros_(self.b.bias)

    def initial_state(self, n, h, w):
        return (torch.zeros(n, 1, h, w),)

    def forward(self, frame, state):
        mean = self.gain * self.b(torch.relu(self.a(frame))) + state[0]
        return mean, torch.zeros_like(mean), (frame,)


class OneShape(Still):
    """Counts its rows in Python, which fixes the graph to their number."""

    def forward(self, frame, state):
        mean, variance, state = super().forward(frame, state)
        rows = torch.tensor([float(i) for i in range(frame.shape[-2])])
        return mean * rows[:, None], variance, state


class Linear(Still):
    """A layer whose weight the exporter's optimizer transposes, folds and renames."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(1, 1)

    def forward(self, frame, state):
        mean, variance, state = super().forward(frame, state)
        return self.mix(mean.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), variance, state


class Normalised(Still):
    """Batch norm would be folded into the convolution, under the convolution's name."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, frame, state):
        mean, variance, state = super().forward(frame, state)
        return self.norm(mean), variance, state


class Hopeless(Still):
    """Branches on the pixels."""

    def forward(self, frame, state):
        if float(frame.mean()) > 0:
            return super().forward(frame, state)
        return frame, frame, state


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return export(Still(), folder), folder


def test_the_file_is_small_holds_no_weights_and_takes_them_by_name(still):
    path, _ = still
    graph = onnx.load(path).graph
    inputs = {value.name for value in graph.input}
    assert inputs == {FRAME, f"{STATE}0", *Still().state_dict()}
    assert not {tensor.name for tensor in graph.initializer} & set(Still().state_dict())
    assert path.stat().st_size < 4096
    assert len(list(path.parent.iterdir())) == 1


def test_what_is_only_kept_has_no_output(still):
    path, _ = still
    assert handed_on(path) == {0: FRAME}
    assert [value.name for value in onnx.load(path).graph.output] == [
        "result_mean",
        "result_variance",
    ]


def test_the_file_is_found_again_whatever_the_weights_and_the_mode(still):
    path, folder = still
    written = path.stat().st_mtime_ns
    module = Still().eval()
    with torch.no_grad():
        module.a.weight.fill_(7)
    assert export(module, folder) == path
    assert path.stat().st_mtime_ns == written


def test_other_settings_are_another_file():
    names = {fingerprint(module) for module in (Still(), Still(4), Still(gain=2.0), OneShape())}
    assert len(names) == 4


def test_a_module_that_needs_one_shape_gets_a_file_for_it(tmp_path):
    module = OneShape()
    with pytest.raises(EngineError, match="OneShape cannot be exported with h and w left open"):
        export(module, tmp_path)
    assert list(tmp_path.iterdir()) == []
    path = export_any(module, tmp_path, (20, 24))
    assert "20x24" in path.name
    engine = OpenVinoEngine(module, (20, 24), cache=tmp_path)
    frame = torch.rand(20, 24).numpy()
    want = TorchEngine(module, (20, 24))(frame)[0]
    assert abs(engine(frame)[0] - want).max() < 1e-3 * abs(want).max()


def test_a_layer_that_the_exporter_rewrites_still_takes_new_weights(tmp_path):
    module = Linear()
    engine = OpenVinoEngine(module, (20, 24), cache=tmp_path)
    reference = TorchEngine(module, (20, 24))
    weights = {name: array + 0.3 for name, array in weights_of(module).items()}
    frame = torch.rand(20, 24).numpy()
    for each in (engine, reference):
        each.stage(weights)
        each.flip()
    want = reference(frame)[0]
    assert abs(engine(frame)[0] - want).max() < 1e-4 * abs(want).max()


def test_batch_norm_is_refused(tmp_path):
    with pytest.raises(EngineError, match=r"norm.*lost their names.*no batch norm"):
        export(Normalised(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_cannot_be_exported_is_named(tmp_path):
    with pytest.raises(EngineError, match="Hopeless cannot be exported"):
        export(Hopeless(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_graph_is_named(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x00not a graph")
    with pytest.raises(EngineError, match=r"broken\.onnx"):
        OpenVinoEngine(Still(), (20, 24), cache=tmp_path, onnx=path)
    with pytest.raises(EngineError, match=r"absent\.onnx"):
        OpenVinoEngine(Still(), (20, 24), cache=tmp_path, onnx=tmp_path / "absent.onnx")
