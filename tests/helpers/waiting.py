"""Waits for what is on its way, and fails where it does not come."""

from __future__ import annotations

import time


def until(condition, seconds=60.0, what="it"):
    """Ask ``condition()`` again and again until it is true."""
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come true"
        time.sleep(0.005)
