"""Candidate, live network and classical denoisers against each other, on the same guard frames."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch

from quietbeam.core.denoiser import SelfCalibrating, StreamingDenoiser
from quietbeam.core.engine import Weights
from quietbeam.core.errors import EngineError
from quietbeam.model.torch_engine import load_weights, weights_of
from quietbeam.trainer.gate import Decision, best_classical, decide
from quietbeam.trainer.guard import GuardFrame
from quietbeam.trainer.memory import Memory
from quietbeam.trainer.scores import Scores

_CALIBRATION_BATCHES = 16


class Contest:
    """Everyone who may run, and who of them does.

    Args:
        network: What is trained; copied.
        classical: By name.
        fallback: Name of the classical denoiser in use.

    Attributes:
        candidate: A network to load weights into.
        live_version: Of the network in use; 0 where none is.
        fallback: As given, or as it was changed since.
    """

    def __init__(
        self,
        network: StreamingDenoiser,
        classical: Mapping[str, StreamingDenoiser],
        fallback: str,
    ) -> None:
        self.candidate, self._live = copy.deepcopy(network), copy.deepcopy(network)
        self.classical, self.fallback = classical, fallback
        self.live_version = 0

    def set_live(self, version: int, weights: Weights) -> None:
        """Another version of the network is in use.

        Raises:
            EngineError: The weights do not fit; then none is taken to be in use.
        """
        self.live_version = 0
        load_weights(self._live, weights)
        self.live_version = version

    def with_variances(self, data: Memory, weights: Weights) -> Weights:
        """Set the variances of the mean weights, which no step of training has seen at work."""
        if not isinstance(self.candidate, SelfCalibrating):
            return weights
        drawn = (data.sampler.draw() for _ in range(_CALIBRATION_BATCHES))
        batches = [
            (torch.from_numpy(clip), torch.from_numpy(valid)) for clip, valid in filter(None, drawn)
        ]
        try:
            load_weights(self.candidate, weights)
        except EngineError:
            return weights  # the gate will say why
        self.candidate.calibrate(batches)
        return weights_of(self.candidate)

    def score_classical(self, data: Memory, frames: list[GuardFrame]) -> dict[str, Scores]:
        """Score every classical denoiser; what is known of other frames is forgotten."""
        kept = [*data.guards.recent, *data.guards.older]
        data.judge.forget(kept, {*self.classical, self._name()})
        return {
            name: data.judge.scores(denoiser, frames, name)
            for name, denoiser in self.classical.items()
        }

    def decide(
        self,
        data: Memory,
        frames: list[GuardFrame],
        older: list[GuardFrame],
        all_classical: Mapping[str, Scores],
        weights: Weights | None,
        *,
        impulsive: bool,
    ) -> Decision | None:
        """Put the question to the gate.

        Args:
            data: Judges.
            frames: Guard frames, calibrated, not empty.
            older: Those of the replay set, calibrated.
            all_classical: From ``score_classical`` on the same frames.
            weights: The candidate's; None: only what runs is judged.
            impulsive: Of the noise.
        """
        judge = data.judge
        best = best_classical(all_classical, impulsive=impulsive)
        live = judge.scores(self._live, frames, self._name()) if self.live_version else None
        candidate = None
        if weights is not None:
            try:
                load_weights(self.candidate, weights)
            except EngineError as error:
                return Decision("reject", str(error), classical=best)
            candidate = judge.scores(self.candidate, frames)

        def replay() -> tuple[Scores, Scores] | None:
            if not older:
                return None
            running = (self._live, self._name()) if live else (self.classical[best], best)
            return judge.scores(running[0], older, running[1]), judge.scores(self.candidate, older)

        classical = all_classical[best]
        decision = decide(candidate, live, classical, impulsive=impulsive, replay=replay)
        return None if decision is None else replace(decision, classical=best)

    def _name(self) -> str:
        return f"version {self.live_version}"
