"""The daemon: configuration -> parts -> run -> drain -> exit code.  Read ``Daemon.run`` first."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import structlog

from quietbeam.config import Config
from quietbeam.core.errors import ConfigError
from quietbeam.core.ledger import Ledger
from quietbeam.core.plugin import ViewSink
from quietbeam.core.ring import RingWriter
from quietbeam.model.engines import cache_directory
from quietbeam.pipeline.pipeline import Pipeline, Rings
from quietbeam.service.access import Access, own_names
from quietbeam.service.accounts import RunLog
from quietbeam.service.checks import readable_secrets
from quietbeam.service.control import Control
from quietbeam.service.health import alive
from quietbeam.service.http import Endpoints, HttpServer, listen, url_of
from quietbeam.service.lifecycle import Signals, Threads
from quietbeam.service.live_model import LiveModel
from quietbeam.service.logs import configure
from quietbeam.service.operations import Operations
from quietbeam.service.outputs import SINK_PROCESS, OutputProcess
from quietbeam.service.reload import Reload, Reloader
from quietbeam.service.rings import open_rings
from quietbeam.service.runtime import RuntimeDirectory, directory_for
from quietbeam.service.status import Parts, left_over, summary
from quietbeam.service.supervise import Child
from quietbeam.service.systemd import Notifier
from quietbeam.service.telemetry import Telemetry
from quietbeam.service.training import TRAINER_PROCESS, Decision, Trainer
from quietbeam.service.view_socket import to_json
from quietbeam.service.views import View

MIB = 1 << 20
START_S = 60.0
"""An output that is not ready by then is left to its supervisor; frames flow meanwhile."""
_TICK_S = 0.5
_TRAINER_STOP_S = 4.0
_VIEW_STOP_S = 4.0
_CLOSE_S = 1.0  # kept back of the drain time for closing what is left
_EX_CONFIG = 78

log = structlog.get_logger()


def run(config: Config) -> int:
    """Run the daemon until it is told to stop; give the exit code of the process.

    Raises:
        ConfigError: It can never work like this.
    """
    configure(config.service.log, config.service.log_level)
    daemon = Daemon(config)
    code = asyncio.run(daemon.run())
    if daemon.hangs:  # a thread that does not return would keep the process alive for ever
        sys.stdout.flush()
        os._exit(code)
    return code


class Daemon:
    """One daemon.  All methods belong to the asyncio thread.

    Args:
        config: Validated.
        sink_argv: The command of an output process; another one in tests.
        trainer_argv: The command of the trainer; another one in tests.
    """

    def __init__(
        self,
        config: Config,
        *,
        sink_argv: Sequence[str] = SINK_PROCESS,
        trainer_argv: Sequence[str] = TRAINER_PROCESS,
    ) -> None:
        self._reloader = Reloader(config)
        self._argv = (tuple(sink_argv), tuple(trainer_argv))
        self._notifier = Notifier()
        self._ledger = Ledger()
        self._run_log = RunLog(self._ledger)
        self._state = "starting"
        self._tasks: set[asyncio.Task[None]] = set()
        self._killed: list[str] = []

    @property
    def config(self) -> Config:
        """In force now."""
        return self._reloader.config

    @property
    def hangs(self) -> bool:
        """A thread was left behind."""
        return bool(self._threads.left)

    async def run(self) -> int:
        """Live: 0 if everything was drained, 1 if a part failed or something was left."""
        with ExitStack() as stack, Signals() as signals:
            self._assemble(stack)
            ticking = asyncio.create_task(self._tick_forever(), name="tick")
            try:
                await self._until(signals, self._start())
                if not signals.stop.is_set():
                    await self._until(signals, self._serve(signals))
                return self._verdict(await self._drain(signals))
            finally:
                ticking.cancel()
                await self._close()

    # -- putting together ---------------------------------------------------------------

    def _assemble(self, stack: ExitStack) -> None:
        """Make every part; nothing runs yet."""
        config, service = self.config, self.config.service
        if secrets := list(readable_secrets(config)):
            raise ConfigError("\n".join(secrets))
        directory = directory_for(config.name, service.runtime_directory)
        self._runtime = stack.enter_context(RuntimeDirectory(directory))
        listener = stack.enter_context(listen(service.http))
        sizes = (config.rings.raw_mib * MIB, config.rings.clean_mib * MIB)
        self._ring_bytes: dict[str, int] = dict(zip(("raw", "clean"), sizes, strict=True))
        rings = stack.enter_context(open_rings(config.name, *sizes, directory))
        self._rings: dict[str, RingWriter] = dict(zip(("raw", "clean"), rings, strict=True))
        self._pipeline = Pipeline(config, Rings(*rings), self._ledger)
        self._outputs = self._make_outputs()
        self._views = self._make_views()
        self._trainable = config.denoiser.plugin.build().trainable
        self._trainer = Trainer(
            self._trainer_init(), config.trainer.threads, self._decided, self._argv[1]
        )
        self._model = LiveModel(self._pipeline, self._trainer, self._note)
        self._threads = Threads(self._pipeline.bodies())
        self._make_http(listener)
        self._parts = Parts(
            reloader=self._reloader,
            notifier=self._notifier,
            ledger=self._ledger,
            pipeline=self._pipeline,
            rings=self._rings,
            ring_bytes=self._ring_bytes,
            outputs=self._outputs,
            views=self._views,
            generation=self._runtime.generation,
            trainer=self._trainer,
            model=self._model,
            threads=self._threads,
            access=self._access,
            run_metadata=self._operations.metadata,
        )

    def _make_outputs(self) -> dict[str, OutputProcess]:
        outputs = {}
        for number, sink in enumerate(self.config.sinks):
            if sink.plugin.own_process and not isinstance(sink.plugin, ViewSink):
                name = f"{sink.name}.{number}"
                paths = (self._rings["raw"].path, self._rings["clean"].path)
                outputs[name] = OutputProcess(name, sink, *paths, self._argv[0])
        return outputs

    def _make_views(self) -> dict[str, View]:
        paths = {kind: ring.path for kind, ring in self._rings.items()}
        named = {f"{sink.name}.{number}": sink for number, sink in enumerate(self.config.sinks)}
        return {
            name: View(name, sink, self._runtime.path, paths, self._command)
            for name, sink in named.items()
            if isinstance(sink.plugin, ViewSink)
        }

    async def _command(self, name: str, arguments: Mapping[str, Any], who: str) -> Any:
        return await self._control.run(name, arguments, who)

    def _make_http(self, listener: Any) -> None:
        self.url = url_of(listener)
        host = self.config.service.http.rpartition(":")[0].strip("[]")
        self._access = Access(self._runtime.token, own_names(host))
        telemetry = Telemetry(self.snapshot)
        loop = asyncio.get_running_loop()
        self._pipeline.observe = telemetry.observe
        self._pipeline.on_calibration = lambda found: _call_in(
            loop, self._trainer.calibrated, found
        )
        self._pipeline.shed.on_change = lambda _: _call_in(loop, self._rest_if_overloaded)
        self._operations = Operations(
            self.snapshot,
            self.accounts,
            self._outputs,
            self._trainer,
            self._model,
            self._pipeline,
            self._reload,
            self._note,
        )
        self._control = Control(self._operations)
        endpoints = Endpoints(
            self.snapshot, self.accounts, telemetry.registry, self._control, self._access
        )
        self._http = HttpServer(endpoints.application(), listener)

    def _trainer_init(self) -> dict[str, Any]:
        config = self.config
        checkpoints = config.trainer.checkpoint_directory or self._runtime.path / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        return {
            "type": "init",
            "raw_ring": str(self._rings["raw"].path),
            "config": str(config.path),
            "config_text": config.text,
            "checkpoints": str(checkpoints),
            "cache": str(cache_directory()),
        }

    # -- running ------------------------------------------------------------------------

    async def _start(self) -> None:
        """Outputs first: what is recorded must be there before the first frame."""
        self._http.start()
        self._runtime.publish_address(self.url)
        for output in self._outputs.values():
            output.child.start()
        for view in self._views.values():
            view.child.start()
        children = [output.child for output in (*self._outputs.values(), *self._views.values())]
        waits = [self._started(child) for child in children]
        await asyncio.gather(*waits)
        self._threads.start()
        self._apply_trainer()
        self._state = "running"
        log.info("daemon_ready", url=self.url, runtime_directory=str(self._runtime.path))
        self._notifier.ready(f"reading {self.config.source.name}; {self.url}")

    async def _started(self, child: Child) -> None:
        if await child.wait_ready(START_S):
            return
        if child.exit_code == _EX_CONFIG:
            raise ConfigError(
                f"{self.config.path}: [[sinks]] {child.name}: its process refused the settings; "
                "its own message stands above"
            )
        log.error("output_not_ready", output=child.name, waited_s=START_S)

    def _apply_trainer(self) -> None:
        """Start the trainer if there is something to train and it is wanted."""
        if self.config.trainer.enabled and self._trainable:
            self._trainer.child.start()

    async def _serve(self, signals: Signals) -> None:
        """Wait for the first failure or the end of the source; obey SIGHUP meanwhile."""
        flow = asyncio.create_task(self._threads.failed_or_done())
        try:
            while not flow.done():
                hangup = asyncio.create_task(signals.reload.wait())
                await asyncio.wait({flow, hangup}, return_when=asyncio.FIRST_COMPLETED)
                hangup.cancel()
                if signals.reload.is_set():
                    signals.reload.clear()
                    await self._reload()
        finally:
            flow.cancel()

    async def _until(self, signals: Signals, work: Any) -> None:
        """Do ``work`` to its end or until the daemon is told to stop."""
        task = asyncio.ensure_future(work)
        stop = asyncio.create_task(signals.stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            for waiting in (task, stop):
                waiting.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._tick()

    def _tick(self) -> None:
        """Ping the watchdog, say how it goes and went."""
        snapshot = self.snapshot()
        self._run_log.tell()
        if self._views:
            told = to_json(snapshot)
            for view in self._views.values():
                view.tell(told)
        if self._notifier.watchdog_s is not None and all(c.ok for c in alive(snapshot)):
            self._notifier.ping()
        if self._state == "running":
            self._notifier.status(summary(snapshot))

    def _rest_if_overloaded(self) -> None:
        """Let training rest while it is among what is given up."""
        rests = "overload" in self._trainer.frozen_by
        if self._pipeline.shed.gives_up("training") != rests:
            self._trainer.resume("overload") if rests else self._trainer.freeze("overload")

    # -- events -------------------------------------------------------------------------

    def _decided(self, decision: Decision) -> None:
        task = asyncio.get_running_loop().create_task(self._model.decided(decision))
        self._tasks.add(task)
        task.add_done_callback(self._forget_task)

    def _forget_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("decision_failed", error=repr(task.exception()))

    def _note(self, content: Mapping[str, Any]) -> None:
        for output in self._outputs.values():
            output.note(content)

    async def _reload(self) -> Reload:
        self._notifier.reloading()
        done = await asyncio.to_thread(self._reloader.reload)
        if done.applied:
            configure(self.config.service.log, self.config.service.log_level)
            if self.config.trainer.enabled:
                self._apply_trainer()
            else:
                await self._trainer.child.stop(_TRAINER_STOP_S)
        self._notifier.ready(f"configuration: {done.result}")
        return done

    # -- stopping -----------------------------------------------------------------------

    async def _drain(self, signals: Signals) -> list[str]:
        """Let everything that was accepted come to its end; name what did not."""
        self._state = "draining"
        self._notifier.stopping("draining")
        budget_s = max(self.config.service.drain_s - _CLOSE_S, 0.5)
        log.info("draining", budget_s=budget_s)
        drain = asyncio.create_task(self._drain_in_order(time.monotonic() + budget_s))
        force = asyncio.create_task(signals.force.wait())
        await asyncio.wait({drain, force}, timeout=budget_s, return_when="FIRST_COMPLETED")
        for task in (drain, force):
            task.cancel()
        await asyncio.gather(drain, force, return_exceptions=True)
        if signals.force.is_set():
            log.warning("stopping_by_force")
        return self._left()

    async def _drain_in_order(self, deadline_s: float) -> None:
        """Data first, in order of flow; the trainer need not be waited for."""
        self._pipeline.stop()
        trainer = asyncio.create_task(self._trainer.child.stop(_TRAINER_STOP_S))
        try:
            await self._threads.done()
            for ring in self._rings.values():
                ring.close()
            left_s = max(deadline_s - time.monotonic() - 0.2, 0.1)
            outputs = (self._stop_output(o, left_s) for o in self._outputs.values())
            await asyncio.gather(*outputs, self._stop_views())
            await trainer
        finally:
            trainer.cancel()

    async def _stop_output(self, output: OutputProcess, timeout_s: float) -> None:
        if not await output.child.stop(timeout_s):
            self._killed.append(output.name)

    async def _stop_views(self) -> None:
        """End the views; after a failure a successor is on its way, and clients stay connected."""
        if self._threads.failures:
            await asyncio.gather(*(view.leave() for view in self._views.values()))
        else:
            await asyncio.gather(*(v.child.stop(_VIEW_STOP_S) for v in self._views.values()))

    def _left(self) -> list[str]:
        """Name what did not come to its end."""
        left = [f"thread {name}" for name in self._threads.left]
        hanging = {name for name, output in self._outputs.items() if output.child.pid is not None}
        left += [f"output {name}" for name in sorted({*self._killed, *hanging})]
        stages, rings = self._parts.stages(), self._parts.ring_accounts()
        return left + left_over(stages, rings, [*self._outputs, "denoise"])

    def _verdict(self, left: list[str]) -> int:
        self._run_log.tell(now=True)
        failures = {name: repr(error) for name, error in self._threads.failures.items()}
        for name, error in self._threads.failures.items():
            log.error("thread_failed", thread=name, exc_info=error)
        code = 1 if failures or left else 0
        speak = log.error if code else log.info
        speak(
            "daemon_stopped",
            exit_code=code,
            failures=failures,
            left=left,
            stages=self._parts.stages(),
            rings=self._parts.ring_accounts(),
        )
        return code

    async def _close(self) -> None:
        """End what is left, whatever state it is in."""
        self._state = "stopped"
        children = [output.child for output in self._outputs.values()] + [self._trainer.child]
        await self._stop_views()
        await asyncio.gather(*(child.stop(0.0) for child in children))
        for task in list(self._tasks):
            task.cancel()
        await self._http.stop()

    def snapshot(self) -> dict[str, Any]:
        """Describe everything at one moment."""
        return self._parts.snapshot(self._state)

    def accounts(self) -> dict[str, Any]:
        """Give the account of every frame."""
        return self._parts.accounts()


def _call_in(loop: asyncio.AbstractEventLoop, function: Any, *arguments: Any) -> None:
    """Call in the loop from another thread; after the loop's end, do nothing."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
