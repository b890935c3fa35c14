"""The budgets of the code: sizes, docstrings, light imports, words that must not appear."""

import ast
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "daemon").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])
SOURCES = [path for path in SOURCES if "node_modules" not in path.parts]


def functions(path):
    tree = ast.parse(path.read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def length(node):
    return node.end_lineno - node.lineno + 1


def test_files_stay_small():
    lines = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert [str(path) for path, n in lines.items() if n > 600] == []
    assert median(lines.values()) <= 150


def test_functions_stay_short():
    lengths = {
        f"{path.relative_to(ROOT)}:{f.name}": length(f) for path in SOURCES for f in functions(path)
    }
    assert {name: n for name, n in lengths.items() if n > 60} == {}
    ordered = sorted(lengths.values())
    assert median(ordered) <= 9
    assert ordered[int(0.95 * len(ordered))] <= 40


def test_nothing_is_ever_unpickled():
    forbidden = ("pickle.load", "import pickle", "weights_only=False", "allow_pickle=True")
    found = [
        (path.name, word) for path in SOURCES for word in forbidden if word in path.read_text()
    ]
    assert found == []


def test_openvino_is_loaded_in_one_place_and_never_let_go():
    own = ("ov.Core(", "ov.compile_model(")  # each loads it anew; see openvino_engine.core
    files = [*SOURCES, *(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))]
    found = {path.name for path in files for word in own if word in path.read_text()}
    assert found == {"openvino_engine.py"}


@pytest.mark.parametrize("module", ["quietbeam", "quietbeam.cli", "quietbeam.config"])
def test_light_modules_import_nothing_heavy(module):
    heavy = "{'torch', 'zmq', 'h5py', 'openvino', 'onnx', 'scipy'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_changelog_names_this_version():
    from quietbeam import __version__

    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
