"""CUDA graphs of a network, one for each set of buffers that it works on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import structlog
import torch
from torch import Tensor

from quietbeam.core.engine import Weights
from quietbeam.core.errors import EngineError

_KEPT = 128
"""Graphs of one slot.  The buffers of ``quiet`` recur every 28 frames."""

log = structlog.get_logger()


class Slot(Protocol):
    """A network on a device, with a set of weights of its own."""

    def fill(self, weights: Weights) -> None:
        """Use these, which fit, from the next call of ``run`` on."""
        ...

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Enqueue one frame on the current stream.

        Args:
            tensors: Input and output buffers under their names in the exported
                graph; of the next states, those that are not handed on.
        """
        ...


class Captured:
    """A slot whose work is captured once for each set of buffers, and replayed from then on.

    A network that cannot be captured goes on without graphs.
    """

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._graphs: dict[tuple[int, ...], torch.cuda.CUDAGraph] = {}
        # One pool for all: they never run at once, and copy out what they computed.
        self._pool = torch.cuda.graph_pool_handle()
        self._able, self._warm = True, False

    def fill(self, weights: Weights) -> None:
        """Use these weights; graphs read them where they always were."""
        self._slot.fill(weights)

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Enqueue one frame on the current stream."""
        key = tuple(tensor.data_ptr() for tensor in tensors.values())
        if key not in self._graphs and self._able and self._warm and len(self._graphs) < _KEPT:
            self._capture(key, tensors)
        if key in self._graphs:
            self._graphs[key].replay()
        else:
            self._slot.run(tensors)
            self._warm = True  # what the first frame allocates or compiles is there now

    def _capture(self, key: tuple[int, ...], tensors: Mapping[str, Tensor]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: what another thread does meanwhile (stage weights) does not disturb.
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=torch.cuda.current_stream(),
                capture_error_mode="thread_local",
            ):
                self._slot.run(tensors)
        except (RuntimeError, EngineError) as error:
            self._able = False
            log.warning("cuda_graph_refused", error=str(error).strip().splitlines()[0])
        else:
            self._graphs[key] = graph
