"""Reads the TOML file into frozen settings; every error names file, table and key."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from quietbeam.core.errors import ConfigError
from quietbeam.core.plugin import (
    AnalysisPlugin,
    CorrectionPlugin,
    DenoiserPlugin,
    Plugin,
    SinkPlugin,
    SourcePlugin,
)
from quietbeam.registry import find

P = TypeVar("P", bound=Plugin)
S = TypeVar("S", bound=BaseModel)


class Section(BaseModel):
    """A table of the file that is no plugin."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineConfig(Section):
    """How networks are executed."""

    kind: Literal["auto", "tensorrt", "cuda", "openvino", "torch"] = "auto"
    """``auto`` takes the first that works: tensorrt and cuda (torch) on a GPU, openvino, torch."""
    precision: Literal["auto", "f32", "bf16", "f16"] = "auto"
    """``auto`` takes f16 in tensorrt, f32 in cuda, on a processor bf16 if it has it, else f32."""
    swap: Literal["inputs", "refit"] = "inputs"
    """How weights change in tensorrt: as inputs of the network, or by refitting an idle engine."""
    threads: PositiveInt = 1


class CalibrationConfig(Section):
    """The photon-transfer fit at the start of every run."""

    frames: PositiveInt = 16
    """Frames looked at before the first clean one; they are cleaned as well."""
    gain: PositiveFloat | None = None
    """Counts per photon, if known; with ``offset_variance`` it replaces the fit."""
    offset_variance: NonNegativeFloat | None = None
    """Noise variance at zero signal in counts squared, if known."""


class TrainerConfig(Section):
    """Training while the experiment runs."""

    enabled: bool = True
    batch: PositiveInt = 8
    patch_px: PositiveInt = 64
    learning_rate: PositiveFloat = 2e-3
    ema_decay: float = Field(default=0.99, gt=0, lt=1)
    candidate_every_s: PositiveFloat = 10.0
    classical: tuple[str, ...] = ("kalman", "median", "svd")
    """What the gate may put in the place of [fallback] where it is better on this stream.

    Kinds of classical denoisers, each with its default settings; that of
    [fallback] has its own and need not be named.
    """
    history_mib: PositiveInt = 256
    """Memory for the recent frames and the reservoir, together."""
    threads: PositiveInt = 1
    checkpoint_directory: Path | None = None
    """None keeps checkpoints in the runtime directory: gone with the daemon."""
    seed: int = 0


class RingsConfig(Section):
    """The two shared-memory rings, each in MiB."""

    raw_mib: PositiveInt = 256
    clean_mib: PositiveInt = 256


class ServiceConfig(Section):
    """The daemon itself."""

    http: str = "127.0.0.1:9469"
    """Address of /metrics, /healthz, /readyz, /api/v1; port 0 picks a free one."""
    runtime_directory: Path | None = None
    """For the control token, the rings' names, checkpoints; None makes a private one."""
    log: Literal["auto", "console", "json"] = "auto"
    """``auto`` writes for people on a terminal, else one JSON object per line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    drain_s: PositiveFloat = 8.0
    max_backlog_frames: PositiveInt = 64
    """Frames that may wait for the denoiser before the oldest are given up."""


@dataclass(frozen=True, slots=True)
class Named(Generic[P]):
    """A plugin's settings under the name it was chosen by."""

    name: str
    plugin: P


@dataclass(frozen=True, slots=True)
class Config:
    """One validated file."""

    path: Path
    text: str
    name: str
    source: Named[SourcePlugin]
    corrections: tuple[Named[CorrectionPlugin], ...]
    denoiser: Named[DenoiserPlugin]
    fallback: Named[DenoiserPlugin]
    alternatives: tuple[Named[DenoiserPlugin], ...]
    analyses: tuple[Named[AnalysisPlugin], ...]
    sinks: tuple[Named[SinkPlugin], ...]
    engine: EngineConfig
    calibration: CalibrationConfig
    trainer: TrainerConfig
    rings: RingsConfig
    service: ServiceConfig

    @property
    def classical(self) -> tuple[Named[DenoiserPlugin], ...]:
        """What may run without a network: the fallback, then its alternatives."""
        return (self.fallback, *self.alternatives)

    @property
    def sha256(self) -> str:
        """Of the file's text: recorded with every result."""
        return hashlib.sha256(self.text.encode()).hexdigest()


SECTIONS = {
    "engine": EngineConfig,
    "calibration": CalibrationConfig,
    "trainer": TrainerConfig,
    "rings": RingsConfig,
    "service": ServiceConfig,
}
_TABLES = {*SECTIONS, "name", "source", "corrections", "denoiser", "fallback", "analyses", "sinks"}


def load(path: Path) -> Config:
    """Read and validate ``path``; starts and opens nothing.

    Raises:
        ConfigError: Names the file, the table, the key, what was got and what
            would do.
    """
    return parse(_read(path), path)


def load_service(path: Path) -> tuple[str, ServiceConfig]:
    """Read only the name and the table [service]: no plugin is imported.

    Raises:
        ConfigError: As for ``load``, for what is read.
    """
    reader = _Tables(path, _tables(_read(path), path))
    return reader.text("name", path.stem), reader.section("service", ServiceConfig)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _tables(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def parse(text: str, path: Path) -> Config:
    """Validate the text of a configuration; ``path`` is for messages only.

    Raises:
        ConfigError: As for ``load``.
    """
    reader = _Tables(path, _tables(text, path))
    reader.refuse_unknown()
    fallback = reader.plugin("fallback", "denoisers", DenoiserPlugin, default="kalman")
    trainer = reader.section("trainer", TrainerConfig)
    others = [name for name in dict.fromkeys(trainer.classical) if name != fallback.name]
    return Config(
        path=path,
        text=text,
        name=reader.text("name", path.stem),
        source=reader.plugin("source", "sources", SourcePlugin),
        corrections=reader.plugins("corrections", "corrections", CorrectionPlugin),
        denoiser=reader.plugin("denoiser", "denoisers", DenoiserPlugin, default="quiet"),
        fallback=fallback,
        alternatives=tuple(
            reader.named("[trainer] classical", "denoisers", DenoiserPlugin, {"kind": name})
            for name in others
        ),
        analyses=reader.plugins("analyses", "analyses", AnalysisPlugin),
        sinks=reader.plugins("sinks", "sinks", SinkPlugin),
        engine=reader.section("engine", EngineConfig),
        calibration=reader.section("calibration", CalibrationConfig),
        trainer=trainer,
        rings=reader.section("rings", RingsConfig),
        service=reader.section("service", ServiceConfig),
    )


class _Tables:
    """The tables of one file, read one by one."""

    def __init__(self, path: Path, tables: dict[str, Any]) -> None:
        self._path = path
        self._tables = tables

    def refuse_unknown(self) -> None:
        unknown = sorted(set(self._tables) - _TABLES)
        if unknown:
            known = ", ".join(sorted(_TABLES))
            raise ConfigError(f"{self._path}: unknown table or key {unknown[0]!r}; known: {known}")

    def text(self, key: str, default: str) -> str:
        value = self._tables.get(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self._path}: {key} = {value!r}: expected a text")
        return value

    def section(self, name: str, model: type[S]) -> S:
        table = self._tables.get(name, {})
        return self._validated(f"[{name}]", model, table)

    def plugin(self, table: str, kind: str, base: type[P], default: str | None = None) -> Named[P]:
        settings = self._tables.get(table)
        if settings is None and default is not None:
            settings = {"kind": default}
        if settings is None:
            raise ConfigError(f"{self._path}: the table [{table}] is missing")
        return self.named(f"[{table}]", kind, base, settings)

    def plugins(self, table: str, kind: str, base: type[P]) -> tuple[Named[P], ...]:
        entries = self._tables.get(table, [])
        if not isinstance(entries, list):
            raise ConfigError(f"{self._path}: write [[{table}]] (a list of tables), not [{table}]")
        return tuple(
            self.named(f"[[{table}]] #{number}", kind, base, settings)
            for number, settings in enumerate(entries, 1)
        )

    def named(self, where: str, kind: str, base: type[P], settings: Any) -> Named[P]:
        if not isinstance(settings, dict) or not isinstance(settings.get("kind"), str):
            raise ConfigError(f'{self._path}: {where} needs kind = "...", the name of a plugin')
        rest = {key: value for key, value in settings.items() if key != "kind"}
        try:
            cls = find(kind, settings["kind"], base)
        except ConfigError as error:
            raise ConfigError(f"{self._path}: {where} kind: {error}") from error
        return Named(settings["kind"], self._validated(where, cls, rest))

    def _validated(self, where: str, model: type[S], table: Any) -> S:
        try:
            return model.model_validate(table)
        except ValidationError as error:
            raise ConfigError(self._explain(where, model, error)) from error

    def _explain(self, where: str, model: type[BaseModel], error: ValidationError) -> str:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "(table)"
            line = f"{self._path}: {where} {key}: {problem['msg']}"
            if problem["type"] == "extra_forbidden":
                line += f"; known keys: {', '.join(model.model_fields)}"
            else:
                line += f", got {problem['input']!r}"
            lines.append(line)
        return "\n".join(lines)
