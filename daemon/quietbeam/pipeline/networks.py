"""Builds engines for the live path; keeps the accepted weights and fallback from run to run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from quietbeam.config import Config
from quietbeam.core.engine import Engine, Weights
from quietbeam.core.errors import EngineError
from quietbeam.core.events import RunStart
from quietbeam.model import checkpoint as checkpoints
from quietbeam.model import gpu
from quietbeam.model.engines import build_engine
from quietbeam.pipeline.live import Model

Shape = tuple[int, ...]

_PROBE_FRAMES = 10
_BUDGET = 0.9  # share of the frame time that a network may take


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """Weights that may go live."""

    model: Model
    weights: Weights
    onnx: Path | None


class Networks:
    """Engines of the configured denoiser and of the classical ones, at the shape of the run.

    Two engines of the network exist at most: the live one and an idle one, on
    which the next weights are warmed while the live one works on.

    Attributes:
        fallback: Name of the classical denoiser in use.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._module = config.denoiser.plugin.build()
        self._classical = {named.name: named.plugin for named in config.classical}
        self.fallback = config.fallback.name
        self._engines: dict[Shape, list[Engine]] = {}
        self._accepted: Candidate | None = None
        self._live: Engine | None = None
        self._log = structlog.get_logger()
        self.message: str | None = None
        if not self._module.trainable:
            self._log.info("denoiser_needs_no_training", denoiser=config.denoiser.name)

    def classical(self, run: RunStart) -> tuple[Engine, str]:
        """A fresh engine of the fallback, and its name; of the configured one if it is too slow."""
        configured = self._config.fallback.name
        if self.fallback != configured:
            try:
                return self.proven_classical(self.fallback, run), self.fallback
            except EngineError as error:
                self._log.error("fallback_not_used", denoiser=self.fallback, error=str(error))
                self.fallback = configured
        return self._build_classical(configured, run.shape), configured

    def proven_classical(self, name: str, run: RunStart) -> Engine:
        """A fresh engine of a classical denoiser, probed for speed.

        Raises:
            EngineError: It is none of the configured ones, gives non-finite
                pixels, or the machine cannot keep up with the run's frame rate.
        """
        if name not in self._classical:
            known = ", ".join(self._classical)
            raise EngineError(f"{name} is none of the classical denoisers of this daemon: {known}")
        engine = self._build_classical(name, run.shape)
        self._probe(engine, run, name)
        return engine

    def _build_classical(self, name: str, shape: Shape) -> Engine:
        # Filters are not compiled, and bf16 is for networks.
        torch_engine = self._config.engine.model_copy(update={"kind": "torch"})
        return build_engine(self._classical[name].build(), shape, torch_engine)

    def load(self, onnx: Path | None, checkpoint: Path, version: int) -> Candidate:
        """Read a checkpoint.

        Raises:
            EngineError: It is damaged or belongs to another denoiser.
        """
        weights, metadata = checkpoints.load(checkpoint)
        name = self._config.denoiser.name
        if metadata.get("denoiser", name) != name:
            raise EngineError(
                f"{checkpoint} holds weights of {metadata['denoiser']!r}; this daemon runs {name!r}"
            )
        return Candidate(Model(name, version), weights, onnx)

    def accept(self, candidate: Candidate, engine: Engine | None = None) -> None:
        """These weights are live now, and will be at the start of the next run."""
        self._accepted, self._live = candidate, engine

    def forget(self) -> None:
        """No network is live, nor will be at the next run's start."""
        self._accepted = self._live = None

    def lost(self) -> Candidate | None:
        """Let go of all engines of the network: the one in use has failed.

        Returns:
            The weights to start again with.
        """
        self._live, self._engines = None, {}
        gpu.driver.cache_clear()  # what the driver said before is no longer to be trusted
        return self._accepted

    def at_run_start(self, run: RunStart) -> tuple[Engine, Model] | None:
        """The accepted network for a new run, or None; a failure is logged, not raised."""
        if self._accepted is None:
            return None
        try:
            engine = self.idle_engine(run, self._accepted)
        except EngineError as error:
            self._log.error("network_not_used", error=str(error))
            return None
        self._live = engine
        return engine, self._accepted.model

    def idle_engine(self, run: RunStart, candidate: Candidate) -> Engine:
        """An engine that is not live, with the candidate's weights in use, probed for speed.

        Raises:
            EngineError: The weights do not fit, give non-finite pixels, or the
                machine cannot keep up with the run's frame rate.
        """
        engine = self._free_engine(run.shape, candidate.onnx)
        engine.stage(candidate.weights)
        engine.flip()
        self._probe(engine, run, self._config.denoiser.name)
        return engine

    def _free_engine(self, shape: Shape, onnx: Path | None) -> Engine:
        if shape not in self._engines:
            self._engines = {shape: []}
        engines = self._engines[shape]
        for engine in engines:
            if engine is not self._live:
                return engine
        engines.append(build_engine(self._module, shape, self._config.engine, onnx=onnx))
        return engines[-1]

    def _probe(self, engine: Engine, run: RunStart, name: str) -> None:
        frame = np.random.default_rng(0).normal(10, 1, run.shape).astype(np.float32)
        engine.reset()
        times = []
        for _ in range(_PROBE_FRAMES):
            began = time.perf_counter()
            mean, variance = engine(frame)
            times.append(time.perf_counter() - began)
            if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
                raise EngineError(f"{name} gave non-finite pixels on a probe frame")
        engine.reset()
        self._judge_speed(min(times), run, name)

    def _judge_speed(self, seconds: float, run: RunStart, name: str) -> None:
        self.message = None
        if run.frame_time_s and seconds > _BUDGET * run.frame_time_s:
            self.message = (
                f"{name} needs {seconds:.3g} s per frame here and frames come every "
                f"{run.frame_time_s:.3g} s: staying with {self._staying(name)}; use "
                f"a smaller denoiser, more threads, a GPU, or {name} offline on the recording"
            )
            raise EngineError(self.message)

    def _staying(self, refused: str) -> str:
        """What runs when a denoiser is refused."""
        return self._config.fallback.name if refused == self.fallback else self.fallback
