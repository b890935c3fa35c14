"""Plans are made without a GPU, in a child, for every network; damaged ones are made again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace

import onnx
import pytest

from quietbeam import EngineError
from quietbeam.core.plugin import DenoiserPlugin
from quietbeam.model import gpu, tensorrt_cache, tensorrt_library, tensorrt_plan
from quietbeam.model.engines import cache_directory
from quietbeam.model.export import export
from quietbeam.model.half import TYPES
from quietbeam.model.tensorrt_engine import plan_for, request_for, tensorrt_engine, weight_types
from quietbeam.model.torch_engine import weights_of
from quietbeam.registry import find

RTX = "tensorrt_rtx"
NETWORKS = {
    "quiet S": ("quiet", {}),
    "quiet L": ("quiet", {"size": "L"}),
    "umvd": ("umvd", {}),
    "n2v": ("n2v", {}),
}
_BUILD_ALL = """
import json, sys
from quietbeam import EngineError
from quietbeam.model import tensorrt_library, tensorrt_plan
found = {}
for name, words in json.load(sys.stdin).items():
    try:
        plan = tensorrt_plan.build(tensorrt_plan.Request(**words))
        found[name] = len(plan)
    except EngineError as error:
        found[name] = str(error)
print(json.dumps(found))
"""

pytestmark = pytest.mark.timeout(600)  # four exports, and what a busy machine makes of them
needs_rtx = pytest.mark.skipif(
    RTX not in tensorrt_library.installed(),
    reason="TensorRT for RTX is not installed (make rtx)",
)


def network(name):
    kind, settings = NETWORKS[name]
    return find("denoisers", kind, DenoiserPlugin)(**settings).build()


@pytest.fixture(scope="module")
def requests():
    """One for every network and 16-bit type; the graphs are those other tests export too."""
    made = {}
    for name in NETWORKS:
        module = network(name)
        path = export(module, cache_directory())
        for precision in TYPES:
            made[f"{name} {precision}"] = request_for(module, path, (256, 320), RTX, precision)
    return made


@pytest.fixture(scope="module")
def plans(requests):
    """What TensorRT made of the requests, in one child for all."""
    words = {name: asdict(request) for name, request in requests.items()}
    small = requests["n2v f16"]
    words["refit"] = asdict(replace(small, swap="refit"))
    words["SM80 SM120"] = asdict(replace(small, capabilities=("SM80", "SM120")))
    words["SM90"] = asdict(replace(small, capabilities=("SM90",)))
    done = subprocess.run(
        [sys.executable, "-c", _BUILD_ALL], input=json.dumps(words), check=False,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs_rtx
@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_is_made_without_a_gpu(plans, name, precision):
    assert isinstance(plans[f"{name} {precision}"], int), plans[f"{name} {precision}"]
    assert plans[f"{name} {precision}"] > 1 << 20


@needs_rtx
def test_plans_can_be_made_for_gpus_by_name_and_a_name_unknown_is_refused(plans):
    assert isinstance(plans["SM80 SM120"], int)
    assert "does not know the GPU SM90" in plans["SM90"]


@needs_rtx
def test_a_plan_to_be_refitted_needs_weights_to_begin_with(plans):
    assert "needs weights" in plans["refit"]


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_is_an_input_and_the_trained_ones_have_16_bits(requests, name, precision):
    module = network(name)
    weights = weights_of(module)
    types = weight_types(requests[f"{name} {precision}"], set(weights))
    assert set(types) == set(weights)
    kernels = {n for n, p in module.named_parameters() if p.ndim == 4 and p.numel() > 1}
    assert {name for name, kind in types.items() if kind == precision} >= kernels
    assert all(types[n] == "f32" for n, _ in module.named_buffers() if n in types)


def test_a_graph_to_be_refitted_holds_every_weight_under_its_name(requests, tmp_path):
    import safetensors.numpy

    module = network("n2v")
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(weights_of(module), path)
    request = replace(requests["n2v bf16"], swap="refit", weights=str(path))
    graph = onnx.load_from_string(tensorrt_plan.graph_for(request)).graph
    held = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for name, array in weights_of(module).items():
        assert held[name] == array.shape


@needs_rtx
def test_a_damaged_plan_is_made_again_by_the_child(requests, tmp_path, monkeypatch):
    library = tensorrt_library.Library(RTX, Versioned)
    driver = gpu.Driver("none")
    request = requests["n2v f16"]
    with monkeypatch.context() as patched:
        patched.setattr(
            tensorrt_plan, "build_in_child", lambda _request, path: path.write_bytes(b"x")
        )
        assert plan_for(request, library, driver, tmp_path) == b"x"
    [path] = (tmp_path / "plans").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert len(plan_for(request, library, driver, tmp_path)) > 1 << 20
    assert len(path.read_bytes()) > 1 << 20


class Versioned:
    """As much of the module as is asked for its version."""

    __version__ = "1"


@needs_rtx
def test_a_graph_that_is_none_is_refused_by_name(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\\x00 no graph")
    request = tensorrt_plan.Request(onnx=str(path), library=RTX, shapes={}, trained=())
    with pytest.raises(EngineError, match=r"tensorrt_rtx cannot build .*broken\.onnx"):
        tensorrt_plan.build_in_child(request, tmp_path / "plan")


def test_a_build_that_takes_too_long_is_ended(requests, tmp_path):
    with pytest.raises(EngineError, match=r"took longer than 0\.2 s"):
        tensorrt_plan.build_in_child(requests["n2v f16"], tmp_path / "plan", timeout_s=0.2)


def test_without_a_gpu_tensorrt_is_never_called(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver("none", "no driver is installed"))
    monkeypatch.setattr(tensorrt_library, "load", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(EngineError, match="needs a GPU: no driver is installed; install"):
        tensorrt_engine(network("n2v"), (32, 32), cache=tmp_path)


def test_a_library_that_cannot_be_imported_says_why_and_what_to_install():
    with pytest.raises(EngineError, match=r"tensorrt_none: No module.*pip install 'quietbeam"):
        tensorrt_library.load("tensorrt_none")


class Builder:
    """Writes plans, and counts them."""

    def __init__(self, text=b"a plan"):
        self.text, self.times = text, 0

    def __call__(self, path):
        self.times += 1
        path.write_bytes(self.text)


def test_a_plan_is_built_once(tmp_path):
    build = Builder()
    for _ in range(3):
        assert tensorrt_cache.get(tmp_path / "new", "k", build) == b"a plan"
    assert build.times == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: data[:-3] + b"xyz",
        lambda data: b"another" + data,
        lambda data: data + b"more",
    ],
)
def test_whatever_was_done_to_the_file_the_plan_is_whole(tmp_path, spoil):
    build = Builder()
    tensorrt_cache.get(tmp_path, "k", build)
    [path] = tmp_path.iterdir()
    path.write_bytes(spoil(path.read_bytes()))
    assert tensorrt_cache.get(tmp_path, "k", build) == b"a plan"
    assert tensorrt_cache.get(tmp_path, "k", build) == b"a plan"
    assert build.times == 2


def test_a_build_that_fails_leaves_nothing_behind(tmp_path):
    def fail(path):
        path.write_bytes(b"half")
        raise EngineError("no plan")

    with pytest.raises(EngineError, match="no plan"):
        tensorrt_cache.get(tmp_path, "k", fail)
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_plans_are_deleted(tmp_path):
    for number in range(20):
        tensorrt_cache.get(tmp_path, f"k{number}", Builder())
    assert len(list(tmp_path.iterdir())) == 16


def test_a_plan_has_a_name_of_its_own_for_everything_it_depends_on():
    facts = {"onnx": "a", "precision": "f16", "version": "1", "driver": {"cuda": "13.0"}}
    others = [{**facts, "version": "2"}, {**facts, "driver": {"cuda": "12.9"}}]
    assert len({tensorrt_cache.key(each) for each in (facts, *others, dict(facts))}) == 3
