"""Asks the NVIDIA driver what it can do, where a crash of it hurts nobody.

TensorRT and CUDA may end the process that calls them on a machine whose driver
is absent, broken, or of another version than the library was made for.  So the
driver is asked first, by its own library alone, in a child with a time limit.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

TIMEOUT_S = 30.0  # the first call after boot starts the driver
_LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute

_ADVICE = {
    "none": "install the NVIDIA driver (in a container: pass the GPU on, --gpus all)",
    "failed": "see nvidia-smi and dmesg; after a driver update the kernel module must be loaded "
    "again (reboot)",
    "no_device": "no GPU is visible: see nvidia-smi, CUDA_VISIBLE_DEVICES and the container's "
    "--gpus",
}


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Driver:
    """What the driver said.

    Attributes:
        state: ``usable``; ``none`` (not installed), ``failed`` (does not start,
            crashes or hangs), ``no_device``.
        detail: In words, where it is not usable.
        cuda: Newest CUDA version that it serves, such as ``13.0``.
        devices: In CUDA's order.
    """

    state: str
    detail: str = ""
    cuda: str = ""
    devices: tuple[Device, ...] = ()

    @property
    def usable(self) -> bool:
        """There is a GPU, and its driver answers."""
        return self.state == "usable"

    @property
    def advice(self) -> str:
        """What to do to make it usable; empty if it is."""
        return _ADVICE.get(self.state, "")


@cache
def driver() -> Driver:
    """Ask once per process; ``driver.cache_clear()`` before asking anew after a loss."""
    return ask()


def ask(
    timeout_s: float = TIMEOUT_S, command: Sequence[str] = (sys.executable, "-m", __name__)
) -> Driver:
    """Ask the driver, in a child.

    Args:
        timeout_s: A driver that answers later counts as hung.
        command: The child; prints a ``Driver`` as JSON.
    """
    try:  # opening it runs none of its code worth mentioning, and spares most machines the child
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return Driver("none", f"{_LIBRARY} is not there: no NVIDIA driver is installed")
    return ask_child(timeout_s, command)


def ask_child(timeout_s: float, command: Sequence[str]) -> Driver:
    """Run ``command`` and read what it found; whatever it does, a ``Driver`` comes back."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Driver("failed", f"the driver did not answer within {timeout_s:g} s")
    if done.returncode < 0:
        return Driver("failed", f"asking the driver ended with signal {-done.returncode}")
    try:
        return _read(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Driver("failed", f"asking the driver failed: {lines[-1]}")


def _read(found: dict[str, Any]) -> Driver:
    devices = [
        Device(str(each["name"]), int(each["memory_bytes"]), _pair(each["capability"]))
        for each in found["devices"]
    ]
    return Driver(str(found["state"]), str(found["detail"]), str(found["cuda"]), tuple(devices))


def _pair(capability: Sequence[int]) -> tuple[int, int]:
    major, minor = capability
    return int(major), int(minor)


def inspect(library: Any) -> Driver:
    """Ask the driver in this process.

    Args:
        library: ``libcuda``, loaded.
    """
    code = library.cuInit(0)
    if code == 100:  # CUDA_ERROR_NO_DEVICE
        return Driver("no_device", "the driver is there and sees no GPU")
    if code != 0:
        return Driver("failed", f"cuInit failed with {code}")
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    devices = tuple(_device(library, index) for index in range(count.value))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if not devices:
        return Driver("no_device", "the driver is there and sees no GPU", cuda)
    return Driver("usable", "", cuda, devices)


def _device(library: Any, index: int) -> Device:
    name, size = ctypes.create_string_buffer(128), ctypes.c_size_t()
    library.cuDeviceGetName(name, len(name), index)
    library.cuDeviceTotalMem_v2(ctypes.byref(size), index)
    major, minor = (
        _attribute(library.cuDeviceGetAttribute, which, index)
        for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
    )
    return Device(name.value.decode(errors="replace"), size.value, (major, minor))


def _attribute(get: Callable[..., int], which: int, index: int) -> int:
    value = ctypes.c_int()
    get(ctypes.byref(value), which, index)
    return value.value


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(inspect(ctypes.CDLL(_LIBRARY)))))
