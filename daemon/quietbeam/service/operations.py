"""What the daemon does when told to: the body of every control command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from quietbeam.core.errors import QuietbeamError
from quietbeam.service.live_model import LiveModel
from quietbeam.service.outputs import OutputProcess
from quietbeam.service.reload import Reload
from quietbeam.service.training import Trainer


class Resettable(Protocol):
    """What a pipeline offers for forgetting what it has seen."""

    def reset(self) -> None:
        """Forget the state of all denoisers."""
        ...


class Operations:
    """Carries out control commands; implements ``control.Actions``.

    Args:
        snapshot: Gives the full status.
        accounts: Gives the account of every frame.
        outputs: Sinks in processes of their own, by name.
        trainer: Its process.
        model: Which weights are in use.
        pipeline: Where frames are forgotten.
        reload: Reads the configuration again.
    """

    def __init__(
        self,
        snapshot: Callable[[], Mapping[str, Any]],
        accounts: Callable[[], Mapping[str, Any]],
        outputs: Mapping[str, OutputProcess],
        trainer: Trainer,
        model: LiveModel,
        pipeline: Resettable,
        reload: Callable[[], Awaitable[Reload]],
    ) -> None:
        self._snapshot, self._accounts, self._outputs = snapshot, accounts, outputs
        self._trainer, self._model = trainer, model
        self._pipeline, self._reload = pipeline, reload
        self._one_reload = asyncio.Lock()

    def status(self) -> Mapping[str, Any]:
        """Give the full snapshot."""
        return self._snapshot()

    def ledger(self) -> Mapping[str, Any]:
        """Give the account of every frame."""
        return self._accounts()

    def record(self, *, on: bool) -> Mapping[str, Any]:
        """Start or stop recording in every output that records."""
        if not self._outputs:
            raise QuietbeamError(
                'there is no recorder; add a [[sinks]] table with kind = "hdf5" and restart'
            )
        for output in self._outputs.values():
            output.record(on=on)
        return {"recording": on, "outputs": list(self._outputs)}

    def train(self, *, on: bool) -> Mapping[str, Any]:
        """Let training rest or go on; an overload may keep it resting."""
        if on:
            self._trainer.resume("operator")
        else:
            self._trainer.freeze("operator")
        return {"frozen_by": self._trainer.frozen_by}

    def checkpoint(self) -> Mapping[str, Any]:
        """Have the trainer write its state."""
        if not self._trainer.tell("checkpoint"):
            raise QuietbeamError("the trainer is not running; see [trainer] enabled and the status")
        return {"asked": "checkpoint"}

    def annotate(self, text: str) -> Mapping[str, Any]:
        """Keep a remark with every recording that is being written."""
        for output in self._outputs.values():
            output.note({"annotation": text})
        return {"outputs": list(self._outputs)}

    async def rollback(self, version: int | None) -> Mapping[str, Any]:
        """Use an earlier promoted model."""
        return {"model_version": await self._model.rollback(version)}

    async def use(self, which: str) -> Mapping[str, Any]:
        """Hold the classical denoiser, or let promoted models run."""
        return {"model_version": await self._model.use(which), "held": self._model.held}

    async def reset(self) -> Mapping[str, Any]:
        """Forget models, training and the frames seen."""
        await self._model.reset()
        self._pipeline.reset()
        self._trainer.tell("reset")
        return {"model_version": self._model.version}

    async def reload(self) -> Mapping[str, Any]:
        """Read the configuration again; one that is wrong changes nothing."""
        async with self._one_reload:
            done = await self._reload()
        if done.error is not None:
            raise QuietbeamError(f"the configuration in force stays: {done.error}")
        return asdict(done)
