"""Runs one denoiser on a GPU: states stay there, weights are swapped by changing a pointer.

TensorRT or torch execute the network, as two *slots* with a set of weights
each.  The rest is the same for both, and runs on a processor just as well:
buffers that take turns, CUDA graphs, the probe of new weights, the old ones kept.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.engine import Weights
from quietbeam.core.errors import EngineError
from quietbeam.core.planes import planes, stacked
from quietbeam.model.cuda_graphs import Captured, Slot
from quietbeam.model.device_stream import DeviceStream
from quietbeam.model.probe import Probe
from quietbeam.model.torch_engine import check_weights, weights_of

Float = NDArray[np.float32]
Answer = tuple[Float, Float]


class DeviceEngine:
    """An ``Engine`` over two slots.

    Where 16 bits are computed in, frames go in less the median of the first one of
    a run (``DenoiserContract``: a shift of the level shifts the estimate).

    Attributes:
        kind: Name of what executes the network.
        precision: Of its trained convolutions.
    """

    def __init__(
        self,
        denoiser: StreamingDenoiser,
        shape: tuple[int, ...],
        slots: tuple[Slot, Slot],
        *,
        handed_on: Mapping[int, str],
        device: torch.device,
        kind: str,
        precision: str,
    ) -> None:
        """Take over the slots.

        Args:
            denoiser: Gives the state's shape and the first weights.
            shape: (h, w) in pixels; (c, h, w) with several channels.
            slots: Alike; weights are filled in here.
            handed_on: As ``export.handed_on`` gives it.
            device: Where the slots run.
            kind: For status.
            precision: ``f32``, ``f16`` or ``bf16``.

        Raises:
            EngineError: The slots give other numbers than torch, or the device fails.
        """
        self.lag, self.blind = denoiser.lag, denoiser.blind
        self.kind, self.precision = kind, precision
        self._shape, self._device = shape, device
        size = (shape[-2], shape[-1])
        cuda = device.type == "cuda"
        with _failures(shape):
            self._compute = torch.cuda.Stream(device) if cuda else None
            self._aside = torch.cuda.Stream(device) if cuda else None
            first = [tensor.to(device) for tensor in denoiser.initial_state(1, *size)]
            self._streams = [
                DeviceStream(first, handed_on, device) for _ in range(math.prod(shape[:-2]))
            ]
            self._probe = Probe(denoiser, size, device, precision)
            self._probed = DeviceStream(first, handed_on, device)
            self._results = [self._fresh((1, 1, *size)) for _ in range(2)]
            self._live, self._idle = slots
            self._runs = {id(slot): Captured(slot) if cuda else slot for slot in slots}
            self._synchronise()
        self._swap = threading.Lock()
        self._good = self._staged = weights_of(denoiser)
        for slot in slots:
            with _failures(shape), self._on(self._aside):
                slot.fill(self._good)
                self._probe.judge(slot, self._good, self._probed)

    def reset(self) -> None:
        """Forget all frames."""
        with _failures(self._shape), self._on(self._compute):
            for stream in self._streams:
                stream.reset()

    def __call__(self, frame: Float) -> Answer:
        """Take frame i, give mean and variance of frame i - lag, float32, of the same shape."""
        return self.burst([frame])[0]

    def burst(self, frames: Sequence[Float]) -> list[Answer]:
        """Take several frames in order, and wait for the device once."""
        for frame in frames:
            if frame.shape != self._shape:
                raise EngineError(f"got a frame of shape {frame.shape}, expected {self._shape}")
        with _failures(self._shape), self._on(self._compute):
            slot = self._runs[id(self._live)]
            owed = [
                [
                    self._enqueue(slot, stream, plane)
                    for stream, plane in zip(self._streams, planes(frame), strict=True)
                ]
                for frame in frames
            ]
        return [self._gathered(parts) for parts in owed]

    def _enqueue(
        self, slot: Slot, stream: DeviceStream, plane: Float
    ) -> tuple[list[Tensor], np.float32]:
        """Send one image and have its results sent back; they are there after the next wait."""
        if stream.level is None:
            stream.level = 0.0 if self.precision == "f32" else float(np.median(plane))
        level = np.float32(stream.level)
        sent = self._host(self._results[0].shape)
        np.subtract(plane, level, out=sent.numpy()[0, 0])
        frame = stream.take(sent.shape)
        frame.copy_(sent, non_blocking=True)
        stream.step(slot, frame, self._results)
        back = [self._host(result.shape) for result in self._results]
        for host, result in zip(back, self._results, strict=True):
            host.copy_(result, non_blocking=True)
        return back, level

    @staticmethod
    def _gathered(parts: Sequence[tuple[list[Tensor], np.float32]]) -> Answer:
        means = [mean.numpy()[0, 0] + level for (mean, _), level in parts]
        return stacked(means), stacked(
            [variance.numpy()[0, 0].copy() for (_, variance), _ in parts]
        )

    def stage(self, weights: Weights) -> None:
        """Copy ``weights`` beside the live ones and prove them there.

        Raises:
            EngineError: They do not fit, or the slot gives other numbers with
                them than torch; then those of the live slot stand beside it.
        """
        check_weights(weights, self._good)
        copied = {name: np.array(array, np.float32) for name, array in weights.items()}
        # The lock keeps a flip from taking a half-written slot; frames never wait for it.
        with self._swap, _failures(self._shape), self._on(self._aside):
            try:
                self._idle.fill(copied)
                self._probe.judge(self._idle, copied, self._probed)
            except EngineError:
                self._idle.fill(self._good)
                self._staged = self._good
                raise
            self._staged = copied

    def flip(self) -> None:
        """Use the staged weights from the next frame on."""
        with self._swap:
            self._live, self._idle = self._idle, self._live
            self._good, self._staged = self._staged, self._good

    def _fresh(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, device=self._device)

    def _host(self, shape: Sequence[int]) -> Tensor:
        """Give memory that the device copies to and from by itself (torch keeps it for reuse)."""
        return torch.empty(tuple(shape), pin_memory=self._device.type == "cuda")

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @contextlib.contextmanager
    def _on(self, stream: torch.cuda.Stream | None) -> Iterator[None]:
        """Enqueue on this stream, and wait for it at the end."""
        if stream is None:
            yield
            return
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()


@contextlib.contextmanager
def _failures(shape: tuple[int, ...]) -> Iterator[None]:
    """What CUDA raises becomes an ``EngineError``."""
    try:
        yield
    except RuntimeError as error:  # out of memory and a lost device among them
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EngineError(f"the device failed on frames of {shape}: {lines[0]}") from error
