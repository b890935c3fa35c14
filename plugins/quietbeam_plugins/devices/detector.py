"""The denoiser as a ``StandardDetector``: step and fly scans into its own HDF5 file."""

from __future__ import annotations

from pathlib import Path

from ophyd_async.core import (
    AsyncStatus,
    DetectorAcquireLogic,
    DetectorDataLogic,
    DetectorTriggerLogic,
    PathProvider,
    StandardDetector,
    StreamableDataProvider,
    StreamResourceDataProvider,
    StreamResourceInfo,
    set_and_wait_for_value,
    wait_for_value,
)
from ophyd_async.epics.core import (
    epics_signal_r,
    epics_signal_rw_rbv,
    epics_triggerable_command,
)

from quietbeam_plugins.devices.asynchronous import Denoiser, WriteMode, measure

DATASET = "/entry/data/data"
"""Of the file that the daemon writes for one plan; its own recordings are NeXus."""

_READY_S = 10.0


class Capture:
    """The signals of ``HDF1:``, as children of ``parent``."""

    def __init__(self, parent: RecordingDenoiser, prefix: str) -> None:
        hdf = f"{prefix}HDF1:"
        self.path = parent.file_path = epics_signal_rw_rbv(str, f"{hdf}FilePath")
        self.name = parent.file_name = epics_signal_rw_rbv(str, f"{hdf}FileName")
        self.file = parent.full_file_name = epics_signal_r(str, f"{hdf}FullFileName_RBV")
        self.number = parent.num_capture = epics_signal_rw_rbv(int, f"{hdf}NumCapture")
        self.captured = parent.num_captured = epics_signal_r(int, f"{hdf}NumCaptured_RBV")
        self.mode = parent.write_mode = epics_signal_rw_rbv(WriteMode, f"{hdf}WriteMode")
        self.open = parent.capture = epics_signal_rw_rbv(bool, f"{hdf}Capture")
        self.start = parent.start = epics_triggerable_command(f"{hdf}Start")
        self.height = parent.height = epics_signal_r(int, f"{prefix}ArraySizeY_RBV")
        self.width = parent.width = epics_signal_r(int, f"{prefix}ArraySizeX_RBV")


class RecordingDenoiser(StandardDetector):
    """A detector whose frames are the daemon's cleaned ones.

    A step takes exactly one frame that arrived after its trigger; a fly scan
    exactly as many as it was prepared for, from kickoff on.

    Args:
        prefix: ``ca://`` or ``pva://`` and the prefix of all PVs.
        path_provider: Where the daemon writes; below its configured root.
        denoiser: Takes the measurements of steps.
    """

    def __init__(self, prefix: str, path_provider: PathProvider, name: str = "") -> None:
        self.denoiser = Denoiser(prefix)
        capture = Capture(self, prefix)
        self.add_detector_logics(
            Trigger(capture, self.denoiser),
            Acquire(capture, self.denoiser),
            Data(capture, path_provider),
        )
        super().__init__(name=name)


class Trigger(DetectorTriggerLogic):
    """Chooses between one frame a trigger and a stream of them."""

    def __init__(self, capture: Capture, denoiser: Denoiser) -> None:
        self._capture, self._denoiser = capture, denoiser

    async def prepare_internal(self, num: int, livetime: float, deadtime: float) -> None:
        """Take ``num`` frames; their times are the detector's, not ours."""
        if livetime or deadtime:
            raise ValueError(
                "exposures are set at the detector; prepare the denoiser without livetime, deadtime"
            )
        mode = WriteMode.PER_TRIGGER if num == 1 else WriteMode.STREAM
        await set_and_wait_for_value(self._capture.mode, mode)
        await set_and_wait_for_value(self._capture.number, num)
        if num == 1:
            await set_and_wait_for_value(self._denoiser.num_frames, 1)


class Acquire(DetectorAcquireLogic):
    """Starts one measurement, or the stream."""

    def __init__(self, capture: Capture, denoiser: Denoiser) -> None:
        self._capture, self._denoiser = capture, denoiser
        self._going: AsyncStatus | None = None

    async def start_acquiring(self) -> None:
        """Begin; frames that have arrived before are not taken."""
        if await self._capture.mode.get_value() is WriteMode.PER_TRIGGER:
            self._going = AsyncStatus(measure(self._denoiser))
        else:
            await self._capture.start.execute()

    async def wait_for_idle(self) -> None:
        """Wait until what was begun is done.

        Raises:
            StaleError: The measurement failed.
        """
        going, self._going = self._going, None
        if going is not None:
            await going

    async def ensure_stopped(self) -> None:
        """Wait for a measurement that is going on: it ends by itself at its timeout."""
        await self.wait_for_idle()


class Data(DetectorDataLogic):
    """Opens the file, and tells where frames are in it."""

    def __init__(self, capture: Capture, path_provider: PathProvider) -> None:
        self._capture, self._paths = capture, path_provider

    async def prepare_unbounded(self, datakey_name: str) -> StreamableDataProvider:
        """Have the daemon open a file.

        Raises:
            TimeoutError: It did not; ``HDF1:WriteMessage`` says why.
        """
        capture, info = self._capture, self._paths(datakey_name)
        await set_and_wait_for_value(capture.path, str(info.directory_path))
        await set_and_wait_for_value(capture.name, info.filename)
        await set_and_wait_for_value(capture.open, value=True)
        await wait_for_value(capture.file, bool, timeout=_READY_S)
        path = Path(await capture.file.get_value())
        shape = (await capture.height.get_value(), await capture.width.get_value())
        frames = StreamResourceInfo(
            data_key=datakey_name,
            shape=shape,
            chunk_shape=(1, *shape),
            dtype_numpy="<f4",
            parameters={"dataset": DATASET, "swmr": True},
        )
        return StreamResourceDataProvider(
            uri=f"file://localhost{path}",
            resources=[frames],
            mimetype="application/x-hdf5",
            collections_written_signal=capture.captured,
        )

    async def stop(self) -> None:
        """Close the file."""
        await set_and_wait_for_value(self._capture.open, value=False)
