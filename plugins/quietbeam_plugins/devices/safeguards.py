"""What goes around any plan: pausing while the denoiser is not well, and telling it the run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.suspenders import SuspenderBase
from bluesky.utils import Msg, MsgGenerator

BAD = ("Degraded", "Fault")


class PauseOnDegraded(SuspenderBase):
    """Suspends the RunEngine while the state is ``Degraded`` or ``Fault``.

    Args:
        state: The signal ``state`` of a device.
        sleep: Time after it is well again, in seconds.
        **options: As of any suspender.
    """

    def __init__(self, state: Any, *, sleep: float = 1.0, **options: Any) -> None:
        super().__init__(state, sleep=sleep, **options)  # type: ignore[arg-type]  # any number

    def _should_suspend(self, value: Any) -> bool:
        return _text(value) in BAD

    def _should_resume(self, value: Any) -> bool:
        return _text(value) not in BAD

    def _get_justification(self) -> str:
        return f"{self._sig.name} is degraded or has a fault; see its StatusMessage_RBV"


def pause_on_degraded(device: Any, sleep_s: float = 1.0) -> PauseOnDegraded:
    """Give the suspender of ``device``, for ``RE.install_suspender``."""
    return PauseOnDegraded(device.state, sleep=sleep_s)


def tell_run_uid(plan: MsgGenerator[Any], uid: Any) -> MsgGenerator[Any]:
    """Write the uid of every run to the daemon when it opens, and clear it when it closes.

    Args:
        plan: Any plan.
        uid: The signal ``run_uid`` of a device.
    """

    def around(msg: Msg) -> tuple[MsgGenerator[Any] | None, MsgGenerator[Any] | None]:
        if msg.command == "open_run":
            return _opened(msg, uid), None
        if msg.command == "close_run":
            return None, _closed(uid)
        return None, None

    return (yield from bpp.plan_mutator(plan, around))


def telling_run_uid(device: Any) -> Callable[[MsgGenerator[Any]], MsgGenerator[Any]]:
    """Give the preprocessor of ``device``, for ``RE.preprocessors.append``."""
    return partial(tell_run_uid, uid=device.run_uid)


def _opened(msg: Msg, uid: Any) -> MsgGenerator[Any]:
    opened = yield msg
    yield from bps.abs_set(uid, opened, wait=True)
    return opened


def _closed(uid: Any) -> MsgGenerator[Any]:
    yield from bps.abs_set(uid, "", wait=True)


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
