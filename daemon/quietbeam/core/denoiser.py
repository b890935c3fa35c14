"""What a denoiser is: a streaming module with explicit state.

Every engine runs the same pure function, and no frame is encoded twice.
Frames are in *stabilised units*: noise of unit variance everywhere.

Shapes: n independent streams, h height, w width, t frames of a clip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Generator, Tensor

State = tuple["Tensor", ...]


@runtime_checkable
class StreamingDenoiser(Protocol):
    """A ``torch.nn.Module`` with these members."""

    lag: int
    """Frames it waits: the call with frame i gives the estimate of frame i - lag."""

    window: int
    """Frames of a training clip (t), at least."""

    blind: bool
    """The estimate of a frame never depends on that frame's own pixels.

    A blind estimate is what makes its quality measurable without truth, and
    what may be fused with the measured frame afterwards.
    """

    trainable: bool
    """It has weights that are worth nothing before training."""

    def initial_state(self, n: int, h: int, w: int) -> State:
        """Give the state before the first frame, float32 tensors."""
        ...

    def forward(self, frame: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Take frame i, give mean and variance of frame i - lag, and the next state.

        Args:
            frame: (n, 1, h, w) float32, stabilised units, finite.
            state: What the last call gave.

        Returns:
            mean: (n, 1, h, w), stabilised units.
            variance: (n, 1, h, w), of ``mean`` about the truth; 0 where the
                denoiser does not know it (then nothing is fused).
            state: For the next call; same shapes.
        """
        ...

    def training_loss(self, clip: Tensor, valid: Tensor, generator: Generator) -> Tensor:
        """Self-supervised loss; the target is always measured data.

        Args:
            clip: (n, t, h, w) consecutive frames, t = ``window``.
            valid: (n, t, h, w) bool; False where a pixel must not be learned from.
            generator: The only source of randomness.

        Returns:
            Scalar.
        """
        ...

    def blind_estimate(self, frames: Tensor) -> Tensor:
        """Estimate each frame of (t, h, w) without using its own pixels.

        For judging only; may cost many forward passes.  Frames closer than
        the denoiser's memory to an end are estimated from what there is.
        """
        ...


@runtime_checkable
class SelfCalibrating(Protocol):
    """A denoiser of which a part is fitted in closed form after training, to the weights in use."""

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fit what needs no gradient, the scale of the variances above all; changes weights.

        Args:
            batches: (clip, valid), as for ``training_loss``.
        """
        ...


@runtime_checkable
class TwoWay(Protocol):
    """A blind denoiser for which time may also run backwards, where there is a recording."""

    two_way: bool
    """Estimates from both directions, and means over time, are to be put together."""
