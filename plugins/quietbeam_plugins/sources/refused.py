"""How a decoder says that a message cannot be accepted."""

from quietbeam.core.events import Rejected, RejectReason


class RefusedError(Exception):
    """A message cannot be accepted; becomes one ``Rejected`` event."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.event = Rejected(reason=reason, detail=detail)
