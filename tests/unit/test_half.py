"""Trained convolutions compute in 16 bits; frames, states and fitted filters keep float32."""

from __future__ import annotations

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from onnx import TensorProto
from torch import nn
from torch.nn import functional as F

from quietbeam.model.device_engine import DeviceEngine
from quietbeam.model.export import FRAME, STATE, export, handed_on, weights_as_constants
from quietbeam.model.half import TYPES, halve
from quietbeam.model.openvino_engine import core
from quietbeam.model.torch_engine import TorchEngine, weights_of

SIZE = (24, 32)
F32 = TensorProto.FLOAT


class Mixed(nn.Module):
    """Two trained layers, a filter that is fitted otherwise, and a mean kept in the state."""

    lag = 0
    window = 1
    blind = False
    trainable = True

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3)
        self.second = nn.Conv2d(8, 1, 1, bias=False)
        self.register_buffer("fitted", torch.full((1, 1, 3, 3), 1 / 9))

    def initial_state(self, n, h, w):
        return torch.zeros(n, 1, h, w), torch.zeros(n, 1, 1, 1)

    def forward(self, frame, state):
        kept, count = state
        smooth = F.conv2d(frame, self.get_buffer("fitted"), padding=1)
        x = torch.cat([frame - smooth, kept - smooth], 1)
        x = torch.relu(self.first(F.pad(x, (1, 1, 1, 1), mode="reflect")))
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)
        mean = smooth + self.second(torch.cat([x, x * 0.5], 1))
        return mean, torch.ones_like(mean), (0.9 * kept + 0.1 * frame, count + 1)


class GraphSlot:
    """Runs an exported graph in OpenVINO: what TensorRT does on a GPU."""

    def __init__(self, proto, module):
        model = core().read_model(proto.SerializeToString())
        shapes = {FRAME: [1, 1, *SIZE]}
        for i, tensor in enumerate(module.initial_state(1, *SIZE)):
            shapes[f"{STATE}{i}"] = list(tensor.shape)
        model.reshape(shapes)
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        self._request = core().compile_model(model, "CPU", settings).create_infer_request()
        self._types = {v.name: v.type.tensor_type.elem_type for v in proto.graph.input}
        self._weights = {}

    def fill(self, weights):
        for name, array in weights.items():
            if self._types[name] == TensorProto.BFLOAT16:
                half = torch.from_numpy(np.array(array)).bfloat16().view(torch.int16).numpy()
                tensor = ov.Tensor(ov.Type.bf16, ov.Shape(list(half.shape)))
                tensor.data.view(np.int16)[...] = half
            else:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(self._types[name])
                tensor = ov.Tensor(np.ascontiguousarray(array.astype(dtype)))
            self._weights[name] = tensor
            self._request.set_tensor(name, tensor)

    def run(self, tensors):
        for name, tensor in tensors.items():
            self._request.set_tensor(name, ov.Tensor(tensor.numpy(), shared_memory=True))
        self._request.infer()


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return export(Mixed(), tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=["f16", "bf16"])
def halved(request, graph):
    trained = [name for name, _ in Mixed().named_parameters()]
    return halve(onnx.load(graph), trained, request.param), request.param


def types(proto):
    return {v.name: v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)}


def test_only_trained_weights_change_their_type(halved, graph):
    proto, precision = halved
    before, after = types(onnx.load(graph)), types(proto)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"first.weight", "first.bias", "second.weight"}
    assert {after[name] for name in changed} == {TYPES[precision]}
    assert after["fitted"] == F32
    assert set(before) == set(after)


def test_between_two_trained_layers_nothing_goes_back_to_32_bits(halved):
    proto, _ = halved
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    of = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    for node in proto.graph.node:
        if node.op_type in {"MaxPool", "Relu"}:
            assert of[node.output[0]] != F32
        if node.op_type == "Conv":
            low = "fitted" not in node.input
            assert (of.get(node.output[0], F32) != F32) == low


def test_a_run_of_frames_comes_out_as_in_torch(halved, graph):
    proto, precision = halved
    torch.manual_seed(3)
    module = Mixed()
    slots = GraphSlot(proto, module), GraphSlot(proto, module)
    engine = DeviceEngine(
        module, SIZE, slots, handed_on=handed_on(graph), device=torch.device("cpu"),
        kind="test", precision=precision,
    )  # fmt: skip
    reference = TorchEngine(module, SIZE)
    rng = np.random.default_rng(0)
    for _ in range(8):
        frame = rng.standard_normal(SIZE).astype(np.float32)
        got, want = engine(frame)[0], reference(frame)[0]
        assert np.abs(got - want).max() < 0.02 * np.abs(want).max() + 0.1
    weights = {name: array * 1.5 for name, array in weights_of(module).items()}
    engine.stage(weights)  # proven against torch, to the tolerance of this precision
    engine.flip()


def test_weights_become_constants_of_the_types_that_they_are_taken_in(halved):
    proto, precision = halved
    weights = weights_of(Mixed())
    fixed = weights_as_constants(proto, weights)
    onnx.checker.check_model(fixed)
    assert not set(weights) & {value.name for value in fixed.graph.input}
    constants = {tensor.name: tensor for tensor in fixed.graph.initializer}
    assert constants["fitted"].data_type == F32
    assert constants["first.weight"].data_type == TYPES[precision]
    kept = onnx.numpy_helper.to_array(constants["first.weight"]).astype(np.float32)
    assert np.abs(kept - weights["first.weight"]).max() < 2e-3
