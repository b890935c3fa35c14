"""What this machine can do: the report of ``quietbeam doctor``."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quietbeam.model import gpu, tensorrt_library
from quietbeam.model.engines import why_not
from quietbeam.service.rings import SHARED_MEMORY

_PACKAGES = (
    "quietbeam",
    "numpy",
    "torch",
    "openvino",
    "onnx",
    "h5py",
    "hdf5plugin",
    "pyzmq",
    "cbor2",
    "dectris-compression",
)
_WANTED_SHARED_BYTES = 512 << 20  # both rings at their default sizes
_WANTED_FILES = 1024


def report(directory: Path) -> dict[str, Any]:
    """Describe this machine; ``directory`` is where recordings would go.

    Every section is a mapping; its key ``warning`` says what will hurt.
    """
    sections: dict[str, Callable[[], Mapping[str, Any]]] = {
        "system": _system,
        "processor": _processor,
        "memory": _memory,
        "shared_memory": _shared_memory,
        "engines": _engines,
        "gpu": gpu_report,
        "disk": lambda: _disk(directory),
        "clock": _clock,
        "limits": _limits,
        "network": _network,
        "packages": _packages,
    }
    found = {name: dict(look()) for name, look in sections.items()}
    found["warnings"] = {
        name: section["warning"] for name, section in found.items() if section.get("warning")
    }
    return found


def _system() -> Mapping[str, Any]:
    machine = platform.machine()
    warning = "" if machine in {"x86_64", "AMD64"} else "the rings are only proven on x86-64"
    return {
        "host": socket.gethostname(),
        "kernel": platform.release(),
        "machine": machine,
        "python": sys.version.split()[0],
        "warning": warning,
    }


def _processor() -> Mapping[str, Any]:
    cores = len(os.sched_getaffinity(0))
    fields = _fields(Path("/proc/cpuinfo"), ":")
    flags = set(fields.get("flags", "").split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_vnni")
    return {
        "model": fields.get("model name", "unknown"),
        "cores": cores,
        "load_1min": round(os.getloadavg()[0], 2),
        "features": [flag for flag in wanted if flag in flags],
        "warning": "one core: training and denoising share it" if cores < 2 else "",
    }


def _memory() -> Mapping[str, Any]:
    fields = _fields(Path("/proc/meminfo"), ":")
    total, free = (_kib(fields.get(key, "0")) for key in ("MemTotal", "MemAvailable"))
    warning = "less than 2 GiB available" if free < 2 << 30 else ""
    return {"total_bytes": total, "available_bytes": free, "warning": warning}


def _shared_memory() -> Mapping[str, Any]:
    if not SHARED_MEMORY.is_dir():
        return {"path": str(SHARED_MEMORY), "warning": "not there: the rings go to a disk"}
    usage = shutil.disk_usage(SHARED_MEMORY)
    small = usage.free < _WANTED_SHARED_BYTES
    return {
        "path": str(SHARED_MEMORY),
        "total_bytes": usage.total,
        "free_bytes": usage.free,
        "warning": "too small for rings of the default size (make [rings] smaller)"
        if small
        else "",
    }


def _engines() -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    with contextlib.suppress(ImportError):
        import torch

        found["torch_threads"] = torch.get_num_threads()
        found["torch_cuda"] = torch.cuda.is_available()
    try:
        from openvino import Core

        core = Core()
        found["openvino_devices"] = list(core.available_devices)
        found["openvino_precisions"] = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    except (ImportError, RuntimeError) as error:
        found["warning"] = f"openvino cannot be used ({error}); torch runs, more slowly"
    return found


def gpu_report() -> Mapping[str, Any]:
    """Say what the driver answers, and what each engine of the GPU lacks here."""
    driver = gpu.ask()
    devices = [
        f"{device.name}, {device.memory_bytes / 2**30:.0f} GiB, "
        f"compute capability {device.capability[0]}.{device.capability[1]}"
        for device in driver.devices
    ]
    found: dict[str, Any] = {
        "driver": driver.cuda or driver.state,
        "devices": devices,
        "tensorrt": [f"{name} {_version(name)}" for name in tensorrt_library.installed()],
        **{f"lacking_for_{kind}": why_not(kind) or "nothing" for kind in ("tensorrt", "cuda")},
    }
    # A machine without a GPU is an ordinary one; a GPU that cannot be used is not.
    if driver.state == "failed":
        found["warning"] = f"{driver.detail}; {driver.advice}"
    elif driver.usable and why_not("cuda"):
        found["warning"] = why_not("cuda")
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of unknown version"


def _disk(directory: Path) -> Mapping[str, Any]:
    usage = shutil.disk_usage(directory)
    speed = _write_speed(directory)
    warning = "less than 2 GiB free" if usage.free < 2 << 30 else ""
    if speed is None:
        warning = f"{directory} cannot be written"
    return {
        "path": str(directory),
        "free_bytes": usage.free,
        "write_bytes_per_s": speed,
        "warning": warning,
    }


def _write_speed(directory: Path, size: int = 32 << 20) -> int | None:
    """Write and sync one file that removes itself; None where that is not allowed."""
    block = os.urandom(1 << 20)
    began = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            for _ in range(size // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return None
    return round(size / (time.perf_counter() - began))


def _clock() -> Mapping[str, Any]:
    """Report the kernel's view of its clock (adjtimex): synchronised, and how well."""
    structure = (ctypes.c_byte * 256)()
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(structure))
    except (OSError, AttributeError):
        return {"synchronised": None}
    unsynchronised = 5
    known = state >= 0
    synchronised = state != unsynchronised if known else None
    warning = "" if synchronised or not known else "not synchronised (NTP, PTP): times are local"
    return {"synchronised": synchronised, "unix_time_s": round(time.time(), 3), "warning": warning}


def _limits() -> Mapping[str, Any]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return {
        "open_files": soft,
        "open_files_hard": hard,
        "locked_memory_bytes": "unlimited" if locked == resource.RLIM_INFINITY else locked,
        "warning": f"fewer than {_WANTED_FILES} open files" if soft < _WANTED_FILES else "",
    }


def _network() -> Mapping[str, Any]:
    """Report how large a receive buffer may be: fast detectors need megabytes."""
    path = Path("/proc/sys/net/core/rmem_max")
    text = path.read_text().strip() if path.exists() else ""
    return {"receive_buffer_max_bytes": int(text) if text.isdigit() else None}


def _packages() -> Mapping[str, Any]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    absent = [name for name, text in found.items() if text == "missing"]
    return {**found, "warning": f"missing: {', '.join(absent)}" if absent else ""}


def _fields(path: Path, separator: str) -> dict[str, str]:
    """Read ``name SEPARATOR value`` lines; the first of each name counts."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(separator)
            found.setdefault(name.strip(), value.strip())
    return found


def _kib(text: str) -> int:
    digits = text.split(maxsplit=1)[0] if text.split() else "0"
    return int(digits) * 1024 if digits.isdigit() else 0
