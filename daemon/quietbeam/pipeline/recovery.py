"""When the network's engine fails while it is in use: say so, and build another, with patience."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import structlog

from quietbeam.core.errors import EngineError, QuietbeamError
from quietbeam.pipeline.alarms import Alarms
from quietbeam.pipeline.networks import Candidate, Networks

DELAYS_S = (0.5, 5.0, 30.0, 120.0)
"""Before each attempt; the last one repeats."""


class Recovery:
    """Takes the loss of an engine; the classical denoiser has stepped in by then.

    A new engine is built from the same weights, by the order of engines: on the
    GPU if it answers again, else on the processor.  An engine that is lost again
    at once is tried at longer intervals.

    Args:
        networks: Lets go of the lost engines.
        alarms: ``engine_lost`` until an engine is in use again.
        build: Runs work in the thread that builds engines.
        take: Makes weights live; runs there.
    """

    def __init__(
        self,
        networks: Networks,
        alarms: Alarms,
        build: Callable[[Callable[[], None]], Future[None]],
        take: Callable[[Candidate], None],
        delays_s: Sequence[float] = DELAYS_S,
    ) -> None:
        self.delays_s = delays_s
        self._networks, self._alarms = networks, alarms
        self._build, self._take = build, take
        self._losses = 0
        self._timer: threading.Timer | None = None
        self._stopped = False
        self._log = structlog.get_logger()

    def lost(self, error: EngineError) -> None:
        """Take the loss; in the denoise thread, so it must not take time."""
        candidate = self._networks.lost()
        message = f"the network's engine failed: {error}; the classical denoiser stands in"
        self._alarms.report("engine_lost", "", message)
        if candidate is not None:
            self._later(candidate)

    def over(self) -> None:
        """An engine is in use again, or none is wanted."""
        self._alarms.clear("engine_lost")

    def stop(self) -> None:
        """Try no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _later(self, candidate: Candidate) -> None:
        if self._stopped:
            return
        delay_s = self.delays_s[min(self._losses, len(self.delays_s) - 1)]
        self._losses += 1
        self._timer = threading.Timer(delay_s, lambda: self._build(lambda: self._again(candidate)))
        self._timer.daemon = True
        self._timer.start()

    def _again(self, candidate: Candidate) -> None:
        if not self._alarms.is_active("engine_lost"):
            return  # newer weights are in use already, or none are wanted
        try:
            self._take(candidate)
        except QuietbeamError as error:
            self._log.warning("engine_not_recovered", reason=str(error))
            self._later(candidate)
        else:
            self._log.info("engine_recovered", denoiser=candidate.model.denoiser)
