"""What the daemon does when told to: the body of every control command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from quietbeam.core.errors import QuietbeamError
from quietbeam.service.live_model import LiveModel
from quietbeam.service.outputs import OutputProcess
from quietbeam.service.reload import Reload
from quietbeam.service.training import Trainer

_METADATA_CHARS = 16_384


class Cleaning(Protocol):
    """What a pipeline offers for being switched, and for forgetting what it has seen."""

    def clean(self, *, on: bool) -> None:
        """Clean frames, or let them pass."""
        ...

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
        pipeline: Where frames are cleaned and forgotten.
        reload: Reads the configuration again.
        note: Keeps something with the recordings.

    Attributes:
        metadata: What is known of the run, as it was last told.
    """

    def __init__(
        self,
        snapshot: Callable[[], Mapping[str, Any]],
        accounts: Callable[[], Mapping[str, Any]],
        outputs: Mapping[str, OutputProcess],
        trainer: Trainer,
        model: LiveModel,
        pipeline: Cleaning,
        reload: Callable[[], Awaitable[Reload]],
        note: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.metadata: dict[str, Any] = {}
        self._note = note
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

    def clean(self, *, on: bool) -> Mapping[str, Any]:
        """Clean frames, or let them pass."""
        self._pipeline.clean(on=on)
        return {"processing": on}

    def describe_run(self, metadata: str) -> Mapping[str, Any]:
        """Keep a JSON object with the recordings and in the status; keys told again are replaced.

        Raises:
            QuietbeamError: It is no JSON object, or too large.
        """
        try:
            told = json.loads(metadata)
        except ValueError as error:
            raise QuietbeamError(f"describe_run: {metadata[:80]!r} is not JSON: {error}") from error
        if not isinstance(told, dict):
            raise QuietbeamError(f"describe_run: {metadata[:80]!r}: expected a JSON object")
        merged = self.metadata | told
        if len(json.dumps(merged)) > _METADATA_CHARS:
            raise QuietbeamError(f"describe_run: more than {_METADATA_CHARS} characters in all")
        self.metadata.update(told)
        self._note({"run_metadata": dict(self.metadata)})
        return {"run_metadata": dict(self.metadata)}

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

    async def freeze_weights(self, *, on: bool) -> Mapping[str, Any]:
        """Keep the weights in use as they are, or follow the gate again."""
        return {"model_version": await self._model.freeze(on=on), "frozen": self._model.frozen}

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
