"""Finds TensorRT: ``tensorrt`` (10, 11) or ``tensorrt_rtx``, served by the same calls."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import structlog

from quietbeam.core.errors import EngineError

NAMES = ("tensorrt", "tensorrt_rtx")
"""Modules, the preferred one first."""

HOW_TO_INSTALL = (
    "pip install 'quietbeam[rtx]' (TensorRT for RTX, 0.25 GB) or 'quietbeam[gpu]' (TensorRT, 4 GB, "
    "for data-centre GPUs)"
)


@dataclass(frozen=True, slots=True)
class Library:
    """An imported TensorRT."""

    name: str
    module: Any

    @property
    def version(self) -> str:
        """As the module says it."""
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        """Compiles kernels on the machine that runs them; plans are made without a GPU."""
        return self.name == "tensorrt_rtx"

    def flag(self, name: str) -> Any | None:
        """Give a builder flag; None where this version has none of that name."""
        return getattr(self.module.BuilderFlag, name, None)

    def network_flags(self) -> int:
        """Types come from the graph: asked for in 10, the only way later."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        major = int(self.version.split(".")[0])
        return 1 << int(flag) if flag is not None and not self.is_rtx and major < 11 else 0


def installed() -> list[str]:
    """Names of the modules that are there, preferred first; imports none."""
    return [name for name in NAMES if importlib.util.find_spec(name) is not None]


@cache
def load(name: str | None = None) -> Library:
    """Import ``name``, or the first of ``NAMES`` that can be imported.

    Raises:
        EngineError: There is none; says why each cannot be imported, and how to install one.
    """
    reasons = []
    for each in (name,) if name else NAMES:
        try:
            return Library(each, importlib.import_module(each))
        except (ImportError, OSError) as error:  # its libraries are loaded on import
            reasons.append(f"{each}: {error}")
    raise EngineError(f"TensorRT cannot be used ({'; '.join(reasons)}); {HOW_TO_INSTALL}")


@cache
def logger(library: Library) -> Any:
    """Give the one that TensorRT writes to: the first one of a process counts."""
    severity = library.module.ILogger.Severity
    log = structlog.get_logger(library=library.name)

    class ToLog(library.module.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level <= severity.ERROR:
                self.errors.append(message.strip())
                log.error("tensorrt", message=message)
            elif level == severity.WARNING:
                log.debug("tensorrt", message=message)

    return ToLog()
