"""The denoiser as a classic ``ophyd`` device, over Channel Access."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ophyd import Component as Cpt
from ophyd import Device, EpicsSignal, EpicsSignalRO
from ophyd.areadetector.base import EpicsSignalWithRBV
from ophyd.status import DeviceStatus

from quietbeam_plugins.devices._metrics import METRICS, attributes, check_measured
from quietbeam_plugins.sinks.epics.pv import camel


class Recording(Device):
    """The recording of one acquisition (``HDF1:``)."""

    file_path = Cpt(EpicsSignalWithRBV, "FilePath", string=True, kind="config")
    file_name = Cpt(EpicsSignalWithRBV, "FileName", string=True, kind="config")
    full_file_name = Cpt(EpicsSignalRO, "FullFileName_RBV", string=True, kind="omitted")
    num_capture = Cpt(EpicsSignalWithRBV, "NumCapture", limits=True, kind="omitted")
    num_captured = Cpt(EpicsSignalRO, "NumCaptured_RBV", kind="omitted")
    write_mode = Cpt(EpicsSignalWithRBV, "WriteMode", string=True, kind="omitted")
    capture = Cpt(EpicsSignalWithRBV, "Capture", kind="omitted")
    start = Cpt(EpicsSignal, "Start", put_complete=True, kind="omitted")


class Denoiser(Device):
    """Settings, state and measurements of one daemon.

    ``trigger`` measures: it is done after ``num_frames`` frames that *arrived
    after it was called*; then the metrics are those of these frames, and stay
    until the next one.  It fails with ``StaleError`` where they are not.

    Args:
        prefix: Of all PVs, as ``BL99-QB:DEN1:``.
        metrics: Measured and read, by the names the daemon declares; the first is hinted.
    """

    state = Cpt(EpicsSignalRO, "DenoiserState_RBV", string=True, kind="normal")
    message = Cpt(EpicsSignalRO, "StatusMessage_RBV", string=True, kind="omitted")
    acquire = Cpt(EpicsSignalWithRBV, "Acquire", kind="omitted")
    training = Cpt(EpicsSignalWithRBV, "EnableTraining", string=True, kind="config")
    frozen = Cpt(EpicsSignalWithRBV, "FreezeWeights", string=True, kind="config")
    denoiser = Cpt(EpicsSignalRO, "DenoiserName_RBV", string=True, kind="config")
    config_hash = Cpt(EpicsSignalRO, "ConfigHash_RBV", string=True, kind="config")
    model_version = Cpt(EpicsSignalRO, "ModelVersion_RBV", kind="omitted")
    generation = Cpt(EpicsSignalRO, "Generation_RBV", kind="omitted")
    array_counter = Cpt(EpicsSignalRO, "ArrayCounter_RBV", kind="omitted", auto_monitor=True)
    unique_id = Cpt(EpicsSignalRO, "UniqueId_RBV", kind="omitted", auto_monitor=True)
    latency = Cpt(EpicsSignalRO, "Latency_RBV", kind="omitted")
    run_uid = Cpt(EpicsSignalWithRBV, "RunUid", string=True, kind="omitted")
    scan_id = Cpt(EpicsSignalWithRBV, "ScanId", kind="omitted")
    series = Cpt(EpicsSignalRO, "SeriesId_RBV", string=True, kind="omitted")
    num_frames = Cpt(EpicsSignalWithRBV, "Snap:NumFrames", limits=True, kind="config")
    timeout = Cpt(EpicsSignalWithRBV, "Snap:Timeout", limits=True, kind="config")
    snap = Cpt(EpicsSignal, "Snap:Trigger", kind="omitted", put_complete=True)
    snap_state = Cpt(EpicsSignalRO, "Snap:State_RBV", string=True, kind="omitted")
    snap_count = Cpt(EpicsSignalRO, "Snap:Count_RBV", kind="omitted")
    snap_generation = Cpt(EpicsSignalRO, "Snap:Generation_RBV", kind="normal")
    snap_model = Cpt(EpicsSignalRO, "Snap:ModelVersion_RBV", kind="normal")
    first_id = Cpt(EpicsSignalRO, "Snap:FirstId_RBV", kind="normal")
    last_id = Cpt(EpicsSignalRO, "Snap:LastId_RBV", kind="normal")
    hdf = Cpt(Recording, "HDF1:", kind="omitted")

    metrics: tuple[str, ...] = ()

    def __new__(cls, *args: Any, metrics: Sequence[str] = METRICS, **kwargs: Any) -> Denoiser:
        """Make the class that has these metrics as components."""
        del args, kwargs
        if cls.metrics:  # that class itself
            return super().__new__(cls)
        return Device.__new__(with_metrics(cls, tuple(metrics)))

    def __init__(
        self, prefix: str = "", *, metrics: Sequence[str] = METRICS, **kwargs: Any
    ) -> None:
        del metrics  # components of the class by now
        super().__init__(prefix, **kwargs)

    def trigger(self) -> DeviceStatus:
        """Measure; see the class."""
        wanted, before = int(self.num_frames.get()), int(self.generation.get())
        done = DeviceStatus(self)
        put = self.snap.set(1)

        def finished(status: Any) -> None:
            error = status.exception()
            try:
                if error is not None:
                    raise error
                self._check(wanted, before)
            except Exception as problem:  # noqa: BLE001 - whatever it is: the status carries it
                done.set_exception(problem)
            else:
                done.set_finished()

        put.add_callback(finished)
        return done

    def measured(self, metric: str) -> EpicsSignalRO:
        """Give the signal of a measured metric.

        Raises:
            KeyError: The device was made without it.
        """
        return getattr(self, _attribute_of(self.metrics, metric))

    def _check(self, wanted: int, before: int) -> None:
        use: dict[str, Any] = {"use_monitor": False}
        check_measured(
            str(self.snap_state.get(**use)),
            int(self.snap_count.get(**use)),
            wanted,
            (before, int(self.snap_generation.get(**use))),
            self.name,
        )


_CLASSES: dict[tuple[type[Denoiser], tuple[str, ...]], type[Denoiser]] = {}


def with_metrics(base: type[Denoiser], metrics: tuple[str, ...]) -> type[Denoiser]:
    """Give ``base`` with a measured and a live signal for each of ``metrics``."""
    if (base, metrics) not in _CLASSES:
        found = attributes(metrics)
        body: dict[str, Any] = {"metrics": metrics, "__doc__": base.__doc__}
        for number, (name, metric) in enumerate(found.items()):
            kind = "normal" if number else "hinted"
            body[name] = Cpt(EpicsSignalRO, f"Snap:{camel(metric)}_RBV", kind=kind)
            body[f"live_{name}"] = Cpt(
                EpicsSignalRO, f"{camel(metric)}_RBV", kind="omitted", auto_monitor=True
            )
        _CLASSES[base, metrics] = type(base.__name__, (base,), body)
    return _CLASSES[base, metrics]


def _attribute_of(metrics: Sequence[str], metric: str) -> str:
    for name, known in attributes(metrics).items():
        if metric in {known, name}:
            return name
    raise KeyError(f"{metric!r}: this device was made with {list(metrics)}")
