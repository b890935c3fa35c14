"""Threads as structured tasks, and signals that only set flags."""

import asyncio
import signal
import threading
import time

from quietbeam.service.lifecycle import Signals, Threads


def test_the_end_of_every_body_is_noticed_and_named():
    async def scenario():
        gates = {name: threading.Event() for name in ("first", "second")}
        threads = Threads({name: gate.wait for name, gate in gates.items()})
        threads.start()
        assert threads.left == ["first", "second"]
        gates["first"].set()
        while threads.left != ["second"]:
            await asyncio.sleep(0.01)
        gates["second"].set()
        await threads.done()
        assert threads.left == []
        assert threads.failures == {}

    asyncio.run(scenario())


def test_the_first_failure_is_told_while_others_still_run():
    async def scenario():
        gate = threading.Event()

        def fail():
            raise ValueError("broken")

        threads = Threads({"ingest": gate.wait, "denoise": fail})
        threads.start()
        await asyncio.wait_for(threads.failed_or_done(), 5)
        assert threads.left == ["ingest"]
        assert repr(threads.failures["denoise"]) == "ValueError('broken')"
        gate.set()
        await threads.done()

    asyncio.run(scenario())


def test_waiting_for_no_threads_ends_at_once():
    async def scenario():
        threads = Threads({})
        threads.start()
        await asyncio.wait_for(threads.done(), 1)

    asyncio.run(scenario())


def test_a_body_that_is_left_behind_does_no_harm():
    gate = threading.Event()

    async def scenario():
        threads = Threads({"slow": gate.wait})
        threads.start()
        assert threads.left == ["slow"]

    asyncio.run(scenario())
    gate.set()  # it ends after the loop has gone
    deadline = time.monotonic() + 5
    while any(thread.name == "slow" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_signals_set_flags_and_the_old_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)

    async def scenario():
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(signals.stop.wait(), 1)
            await asyncio.wait_for(signals.reload.wait(), 1)
            assert not signals.force.is_set()
            signal.raise_signal(signal.SIGINT)
            await asyncio.wait_for(signals.force.wait(), 1)

    asyncio.run(scenario())
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before
