"""The reference engine: a denoiser run by torch, float32, on the CPU."""

from __future__ import annotations

import copy
import math
import threading

import numpy as np
import torch
from numpy.typing import NDArray

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.engine import Weights
from quietbeam.core.errors import EngineError


def weights_of(module: StreamingDenoiser) -> dict[str, NDArray[np.float32]]:
    """Give a copy of the module's weights by their name in its ``state_dict``."""
    return {
        name: tensor.detach().to("cpu", torch.float32, copy=True).numpy()
        for name, tensor in as_module(module).state_dict().items()
    }


def as_module(denoiser: StreamingDenoiser) -> torch.nn.Module:
    """Give the same object, typed as the ``torch.nn.Module`` it must be.

    Raises:
        EngineError: It is not one.
    """
    if not isinstance(denoiser, torch.nn.Module):
        raise EngineError(
            f"{type(denoiser).__name__} is not a torch.nn.Module; "
            "a denoiser plugin's build() must give one"
        )
    return denoiser


def check_weights(given: Weights, expected: Weights) -> None:
    """Refuse weights that do not fit, before anything is overwritten.

    Raises:
        EngineError: Names or shapes differ from ``expected``, or a value is
            not finite.
    """
    missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or unknown:
        raise EngineError(
            f"weights do not fit this denoiser: missing {missing[:3]}, unknown {unknown[:3]}; "
            "they belong to another denoiser or other settings"
        )
    for name, array in expected.items():
        got = np.asarray(given[name])
        if got.shape != array.shape:
            raise EngineError(
                f"weight {name}: got shape {got.shape}, expected {array.shape}; "
                "it belongs to a denoiser with other settings"
            )
        if not np.isfinite(got).all():
            raise EngineError(f"weight {name} is not finite; training has diverged")


def load_weights(module: StreamingDenoiser, weights: Weights) -> None:
    """Copy ``weights`` into ``module``, in place.

    Raises:
        EngineError: They do not fit, or are not finite; nothing is changed.
    """
    check_weights(weights, weights_of(module))
    with torch.no_grad():
        for name, tensor in as_module(module).state_dict().items():
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))


class TorchEngine:
    """Runs one denoiser at one image shape; every other engine must agree with it.

    Two copies of the module take turns: ``stage`` writes to the idle one.
    """

    def __init__(
        self, denoiser: StreamingDenoiser, shape: tuple[int, ...], *, threads: int = 1
    ) -> None:
        """Prepare to run ``denoiser`` on frames of ``shape``.

        Args:
            denoiser: Copied; training the original later changes nothing here.
            shape: (h, w) in pixels; (c, h, w) with several channels.
            threads: For torch, which knows one number per process.
        """
        torch.set_num_threads(threads)
        self.lag = denoiser.lag
        self.blind = denoiser.blind
        self._shape = shape
        self._planes = (math.prod(shape[:-2]), 1, *shape[-2:])  # (n, 1, h, w)
        self._live, self._idle = copy.deepcopy(denoiser), copy.deepcopy(denoiser)
        for module in (self._live, self._idle):
            as_module(module).to("cpu", torch.float32).eval().requires_grad_(requires_grad=False)
        self._arena = weights_of(denoiser)
        self._swap = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        n, _, h, w = self._planes
        self._state = self._live.initial_state(n, h, w)

    def __call__(
        self, frame: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take frame i, give mean and variance of frame i - lag, float32, of the same shape."""
        if frame.shape != self._shape:
            raise EngineError(f"got a frame of shape {frame.shape}, expected {self._shape}")
        # A new tensor each time: the denoiser may keep it in its state.
        pixels = torch.tensor(np.asarray(frame, np.float32)).reshape(self._planes)
        with torch.inference_mode():
            mean, variance, self._state = self._live.forward(pixels, self._state)
        shape = self._shape
        return mean.reshape(shape).numpy().copy(), variance.reshape(shape).numpy().copy()

    def stage(self, weights: Weights) -> None:
        """Copy ``weights`` beside the live ones; raises EngineError where they do not fit."""
        check_weights(weights, self._arena)
        # The lock keeps a flip from taking a half-written copy; frames never wait for it.
        with self._swap, torch.no_grad():
            for name, tensor in as_module(self._idle).state_dict().items():
                tensor.copy_(torch.tensor(np.asarray(weights[name])))

    def flip(self) -> None:
        """Use the staged weights from the next frame on."""
        with self._swap:
            self._live, self._idle = self._idle, self._live
