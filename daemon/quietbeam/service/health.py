"""Whether the daemon lives and whether it is ready: the same checks for HTTP and watchdog."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

STALE_S = {"ingest": 5.0, "denoise": 60.0}
"""A component whose heartbeat is older is not alive; denoise builds engines at run starts."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        name: Of the component.
        ok: It is as it should be.
        reason: What was seen, in words.
    """

    name: str
    ok: bool
    reason: str


def alive(status: Mapping[str, Any]) -> list[Check]:
    """Check that nothing the data flow through has stopped or hangs.

    ``status`` is the daemon's snapshot.  A child that is being restarted does
    not count: its supervisor is at work.
    """
    checks = [
        Check("threads", not status["threads"]["failed"], _threads(status["threads"])),
    ]
    if status["state"] != "running":
        return checks
    missing = [name for name in status["threads"]["started"] if name not in _running(status)]
    if missing:
        checks.append(Check("flow", ok=False, reason=f"ended: {', '.join(missing)}"))
    for name, age_s in status["heartbeats"].items():
        stale_s = STALE_S.get(name, 60.0)
        checks.append(Check(name, age_s <= stale_s, f"last heartbeat {age_s:.1f} s ago"))
    return checks


def ready(status: Mapping[str, Any]) -> list[Check]:
    """Check that frames would be taken in, cleaned and recorded if they came now."""
    state = status["state"]
    checks = [Check("daemon", state == "running", state), _source(status), _model(status)]
    checks.append(_alarms(status))
    checks += [_output(name, output) for name, output in status["outputs"].items()]
    checks += [_view(name, view) for name, view in status["views"].items()]
    return checks


def document(checks: Iterable[Check]) -> tuple[bool, dict[str, Any]]:
    """Give whether all is well, and the answer to send."""
    listed = list(checks)
    well = all(check.ok for check in listed)
    details = {check.name: {"ok": check.ok, "reason": check.reason} for check in listed}
    return well, {"ok": well, "checks": details}


def _threads(threads: Mapping[str, Any]) -> str:
    failed = threads["failed"]
    return "all running" if not failed else "; ".join(f"{k}: {v}" for k, v in failed.items())


def _running(status: Mapping[str, Any]) -> list[str]:
    return list(status["threads"]["running"])


def _source(status: Mapping[str, Any]) -> Check:
    state = str(status["source"].get("state") or "unknown")
    return Check("source", bool(status["source"]["up"]), state)


def _alarms(status: Mapping[str, Any]) -> Check:
    """An alarm is about the producer; we are as ready as before."""
    said = [f"{name}: {alarm['message']}" for name, alarm in status["alarms"].items()]
    return Check("alarms", ok=True, reason="; ".join(said) or "none")


def _model(status: Mapping[str, Any]) -> Check:
    name = status["pipeline"].get("denoiser")
    version = status["model"]["version"]
    shown = f"{name or 'not built yet'}, version {version}"
    return Check("model", ok=True, reason=shown + (" (classical)" if version == 0 else ""))


def _output(name: str, output: Mapping[str, Any]) -> Check:
    state = str(output["status"].get("state", "unknown"))
    ok = bool(output.get("up")) and state not in {"failed", "disk_full"}
    return Check(f"output:{name}", ok, state if output.get("up") else "not running")


def _view(name: str, view: Mapping[str, Any]) -> Check:
    """A view that is being restarted costs no frame: as ready as before."""
    return Check(f"view:{name}", ok=True, reason="serving" if view["up"] else "not running")
