"""Turns an exported graph into a TensorRT plan: the part that may crash, so run in a child.

``python -m quietbeam.model.tensorrt_plan`` reads a ``Request`` as JSON from
standard input and writes the plan to the file that it names.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import safetensors.numpy

from quietbeam.core.errors import EngineError
from quietbeam.model import tensorrt_library as libraries
from quietbeam.model.export import weights_as_constants
from quietbeam.model.half import Half, halve
from quietbeam.model.tensorrt_library import Library, logger

Precision = Literal["f32"] | Half
Swap = Literal["inputs", "refit"]
"""How weights change: they are inputs, or the idle one of two engines is refitted."""

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a plan is made from.

    Attributes:
        onnx: Exported graph; float32, weights as inputs.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        shapes: Of every input whose shape the graph leaves open.
        trained: Weights of convolutions that may compute in ``precision``.
        precision: Of those convolutions.
        swap: How weights will change.
        capabilities: GPUs a plan of TensorRT-RTX is for, such as ``("SM80", "SM120")``; () for
            all that it takes by default.
        load: Try the plan on this machine's GPU.
        weights: safetensors file; only for ``refit``.
    """

    onnx: str
    library: str
    shapes: Mapping[str, Sequence[int]]
    trained: Sequence[str]
    precision: Precision = "f32"
    swap: Swap = "inputs"
    capabilities: Sequence[str] = ()
    load: bool = False
    weights: str | None = None


def build_in_child(request: Request, plan: Path, timeout_s: float = TIMEOUT_S) -> None:
    """Build in a process of its own.

    Raises:
        EngineError: It fails, crashes, or takes longer than ``timeout_s``.
    """
    command = [sys.executable, "-m", __name__, str(plan)]
    words = json.dumps(asdict(request))
    try:
        done = subprocess.run(
            command, input=words, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"{request.library} took longer than {timeout_s:g} s to build {request.onnx}"
        ) from None
    if done.returncode != 0 or not plan.exists():
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EngineError(f"{request.library} cannot build {request.onnx}: {lines[-1]}")


def build(request: Request) -> bytes:
    """Build in this process, which TensorRT may end.

    Raises:
        EngineError: A weight is not in the network, the graph is refused, or
            cannot be built, or the plan not be used on this machine's GPU.
    """
    library = libraries.load(request.library)
    builder = library.module.Builder(logger(library))
    network, parser = _parsed(library, builder, graph_for(request))
    config = _configured(library, builder, request)
    profile = _profile(builder, network, request.shapes)
    if profile is not None:
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    del parser  # it owns the constants of the network until here
    if plan is None:
        raise EngineError(f"{library.name} {library.version} gave no plan: {_reason(library)}")
    plan = bytes(plan)
    if request.load:
        _try(library, plan)
    return plan


def graph_for(request: Request) -> bytes:
    """Give the graph as TensorRT is to read it: types, and constants for ``refit``."""
    proto = onnx.load(request.onnx, load_external_data=False)
    if request.precision != "f32":
        proto = halve(proto, request.trained, request.precision)
    if request.swap == "refit":
        if request.weights is None:
            raise EngineError("a plan that is refitted needs weights to begin with")
        proto = weights_as_constants(proto, safetensors.numpy.load_file(request.weights))
    return proto.SerializeToString()


def _parsed(library: Library, builder: Any, graph: bytes) -> tuple[Any, Any]:
    network = builder.create_network(library.network_flags())
    parser = library.module.OnnxParser(network, logger(library))
    if not parser.parse(graph):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise EngineError(f"{library.name} cannot read the graph: {'; '.join(errors)[:400]}")
    wanted = {value.name for value in onnx.load_from_string(graph).graph.input}
    got = {network.get_input(i).name for i in range(network.num_inputs)}
    if wanted != got:
        raise EngineError(f"{library.name} lost the inputs {sorted(wanted ^ got)[:3]}")
    return network, parser


def _configured(library: Library, builder: Any, request: Request) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(library.module.BuilderFlag.TF32)
    if request.swap == "refit":
        config.set_flag(library.module.BuilderFlag.REFIT)
    capture = library.flag("REQUIRE_USER_ALLOCATION")
    if capture is not None:  # without it TensorRT-RTX cannot be captured into a CUDA graph
        config.set_flag(capture)
    if request.capabilities and library.is_rtx:
        config.num_compute_capabilities = len(request.capabilities)
        for i, name in enumerate(request.capabilities):
            known = getattr(library.module.ComputeCapability, name, None)
            if known is None:
                raise EngineError(f"{library.name} {library.version} does not know the GPU {name}")
            config.set_compute_capability(known, i)
    return config


def _profile(builder: Any, network: Any, shapes: Mapping[str, Sequence[int]]) -> Any | None:
    """Fix every open shape: nothing is compiled for sizes that never come."""
    profile = builder.create_optimization_profile()
    open_inputs = [
        tensor
        for tensor in map(network.get_input, range(network.num_inputs))
        if -1 in tuple(tensor.shape)
    ]
    for tensor in open_inputs:
        if tensor.name not in shapes:
            raise EngineError(f"the graph leaves the shape of {tensor.name} open")
        shape = tuple(shapes[tensor.name])
        profile.set_shape(tensor.name, shape, shape, shape)
    return profile if open_inputs else None


def _try(library: Library, plan: bytes) -> None:
    """Load the plan once where a crash hurts nobody."""
    engine = library.module.Runtime(logger(library)).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"{library.name} {library.version} does not run on this GPU: {_reason(library)}"
        )


def _reason(library: Library) -> str:
    return "; ".join(logger(library).errors[-2:]) or "no reason was given"


def _main() -> int:
    request = Request(**json.load(sys.stdin))
    try:
        plan = build(request)
    except EngineError as error:
        sys.stderr.write(f"\n{' '.join(str(error).split())}\n")
        return 1
    Path(sys.argv[1]).write_bytes(plan)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
