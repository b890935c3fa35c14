"""The state of one stream of frames on a device, in buffers that take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from quietbeam.model.cuda_graphs import Slot
from quietbeam.model.export import FRAME, NEXT, RESULTS, STATE


class DeviceStream:
    """Runs slots over frames, one after the other.

    Nothing is copied: what the network writes is what it reads next, and what
    it only keeps is passed on as it is.  Of the free buffers the one released
    longest ago is taken, so that the same sets of buffers come again and again
    (a CUDA graph is bound to its buffers).

    Args:
        first: The state before the first frame, on the device.
        handed_on: By the number of a state, the input that becomes it unchanged.
        device: Where buffers are made.
    """

    def __init__(
        self, first: Sequence[Tensor], handed_on: Mapping[int, str], device: torch.device
    ) -> None:
        self._first, self._handed_on, self._device = first, handed_on, device
        self._spare: dict[tuple[int, ...], deque[Tensor]] = {}
        self._state: list[Tensor] = []
        self.level: float | None = None
        """What was taken off the frames of this run; None before its first frame."""
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self.level = None
        held, self._state = self._state, []
        self._release(held)
        self._state = [self.take(tensor.shape).copy_(tensor) for tensor in self._first]

    def take(self, shape: Sequence[int]) -> Tensor:
        """Give a float32 buffer that nobody uses."""
        spare = self._spare.setdefault(tuple(shape), deque())
        return spare.popleft() if spare else torch.empty(tuple(shape), device=self._device)

    def step(self, slot: Slot, frame: Tensor, results: Sequence[Tensor]) -> None:
        """Enqueue one frame on the current stream.

        Args:
            slot: Whose weights are used.
            frame: (1, 1, h, w), from ``take``; it is this stream's from now on.
            results: Where mean and variance go, (1, 1, h, w) each.
        """
        inputs = {f"{STATE}{i}": tensor for i, tensor in enumerate(self._state)}
        inputs[FRAME] = frame
        after = [
            inputs[self._handed_on[i]] if i in self._handed_on else self.take(first.shape)
            for i, first in enumerate(self._first)
        ]
        outputs = {f"{NEXT}{i}": t for i, t in enumerate(after) if i not in self._handed_on}
        slot.run({**inputs, **dict(zip(RESULTS, results, strict=True)), **outputs})
        self._state = after
        self._release(inputs.values())

    def _release(self, tensors: Iterable[Tensor]) -> None:
        """Take buffers back, except those that the state holds."""
        held = {id(tensor) for tensor in self._state}
        for key, tensor in {id(tensor): tensor for tensor in tensors}.items():
            if key not in held:
                self._spare.setdefault(tuple(tensor.shape), deque()).append(tensor)
