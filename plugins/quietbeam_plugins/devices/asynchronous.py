"""The denoiser as ``ophyd-async`` devices, over Channel Access or PV Access."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from ophyd_async.core import (
    AsyncStatus,
    SignalR,
    SignalRW,
    StandardReadable,
    StrictEnum,
    TriggerableCommand,
)
from ophyd_async.core import StandardReadableFormat as Format
from ophyd_async.epics.core import (
    EpicsDevice,
    epics_signal_r,
    epics_signal_rw_rbv,
    epics_triggerable_command,
)

from quietbeam_plugins.devices._metrics import METRICS, attributes, check_measured
from quietbeam_plugins.sinks.epics.pv import camel


class State(StrictEnum):
    """What the daemon is doing."""

    IDLE = "Idle"
    WARMING_UP = "WarmingUp"
    RUNNING = "Running"
    DEGRADED = "Degraded"
    FAULT = "Fault"


class SnapState(StrictEnum):
    """How the last measurement went."""

    IDLE = "Idle"
    ARMED = "Armed"
    DONE = "Done"
    TIMEOUT = "Timeout"
    FAILED = "Failed"


class WriteMode(StrictEnum):
    """What the recording of one acquisition takes."""

    STREAM = "Stream"
    PER_TRIGGER = "PerTrigger"


class Denoiser(StandardReadable):
    """Settings, state and measurements of one daemon.

    ``trigger`` measures: it is done after ``num_frames`` frames that *arrived
    after it was called*; then the metrics are those of these frames, and stay
    until the next one.  It fails with ``StaleError`` where they are not.

    Args:
        prefix: ``ca://`` or ``pva://`` and the prefix of all PVs.
        metrics: Measured and read, by the names the daemon declares; the first is hinted.
    """

    def __init__(self, prefix: str, metrics: Sequence[str] = METRICS, name: str = "") -> None:
        self.state = epics_signal_r(State, f"{prefix}DenoiserState_RBV")
        self.message = epics_signal_r(str, f"{prefix}StatusMessage_RBV")
        self.generation = epics_signal_r(int, f"{prefix}Generation_RBV")
        self.array_counter = epics_signal_r(int, f"{prefix}ArrayCounter_RBV")
        self.unique_id = epics_signal_r(int, f"{prefix}UniqueId_RBV")
        self.run_uid = epics_signal_rw_rbv(str, f"{prefix}RunUid")
        self.scan_id = epics_signal_rw_rbv(int, f"{prefix}ScanId")
        self.snap = epics_triggerable_command(f"{prefix}Snap:Trigger")
        self.snap_state = epics_signal_r(SnapState, f"{prefix}Snap:State_RBV")
        self.snap_count = epics_signal_r(int, f"{prefix}Snap:Count_RBV")
        with self.add_children_as_readables(Format.CONFIG_SIGNAL):
            self.num_frames = epics_signal_rw_rbv(int, f"{prefix}Snap:NumFrames")
            self.timeout = epics_signal_rw_rbv(float, f"{prefix}Snap:Timeout")
            self.denoiser = epics_signal_r(str, f"{prefix}DenoiserName_RBV")
            self.config_hash = epics_signal_r(str, f"{prefix}ConfigHash_RBV")
        with self.add_children_as_readables(Format.UNCACHED_SIGNAL):
            self.first_id = epics_signal_r(int, f"{prefix}Snap:FirstId_RBV")
            self.last_id = epics_signal_r(int, f"{prefix}Snap:LastId_RBV")
            self.snap_model = epics_signal_r(int, f"{prefix}Snap:ModelVersion_RBV")
            self.snap_generation = epics_signal_r(int, f"{prefix}Snap:Generation_RBV")
        self.metrics = tuple(metrics)
        self._measured: dict[str, SignalR[float]] = {}
        for number, (attribute, metric) in enumerate(attributes(metrics).items()):
            signal = epics_signal_r(float, f"{prefix}Snap:{camel(metric)}_RBV")
            setattr(self, attribute, signal)
            setattr(
                self, f"live_{attribute}", epics_signal_r(float, f"{prefix}{camel(metric)}_RBV")
            )
            self._measured[metric] = self._measured[attribute] = signal
            self.add_readables(
                [signal], Format.UNCACHED_SIGNAL if number else Format.HINTED_UNCACHED_SIGNAL
            )
        super().__init__(name=name)

    @AsyncStatus.wrap
    async def trigger(self) -> None:
        """Measure; see the class."""
        await measure(self)

    def measured(self, metric: str) -> SignalR[float]:
        """Give the signal of a measured metric.

        Raises:
            KeyError: The device was made without it.
        """
        if metric not in self._measured:
            raise KeyError(f"{metric!r}: this device was made with {list(self.metrics)}")
        return self._measured[metric]


class PviDenoiser(StandardReadable, EpicsDevice):
    """The same, with every PV that the daemon serves: children come from its ``PVI`` tree.

    Args:
        prefix: ``pva://`` and the prefix of all PVs.
    """

    generation: SignalR[int]
    snap_num_frames: SignalRW[int]
    snap_trigger: TriggerableCommand
    snap_state: SignalR[SnapState]
    snap_count: SignalR[int]
    snap_generation: SignalR[int]

    def __init__(self, prefix: str, name: str = "") -> None:
        super().__init__(prefix=prefix, with_pvi=True, name=name)


class Image(StandardReadable):
    """Newest image of one kind, as a live view: the recording is what counts.

    Args:
        prefix: ``pva://`` and the prefix of all PVs.
        number: 1 cleaned, 2 raw, 3 labels, 4 preview, 5 s.d., 6 phases.
    """

    def __init__(self, prefix: str, number: int = 1, name: str = "") -> None:
        with self.add_children_as_readables(Format.UNCACHED_SIGNAL):
            self.image = epics_signal_r(np.ndarray, f"{prefix}Pva{number}:Image")
        super().__init__(name=name)


async def measure(device: Denoiser) -> None:
    """Have ``device`` measure, and make sure that it did.

    Raises:
        StaleError: What can be read now must not be acted on.
    """
    wanted, before = await asyncio.gather(
        device.num_frames.get_value(), device.generation.get_value()
    )
    await device.snap.execute()
    state, count, measured = await asyncio.gather(
        device.snap_state.get_value(cached=False),
        device.snap_count.get_value(cached=False),
        device.snap_generation.get_value(cached=False),
    )
    check_measured(state.value, count, wanted, (before, measured), device.name)
