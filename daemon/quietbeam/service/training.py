"""The trainer's process as the daemon sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from quietbeam.service.supervise import Backoff, Child, Command, python_module

TRAINER_PROCESS = python_module("quietbeam.trainer.process")
_OOM_SCORE = 500  # the kernel takes the trainer first, never the recorder

Decision = Mapping[str, Any]


class Trainer:
    """The supervised trainer; a new process is told all that the last one knew.

    Args:
        init: The first command of every process.
        threads: For its numerical libraries.
        on_decision: Called with every decision of the gate.
        argv: The command; another one in tests.
    """

    def __init__(
        self,
        init: Command,
        threads: int,
        on_decision: Callable[[Decision], None],
        argv: Sequence[str] = TRAINER_PROCESS,
    ) -> None:
        self.onnx: Path | None = None
        self.progress: dict[str, Any] = {}
        self._init, self._on_decision = init, on_decision
        self._calibration: Command | None = None
        self._live: Command = {"type": "live", "version": 0}
        self._frozen_by: set[str] = set()
        self.child = Child(
            "trainer",
            argv,
            greet=self._greet,
            on_event=self._hear,
            backoff=Backoff(),
            oom_score_adj=_OOM_SCORE,
            threads=threads,
        )

    @property
    def frozen_by(self) -> list[str]:
        """Who asked for the rest: ``operator``, ``overload``."""
        return sorted(self._frozen_by)

    def calibrated(self, calibration: Mapping[str, Any]) -> None:
        """Pass on the noise model of the run."""
        self._calibration = {"type": "calibration", **calibration}
        self.child.send(self._calibration)

    def live(self, version: int, fallback: str) -> None:
        """Say which promoted model is in use, 0 for none, and which classical denoiser."""
        self._live = {"type": "live", "version": version, "fallback": fallback}
        self.child.send(self._live)

    def freeze(self, who: str) -> None:
        """Let training rest; it goes on when everyone who asked has taken it back."""
        self._frozen_by.add(who)
        self.child.send({"type": "freeze"})

    def resume(self, who: str) -> None:
        """Take one ``freeze`` back."""
        self._frozen_by.discard(who)
        if not self._frozen_by:
            self.child.send({"type": "resume"})

    def tell(self, what: Literal["reset", "checkpoint"]) -> bool:
        """Give a plain command; False if there is no trainer to hear it."""
        return self.child.send({"type": what})

    def account(self) -> dict[str, Any]:
        """Describe the trainer for the status page."""
        return {
            "progress": self.progress,
            "up": self.child.up,
            "state": self.child.state,
            "frozen_by": self.frozen_by,
            "onnx": None if self.onnx is None else str(self.onnx),
        }

    def _greet(self) -> Iterable[Command]:
        yield self._init
        if self._calibration is not None:
            yield self._calibration
        yield self._live
        if self._frozen_by:
            yield {"type": "freeze"}

    def _hear(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "ready":
            self.onnx = Path(event["onnx"]) if event.get("onnx") else None
        elif kind == "progress":
            self.progress = {key: value for key, value in event.items() if key != "type"}
        elif kind == "decision":
            self._on_decision({key: value for key, value in event.items() if key != "type"})
