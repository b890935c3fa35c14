"""Source archive and wheel, installed alone: the source tree is gone, the program works."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SHIPPED = ("daemon", "plugins", "configs", "deploy", "tests")


def call(*argv, cwd, timeout=300):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [str(word) for word in argv],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def succeeded(done):
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A fresh environment with the wheel that was made from the source archive."""
    work = tmp_path_factory.mktemp("packages")
    tree, made, home = work / "tree", work / "made", work / "home"
    tree.mkdir()
    for name in SHIPPED:
        ignored = shutil.ignore_patterns("node_modules", "__pycache__", ".*")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, tree)
    succeeded(call(sys.executable, "-m", "venv", home, cwd=work))
    python = home / "bin/python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    succeeded(call(*pip, "hatchling", cwd=work))
    succeeded(call(python, "-m", "hatchling", "build", "-t", "sdist", "-d", made, cwd=tree))
    shutil.rmtree(tree)
    [archive] = made.glob("*.tar.gz")
    # the packages it stands on are borrowed from this environment, and nothing else of it:
    # a path in a .pth file is added without reading the .pth files there
    site = succeeded(
        call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=work)
    ).strip()
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # pip sees the borrowed one as installed: it is not to be removed there
    more = ("--no-deps", "--ignore-installed", "--no-build-isolation", archive)
    succeeded(call(*pip, *more, cwd=work))
    return home


def test_the_program_is_the_installed_one_with_its_page(home, tmp_path):
    code = (
        "import quietbeam, quietbeam_plugins.sinks.web as w; print(quietbeam.__file__, w.__file__)"
    )
    where, page = succeeded(call(home / "bin/python", "-c", code, cwd=tmp_path)).split()
    assert Path(where).is_relative_to(home)
    assert Path(page).is_relative_to(home)
    assert (Path(page).parent / "static/index.html").is_file()


def test_every_shipped_configuration_is_good(home, tmp_path):
    configs = sorted((home / "share/quietbeam/configs").glob("*.toml"))
    assert len(configs) > 10
    for config in configs:
        succeeded(call(home / "bin/quietbeam", "check", "--no-environment", config, cwd=tmp_path))


def test_the_demo_runs_and_loses_nothing(home, tmp_path):
    words = ("demo", "--seconds", "3", "--json")
    report = json.loads(succeeded(call(home / "bin/quietbeam", *words, cwd=tmp_path)))
    assert report


def test_the_service_is_installed_from_the_wheel(home, tmp_path):
    words = ("install-service", "--root", tmp_path, "--program", "/opt/quietbeam/bin/quietbeam")
    succeeded(call(home / "bin/quietbeam", *words, cwd=tmp_path))
    unit = tmp_path / "etc/systemd/system/quietbeam.service"
    assert unit.read_text() == (ROOT / "deploy/quietbeam.service").read_text()
