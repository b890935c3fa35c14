"""A series of images made ready for the models: corrected, calibrated, stabilised, by frame.

Frames are read when they are asked for and the last few are kept, so that a
recording larger than memory needs no more of it than a small one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate, uniform_filter

from quietbeam.core.errors import DataError
from quietbeam.core.events import Frame, RunStart
from quietbeam.core.plugin import CorrectionPlugin
from quietbeam.model.clean import Prepared
from quietbeam.model.correct import Corrections, Float, Valid, fill_invalid
from quietbeam.model.correlation import NoiseCorrelation
from quietbeam.model.correlation_meter import CorrelationMeter
from quietbeam.model.stabilise import NoiseModel, PhotonTransfer, Stabiliser
from quietbeam.offline.series import Series

MIN_SIDE_PX = 16
_CALIBRATION_FRAMES = 32
_CORRELATION_FRAMES = 64
_KEPT_BYTES = 64 << 20
_SECOND = np.outer([1, -2, 1], [1, -2, 1]).astype(np.float32)  # white noise comes out 36-fold


class CalibratedSeries:
    """Random access to the prepared frames of one series.  A context manager.

    ``ever_valid`` (h, w) tells where a pixel was valid in any frame seen so far.

    Args:
        series: (t, h, w).
        corrections: As the live daemon applies them, in this order.
        mask: (h, w) bool, True where a pixel is bad throughout.
        images: The frames are unrelated images: their noise is measured in
            space, not from frame to frame.
        channel: Which of several channels the series is, for the corrections.

    Raises:
        DataError: The images are smaller than 16 x 16 pixels or the mask has
            another shape.
    """

    def __init__(
        self,
        series: Series,
        corrections: Sequence[CorrectionPlugin] = (),
        mask: Valid | None = None,
        *,
        images: bool = False,
        channel: str | None = None,
    ) -> None:
        t, h, w = series.shape
        if min(h, w) < MIN_SIDE_PX:
            raise DataError(f"{series.source}: images of {h} x {w}, expected at least 16 x 16")
        if mask is not None and mask.shape != (h, w):
            raise DataError(f"mask of shape {mask.shape}, expected {(h, w)} as {series.source}")
        self.series = series
        self.images = images or t == 1
        self.run = RunStart(
            run=series.source,
            shape=(h, w),
            dtype=series.dtype,
            frame_time_s=series.frame_time_s,
            frames_expected=t,
            mask=mask,
            metadata={} if channel is None else {"channel": channel},
        )
        self._corrections = Corrections(self.run, corrections)
        self._kept: OrderedDict[int, Prepared] = OrderedDict()
        self._capacity = max(2, _KEPT_BYTES // (h * w * 13))
        self.ever_valid = np.zeros((h, w), np.bool_)
        self.noise = self._calibrate()
        self.stabiliser = Stabiliser(self.noise)

    def __enter__(self) -> CalibratedSeries:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._corrections.__exit__(kind, error, trace)

    def __len__(self) -> int:
        return len(self.series)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        h, w = self.run.shape
        return h, w

    @property
    def noiseless(self) -> bool:
        """No noise was found at all: constant frames, or a simulation."""
        return self.noise.gain <= 0 and self.noise.offset_variance <= 0

    def corrected(self, index: int) -> tuple[Float, Valid]:
        """Give frame ``index`` in corrected counts and where it is valid, (h, w) each."""
        return self._corrections(self.series[index])

    def prepared(self, index: int) -> Prepared:
        """Give frame ``index`` as the models see it."""
        kept = self._kept.get(index)
        if kept is None:
            kept = self._prepare(index)
            self._kept[index] = kept
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return kept

    def _prepare(self, index: int) -> Prepared:
        raw = self.series[index]
        pixels, valid = self._corrections(raw)
        self.ever_valid |= valid
        time_ns = round(index * (self.series.frame_time_s or 0) * 1e9)
        frame = Frame(run=self.run.run, index=index, time_ns=time_ns, received_ns=0, pixels=raw)
        z = self.stabiliser.forward(fill_invalid(pixels, valid))
        return Prepared(index, frame, pixels, valid, z)

    def _middle(self, count: int) -> range:
        """Frames around the middle: runs often start and end without beam."""
        count = min(len(self), count)
        first = (len(self) - count) // 2
        return range(first, first + count)

    @cached_property
    def correlation(self) -> NoiseCorrelation:
        """How the noise is correlated; of unrelated images it is not known."""
        meter = CorrelationMeter()
        if not (self.images or self.noiseless):
            for index in self._middle(_CORRELATION_FRAMES):
                prepared = self._prepare(index)
                meter.add(index, prepared.z, prepared.valid)
        return meter.result()

    def _calibrate(self) -> NoiseModel:
        """Fit the noise to frames around the middle."""
        frames = [self.corrected(index) for index in self._middle(_CALIBRATION_FRAMES)]
        count = len(frames)
        self.ever_valid |= np.any([valid for _, valid in frames], axis=0)
        if not self.ever_valid.any():
            raise DataError(f"{self.run.run}: not one valid pixel in {count} frames")
        if self.images:
            return spatial_noise([pixels for pixels, _ in frames], [valid for _, valid in frames])
        if _all_equal(frames):
            return NoiseModel(gain=0.0, offset_variance=0.0)
        transfer = PhotonTransfer()
        for pixels, valid in frames:
            transfer.add(pixels, valid)
        return transfer.fit()


def _all_equal(frames: Sequence[tuple[Float, Valid]]) -> bool:
    first = frames[0][0]
    return all(np.array_equal(pixels, first) for pixels, _ in frames[1:])


def spatial_noise(images: Sequence[Float], valid: Sequence[Valid]) -> NoiseModel:
    """Fit the noise model to single images: from the finest structure, robustly.

    The second difference along both axes (Immerkær, Comput. Vis. Image
    Underst. 64, 300 (1996)) cancels any bilinear patch; its median absolute
    deviation per brightness ignores edges.  Wrong for noise that is correlated
    between neighbouring pixels.
    """
    spread, level = [], []
    for image, ok in zip(images, valid, strict=True):
        filled = fill_invalid(image, ok)
        inner = np.zeros(ok.shape, np.bool_)
        inner[1:-1, 1:-1] = True
        use = inner & (uniform_filter(ok.astype(np.float32), 3) > 0.99)
        spread.append(np.abs(correlate(filled, _SECOND))[use] / 6)
        level.append(uniform_filter(filled, 3)[use])
    return _fit_by_level(np.concatenate(spread), np.concatenate(level))


def _fit_by_level(spread: NDArray[Any], level: NDArray[Any]) -> NoiseModel:
    if not spread.size:
        return NoiseModel(gain=0.0, offset_variance=0.0)
    parts = np.array_split(np.argsort(level, kind="stable"), 16)
    parts = [part for part in parts if part.size]
    x = np.array([level[part].mean(dtype=np.float64) for part in parts])
    y = np.array([(np.median(spread[part]) / 0.6745) ** 2 for part in parts], np.float64)
    flat = NoiseModel(gain=0.0, offset_variance=float(np.mean(y)))
    if not y.any() or np.ptp(x) <= 1e-6 * max(1.0, float(np.abs(x).max())):
        return flat
    gain, offset = np.polyfit(x, y, 1, w=1 / np.maximum(y, 0.05 * y.mean()))
    return NoiseModel(float(gain), float(offset)) if gain * np.ptp(x) > 0.02 * y.mean() else flat
