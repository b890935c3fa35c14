"""Chooses and builds the engine that the configuration asks for."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

import structlog

from quietbeam.config import EngineConfig
from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.engine import Engine
from quietbeam.core.errors import ConfigError, EngineError
from quietbeam.model import gpu, tensorrt_library

log = structlog.get_logger()


def build_engine(
    module: StreamingDenoiser,
    shape: tuple[int, ...],
    config: EngineConfig,
    *,
    onnx: Path | None = None,
) -> Engine:
    """Build an engine for ``module`` at ``shape``, with the module's own weights live.

    With ``kind = "auto"`` an engine that cannot be built gives way to the next
    of ``engine_order``; the reason is logged.

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
    *preferred, last = engine_order(config)
    for kind in preferred:
        try:
            return _build(kind, module, shape, config, onnx)
        except EngineError as error:
            log.warning("engine_not_used", engine=kind, reason=str(error))
    return _build(last, module, shape, config, onnx)


def _build(
    kind: str,
    module: StreamingDenoiser,
    shape: tuple[int, ...],
    config: EngineConfig,
    onnx: Path | None,
) -> Engine:
    if kind == "torch":
        return _torch(module, shape, config)
    if kind == "openvino":
        return _openvino(module, shape, config, onnx)
    return _gpu(kind, module, shape, config, onnx)


def _torch(module: StreamingDenoiser, shape: tuple[int, ...], config: EngineConfig) -> Engine:
    from quietbeam.model.torch_engine import TorchEngine

    # What is asked of a GPU is not asked of the processor that stands in for it.
    if config.kind != "auto" and config.precision not in {"auto", "f32"}:
        raise ConfigError(
            f'[engine] precision = "{config.precision}": the torch engine computes in f32 only; '
            'use kind = "openvino" or precision = "auto"'
        )
    return TorchEngine(module, shape, threads=config.threads)


def _openvino(
    module: StreamingDenoiser, shape: tuple[int, ...], config: EngineConfig, onnx: Path | None
) -> Engine:
    from quietbeam.model.openvino_engine import OpenVinoEngine, precision_for

    asked = config.precision
    if asked == "f16":
        if config.kind != "auto":
            raise ConfigError(
                '[engine] precision = "f16" is for GPUs; use "bf16", "f32" or "auto" with openvino'
            )
        asked = "auto"
    return OpenVinoEngine(
        module,
        shape,
        onnx=onnx,
        cache=cache_directory(),
        precision=precision_for(asked, module),
        threads=config.threads,
    )


def _gpu(
    kind: str,
    module: StreamingDenoiser,
    shape: tuple[int, ...],
    config: EngineConfig,
    onnx: Path | None,
) -> Engine:
    from quietbeam.model.guarded import Guarded

    precision = config.precision
    if kind == "cuda":
        from quietbeam.model.cuda_engine import cuda_engine

        return Guarded(
            lambda: cuda_engine(module, shape, "f32" if precision == "auto" else precision)
        )
    from quietbeam.model.tensorrt_engine import tensorrt_engine

    return Guarded(
        lambda: tensorrt_engine(
            module,
            shape,
            cache=cache_directory(),
            onnx_path=onnx,
            precision="f16" if precision == "auto" else precision,
            swap=config.swap,
        )
    )


def engine_order(config: EngineConfig) -> list[str]:
    """Give what ``config`` means on this machine, first choice first; never empty.

    Raises:
        ConfigError: What is asked for is not there; says what to install.
    """
    lacking = why_not(config.kind)
    if lacking:
        raise ConfigError(f'[engine] kind = "{config.kind}": {lacking}')
    if config.kind != "auto":
        return [config.kind]
    kinds = ("tensorrt", "cuda", "openvino", "torch")
    return [kind for kind in kinds if not why_not(kind)]


def engine_kind(config: EngineConfig) -> str:
    """Give the first of ``engine_order``.

    Raises:
        ConfigError: As there.
    """
    return engine_order(config)[0]


def why_not(kind: str) -> str:
    """Say what this machine lacks for an engine, and what to do; nothing if nothing."""
    if kind == "openvino" and importlib.util.find_spec("openvino") is None:
        return 'openvino is not installed; use kind "torch"'
    if kind not in {"tensorrt", "cuda"}:
        return ""
    driver = gpu.driver()
    if not driver.usable:
        return f"no usable GPU: {driver.detail}; {driver.advice}"
    if not _torch_has_cuda():
        return (
            "this torch is built for processors only; install the CUDA build of torch (see "
            "deploy/README.md)"
        )
    if kind == "tensorrt" and not tensorrt_library.installed():
        return f"TensorRT is not installed; {tensorrt_library.HOW_TO_INSTALL}"
    return ""


def _torch_has_cuda() -> bool:
    import torch

    return torch.version.cuda is not None and torch.cuda.is_available()


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
