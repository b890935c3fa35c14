"""The engine for production without a GPU: OpenVINO on the CPU, weights as run-time inputs."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.engine import Weights
from quietbeam.core.errors import ConfigError, EngineError
from quietbeam.core.planes import planes, stacked
from quietbeam.model import export
from quietbeam.model.torch_engine import check_weights, weights_of

Precision = Literal["f32", "bf16"]


@cache
def core() -> ov.Core:
    """Give the one of this process; it is never let go.

    The thread that loads OpenVINO's processor plugin gets another signal stack.
    Unloading frees that memory, in whatever thread it happens, and the next
    signal to the first thread (SIGTERM, say) would then kill the process.
    """
    return ov.Core()


def has_bf16() -> bool:
    """Tell whether this processor computes in bf16; elsewhere it would be emulated, slowly."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def precision_for(asked: Literal["auto", "f32", "bf16"], denoiser: StreamingDenoiser) -> Precision:
    """Choose the precision: bf16 only for networks, and only where the processor has it.

    A classical filter keeps its estimate in its state, where bf16 would round
    away the very averages it builds up.

    Raises:
        ConfigError: bf16 is asked for and the processor has none.
    """
    if asked == "bf16" and not has_bf16():
        raise ConfigError(
            '[engine] precision = "bf16": this processor does not compute in bf16; '
            'use "auto" or "f32"'
        )
    if asked == "f32" or not denoiser.trainable or not has_bf16():
        return "f32"
    return "bf16"


class _Arena:
    """One full set of weights and the request that reads it."""

    def __init__(self, compiled: ov.CompiledModel, weights: Weights) -> None:
        self.request = compiled.create_infer_request()
        self.weights = {
            name: np.array(array, dtype=np.float32, order="C") for name, array in weights.items()
        }
        self._tensors = {
            name: ov.Tensor(array, shared_memory=True) for name, array in self.weights.items()
        }
        for name, tensor in self._tensors.items():
            self.request.set_tensor(name, tensor)

    def fill(self, weights: Weights) -> None:
        for name, array in self.weights.items():
            np.copyto(array, weights[name], casting="same_kind")


class OpenVinoEngine:
    """Runs one denoiser at one frame shape.

    One compiled model, two arenas of weights with one infer request each.
    The state is never copied: what the graph writes is what it reads next,
    and what a denoiser only keeps is passed on as it is.  Channels go through
    the same graph one after the other, each with a state of its own.

    bf16 has eight bits: a level of 300 would be rounded to 2, twice the noise.
    So in bf16 the graph sees frames less the median of the first frame of a
    run, which changes nothing for a denoiser (``DenoiserContract`` says that a
    shift of the level shifts the estimate), and the level is added in float32.
    """

    def __init__(
        self,
        denoiser: StreamingDenoiser,
        shape: tuple[int, ...],
        *,
        cache: Path,
        onnx: Path | None = None,
        precision: Precision = "f32",
        threads: int = 1,
    ) -> None:
        """Compile ``denoiser`` for frames of ``shape``.

        Args:
            denoiser: Gives the architecture, the shape of the state, and the
                first weights.
            shape: (h, w) in pixels; (c, h, w) with several channels.
            cache: Where exported graphs are kept.
            onnx: A graph exported earlier; None exports it.
            precision: Of the arithmetic inside; frames and state stay float32.
            threads: For inference.

        Raises:
            EngineError: The module cannot be exported or compiled.
        """
        self.lag = denoiser.lag
        self.blind = denoiser.blind
        self.precision = precision
        self._shape = shape
        h, w = shape[-2:]
        path = onnx or export.export_any(denoiser, cache, (h, w))
        first = denoiser.initial_state(1, h, w)
        self._first = [tensor.numpy().copy() for tensor in first]
        shapes = {f"{export.STATE}{i}": tensor.shape for i, tensor in enumerate(self._first)}
        try:
            self._handed_on = export.handed_on(path)
            compiled = _compile(path, {export.FRAME: (1, 1, h, w), **shapes}, precision, threads)
            weights = weights_of(denoiser)
            self._live, self._idle = _Arena(compiled, weights), _Arena(compiled, weights)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise EngineError(f"OpenVINO cannot compile {path} at {shape}: {reason}") from error
        self._swap = threading.Lock()
        self._spare: dict[tuple[int, ...], list[ov.Tensor]] = {}
        self._results = [self._take((1, 1, h, w)) for _ in range(2)]
        for arena in (self._live, self._idle):
            for name, tensor in zip(export.RESULTS, self._results, strict=True):
                arena.request.set_tensor(name, tensor)
        self._frame = self._take((1, 1, h, w))
        self._states: list[list[ov.Tensor]] = [[] for _ in range(math.prod(shape[:-2]))]
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self._levels: list[float | None] = [None] * len(self._states)
        for channel, held in enumerate(self._states):
            fresh = [self._take(first.shape) for first in self._first]
            for tensor, first in zip(fresh, self._first, strict=True):
                np.copyto(tensor.data, first)
            self._states[channel] = fresh
            self._release(held, channel)

    def __call__(
        self, frame: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take frame i, give mean and variance of frame i - lag, float32, of the same shape."""
        if frame.shape != self._shape:
            raise EngineError(f"got a frame of shape {frame.shape}, expected {self._shape}")
        answers = [self._infer(channel, plane) for channel, plane in enumerate(planes(frame))]
        means, variances = zip(*answers, strict=True)
        return stacked(means), stacked(variances)

    def _infer(
        self, channel: int, plane: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self.precision == "bf16" and self._levels[channel] is None:
            self._levels[channel] = float(np.median(plane))
        level = np.float32(self._levels[channel] or 0.0)
        np.subtract(plane, level, out=self._frame.data[0, 0])
        before = {f"{export.STATE}{i}": tensor for i, tensor in enumerate(self._states[channel])}
        before[export.FRAME] = self._frame
        after = [
            before[self._handed_on[i]] if i in self._handed_on else self._take(first.shape)
            for i, first in enumerate(self._first)
        ]
        request = self._live.request
        for name, tensor in before.items():
            request.set_tensor(name, tensor)
        for i, tensor in enumerate(after):
            if i not in self._handed_on:
                request.set_tensor(f"{export.NEXT}{i}", tensor)
        try:
            request.infer()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on a frame of {self._shape}: {error}") from error
        self._states[channel] = after
        self._release(before.values(), channel)
        self._frame = self._take((1, 1, *self._shape[-2:]))
        mean, variance = (result.data[0, 0] for result in self._results)
        return mean + level, variance.copy()

    def _take(self, shape: tuple[int, ...]) -> ov.Tensor:
        """Give a tensor nobody uses."""
        spare = self._spare.setdefault(tuple(shape), [])
        return spare.pop() if spare else ov.Tensor(ov.Type.f32, ov.Shape(list(shape)))

    def _release(self, tensors: Iterable[ov.Tensor], channel: int) -> None:
        """Take tensors back, except those that the channel's state holds."""
        held = {id(tensor) for tensor in self._states[channel]}
        for key, tensor in {id(tensor): tensor for tensor in tensors}.items():
            if key not in held:
                self._spare[tuple(tensor.shape)].append(tensor)

    def stage(self, weights: Weights) -> None:
        """Copy ``weights`` beside the live ones; raises EngineError where they do not fit."""
        check_weights(weights, self._idle.weights)
        # The lock keeps a flip from taking a half-written arena; frames never wait for it.
        with self._swap:
            self._idle.fill(weights)

    def flip(self) -> None:
        """Use the staged weights from the next frame on."""
        with self._swap:
            self._live, self._idle = self._idle, self._live


def _compile(
    path: Path, shapes: dict[str, tuple[int, ...]], precision: Precision, threads: int
) -> ov.CompiledModel:
    openvino = core()
    model = openvino.read_model(path)
    model.reshape({name: list(dims) for name, dims in shapes.items()})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads of two processes would meet on the same core.
        "ENABLE_CPU_PINNING": False,
    }
    return openvino.compile_model(model, "CPU", settings)
