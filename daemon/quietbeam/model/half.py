"""Rewrites an exported graph so that its trained convolutions compute in 16 bits.

TensorRT takes the type of every tensor from the graph.  Turning the whole graph
to 16 bits would round away what a denoiser keeps in its state: means of many
frames, counts of frames, a level of some hundred noise s.d.  So only the
convolutions whose kernels are trained by gradient compute in 16 bits (their
weights become inputs of that type), and what lies between two of them and only
moves or clips values; frames, state, filters fitted in closed form and all
other arithmetic stay float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

import onnx
from onnx import NodeProto, TensorProto, helper

Half = Literal["f16", "bf16"]

TYPES: dict[Half, int] = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

_MOVING = ("Concat", "DepthToSpace", "Pad", "Resize", "Slice", "SpaceToDepth", "Transpose")
_KEEPING = frozenset((*_MOVING, "Add", "LeakyRelu", "MaxPool", "Relu"))
"""Operators that lose nothing when all their images are of 16 bits already."""

_SEVERAL = frozenset(("Add", "Concat"))  # all inputs are images; of others, the first one


def halve(proto: onnx.ModelProto, trained: Collection[str], precision: Half) -> onnx.ModelProto:
    """Let the convolutions with ``trained`` kernels compute in ``precision``.

    Args:
        proto: What ``export.export`` wrote: float32, weights as inputs.
        trained: Names of the weights that training moves (the module's parameters).
        precision: Of these convolutions and of their weights.

    Returns:
        A new graph with inputs, outputs and states of the same names and, but
        for weights, types.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph = changed.graph
    rewriter = _Rewriter(TYPES[precision], _kernels(graph, trained))
    for node in graph.node:
        rewriter.take(node)
    for value in graph.output:
        rewriter.widened(value.name)
    for value in graph.input:
        if value.name in rewriter.lowered_weights:
            value.type.tensor_type.elem_type = TYPES[precision]
    del graph.node[:]
    graph.node.extend(rewriter.nodes)
    del graph.value_info[:]
    onnx.checker.check_model(changed)
    return changed


def _kernels(graph: onnx.GraphProto, trained: Collection[str]) -> set[str]:
    """Trained weights that are used as kernels or biases of convolutions, and as nothing else."""
    used_otherwise: set[str] = set()
    used: set[str] = set()
    for node in graph.node:
        inner = set(node.input[1:]) if node.op_type == "Conv" else set()
        used |= inner
        used_otherwise |= set(node.input) - inner
    return (used - used_otherwise) & set(trained)


class _Rewriter:
    """Goes through the nodes in order; casts a value at most once each way."""

    def __init__(self, low_type: int, kernels: set[str]) -> None:
        self.nodes: list[NodeProto] = []
        self.lowered_weights: set[str] = set()
        self._type, self._kernels = low_type, kernels
        self._low: dict[str, str] = {}  # a value's name -> its 16-bit version's
        self._only_low: set[str] = set()  # of these no float32 version exists yet

    def take(self, node: NodeProto) -> None:
        if node.op_type == "Conv" and node.input[1] in self._kernels:
            self._lower(node, range(len(node.input)))
        elif node.op_type in _KEEPING and self._all_low(node):
            # What a constant pad is filled with has the type of the image.
            filling = [2] if node.op_type == "Pad" and len(node.input) > 2 and node.input[2] else []
            self._lower(node, [*self._images(node), *filling])
        else:
            for name in node.input:
                self.widened(name)
            self.nodes.append(node)

    def widened(self, name: str) -> None:
        """See to it that the value exists in float32."""
        if name in self._only_low:
            self._only_low.remove(name)
            self._cast(self._low[name], name, TensorProto.FLOAT)

    def _images(self, node: NodeProto) -> range:
        return range(len(node.input) if node.op_type in _SEVERAL else 1)

    def _all_low(self, node: NodeProto) -> bool:
        return all(node.input[i] in self._low for i in self._images(node))

    def _lower(self, node: NodeProto, which: Iterable[int]) -> None:
        lowered = NodeProto()
        lowered.CopyFrom(node)
        for i in which:
            lowered.input[i] = self._lowered(node.input[i])
        for i, name in enumerate(node.output):
            lowered.output[i] = self._low[name] = f"{name}.low"
            self._only_low.add(name)
        self.nodes.append(lowered)

    def _lowered(self, name: str) -> str:
        if name in self._kernels:
            self.lowered_weights.add(name)
            return name
        if name not in self._low:
            self._low[name] = f"{name}.low"
            self._cast(name, self._low[name], self._type)
        return self._low[name]

    def _cast(self, name: str, to_name: str, to: int) -> None:
        self.nodes.append(helper.make_node("Cast", [name], [to_name], f"{to_name}_cast", to=to))
