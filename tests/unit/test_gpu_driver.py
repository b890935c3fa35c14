"""The driver is asked in a child: whatever it does there, the daemon goes on and says why."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import pytest

from quietbeam.config import EngineConfig
from quietbeam.core.errors import ConfigError, EngineError
from quietbeam.model import engines, gpu, tensorrt_library

H200 = gpu.Driver("usable", "", "13.0", (gpu.Device("NVIDIA H200", 150 << 30, (9, 0)),))


class Libcuda:
    """The calls of the driver's library that are made, with the answers of a machine."""

    def __init__(self, devices, code=0):
        self.devices, self.code = devices, code

    def cuInit(self, _flags):  # noqa: N802
        return self.code

    def cuDriverGetVersion(self, number):  # noqa: N802
        number._obj.value = 13000

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = len(self.devices)

    def cuDeviceGetName(self, name, _size, index):  # noqa: N802
        name.value = self.devices[index].name.encode()

    def cuDeviceTotalMem_v2(self, size, index):  # noqa: N802
        size._obj.value = self.devices[index].memory_bytes

    def cuDeviceGetAttribute(self, value, which, index):  # noqa: N802
        value._obj.value = self.devices[index].capability[which - 75]


def python(code):
    return (sys.executable, "-c", code)


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended with signal 11"),
        ("import time; time.sleep(60)", "did not answer within 2 s"),
        ("raise SystemExit('libcuda.so.1: undefined symbol')", "undefined symbol"),
        ("print('no JSON')", "failed"),
        ('print(\'{"state": "usable"}\')', "failed"),
    ],
)
def test_a_driver_that_crashes_hangs_or_babbles_is_reported(code, detail):
    found = gpu.ask_child(2, python(code))
    assert found.state == "failed"
    assert detail in found.detail
    assert not found.usable
    assert "nvidia-smi" in found.advice


def test_what_the_child_found_comes_back_whole():
    told = json.dumps(asdict(H200))
    assert gpu.ask_child(60, python(f"print({told!r})")) == H200


def test_the_driver_is_asked_for_its_version_and_devices():
    assert gpu.inspect(Libcuda(H200.devices)) == H200
    assert gpu.inspect(Libcuda([])).state == "no_device"
    assert gpu.inspect(Libcuda([], code=100)).state == "no_device"
    lost = gpu.inspect(Libcuda(H200.devices, code=999))
    assert (lost.state, lost.detail) == ("failed", "cuInit failed with 999")


@pytest.fixture
def machine(monkeypatch):
    """Pretend a machine: its driver, whether torch has CUDA, which TensorRT is installed."""

    def make(driver=H200, *, torch_cuda=True, tensorrt=("tensorrt",)):
        monkeypatch.setattr(gpu, "driver", lambda: driver)
        monkeypatch.setattr(engines, "_torch_has_cuda", lambda: torch_cuda)
        monkeypatch.setattr(tensorrt_library, "installed", lambda: list(tensorrt))

    return make


def test_the_best_engine_that_a_machine_can_run_comes_first(machine):
    machine()
    order = ["tensorrt", "cuda", "openvino", "torch"]
    assert engines.engine_order(EngineConfig()) == order
    machine(tensorrt=())
    assert engines.engine_order(EngineConfig()) == order[1:]
    machine(torch_cuda=False)
    assert engines.engine_order(EngineConfig()) == order[2:]
    machine(gpu.Driver("none", "no driver"))
    assert engines.engine_order(EngineConfig()) == order[2:]
    assert engines.engine_order(EngineConfig(kind="torch")) == ["torch"]


@pytest.mark.parametrize(
    ("pretended", "message"),
    [
        ({"driver": gpu.Driver("none", "libcuda.so.1 is not there")}, "install the NVIDIA driver"),
        ({"driver": gpu.Driver("failed", "cuInit failed with 999")}, "999.*nvidia-smi and dmesg"),
        ({"driver": gpu.Driver("no_device", "sees no GPU")}, "sees no GPU.*--gpus"),
        ({"torch_cuda": False}, "install the CUDA build of torch"),
        ({"tensorrt": ()}, r"pip install 'quietbeam\[rtx\]'"),
    ],
)
def test_an_engine_that_is_asked_for_and_lacks_something_says_what_to_do(
    machine, pretended, message
):
    machine(**pretended)
    with pytest.raises(ConfigError, match=message):
        engines.engine_order(EngineConfig(kind="tensorrt"))


def test_an_engine_that_cannot_be_built_gives_way_to_the_next(machine, monkeypatch):
    machine()
    tried = []

    def build(kind, *_rest):
        tried.append(kind)
        if kind in {"tensorrt", "cuda"}:
            raise EngineError("out of memory")
        return kind

    monkeypatch.setattr(engines, "_build", build)
    assert engines.build_engine(None, (32, 32), EngineConfig()) == "openvino"
    assert tried == ["tensorrt", "cuda", "openvino"]
    with pytest.raises(EngineError, match="out of memory"):
        engines.build_engine(None, (32, 32), EngineConfig(kind="cuda"))
