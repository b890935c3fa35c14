"""What viewers are told: freshness, banners, the model card.  Made from the daemon's status."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from quietbeam_plugins.sinks.web.buffer import Buffer

_WINDOW_S = 30.0
_STREAM_STAGES = ("ingest", "denoise", "publish")
"""Frames given up there are lost to everybody; those of a slow consumer are its own affair."""
_LEVELS = {"alarm": 0, "warning": 1, "info": 2}
_WHY = {
    "backlog": "denoising does not keep up",
    "overload": "denoising does not keep up",
    "overwritten": "the ring was overwritten before they were read",
    "no_room": "the ring was full",
    "disk_full": "the disk is full",
    "failed": "a part of the daemon failed",
}

Banner = dict[str, Any]


class Standing:
    """Composes the ``status`` message; remembers what counters were half a minute ago."""

    def __init__(self) -> None:
        self._drops: deque[tuple[float, dict[str, int]]] = deque()
        self._loss: deque[tuple[int, float]] = deque(maxlen=400)

    def message(
        self, status: Mapping[str, Any], buffer: Buffer, *, connected: bool, viewers: int
    ) -> dict[str, Any]:
        """Give the ``status`` message from the daemon's snapshot and what this process sees."""
        pipeline = status.get("pipeline") or {}
        fresh = freshness(buffer, connected=connected)
        drops = _drops(status)
        recent = self._recent(drops)
        self._remember_loss(status)
        return {
            "type": "status",
            "connected": connected,
            "state": status.get("state", "unknown") if connected else "unreachable",
            "unix_time_s": time.time(),
            "freshness": fresh,
            "banners": banners(status, fresh, recent, buffer),
            "rates": {
                key: pipeline.get(key)
                for key in ("received_hz", "clean_hz", "latency_p50_s", "latency_p99_s")
            },
            "frames": {
                "received": (status.get("frames") or {}).get("received", 0),
                "cleaned": _cleaned(status),
                "missing": _missing(status),
                "dropped": drops,
            },
            "degradation": status.get("degradation", "normal"),
            "model": model_card(status),
            "training": self._training(status),
            "recorder": recorder(status),
            "viewers": viewers,
        }

    def _recent(self, drops: dict[str, int]) -> dict[str, int]:
        """Give what was dropped in the last half minute, by ``stage:reason``."""
        now = time.monotonic()
        self._drops.append((now, drops))
        while now - self._drops[0][0] > _WINDOW_S:
            self._drops.popleft()
        before = self._drops[0][1]
        changes = {name: count - before.get(name, 0) for name, count in drops.items()}
        return {name: count for name, count in changes.items() if count > 0}

    def _remember_loss(self, status: Mapping[str, Any]) -> None:
        progress = (status.get("trainer") or {}).get("progress") or {}
        steps, loss = progress.get("steps"), progress.get("loss")
        if steps is None or loss is None:
            return
        if self._loss and steps < self._loss[-1][0]:
            self._loss.clear()  # training began anew
        if not self._loss or steps > self._loss[-1][0]:
            self._loss.append((int(steps), float(loss)))

    def _training(self, status: Mapping[str, Any]) -> dict[str, Any]:
        trainer = status.get("trainer") or {}
        progress = trainer.get("progress") or {}
        frozen = bool(trainer.get("frozen_by")) or bool(progress.get("frozen"))
        state = "frozen" if frozen else "training" if trainer.get("up") else "off"
        return {
            "state": state,
            "frozen_by": trainer.get("frozen_by") or [],
            "steps": progress.get("steps", 0),
            "steps_per_s": progress.get("steps_per_s"),
            "loss": {"step": [s for s, _ in self._loss], "loss": [v for _, v in self._loss]},
        }


def freshness(buffer: Buffer, *, connected: bool) -> dict[str, Any]:
    """Tell whether the newest picture may be shown as live."""
    newest, run = buffer.newest(), buffer.run
    age_s = None if newest is None else max(0.0, time.time() - newest.unix_s)
    limit_s = 2.0 if run is None else max(2.0, 5 * (run.frame_time_s or 0.0))
    started_s = buffer.started_unix_s
    silent_s = min(
        (
            s
            for s in (age_s, None if started_s is None else time.time() - started_s)
            if s is not None
        ),
        default=0.0,
    )
    if not connected:
        state = "lost"
    elif run is None or (newest is None and silent_s <= limit_s):
        state = "waiting"
    elif buffer.end is not None:
        state = "idle"
    else:
        state = "stale" if silent_s > limit_s else "live"
    return {"state": state, "age_s": age_s, "limit_s": limit_s}


def model_card(status: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what cleans the stream now, and why."""
    pipeline, model = status.get("pipeline") or {}, status.get("model") or {}
    version = pipeline.get("model_version") or 0
    trusted = pipeline.get("trusted")
    return {
        "denoiser": pipeline.get("denoiser"),
        "version": version,
        "classical": version == 0,
        "age_s": model.get("age_s"),
        "held": bool(model.get("held")),
        "fallback": model.get("fallback"),
        "promotions": [
            {key: p.get(key) for key in ("version", "unix_time_s", "denoiser", "reason")}
            for p in model.get("promotions") or []
        ],
        "decisions": [decision(d) for d in list(status.get("decisions") or [])[-10:]],
        "psnr_raw_db": pipeline.get("psnr_raw_db"),
        "psnr_estimated_db": pipeline.get("psnr_estimated_db"),
        "psnr_error_db": pipeline.get("psnr_error_db"),
        "trusted": None if trusted is None else bool(trusted),
    }


def decision(given: Mapping[str, Any]) -> dict[str, Any]:
    """Describe one decision of the gate, with every number it was made by."""
    named = ("unix_time_s", "action", "version", "applied", "refused", "reason")
    numbers = {
        key: value
        for key, value in given.items()
        if key not in named and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {**{key: given.get(key) for key in named}, "numbers": numbers}


def recorder(status: Mapping[str, Any]) -> dict[str, Any] | None:
    """Describe the first output that records; None where there is none."""
    for name, output in (status.get("outputs") or {}).items():
        state = output.get("status") or {}
        if "raw_written" not in (output.get("totals") or {}):
            continue
        file = state.get("file")
        return {
            "name": name,
            "state": state.get("state", "off") if output.get("up") else "down",
            "on": state.get("state") in {"recording", "disk_full"},
            "file": None if file is None else str(file).rsplit("/", 1)[-1].removesuffix(".part"),
            "raw_written": output["totals"].get("raw_written", 0),
            "clean_written": output["totals"].get("clean_written", 0),
            "free_bytes": state.get("free_bytes"),
        }
    return None


def banners(
    status: Mapping[str, Any],
    fresh: Mapping[str, Any],
    recent_drops: Mapping[str, int],
    buffer: Buffer,
) -> list[Banner]:
    """Say everything an operator must not overlook, worst first."""
    if fresh["state"] == "lost":
        return [_lost(fresh)]
    found = [
        *_freshness_banners(fresh, status),
        *_drop_banners(recent_drops),
        *_alarm_banners(status),
        *_load_banners(status),
        *_recorder_banners(status),
        *_model_banners(status, buffer),
        *_noise_banners(status),
    ]
    return sorted(found, key=lambda banner: _LEVELS[banner["level"]])


def _banner(name: str, level: str, title: str, text: str) -> Banner:
    return {"id": name, "level": level, "title": title, "text": text}


def _lost(fresh: Mapping[str, Any]) -> Banner:
    age = fresh["age_s"]
    shown = "Nothing was seen yet." if age is None else f"The picture is {age:.0f} s old."
    text = f"{shown} The view goes on by itself when the daemon is back."
    return _banner("lost", "alarm", "The daemon does not answer", text)


def _freshness_banners(fresh: Mapping[str, Any], status: Mapping[str, Any]) -> list[Banner]:
    if fresh["state"] != "stale":
        return []
    age = fresh["age_s"]
    arrived_s = (status.get("pipeline") or {}).get("last_frame_age_s")
    if age is not None and arrived_s is not None and arrived_s < fresh["limit_s"]:
        text = "Frames arrive, but are cleaned late or not at all. The picture is not live."
        return [_banner("stale", "alarm", f"The picture is {age:.0f} s behind the detector", text)]
    title = "No frame of this run yet" if age is None else f"No new frames for {age:.0f} s"
    text = "The run goes on, but the detector sends nothing. The picture is not live."
    return [_banner("stale", "alarm", title, text)]


def _drop_banners(recent: Mapping[str, int]) -> list[Banner]:
    if not recent:
        return []
    reasons = [f"{n} in {_said(name)}" for name, n in recent.items()]
    title = f"{sum(recent.values())} frames dropped in the last {_WINDOW_S:.0f} s"
    return [_banner("dropped", "alarm", title, "; ".join(reasons) + ".")]


def _said(name: str) -> str:
    stage, _, reason = name.rpartition(":")
    return f"{stage}: {_WHY.get(reason, reason.replace('_', ' '))}"


def _alarm_banners(status: Mapping[str, Any]) -> list[Banner]:
    found = [
        _banner(f"alarm.{name}", "alarm", name.replace("_", " ").capitalize(), str(a["message"]))
        for name, a in (status.get("alarms") or {}).items()
    ]
    missing = _missing(status)
    if missing and not found:
        text = "The detector's numbers have gaps: these frames never reached quietbeam."
        found.append(
            _banner("missing", "warning", f"{missing} frames of this run never came", text)
        )
    return found


def _load_banners(status: Mapping[str, Any]) -> list[Banner]:
    state = status.get("degradation", "normal")
    if state == "normal":
        return []
    text = "Frames come faster than they are cleaned; given up first: display, training, analyses."
    return [_banner("shed", "warning", f"Overload: {state} is given up", text)]


def _recorder_banners(status: Mapping[str, Any]) -> list[Banner]:
    told = recorder(status)
    if told is None or told["state"] in {"recording", "idle", "off"}:
        return []
    title = {"disk_full": "Recording stopped: the disk is full"}.get(
        told["state"], f"The recorder has a problem: {told['state']}"
    )
    return [_banner("recorder", "alarm", title, "Raw frames are not being written.")]


def _model_banners(status: Mapping[str, Any], buffer: Buffer) -> list[Banner]:
    newest = buffer.newest()
    if newest is not None and newest.clean is None:
        text = "What is shown are raw frames; no cleaned ones arrive."
        return [_banner("raw_only", "warning", "Raw only: frames are not being cleaned", text)]
    card = model_card(status)
    if not card["denoiser"] or not card["classical"]:
        return []
    filter_ = card["denoiser"]
    if card["held"]:
        text = f"The {filter_} filter runs until promoted models are let in again."
        return [_banner("held", "info", "Classical filter, held by an operator", text)]
    text = f"The {filter_} filter runs until a trained model has been proven better on this stream."
    return [_banner("classical", "info", "Classical filter: no model is proven yet", text)]


def _noise_banners(status: Mapping[str, Any]) -> list[Banner]:
    noise = status.get("noise") or {}
    text = noise.get("message")
    if noise.get("trusted") is False:
        why = text or "The noise has no zero mean (impulses): estimated quality would be wrong."
        title = "The quality figure cannot be trusted"
        return [_banner("noise", "warning", title, str(why))]
    if text:
        title = "The noise violates an assumption of the method"
        return [_banner("noise", "warning", title, str(text))]
    return []


def _drops(status: Mapping[str, Any]) -> dict[str, int]:
    """Give frames lost to everybody, by ``stage:reason``."""
    ledger = status.get("ledger") or {}
    stages = {name: ledger[name] for name in _STREAM_STAGES if name in ledger}
    recorders = {
        name: account
        for name, account in (status.get("output_accounts") or {}).items()
        if name.split(":")[0].startswith("hdf5")
    }
    return {
        f"{stage}:{reason}": int(count)
        for stage, account in (stages | recorders).items()
        for reason, count in (account.get("dropped") or {}).items()
        if count
    }


def _cleaned(status: Mapping[str, Any]) -> int:
    return int(((status.get("ledger") or {}).get("denoise") or {}).get("sent", 0))


def _missing(status: Mapping[str, Any]) -> int:
    run = status.get("run") or {}
    return int((run.get("source") or {}).get("missing", 0)) if run.get("reason") is None else 0
