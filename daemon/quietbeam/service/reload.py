"""Reads the configuration again while the daemon runs: validated first, all or nothing."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import structlog

from quietbeam.config import Config, Named, load
from quietbeam.core.errors import ConfigError
from quietbeam.service.metrics import RELOAD_RESULTS

LIVE_KEYS = frozenset({"trainer.enabled", "service.log", "service.log_level", "service.drain_s"})
"""What can be changed while frames flow; anything else needs a restart."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reload:
    """What a reload did.

    Attributes:
        result: One of ``RELOAD_RESULTS``.
        applied: Keys that hold from now on.
        restart_required: Keys that differ and will hold after a restart.
        error: Why nothing was changed, or None.
    """

    result: str
    applied: tuple[str, ...] = ()
    restart_required: tuple[str, ...] = ()
    error: str | None = None


class Reloader:
    """Holds the configuration in force.

    Attributes:
        config: In force now.
        pending: Keys of the file that wait for a restart.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.pending: tuple[str, ...] = ()
        self.counts: Counter[str] = Counter(dict.fromkeys(RELOAD_RESULTS, 0))
        self.last_successful = True
        self.last_success_unix_s = time.time()
        self._started_with = config

    def reload(self) -> Reload:
        """Read the file again; on any error the configuration in force stays."""
        try:
            wanted = load(self.config.path)
        except ConfigError as error:
            return self._done(Reload("failed", error=str(error)))
        live = tuple(sorted(_differences(self.config, wanted) & LIVE_KEYS))
        pending = tuple(sorted(_differences(self._started_with, wanted) - LIVE_KEYS))
        self.config = _with_live_keys(self.config, wanted)
        self.pending = pending
        result = "restart_required" if pending else "applied" if live else "unchanged"
        return self._done(Reload(result, live, pending))

    def account(self) -> dict[str, Any]:
        """Describe the configuration for the status page."""
        return {
            "path": str(self.config.path),
            "sha256": self.config.sha256,
            "restart_required": list(self.pending),
            "reloads": dict(self.counts),
            "last_reload_successful": self.last_successful,
            "last_reload_success_unix_s": self.last_success_unix_s,
        }

    def _done(self, reload: Reload) -> Reload:
        self.counts[reload.result] += 1
        self.last_successful = reload.error is None
        if reload.error is None:
            self.last_success_unix_s = time.time()
            log.info("config_reloaded", **dataclasses.asdict(reload))
        else:
            log.error("config_refused", error=reload.error)
        return reload


def _with_live_keys(old: Config, new: Config) -> Config:
    """Take from ``new`` only what can be changed live; the text stays that of the start."""
    service = {name: getattr(new.service, name) for name in ("log", "log_level", "drain_s")}
    return dataclasses.replace(
        old,
        trainer=old.trainer.model_copy(update={"enabled": new.trainer.enabled}),
        service=old.service.model_copy(update=service),
    )


def _differences(old: Config, new: Config) -> set[str]:
    """Name the keys, ``table.key``, in which two configurations differ."""
    before, after = _flat(old), _flat(new)
    return {key for key in before | after if before.get(key) != after.get(key)}


def _flat(config: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.name in {"path", "text"}:
            continue
        value = getattr(config, field.name)
        if isinstance(value, tuple):
            for number, item in enumerate(value, 1):
                _flatten(flat, f"{field.name}[{number}]", item)
        else:
            _flatten(flat, field.name, value)
    return flat


def _flatten(flat: dict[str, Any], table: str, value: Any) -> None:
    if isinstance(value, Named):
        flat[f"{table}.kind"] = value.name
        value = value.plugin
    if hasattr(value, "model_dump"):
        for key, item in value.model_dump(mode="json").items():
            flat[f"{table}.{key}"] = item
    else:
        flat[table] = value
