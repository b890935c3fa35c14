"""Plans and devices in the plan runners of other facilities, each in an environment of its own.

`make producers` installs blueapi and bluesky-queueserver; the latter needs redis-server (apt).
"""

import importlib.util
import json
import os
import shutil
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from helpers.daemons import detecting, free_port
from helpers.ioc import PREFIX, serving

ROOT = Path(__file__).parents[2]
HOME = Path(os.environ.get("QUIETBEAM_PRODUCERS", ROOT / ".venv-producers"))
PLUGINS = str(ROOT / "plugins")
PLANS = {"count_clean", "wait_for_metric", "measure_until", "adaptive_exposure", "track_front"}
STARTUP = "quietbeam_plugins.devices.startup"
pytestmark = pytest.mark.slow


def needs(runner):
    missing = not (HOME / runner / "bin" / "python").exists()
    return pytest.mark.skipif(missing, reason=f"{runner} is not installed: make producers")


_BLUEAPI = """
import json
from blueapi.core.context import BlueskyContext
from ophyd.sim import motor
from quietbeam_plugins.devices import plans
from quietbeam_plugins.devices.asynchronous import Denoiser
context = BlueskyContext()
context.with_plan_module(plans)
context.register_device(Denoiser("ca://X:", name="den"))
context.register_device(motor)
schemas = {name: plan.model.model_json_schema() for name, plan in context.plans.items()}
got = context.plans["measure_until"].model.model_validate(
    {"device": "den", "metric": "phase.fraction", "target_sd": 0.01}
)
refused = ""
try:
    context.plans["measure_until"].model.model_validate({"device": "motor", "metric": "x"})
except Exception as error:
    refused = str(error)
print(json.dumps({"schemas": schemas, "device": got.device.name, "refused": refused}))
"""


@needs("blueapi")
def test_blueapi_offers_every_plan_with_a_schema_and_takes_only_devices_that_measure():
    python = HOME / "blueapi" / "bin" / "python"
    done = subprocess.run(
        [python, "-W", "ignore", "-c", _BLUEAPI],
        env={**os.environ, "PYTHONPATH": PLUGINS},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["schemas"]) >= PLANS
    until = told["schemas"]["measure_until"]
    assert until["required"] == ["device", "metric", "target_sd"]
    assert until["properties"]["device"]["enum"] == ["den"]
    assert until["properties"]["max_frames"] == {
        "default": 1000,
        "title": "Max Frames",
        "type": "integer",
    }
    assert told["schemas"]["track_front"]["properties"]["motor"]["enum"] == ["motor"]
    assert told["device"] == "den"
    assert "motor" in told["refused"] or "device" in told["refused"]


@contextmanager
def program(*argv, log, **options):
    """A program that certainly ends."""
    with log.open("ab") as out:
        process = subprocess.Popen([str(a) for a in argv], stdout=out, stderr=out, **options)
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait(5)


@contextmanager
def redis(directory):
    """A redis of our own, which keeps nothing."""
    port = free_port()
    argv = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", directory]
    with program(*argv, "--appendonly", "no", log=directory / "redis.log"):
        yield f"127.0.0.1:{port}"


_OPERATE = """
import json, sys, time
from bluesky_queueserver.manager.comms import zmq_single_request
address, items = sys.argv[1], json.loads(sys.argv[2])

def ask(method, **params):
    told, error = zmq_single_request(method, params, timeout=60_000, zmq_server_address=address)
    assert not error and told.get("success", True), (method, error, told)
    return told

def wait_for(key, value):
    deadline = time.monotonic() + 120
    while ask("status")[key] != value:
        assert time.monotonic() < deadline, (key, ask("status"))
        time.sleep(0.2)

wait_for("manager_state", "idle")
ask("environment_open")
wait_for("worker_environment_exists", True)
for item in items:
    ask("queue_item_add", item=item, user="operator", user_group="primary")
ask("queue_start")
wait_for("items_in_history", len(items))
wait_for("manager_state", "idle")
print(json.dumps([one["result"]["exit_status"] for one in ask("history_get")["items"]]))
ask("environment_close")
wait_for("worker_environment_exists", False)
"""


@contextmanager
def manager(directory, environment):
    """Start redis and the RE manager; give its address and what it offers."""
    programs = HOME / "queueserver" / "bin"
    root = {"allowed_plans": [None], "allowed_devices": [None]}
    primary = {"allowed_plans": [":.*"], "allowed_devices": [":?.*:depth=5"]}
    permissions = directory / "user_group_permissions.yaml"
    permissions.write_text(yaml.safe_dump({"user_groups": {"root": root, "primary": primary}}))
    listed = subprocess.run(
        [programs / "qserver-list-plans-devices", "--startup-module", STARTUP, "--file-dir", "."],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    existing = directory / "existing_plans_and_devices.yaml"
    assert existing.exists(), listed.stdout[-2000:] + listed.stderr[-2000:]
    address = f"tcp://127.0.0.1:{free_port()}"
    argv = [programs / "start-re-manager", "--startup-module", STARTUP]
    argv += ["--existing-plans-devices", existing, "--user-group-permissions", permissions]
    argv += ["--zmq-control-addr", address, "--zmq-info-addr", f"tcp://127.0.0.1:{free_port()}"]
    options = {"env": environment, "cwd": directory, "log": directory / "manager.log"}
    with redis(directory) as kept, program(*argv, "--redis-addr", kept, **options):
        yield address, yaml.safe_load(existing.read_text())


@needs("queueserver")
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="apt install redis-server")
@pytest.mark.skipif(importlib.util.find_spec("softioc") is None, reason="needs [epics]")
@pytest.mark.timeout(400)
def test_a_queue_server_measures_with_our_start_up_module(tmp_path):
    home = tmp_path / "daemon"
    home.mkdir()
    with serving(home) as ioc, detecting(ioc.daemon.port):
        ioc.daemon.wait_for(lambda s: s["pipeline"]["clean_hz"] > 1, 60.0, "clean frames")
        environment = {**os.environ, **ioc.ports.environment(), "PYTHONPATH": PLUGINS}
        environment |= {"QUIETBEAM_PREFIX": PREFIX}
        with manager(tmp_path, environment) as (address, existing):
            assert set(existing["existing_plans"]) >= PLANS
            assert set(existing["existing_devices"]) == {"denoiser"}
            plan = {"item_type": "plan", "args": ["denoiser"]}
            limits = {"metric": "quality.noise_sd", "at_least": 0.1}
            items = [
                plan | {"name": "count_clean", "kwargs": {"num": 3}},
                plan | {"name": "wait_for_metric", "kwargs": limits},
            ]
            done = subprocess.run(
                [HOME / "queueserver/bin/python", "-c", _OPERATE, address, json.dumps(items)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            log = (tmp_path / "manager.log").read_text()[-3000:]
            assert done.returncode == 0, done.stderr[-3000:] + log
            assert json.loads(done.stdout.splitlines()[-1]) == ["completed", "completed"], log
