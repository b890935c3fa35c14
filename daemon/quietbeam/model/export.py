"""Writes a denoiser as a weights-free ONNX file: one small file per architecture.

Every weight becomes an input of the graph under its exact name in the
module's ``state_dict``; height and width stay open.  So one file serves every
image shape and every training step, and nothing is recompiled when weights
change.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.errors import EngineError
from quietbeam.model.torch_engine import as_module

log = structlog.get_logger()

OPSET = 20
FRAME = "frame"
STATE = "state_"
"""Inputs ``state_0``, ``state_1``, ..."""

NEXT = "next_state_"
RESULTS = ("result_mean", "result_variance")
"""Outputs; torch does not see to it that no inner value has the same name, hence the prefixes."""

HANDED_ON = "handed_on"
"""Metadata key: JSON, by the number of a state, the input that becomes that state unchanged.

Such a state has no output in the graph: an engine passes the tensor itself
on, without a copy (and OpenVINO would let an output that is an input share
its memory with the wrong tensor).
"""

_EXAMPLE = (48, 80)  # h, w: different, and multiples of what networks like to halve
_OTHER = (64, 112)


def export(
    denoiser: StreamingDenoiser, directory: Path, shape: tuple[int, int] | None = None
) -> Path:
    """Write the denoiser's graph to ``directory``, or find it there.

    The name holds a hash of everything the graph depends on: the source files
    of the module's classes, its settings, torch, and this exporter.  The file
    appears whole or not at all.

    Args:
        denoiser: Only its architecture counts, not its weights.
        directory: Made if missing.
        shape: (h, w) fixes the image shape; None leaves it open, or, for a
            module that torch can only export at one shape, is an EngineError.

    Raises:
        EngineError: torch cannot export the module, or a weight lost its name
            on the way (batch norm is folded, nn.Linear is transposed: use
            1x1 convolutions).
    """
    suffix = "" if shape is None else f"-{shape[0]}x{shape[1]}"
    path = directory / f"{type(denoiser).__name__.lower()}-{fingerprint(denoiser)}{suffix}.onnx"
    if path.exists():
        return path
    proto = _weights_free(denoiser, shape)
    directory.mkdir(parents=True, exist_ok=True)
    _write(path, proto.SerializeToString())
    return path


def export_any(denoiser: StreamingDenoiser, directory: Path, shape: tuple[int, int]) -> Path:
    """Like ``export`` with an open shape, or, where torch refuses that, at ``shape``."""
    try:
        return export(denoiser, directory)
    except EngineError as error:
        log.warning("export_at_one_shape", denoiser=type(denoiser).__name__, reason=str(error))
        return export(denoiser, directory, shape)


def fingerprint(denoiser: StreamingDenoiser) -> str:
    """Hash of all that the graph of ``denoiser`` depends on, 16 hex digits."""
    module = as_module(denoiser)
    digest = hashlib.sha256(f"{torch.__version__} {_onnxscript()} {module!r}".encode())
    digest.update(Path(__file__).read_bytes())
    for name, part in module.named_modules():
        settings = {k: v for k, v in sorted(vars(part).items()) if _is_setting(k, v)}
        digest.update(f"{name} {type(part).__qualname__} {settings}".encode())
    weights = module.state_dict()
    for name, tensor in weights.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    for name, buffer in module.named_buffers():
        if name not in weights:  # a constant: its value goes into the graph
            digest.update(name.encode() + buffer.detach().cpu().numpy().tobytes())
    for path in sorted(_source_files(module)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _is_setting(key: str, value: object) -> bool:
    # Training or not is a mode, no setting.
    return (
        key != "training" and key[0] != "_" and isinstance(value, int | float | str | tuple | list)
    )


def _onnxscript() -> str:
    try:
        return version("onnxscript")
    except PackageNotFoundError as error:
        raise EngineError("exporting a denoiser needs onnxscript; install it") from error


def _source_files(module: nn.Module) -> set[Path]:
    """Source of the module's own classes and of what their package lends them."""
    todo = {type(part).__module__ for part in module.modules()}
    seen: set[str] = set()
    files: set[Path] = set()
    while todo:
        name = todo.pop()
        seen.add(name)
        loaded = sys.modules.get(name)
        if loaded is None or name.split(".")[0] in {"torch", "builtins"}:
            continue
        source = inspect.getsourcefile(loaded)
        if source and Path(source).exists():
            files.add(Path(source))
        todo |= {used for used in _lenders(loaded) if used not in seen}
    return files


def _lenders(loaded: Any) -> Iterator[str]:
    """Modules of the same package whose functions or classes ``loaded`` imports."""
    family = loaded.__name__.rpartition(".")[0]
    for value in vars(loaded).values():
        origin = getattr(value, "__module__", None) or getattr(value, "__name__", None)
        if family and isinstance(origin, str) and origin.startswith(family + "."):
            yield origin


class _Flat(nn.Module):
    """The denoiser with its state as plain arguments and results."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, frame: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        mean, variance, after = self.denoiser(frame, state)
        # A result that is an argument, handed through, would take over its name.
        return (mean, variance, *(tensor.clone() for tensor in after))


def _weights_free(denoiser: StreamingDenoiser, shape: tuple[int, int] | None) -> onnx.ModelProto:
    module = copy.deepcopy(as_module(denoiser)).to("cpu", torch.float32).eval()
    names = set(module.state_dict())
    _make_distinct(module)
    lost: set[str] = set()
    for optimize in (True, False):
        proto = _exported(module, shape, optimize=optimize)
        lost = names - {tensor.name for tensor in proto.graph.initializer}
        if not lost:
            _hand_on(proto)
            return _lifted(proto, names)
    raise EngineError(
        f"{type(denoiser).__name__}: the weights {sorted(lost)[:3]} lost their names on export; "
        "use no batch norm and 1x1 convolutions in place of nn.Linear"
    )


def _make_distinct(module: nn.Module) -> None:
    """Give every weight values of its own: equal ones (zero biases) would be merged."""
    generator = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator).to(tensor.dtype) * 0.1 + 0.01)


def _exported(
    module: nn.Module, shape: tuple[int, int] | None, *, optimize: bool
) -> onnx.ModelProto:
    h, w = shape or _EXAMPLE
    denoiser: Any = module
    state = denoiser.initial_state(1, h, w)
    names_in = [FRAME, *(f"{STATE}{i}" for i in range(len(state)))]
    names_out = [*RESULTS, *(f"{NEXT}{i}" for i in range(len(state)))]
    dims = None if shape else _open_dims(state, denoiser.initial_state(1, *_OTHER))
    try:
        with _quietly(), torch.no_grad():
            program = torch.onnx.export(
                _Flat(module),
                (torch.rand(1, 1, h, w), *state),
                dynamo=True,
                opset_version=OPSET,
                optimize=optimize,
                verbose=False,
                input_names=names_in,
                output_names=names_out,
                dynamic_shapes=dims,
            )
    except Exception as error:  # torch raises dozens of kinds here
        how = "at one shape" if shape else "with h and w left open"
        raise EngineError(
            f"{type(module).__name__} cannot be exported {how}: {_root(error)}"
        ) from error
    if program is None:
        raise EngineError(f"{type(module).__name__} cannot be exported: torch gave nothing")
    return _unprefixed(program.model_proto)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep torch from reporting that torchvision, which nobody needs here, is not installed."""
    logger = logging.getLogger("torch.onnx")  # noqa: TID251 - not ours to log to, only to hush
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _root(error: BaseException) -> str:
    """First line of what went wrong first; torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _open_dims(here: tuple[Tensor, ...], there: tuple[Tensor, ...]) -> Any:
    """Mark as open each dimension that depends on the image shape.

    ``Dim.AUTO`` would not do: where it gives up, the graph looks open and is not.
    """
    dynamic = torch.export.Dim.DYNAMIC
    open_state = tuple(
        {axis: dynamic for axis in range(a.ndim) if a.shape[axis] != b.shape[axis]}
        for a, b in zip(here, there, strict=True)
    )
    frame = {2: dynamic, 3: dynamic}
    return (frame, open_state) if open_state else (frame,)


def _unprefixed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Take back the prefix that ``_Flat`` gave to the names of weights."""
    prefix = "denoiser."
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.removeprefix(prefix)
    for node in proto.graph.node:
        names = [name.removeprefix(prefix) for name in node.input]
        del node.input[:]
        node.input.extend(names)
    return proto


def _hand_on(proto: onnx.ModelProto) -> None:
    """Take the outputs that are inputs, unchanged, out of the graph and note them down."""
    graph = proto.graph
    inputs = {value.name for value in graph.input}
    copies = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    handed_on: dict[str, str] = {}
    for value in list(graph.output):
        origin = value.name
        while origin in copies:
            origin = copies[origin]
        if value.name.startswith(NEXT) and origin in inputs:
            handed_on[value.name.removeprefix(NEXT)] = origin
            graph.output.remove(value)
    unused = [node for node in graph.node if node.output[0].removeprefix(NEXT) in handed_on]
    for node in unused:
        if node.op_type == "Identity" and node.output[0].startswith(NEXT):
            graph.node.remove(node)
    onnx.helper.set_model_props(proto, {HANDED_ON: json.dumps(handed_on)})


def handed_on(path: Path) -> dict[int, str]:
    """Read which inputs of an exported graph become which state (see ``HANDED_ON``).

    Raises:
        EngineError: ``path`` is not what ``export`` wrote.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
        notes = {entry.key: entry.value for entry in proto.metadata_props}
        return {int(number): name for number, name in json.loads(notes[HANDED_ON]).items()}
    except Exception as error:  # protobuf, JSON, files: each has its own
        raise EngineError(f"{path}: not a graph that quietbeam exported; delete it") from error


def weights_as_constants(
    proto: onnx.ModelProto, weights: Mapping[str, NDArray[np.float32]]
) -> onnx.ModelProto:
    """Give a new graph that holds ``weights`` itself, in the types that it takes them in."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    graph = fixed.graph
    for value in [value for value in graph.input if value.name in weights]:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        array = np.asarray(weights[value.name]).astype(dtype)
        graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        graph.input.remove(value)
    return fixed


def _lifted(proto: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """Turn the initialisers called ``names`` into inputs; drop what is only for debugging."""
    graph = proto.graph
    weights = [tensor for tensor in graph.initializer if tensor.name in names]
    constants = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    for tensor in weights:
        graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    for node in graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for value in (*graph.value_info, *graph.input, *graph.output):
        value.ClearField("metadata_props")
    del graph.value_info[:]
    graph.ClearField("metadata_props")
    del proto.functions[:]
    inputs = {value.name for value in graph.input if not value.name.startswith((FRAME, STATE))}
    if inputs != names:
        raise EngineError(f"exported inputs {sorted(inputs ^ names)[:3]} are no weights")
    onnx.checker.check_model(proto)
    return proto


def _write(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)  # noqa: PTH105 - both are plain names here
