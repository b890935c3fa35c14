"""Compares a slot that was given new weights with torch, before any frame of the beam sees it."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.engine import Weights
from quietbeam.core.errors import EngineError
from quietbeam.model.cuda_graphs import Slot
from quietbeam.model.device_stream import DeviceStream
from quietbeam.model.torch_engine import as_module, load_weights

TOLERANCE = {"f32": 5e-3, "f16": 2e-2, "bf16": 5e-2}
"""Of the mean: largest difference against the range of the reference."""

_VARIANCE = 4.0  # a variance is told so many times worse than a mean


class Probe:
    """A few frames of noise on a step, and what torch in float32 makes of them.

    Args:
        denoiser: Copied.
        size: (h, w) in pixels.
        device: Where both run.
        precision: Of the slots; sets the tolerance.
    """

    def __init__(
        self,
        denoiser: StreamingDenoiser,
        size: tuple[int, int],
        device: torch.device,
        precision: str,
    ) -> None:
        self._reference = copy.deepcopy(denoiser)
        as_module(self._reference).to(device, torch.float32).eval().requires_grad_(
            requires_grad=False
        )
        self._device, self._tolerance = device, TOLERANCE[precision]
        rng = np.random.default_rng(0)
        frames = rng.standard_normal((denoiser.lag + 2, 1, 1, *size), dtype=np.float32)
        frames[..., size[1] // 2 :] += 8.0
        self._frames = [torch.from_numpy(frame).to(device) for frame in frames]
        self._first = [t.to(device) for t in denoiser.initial_state(1, *size)]

    @torch.no_grad()
    def judge(self, slot: Slot, weights: Weights, stream: DeviceStream) -> None:
        """Run the frames through ``slot``, which has been given ``weights``.

        Args:
            slot: Not in use otherwise.
            weights: For the reference.
            stream: Reset here; of the probe's size.

        Raises:
            EngineError: The slot gives other numbers than torch.
        """
        load_weights(self._reference, weights)
        stream.reset()
        state = tuple(tensor.clone() for tensor in self._first)
        size = self._frames[0].shape
        results = [torch.empty(size, device=self._device) for _ in range(2)]
        mean = variance = self._frames[0]
        for frame in self._frames:
            mean, variance, state = self._reference.forward(frame, state)
            stream.step(slot, stream.take(size).copy_(frame), results)
        self._compare("mean", results[0], mean, self._tolerance)
        self._compare("variance", results[1], variance, _VARIANCE * self._tolerance)

    @staticmethod
    def _compare(what: str, got: Tensor, want: Tensor, tolerance: float) -> None:
        if not bool(torch.isfinite(got).all()):
            raise EngineError(f"the {what} of a probe frame is not finite; the old weights stay")
        scale = float(want.abs().max().clamp(min=1e-6))
        off = float((got - want).abs().max()) / scale
        if not off <= tolerance:
            raise EngineError(
                f"the {what} of a probe frame is {off:.2g} of its range off what torch gives "
                f"(at most {tolerance:.2g} is allowed); the old weights stay"
            )
