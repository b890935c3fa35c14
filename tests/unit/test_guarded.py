"""A device that hangs is given up within a second, and with it only its own thread."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from quietbeam import EngineError
from quietbeam.model.guarded import Guarded

FRAME = np.ones((16, 16), np.float32)


class Device:
    """Doubles frames; hangs, or fails, when told to."""

    lag = 2
    blind = True
    precision = "f16"

    def __init__(self):
        self.hung = threading.Event()
        self.hung.set()
        self.error = None
        self.called_by = set()
        self.staged = None

    def reset(self):
        self.called_by.add(threading.get_ident())

    def __call__(self, frame):
        self.called_by.add(threading.get_ident())
        self.hung.wait(60)
        if self.error:
            raise self.error
        return 2 * frame, frame

    def stage(self, weights):
        self.staged = weights

    def flip(self):
        self.called_by.add(threading.get_ident())


def test_frames_pass_through_one_other_thread():
    device = Device()
    guarded = Guarded(lambda: device, answer_s=30)
    guarded.reset()
    mean, variance = guarded(FRAME)
    guarded.stage({"w": FRAME})
    guarded.flip()
    assert np.array_equal(mean, 2 * FRAME)
    assert np.array_equal(variance, FRAME)
    assert (guarded.lag, guarded.blind, guarded.precision) == (2, True, "f16")
    assert device.staged is not None
    assert len(device.called_by) == 1
    assert threading.get_ident() not in device.called_by


def test_a_device_that_hangs_is_given_up_and_never_asked_again():
    device = Device()
    guarded = Guarded(lambda: device, answer_s=0.2)
    device.hung.clear()
    with pytest.raises(EngineError, match=r"did not answer within 0\.2 s and was given up"):
        guarded(FRAME)
    began = time.thread_time()
    for call in (lambda: guarded(FRAME), guarded.reset, guarded.flip, lambda: guarded.stage({})):
        with pytest.raises(EngineError, match="given up"):
            call()
    assert time.thread_time() - began < 5  # none of them waited
    device.hung.set()


def test_an_error_comes_out_as_it_is_and_the_next_frame_may_pass():
    device = Device()
    guarded = Guarded(lambda: device, answer_s=30)
    device.error = EngineError("out of memory")
    with pytest.raises(EngineError, match="out of memory"):
        guarded(FRAME)
    device.error = None
    guarded(FRAME)


def test_what_building_raises_is_raised():
    def build():
        raise EngineError("no plan")

    with pytest.raises(EngineError, match="no plan"):
        Guarded(build)


def test_an_engine_that_nobody_holds_is_let_go():
    device = Device()
    gone = weakref.ref(device)
    made = [device]
    guarded = Guarded(made.pop, answer_s=30)
    guarded(FRAME)
    del device, guarded
    deadline = time.monotonic() + 60
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert gone() is None
