"""The snapshot of the daemon: what the status page shows and metrics are read from."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quietbeam import __version__
from quietbeam.config import Config
from quietbeam.core.ledger import Ledger
from quietbeam.core.ring import ReaderCount, RingWriter
from quietbeam.pipeline.pipeline import Pipeline
from quietbeam.service.access import Access
from quietbeam.service.accounts import outputs_account, stages_account, views_account
from quietbeam.service.lifecycle import Threads
from quietbeam.service.live_model import LiveModel
from quietbeam.service.outputs import OutputProcess
from quietbeam.service.reload import Reloader
from quietbeam.service.systemd import Notifier
from quietbeam.service.training import Trainer
from quietbeam.service.views import View


@dataclass(slots=True, kw_only=True)
class Parts:
    """Everything the status is read from."""

    reloader: Reloader
    notifier: Notifier
    ledger: Ledger
    pipeline: Pipeline
    rings: Mapping[str, RingWriter]
    ring_bytes: Mapping[str, int]
    outputs: Mapping[str, OutputProcess]
    views: Mapping[str, View]
    generation: int
    trainer: Trainer
    model: LiveModel
    threads: Threads
    access: Access
    run_metadata: Mapping[str, Any]
    began_s: float = field(default_factory=time.monotonic)
    began_unix_s: float = field(default_factory=time.time)

    def snapshot(self, state: str) -> dict[str, Any]:
        """Describe everything at one moment; ``state`` is the daemon's."""
        pipeline, config = self.pipeline.snapshot(), self.reloader.config
        stages, rings = self.stages(), self.ring_accounts()
        return {
            "name": config.name,
            "version": __version__,
            "pid": os.getpid(),
            "state": state,
            "generation": self.marker(),
            "uptime_s": round(time.monotonic() - self.began_s, 3),
            "config": self.reloader.account(),
            "source": _source(config.source.name, pipeline),
            "pipeline": pipeline,
            "noise": noise_account(pipeline),
            "frames": self.ledger.source().as_dict(),
            "run": self.ledger.run(ranges=False),
            "processing": {"on": self.pipeline.on},
            "run_metadata": dict(self.run_metadata),
            **self.pipeline.declared(),
            "alarms": self.pipeline.alarms.active(),
            "alarms_raised": self.pipeline.alarms.raised(),
            "ledger": stages,
            "output_accounts": self.output_accounts(),
            "sinks": [f"{sink.name}.{number}" for number, sink in enumerate(config.sinks)],
            "connections": self.pipeline.connections(),
            "rings": rings,
            "balanced": is_balanced(stages, rings),
            "queues": _queues(config, pipeline),
            "degradation": self.pipeline.shed.state,
            "shedding": self.pipeline.shed.account() | {"frames": self.ledger.notes("shed")},
            "model": self.model.account(),
            "trainer": self.trainer.account(),
            "decisions": list(self.model.decisions),
            "outputs": {name: output.account() for name, output in self.outputs.items()},
            "views": {name: view.account() for name, view in self.views.items()},
            "children": self.children(),
            "threads": self.thread_account(),
            "heartbeats": pipeline["heartbeat_age_s"],
            "auth_failures": {f"{e}:{r}": n for (e, r), n in self.access.failures.items()},
            "watchdog_last_ping_unix_s": self.notifier.last_ping_s,
        }

    def marker(self) -> dict[str, Any]:
        """Say which daemon speaks: a value of another one is stale, however new it looks."""
        return {
            "number": self.generation,
            "version": __version__,
            "started_unix_s": round(self.began_unix_s, 6),
        }

    def stages(self) -> dict[str, dict[str, Any]]:
        """Give every stage's account."""
        return stages_account(self.ledger)

    def output_accounts(self) -> dict[str, dict[str, Any]]:
        """Give the accounts of the output processes."""
        views = views_account(self.views, self.rings)
        return outputs_account(self.outputs, self.rings) | views

    def accounts(self) -> dict[str, Any]:
        """Give the account of every frame: by source, stage and output, and by run."""
        stages, rings = self.stages(), self.ring_accounts()
        return {
            "balanced": is_balanced(stages, rings),
            "source": self.ledger.source().as_dict(),
            "stages": stages,
            "outputs": self.output_accounts(),
            "rings": rings,
            "alarms": self.pipeline.alarms.active(),
            "alarms_raised": self.pipeline.alarms.raised(),
            "run": self.ledger.run(),
            "runs": self.ledger.runs_over(),
        }

    def ring_accounts(self) -> dict[str, dict[str, Any]]:
        """Give both rings' accounts, with all readers."""
        return {
            name: ring_account(ring, self.ring_bytes[name]) for name, ring in self.rings.items()
        }

    def children(self) -> dict[str, dict[str, Any]]:
        """Give the account of every child process."""
        found = {name: output.child.account() for name, output in self.outputs.items()}
        found |= {name: view.child.account() for name, view in self.views.items()}
        return found | {"trainer": self.trainer.child.account()}

    def thread_account(self) -> dict[str, Any]:
        """Say which threads were started, run and failed."""
        failed = {name: repr(error) for name, error in self.threads.failures.items()}
        return {"started": self.threads.started, "running": self.threads.left, "failed": failed}


def summary(status: Mapping[str, Any]) -> str:
    """Say how it goes in one line, for ``systemctl status``."""
    pipeline = status["pipeline"]
    alarms = "".join(f", ALARM {name}" for name in status["alarms"])
    return (
        f"{status['source']['state']}, {pipeline['received_hz']:.1f} frames/s, "
        f"model {status['model']['version']}{alarms}"
    )


def _source(kind: str, pipeline: Mapping[str, Any]) -> dict[str, Any]:
    state = str(pipeline["source"])
    return {"kind": kind, "state": state, "up": not state.startswith(("failed", "ended"))}


def _queues(config: Config, pipeline: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    room = config.service.max_backlog_frames
    return {"frames": {"denoise": pipeline["backlog"]}, "capacity": {"denoise": room}}


def noise_account(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """Say what is known of the noise; ``pipeline`` is its snapshot.

    ``trusted`` tells whether the PSNR figures hold, ``correlation`` has one
    number an axis (see ``NoiseCorrelation``), without those not known;
    ``message`` puts in words what an operator should know.
    """
    prefix = "correlation_"
    known = {
        name.removeprefix(prefix): value
        for name, value in pipeline.items()
        if name.startswith(prefix) and value is not None
    }
    trusted = pipeline.get("trusted")
    return {
        "trusted": None if trusted is None else bool(trusted),
        "correlation": known,
        "message": pipeline.get("message"),
    }


def ring_account(ring: RingWriter, capacity_bytes: int) -> dict[str, Any]:
    """Give one ring's account, with all its readers."""
    return {
        "path": str(ring.path),
        "frames": ring.frames,
        "capacity_bytes": capacity_bytes,
        "readers": [_reader(reader) for reader in ring.readers()],
    }


def is_balanced(stages: Mapping[str, Mapping[str, Any]], rings: Mapping[str, Any]) -> bool:
    """Tell whether no stage and no reader has given away more than it took."""
    accounts = [*stages.values()]
    accounts += [reader for ring in rings.values() for reader in ring["readers"]]
    return all(account["in_flight"] >= 0 for account in accounts)


def left_over(
    stages: Mapping[str, Mapping[str, Any]], rings: Mapping[str, Any], needed: Iterable[str]
) -> list[str]:
    """Name what is not accounted for once everything is at rest.

    ``needed`` are the ring readers that must have come to the end.
    """
    left = [
        f"{account['in_flight']} frames in stage {name}"
        for name, account in stages.items()
        if account["in_flight"]
    ]
    for ring, account in rings.items():
        left += [
            f"{reader['in_flight']} frames of the {ring} ring not read by {reader['name']}"
            for reader in account["readers"]
            if reader["in_flight"] and reader["name"] in set(needed)
        ]
    return left


def _reader(count: ReaderCount) -> dict[str, Any]:
    return {
        "name": count.name,
        "read": count.read,
        "lost": count.lost,
        "skipped": count.skipped,
        "in_flight": count.in_flight,
        "acked_frames": count.acked_frames,
        "heartbeat_age_s": round(count.heartbeat_age_s, 3),
    }
