"""Wires the stages: source -> raw ring -> denoise -> clean ring and sinks.  No logic of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from quietbeam import __version__
from quietbeam.config import Config
from quietbeam.core.errors import EngineError
from quietbeam.core.events import RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.plugin import ViewSink
from quietbeam.core.ring import RingReader, RingWriter
from quietbeam.model.channels import calibration_account, each_channel, specs_for
from quietbeam.model.stabilise import NoiseModel
from quietbeam.pipeline.alarms import Alarms
from quietbeam.pipeline.analyse import Analyses
from quietbeam.pipeline.denoise import STAGE, Denoise, RunCleaner
from quietbeam.pipeline.finish import Finish
from quietbeam.pipeline.ingest import Ingest
from quietbeam.pipeline.networks import Candidate, Networks
from quietbeam.pipeline.publish import Publish, light_sinks
from quietbeam.pipeline.quality import SPECS
from quietbeam.pipeline.recovery import Recovery
from quietbeam.pipeline.shed import RECORDER_FULL, Shed


@dataclass(frozen=True, slots=True)
class Rings:
    """The two rings, made by whoever owns their files."""

    raw: RingWriter
    clean: RingWriter


def _recorder_fill(config: Config, ring: RingWriter) -> Callable[[], float]:
    """Give how far the recorder is behind that is furthest behind; 1: denoising must help it."""
    names = [
        f"{sink.name}.{number}"
        for number, sink in enumerate(config.sinks)
        if sink.plugin.own_process and not isinstance(sink.plugin, ViewSink)
    ]
    return lambda: max(map(ring.pressure_on, names), default=0.0) / RECORDER_FULL


class Pipeline:
    """The one-way path.  Its threads are run by the caller (``bodies``).

    Args:
        config: Validated.
        rings: Closed here when nothing more will come; unlinked by the owner.
        ledger: Every frame's account.
    """

    def __init__(self, config: Config, rings: Rings, ledger: Ledger) -> None:
        self.config, self.ledger = config, ledger
        self.on_calibration: Callable[[dict[str, Any]], None] | None = None
        self.observe: Callable[[str, float], None] = lambda _stage, _seconds: None
        self.calibration: dict[str, Any] | None = None
        self.networks = Networks(config)
        self._analyses = analyses = Analyses(config.analyses, ledger)
        self.shed = Shed()
        light = [(n, s) for n, s in enumerate(config.sinks) if not s.plugin.own_process]
        self._light, outlets = light_sinks(light, rings.raw.path, self.shed, ledger)
        self._publish = Publish(rings.clean, outlets, ledger)
        self.alarms = Alarms()
        self._ingest = Ingest(
            config.source.plugin,
            rings.raw,
            ledger,
            lambda run: run_metadata(config, analyses, run.channels),
            self.alarms,
        )
        self._finish = Finish(STAGE, ledger, analyses, self._publish, self.shed)
        self._denoise = Denoise(
            RingReader(rings.raw.path, "denoise"),
            ledger,
            self._start_run,
            self._finish,
            config.service.max_backlog_frames,
            self.shed,
            _recorder_fill(config, rings.raw),
        )
        self._ingest.observe = lambda seconds: self.observe("ingest", seconds)
        self._denoise.observe = lambda seconds: self.observe("denoise", seconds)
        self._finish.observe = lambda seconds: self.observe("finish", seconds)
        self._finish.observe_latency = lambda seconds: self.observe("end_to_end", seconds)
        self._builder = ThreadPoolExecutor(1, "engines")
        self.recovery = Recovery(self.networks, self.alarms, self._build, self._take)
        self._rates = _Rates(ledger)
        self._log = structlog.get_logger()

    def bodies(self) -> Mapping[str, Callable[[], None]]:
        """The threads, in order of data flow; each ends when the one before has."""
        sinks = {f"sink-{sink.label}": sink.body for sink in self._light}
        return {
            "ingest": self._ingest.body,
            "denoise": self._denoise_body,
            "finish": self._finish_body,
            **sinks,
        }

    def connections(self) -> dict[str, dict[str, int]]:
        """Say of each light sink that knows: who is connected, and who was refused."""
        return {sink.label: sink.connections() for sink in self._light if sink.connections()}

    def stop(self) -> None:
        """Ask ingest to end; the rest drains in order of flow."""
        self._ingest.stop()

    def offer(self, onnx: Path | None, checkpoint: Path, version: int) -> Future[None]:
        """Make a checkpoint live: loaded and warmed aside, switched between two frames.

        Returns:
            Done once it is live (or will be, when no run is going on).  Fails
            with ``EngineError`` when the weights do not fit or the machine is
            too slow for them; what was live stays live.
        """
        return self._build(lambda: self._offer(onnx, checkpoint, version))

    @property
    def fallback(self) -> str:
        """Name of the classical denoiser in use."""
        return self.networks.fallback

    def use_fallback(self, name: str) -> Future[None]:
        """Change the classical denoiser: warmed aside, switched between two frames.

        Returns:
            Done once it is in use.  Fails with ``EngineError`` when it is none
            of the configured ones or the machine is too slow for it; then
            nothing changes.
        """
        return self._build(lambda: self._use_fallback(name))

    def demote(self) -> None:
        """Back to the classical denoiser, between two frames."""
        self.networks.forget()
        self.recovery.over()
        self._denoise.at_next_frame(self._demote_run)

    @property
    def on(self) -> bool:
        """Frames are cleaned; otherwise they are taken in, recorded, and counted as paused."""
        return not self._denoise.paused

    def clean(self, *, on: bool) -> None:
        """Clean the frames that come from now on, or let them pass."""
        self._denoise.paused = not on

    def declared(self) -> dict[str, Any]:
        """Give what analyses measure, known before any run: ``metrics`` and ``maps`` by name."""
        told = run_metadata(self.config, self._analyses)
        return {name: told[name] for name in ("metrics", "maps")}

    def reset(self) -> None:
        """Forget the state of all denoisers: the scene is another one."""
        self._denoise.at_next_frame(self._denoise.restart)

    def snapshot(self) -> dict[str, Any]:
        """What is going on, for people and metrics; cheap, from any thread."""
        run, live = self._ingest.run, self._finish.live
        latencies = np.array(self._finish.latencies or [np.nan])
        figures = self._finish.last_figures
        channels = () if run is None else run.channels
        return {
            "source": self._ingest.state,
            "run": None if run is None else run.run,
            "run_frames": self._ingest.run_frames,
            "received_bytes": self._ingest.received_bytes,
            "last_frame_age_s": self._last_frame_age_s(),
            "shape": None if run is None else list(run.shape),
            "channels": each_channel(figures, channels),
            **self._rates.now(),
            "latency_p50_s": _number(np.percentile(latencies, 50)),
            "latency_p99_s": _number(np.percentile(latencies, 99)),
            "denoiser": None if live is None else live.denoiser,
            "model_version": 0 if live is None else live.version,
            "fallback": self.fallback,
            **{
                name.removeprefix("quality."): _number(figures[name])
                for name in SPECS
                if name in figures
            },
            "calibration": self.calibration,
            "backlog": self._denoise.backlog,
            "analyses": self._analyses.states(),
            "message": self._message(),
            "heartbeat_age_s": {
                "ingest": (time.monotonic_ns() - self._ingest.heartbeat_ns) / 1e9,
                "denoise": (time.monotonic_ns() - self._denoise.heartbeat_ns) / 1e9,
                "finish": self._finish.heartbeat_age_s,
            },
        }

    def _message(self) -> str | None:
        said = (self._denoise.message, self._finish.message, self.networks.message)
        return "; ".join(filter(None, said)) or None

    def _last_frame_age_s(self) -> float | None:
        last_ns = self._ingest.last_frame_ns
        return (time.monotonic_ns() - last_ns) / 1e9 if last_ns else None

    def _build(self, work: Callable[[], None]) -> Future[None]:
        try:
            return self._builder.submit(work)
        except RuntimeError:  # the builder has ended with the denoise thread
            refused: Future[None] = Future()
            refused.set_exception(EngineError("the pipeline is stopping; no model is taken now"))
            return refused

    def _denoise_body(self) -> None:
        try:
            self._denoise.body()
        finally:
            self.recovery.stop()
            self._builder.shutdown(wait=False, cancel_futures=True)

    def _finish_body(self) -> None:
        try:
            self._finish.body()
        finally:
            self._publish.close()
            for sink in self._light:
                sink.close()

    def _start_run(self, run: RunStart) -> RunCleaner:
        cleaner = RunCleaner(
            run,
            [named.plugin for named in self.config.corrections],
            self.config.calibration,
            self.networks.classical(run),
            self._on_calibrated,
        )
        cleaner.switch.on_lost = self.recovery.lost
        fresh = self.networks.at_run_start(run)
        if fresh is not None:
            engine, model = fresh
            cleaner.switch.promote(cleaner.switch.warm(engine), model)
        return cleaner

    def _offer(self, onnx: Path | None, checkpoint: Path, version: int) -> None:
        self._take(self.networks.load(onnx, checkpoint, version))

    def _take(self, candidate: Candidate) -> None:
        """Make weights live; in the builder's thread."""
        cleaner = self._denoise.cleaner
        if cleaner is None:
            self.networks.accept(candidate)
            return
        engine = self.networks.idle_engine(cleaner.run, candidate)
        warm = cleaner.switch.warm(engine)

        def switch() -> None:
            self.networks.accept(candidate, engine)
            if self._denoise.cleaner is cleaner:
                cleaner.switch.promote(warm, candidate.model)
                self.recovery.over()

        self._denoise.at_next_frame(switch).result()

    def _use_fallback(self, name: str) -> None:
        cleaner = self._denoise.cleaner
        warm = None
        if cleaner is not None:
            warm = cleaner.switch.warm(self.networks.proven_classical(name, cleaner.run))

        def switch() -> None:
            now = self._denoise.cleaner
            if now is not None and now is not cleaner:
                raise EngineError(f"another run has begun; {self.fallback} goes on for now")
            if now is not None and warm is not None:
                now.switch.change_fallback(warm, name)
            self.networks.fallback = name

        self._denoise.at_next_frame(switch).result()

    def _demote_run(self) -> None:
        if self._denoise.cleaner is not None:
            self._denoise.cleaner.switch.demote()

    def _on_calibrated(self, run: RunStart, noise: tuple[NoiseModel, ...]) -> None:
        self.calibration = {"run": run.run, **calibration_account(noise, run.channels)}
        self._log.info("calibrated", **self.calibration)
        if self.calibration["impulsive"]:
            self._log.warning("noise_is_impulsive", consequence="quality figures are not trusted")
        if self.on_calibration is not None:
            self.on_calibration(self.calibration)


class _Rates:
    """Frames per second in and out, over the time since they were last asked for."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._last = (time.monotonic(), 0, 0)
        self._rates = {"received_hz": 0.0, "clean_hz": 0.0}

    def now(self) -> dict[str, float]:
        then, received_then, sent_then = self._last
        elapsed = time.monotonic() - then
        if elapsed >= 0.5:
            stages = self._ledger.stages()
            received = stages["ingest"].received if "ingest" in stages else 0
            sent = stages["denoise"].sent if "denoise" in stages else 0
            self._rates = {
                "received_hz": (received - received_then) / elapsed,
                "clean_hz": (sent - sent_then) / elapsed,
            }
            self._last = (time.monotonic(), received, sent)
        return self._rates


def run_metadata(
    config: Config, analyses: Analyses, channels: Sequence[str] = ()
) -> dict[str, Any]:
    """What is written into every run's start: enough to make the recording explain itself."""
    specs = SPECS | specs_for(SPECS, channels) | analyses.specs(channels)
    return {
        "version": __version__,
        "name": config.name,
        "config": config.text,
        "config_sha256": config.sha256,
        "metrics": {
            name: {
                "unit": s.unit,
                "description": s.description,
                "shape": list(s.shape),
                **({"uncertainty": s.uncertainty} if s.uncertainty else {}),
            }
            for name, s in specs.items()
        },
        "maps": {name: asdict(spec) for name, spec in analyses.maps(channels).items()},
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
