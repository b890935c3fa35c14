"""The engine of torch on a GPU: CUDA graphs of the module itself; fallback and oracle."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.engine import Weights
from quietbeam.model.device_engine import DeviceEngine
from quietbeam.model.export import FRAME, NEXT, RESULTS, STATE
from quietbeam.model.torch_engine import as_module

_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


class TorchSlot:
    """A copy of the module, run by torch.

    Args:
        denoiser: Copied: two threads never share a module.
        handed_on: Numbers of the states that have no buffer of their own.
        device: Where it runs.
        precision: f32, or that of autocast.
    """

    def __init__(
        self,
        denoiser: StreamingDenoiser,
        handed_on: Mapping[int, str],
        device: torch.device,
        precision: str = "f32",
    ) -> None:
        module = copy.deepcopy(as_module(denoiser)).to(device, torch.float32)
        self._module = module.eval().requires_grad_(requires_grad=False)
        self._handed_on, self._half = handed_on, _DTYPES.get(precision)
        self._device = device

    def fill(self, weights: Weights) -> None:
        """Copy ``weights`` over, in place: graphs find them where they were."""
        with torch.no_grad():
            for name, tensor in self._module.state_dict().items():
                tensor.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Enqueue one frame on the current stream."""
        count = sum(name.startswith(STATE) for name in tensors)
        state = tuple(tensors[f"{STATE}{i}"] for i in range(count))
        half = self._half
        with torch.inference_mode(), torch.autocast(self._device.type, half, half is not None):
            mean, variance, after = self._module(tensors[FRAME], state)
        for name, tensor in zip(RESULTS, (mean, variance), strict=True):
            tensors[name].copy_(tensor)
        for i, tensor in enumerate(after):
            if i not in self._handed_on:
                tensors[f"{NEXT}{i}"].copy_(tensor)


def cuda_engine(
    denoiser: StreamingDenoiser,
    shape: tuple[int, ...],
    precision: str = "f32",
    device: torch.device | None = None,
) -> DeviceEngine:
    """Build the engine.

    Args:
        denoiser: Copied.
        shape: (h, w) in pixels; (c, h, w) with several channels.
        precision: ``f32``, or 16 bits by torch's autocast.
        device: The first GPU, unless told otherwise.

    Raises:
        EngineError: The device fails.
    """
    device = device or torch.device("cuda")
    handed_on = kept_as_is(denoiser)
    first, second = (TorchSlot(denoiser, handed_on, device, precision) for _ in range(2))
    return DeviceEngine(
        denoiser,
        shape,
        (first, second),
        handed_on=handed_on,
        device=device,
        kind="cuda",
        precision=precision,
    )


def kept_as_is(denoiser: StreamingDenoiser) -> dict[int, str]:
    """Find the inputs that become a state unchanged: the module gives the very same tensor."""
    module = copy.deepcopy(as_module(denoiser)).to("cpu", torch.float32).eval()
    frame, state = torch.zeros(1, 1, 32, 32), denoiser.initial_state(1, 32, 32)
    with torch.inference_mode():
        _, _, after = module(frame, state)
    names = {id(tensor): f"{STATE}{i}" for i, tensor in enumerate(state)} | {id(frame): FRAME}
    return {i: names[id(tensor)] for i, tensor in enumerate(after) if id(tensor) in names}
