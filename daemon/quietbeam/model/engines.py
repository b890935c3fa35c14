"""Chooses and builds the engine that the configuration asks for."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

from quietbeam.config import EngineConfig
from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.engine import Engine
from quietbeam.core.errors import ConfigError


def build_engine(
    module: StreamingDenoiser,
    shape: tuple[int, ...],
    config: EngineConfig,
    *,
    onnx: Path | None = None,
) -> Engine:
    """Build an engine for ``module`` at ``shape``, with the module's own weights live.

    Args:
        module: The denoiser; it is copied or exported, never changed.
        shape: (h, w) in pixels, each at least 16; (c, h, w) with several channels.
        config: The table ``[engine]``.
        onnx: What ``export.export`` gave for this module earlier; None exports
            it now, or finds it in the user's cache.

    Raises:
        ConfigError: This machine cannot do what ``config`` asks for.
        EngineError: The module cannot be exported or compiled.
    """
    kind = engine_kind(config)
    if kind == "torch":
        from quietbeam.model.torch_engine import TorchEngine

        if config.precision == "bf16":
            raise ConfigError(
                '[engine] precision = "bf16": the torch engine computes in f32 only; '
                'use kind = "openvino" or precision = "auto"'
            )
        return TorchEngine(module, shape, threads=config.threads)
    from quietbeam.model.openvino_engine import OpenVinoEngine, precision_for

    precision = precision_for(config.precision, module)
    return OpenVinoEngine(
        module,
        shape,
        onnx=onnx,
        cache=cache_directory(),
        precision=precision,
        threads=config.threads,
    )


def engine_kind(config: EngineConfig) -> str:
    """Give ``"openvino"`` or ``"torch"``: what ``config`` means on this machine.

    Raises:
        ConfigError: OpenVINO is asked for and not installed.
    """
    installed = importlib.util.find_spec("openvino") is not None
    if config.kind == "openvino" and not installed:
        raise ConfigError('[engine] kind = "openvino": openvino is not installed; use kind "torch"')
    if config.kind == "auto":
        return "openvino" if installed else "torch"
    return config.kind


def cache_directory() -> Path:
    """Give a writable folder for exported networks: the user's cache, else a temporary one."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "quietbeam"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError:
        # A service without a home: the export is then done once per process.
        return Path(tempfile.mkdtemp(prefix="quietbeam-"))
    return directory
