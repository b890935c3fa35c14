"""A real systemd, booted as the first process of fresh namespaces on a copy-on-write view of /.

Needs root, systemd and a kernel with overlay and cgroup2; nothing of this machine is
changed, and everything is gone when the first process ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.waiting import until

REPOSITORY = Path(__file__).parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
_BOOT = Path(__file__).with_name("boot.sh")
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_PATHS = ("source/daemon", "source/plugins", "source/tests", f"venv/lib/{_VERSION}/site-packages")
PYTHON = (
    "env",
    "PYTHONPATH=" + ":".join(f"/opt/{path}" for path in _PATHS),
    "LD_LIBRARY_PATH=/opt/python/lib",
    "OMP_NUM_THREADS=1",
    f"/opt/python/bin/{_VERSION}",
)
"""What starts a Python inside that knows this source tree and its environment."""


def why_not() -> str:
    """Say what this machine lacks, or nothing."""
    if os.geteuid() != 0:
        return "only root can boot a systemd"
    missing = [name for name in ("unshare", "nsenter", "systemctl") if shutil.which(name) is None]
    if missing or not SYSTEMD.exists():
        return f"not installed: {', '.join(missing) or 'systemd'}"
    if not sys.prefix.startswith("/") or sys.prefix == sys.base_prefix:
        return "the tests do not run in a virtual environment"
    filesystems = Path("/proc/filesystems").read_text().split()
    lacking = [name for name in ("overlay", "cgroup2") if name not in filesystems]
    return f"the kernel has no {', '.join(lacking)}" if lacking else ""


class Machine:
    """A booted system; its files are seen under ``root``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")

    def run(
        self, *argv: str, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess:
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), "--all", *argv],
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, (argv, done.stdout, done.stderr)
        return done

    def journal(self, unit: str, *more: str) -> str:
        return self.run("journalctl", "--unit", unit, "--no-pager", *more).stdout

    def start_unit(self, unit: str) -> None:
        done = self.run("systemctl", "start", unit, check=False)
        assert done.returncode == 0, self.journal(unit)[-4000:]

    def background(self, unit: str, *argv: str) -> None:
        """Run something as a unit of its own, to be awaited or killed by that name."""
        self.run("systemd-run", "--quiet", "--collect", "--unit", unit, *argv)

    def show(self, unit: str, key: str) -> str:
        return self.run("systemctl", "show", unit, "--property", key, "--value").stdout.strip()

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        there = self.root / path.lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(text)
        there.chmod(mode)


@contextmanager
def booted(work: Path) -> Iterator[Machine]:
    """Boot; ``work`` is an empty directory for the mounts."""
    namespaces = ["--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup"]
    with (work.parent / "boot.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--fork", "--kill-child", *namespaces,
             str(_BOOT), str(work), str(REPOSITORY), sys.prefix, sys.base_prefix],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    said = work.parent / "boot.log"
    try:
        yield _running(process, said)
    finally:
        process.kill()  # the first process dies with it, and all others with that
        process.wait(30)


def _running(process: subprocess.Popen, said: Path) -> Machine:
    def first() -> int | None:
        assert process.poll() is None, said.read_text()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        name = Path(f"/proc/{children[0]}/comm").read_text() if children else ""
        return int(children[0]) if name == "systemd\n" else None

    until(lambda: first() is not None, 60, "a first process called systemd")
    machine = Machine(first() or 0)

    def up() -> bool:
        state = machine.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in {"running", "degraded"}

    until(up, 60, "a system that is up")
    return machine
