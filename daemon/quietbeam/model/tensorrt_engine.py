"""The engine of TensorRT: a plan from the cache, weights as run-time inputs or by refitting."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
import structlog
import torch
from torch import Tensor

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.engine import Weights
from quietbeam.core.errors import EngineError
from quietbeam.model import export, gpu, half, tensorrt_cache, tensorrt_library, tensorrt_plan
from quietbeam.model.device_engine import DeviceEngine
from quietbeam.model.export import FRAME, STATE
from quietbeam.model.tensorrt_library import Library
from quietbeam.model.tensorrt_plan import Precision, Request, Swap
from quietbeam.model.torch_engine import as_module, weights_of

log = structlog.get_logger()

_TORCH_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class _Context:
    """One execution context and the memory it works in."""

    def __init__(self, library: Library, engine: Any, device: torch.device) -> None:
        strategy = library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = engine.create_execution_context(strategy)
        if self._context is None:
            raise EngineError(f"{library.name} gave no execution context; is memory left?")
        size = int(engine.device_memory_size_v2)
        self._memory = torch.empty(max(size, 1), dtype=torch.uint8, device=device)
        self._context.set_device_memory(self._memory.data_ptr(), size)

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Let inputs and outputs be these; they must live as long as they are bound."""
        for name, tensor in tensors.items():
            if not self._context.set_tensor_address(name, tensor.data_ptr()):
                raise EngineError(f"TensorRT does not take {name} of shape {tuple(tensor.shape)}")

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Enqueue on the current stream."""
        self.bind(tensors)
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise EngineError("TensorRT could not run a frame")


class InputSlot:
    """Weights are inputs: an arena of their own on the device, bound once."""

    def __init__(
        self, library: Library, engine: Any, types: Mapping[str, str], first: Weights
    ) -> None:
        device = torch.device("cuda")
        self._context = _Context(library, engine, device)
        self._arena = {
            name: torch.empty(first[name].shape, dtype=_TORCH_TYPES[kind], device=device)
            for name, kind in types.items()
        }
        self._context.bind(self._arena)

    def fill(self, weights: Weights) -> None:
        """Copy them into the arena, rounded to its types."""
        for name, tensor in self._arena.items():
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Enqueue one frame on the current stream."""
        self._context.run(tensors)


class RefitSlot:
    """Weights are constants of an engine of its own, refitted while the other slot is live."""

    def __init__(
        self, library: Library, engine: Any, types: Mapping[str, str], first: Weights
    ) -> None:
        device = torch.device("cuda")
        self._library, self._engine, self._types = library, engine, types
        self._context = _Context(library, engine, device)
        module = library.module
        self._refitter = module.Refitter(engine, tensorrt_library.logger(library))
        self._arena = {
            name: torch.empty(first[name].shape, dtype=_TORCH_TYPES[kind], device=device)
            for name, kind in types.items()
        }
        known = set(self._refitter.get_all_weights())
        if not set(types) <= known:
            lost = sorted(set(types) - known)[:3]
            raise EngineError(f"{library.name} cannot refit the weights {lost}; use inputs")
        trt_types = {
            torch.float32: module.float32,
            torch.float16: module.float16,
            torch.bfloat16: module.bfloat16,
        }
        for name, tensor in self._arena.items():
            given = module.Weights(trt_types[tensor.dtype], tensor.data_ptr(), tensor.numel())
            if not self._refitter.set_named_weights(name, given, module.TensorLocation.DEVICE):
                raise EngineError(f"{library.name} does not take the weight {name}")

    def fill(self, weights: Weights) -> None:
        """Refit this slot's engine; nothing of it may be running."""
        for name, tensor in self._arena.items():
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))
        stream = torch.cuda.current_stream()
        if not self._refitter.refit_cuda_engine_async(stream.cuda_stream):
            raise EngineError(f"{self._library.name} refused to refit; the engine is not used")
        stream.synchronize()

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Enqueue one frame on the current stream."""
        self._context.run(tensors)


def tensorrt_engine(
    denoiser: StreamingDenoiser,
    shape: tuple[int, ...],
    *,
    cache: Path,
    onnx_path: Path | None = None,
    precision: Precision = "f16",
    swap: Swap = "inputs",
    library: str | None = None,
) -> DeviceEngine:
    """Find or build the plan and load it.

    Args:
        denoiser: Gives architecture and first weights.
        shape: (h, w) in pixels; (c, h, w) with several channels.
        cache: Folder of exported graphs and plans.
        onnx_path: A graph exported earlier; None exports it.
        precision: Of trained convolutions.
        swap: How weights change.
        library: ``tensorrt`` or ``tensorrt_rtx``; None takes what is there.

    Raises:
        EngineError: No usable driver or library, or TensorRT refuses; says what to do.
    """
    driver = gpu.driver()
    if not driver.usable:  # TensorRT may crash where the driver is not what it expects
        raise EngineError(f"TensorRT needs a GPU: {driver.detail}; {driver.advice}")
    found = tensorrt_library.load(library)
    size = (shape[-2], shape[-1])
    path = onnx_path or export.export_any(denoiser, cache, size)
    with tempfile.TemporaryDirectory() as scratch:
        request = request_for(denoiser, path, size, found.name, precision)
        request = replace(request, swap=swap, load=True)
        if found.is_rtx:
            request = replace(request, capabilities=("CURRENT",))
        if swap == "refit":
            weights = Path(scratch) / "weights.safetensors"
            safetensors.numpy.save_file(dict(weights_of(denoiser)), weights)
            request = replace(request, weights=str(weights))
        plan = plan_for(request, found, driver, cache)
    return _loaded(denoiser, shape, found, plan, request)


def request_for(
    denoiser: StreamingDenoiser,
    path: Path,
    size: tuple[int, int],
    library: str,
    precision: Precision,
) -> Request:
    """What a plan for frames of ``size`` is made from."""
    state = denoiser.initial_state(1, *size)
    shapes = {f"{STATE}{i}": tuple(tensor.shape) for i, tensor in enumerate(state)}
    return Request(
        onnx=str(path),
        library=library,
        shapes={FRAME: (1, 1, *size), **shapes},
        trained=sorted(name for name, _ in as_module(denoiser).named_parameters()),
        precision=precision,
    )


def plan_for(request: Request, library: Library, driver: gpu.Driver, cache: Path) -> bytes:
    """Find the plan in the cache or have it built.

    Raises:
        EngineError: It cannot be built.
    """
    facts = asdict(request) | {
        "onnx": hashlib.sha256(Path(request.onnx).read_bytes()).hexdigest(),
        "weights": None,  # they are replaced before the first frame
        "version": library.version,
        "code": [_digest(module.__file__) for module in (tensorrt_plan, half)],
        "driver": asdict(driver),
    }
    return tensorrt_cache.get(
        cache / "plans",
        tensorrt_cache.key(facts),
        lambda path: tensorrt_plan.build_in_child(request, path),
    )


def weight_types(request: Request, names: set[str]) -> dict[str, str]:
    """Give the type that the graph of a plan takes each weight in."""
    proto = onnx.load_from_string(tensorrt_plan.graph_for(replace(request, swap="inputs")))
    of_type = {onnx.TensorProto.FLOAT: "f32", **{v: k for k, v in half.TYPES.items()}}
    return {
        value.name: of_type[value.type.tensor_type.elem_type]
        for value in proto.graph.input
        if value.name in names
    }


def _digest(path: str | None) -> str:
    return hashlib.sha256(Path(path or "").read_bytes()).hexdigest()


def _loaded(
    denoiser: StreamingDenoiser,
    shape: tuple[int, ...],
    library: Library,
    plan: bytes,
    request: Request,
) -> DeviceEngine:
    weights = weights_of(denoiser)
    types = weight_types(request, set(weights))
    runtime = library.module.Runtime(tensorrt_library.logger(library))

    def engine() -> Any:
        loaded = runtime.deserialize_cuda_engine(plan)
        if loaded is None:
            raise EngineError(f"{library.name} {library.version} does not load its own plan here")
        return loaded

    one = engine()
    try:
        if request.swap == "refit":  # an engine each: the live one is never refitted
            slots = tuple(RefitSlot(library, each, types, weights) for each in (one, engine()))
        else:
            slots = tuple(InputSlot(library, one, types, weights) for _ in range(2))
    except RuntimeError as error:  # torch: out of memory, a lost device
        raise EngineError(f"no memory on the GPU for {request.onnx}: {error}") from error
    return DeviceEngine(
        denoiser,
        shape,
        (slots[0], slots[1]),
        handed_on=export.handed_on(Path(request.onnx)),
        device=torch.device("cuda"),
        kind=library.name,
        precision=request.precision,
    )
