"""Supervision, with real child processes."""

import asyncio
import os
import signal
import sys
import time

import pytest

from quietbeam.service.supervise import Backoff, Child

CHILD = """
import json, sys, os
def say(**event): print(json.dumps(event), flush=True)
mode = sys.argv[1]
if mode == "config": sys.exit(78)
say(type="ready", pid=os.getpid())
if mode == "garbage": print("no event at all", flush=True); print("[1]", flush=True)
if mode == "die": sys.exit(3)
for line in sys.stdin:
    command = json.loads(line)
    if command["type"] == "stop":
        if mode == "deaf": continue
        say(type="status", state="drained"); sys.exit(0)
    say(type="heard", command=command)
if mode == "deaf":
    import time; time.sleep(60)
"""


class Watched:
    """A child and everything it said."""

    def __init__(self, mode, **options):
        self.events = []
        self.changed = asyncio.Event()
        options.setdefault("backoff", Backoff((0.05, 0.1, 0.2)))
        argv = (sys.executable, "-c", CHILD, mode)
        self.child = Child("toy", argv, on_event=self.hear, **options)

    def hear(self, event):
        self.events.append(event)
        self.changed.set()

    async def until(self, condition, timeout_s=10.0):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, (self.events, self.child.account())
            await asyncio.sleep(0.01)

    def said(self, kind):
        return [event for event in self.events if event["type"] == kind]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_child_hears_its_greeting_and_drains_when_asked():
    async def scenario():
        watched = Watched("plain", greet=lambda: [{"type": "init", "x": 1}])
        watched.child.start()
        assert await watched.child.wait_ready(10)
        assert watched.child.up
        await watched.until(lambda: watched.said("heard"))
        assert watched.said("heard")[0]["command"] == {"type": "init", "x": 1}
        assert await watched.child.stop(5)
        assert watched.said("status") == [{"type": "status", "state": "drained"}]
        assert watched.child.exit_code == 0
        assert sum(watched.child.restarts.values()) == 0

    asyncio.run(scenario())


def test_a_killed_child_comes_back_and_is_greeted_again():
    async def scenario():
        watched = Watched("plain", greet=lambda: [{"type": "init"}])
        watched.child.start()
        for kills in range(1, 4):
            await watched.until(lambda n=kills: len(watched.said("heard")) == n)
            os.kill(watched.child.pid, signal.SIGKILL)
            await watched.until(lambda n=kills: watched.child.restarts["signal"] == n)
        await watched.until(lambda: len(watched.said("heard")) == 4)
        pids = {event["pid"] for event in watched.said("ready")}
        assert len(pids) == 4
        assert await watched.child.stop(5)
        assert not any(alive(pid) for pid in pids)

    asyncio.run(scenario())


@pytest.mark.parametrize(("mode", "reason"), [("die", "exit"), ("config", "config")])
def test_deaths_are_counted_by_reason(mode, reason):
    async def scenario():
        watched = Watched(mode)
        watched.child.start()
        await watched.until(lambda: watched.child.restarts[reason] >= 2)
        assert watched.child.restarts.total() == watched.child.restarts[reason]
        await watched.child.stop(5)
        assert watched.child.state == "stopped"

    asyncio.run(scenario())


def test_waiting_for_a_child_that_refuses_its_settings_ends_at_once():
    async def scenario():
        watched = Watched("config", backoff=Backoff((30.0,)))
        watched.child.start()
        began = time.monotonic()
        assert not await watched.child.wait_ready(30)
        assert time.monotonic() - began < 10
        assert watched.child.exit_code == 78
        await watched.child.stop(1)

    asyncio.run(scenario())


def test_a_program_that_does_not_exist_is_tried_again_and_stops_cleanly():
    async def scenario():
        child = Child("toy", ("/nowhere/at/all",), backoff=Backoff((0.02,)))
        child.start()
        while child.restarts["spawn"] < 2:
            await asyncio.sleep(0.01)
        assert not await child.wait_ready(1)
        assert await child.stop(1)

    asyncio.run(scenario())


def test_a_silent_child_is_killed_and_started_again():
    async def scenario():
        watched = Watched("plain", silent_s=0.8)
        watched.child.start()
        assert await watched.child.wait_ready(10)
        os.kill(watched.child.pid, signal.SIGSTOP)
        await watched.until(lambda: watched.child.restarts["silent"] == 1)
        assert await watched.child.wait_ready(10)
        await watched.child.stop(5)

    asyncio.run(scenario())


def test_a_child_that_does_not_drain_in_time_is_killed():
    async def scenario():
        watched = Watched("deaf")
        watched.child.start()
        assert await watched.child.wait_ready(10)
        pid = watched.child.pid
        began = time.monotonic()
        assert not await watched.child.stop(0.3)
        assert time.monotonic() - began < 3
        assert not alive(pid)

    asyncio.run(scenario())


def test_what_is_no_event_is_counted_and_does_no_harm():
    async def scenario():
        watched = Watched("garbage")
        watched.child.start()
        await watched.until(lambda: watched.child.garbled == 2)
        watched.child.send({"type": "hello"})
        await watched.until(lambda: watched.said("heard"))
        assert watched.child.restarts.total() == 0
        await watched.child.stop(5)

    asyncio.run(scenario())


def test_an_event_its_taker_refuses_is_counted_and_the_child_lives_on():
    async def scenario():
        def refuse(event):
            raise KeyError("pid")

        child = Child("toy", (sys.executable, "-c", CHILD, "plain"), on_event=refuse)
        child.start()
        assert await child.wait_ready(10)
        assert child.garbled == 1
        assert await child.stop(5)

    asyncio.run(scenario())


def test_a_stopped_child_can_be_started_again():
    async def scenario():
        watched = Watched("plain")
        for _ in range(2):
            watched.child.start()
            assert await watched.child.wait_ready(10)
            assert await watched.child.stop(5)
        assert not watched.child.send({"type": "hello"})
        assert len(watched.said("ready")) == 2

    asyncio.run(scenario())


def test_stopping_is_safe_before_the_start_and_twice():
    async def scenario():
        watched = Watched("plain")
        assert await watched.child.stop(1)
        assert await watched.child.stop(1)

    asyncio.run(scenario())


def test_the_wait_grows_and_is_short_again_after_a_healthy_life():
    backoff = Backoff((1, 2, 4), healthy_s=10)
    assert [backoff.after(0) for _ in range(5)] == [1, 2, 4, 4, 4]
    assert backoff.after(11) == 1
    assert backoff.after(0) == 2


def test_a_child_ends_when_its_daemon_is_gone(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    parent = f"""
import asyncio, sys
from quietbeam.service.logs import configure
configure(stream=sys.stderr)
from quietbeam.service.supervise import Child
async def main():
    child = Child("toy", (sys.executable, {str(script)!r}, "plain"))
    child.start()
    await child.wait_ready(10)
    print(child.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""

    async def scenario():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", parent, stdout=asyncio.subprocess.PIPE
        )
        pid = int(await process.stdout.readline())
        process.kill()
        await process.wait()
        deadline = time.monotonic() + 5
        while alive(pid) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert not alive(pid)

    asyncio.run(scenario())
