"""The table of all process variables: the one place where a PV is said to exist.

Names follow areaDetector's plugins.  What depends on the configuration (the
metrics its analyses declare) is added by ``table``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quietbeam_plugins.sinks.epics.pv import Group, Kind, Limits, Pv, camel

STATES = ("Idle", "WarmingUp", "Running", "Degraded", "Fault")
SNAP_STATES = ("Idle", "Armed", "Done", "Timeout", "Failed")
WRITE_STATES = ("Ok", "Error")
DEGRADATIONS = ("normal", "display", "training", "analyses", "denoising")
DATA_TYPES = (
    *("Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32"),
    *("Int64", "UInt64", "Float32", "Float64"),
)
COLOR_MODES = ("Mono", "Bayer", "RGB1", "RGB2", "RGB3", "YUV444", "YUV422", "YUV421")
PREVIEW_PX = 512
"""A preview has at most so many rows and columns."""


def _r(name: str, kind: Kind, group: Group, description: str, source: str, **more: Any) -> Pv:
    return Pv(name=name, kind=kind, group=group, description=description, source=source, **more)


def _set(name: str, kind: Kind, group: Group, description: str, source: str, **more: Any) -> Pv:
    more = {"access": "rw", "write": "QB_OPERATOR", **more}
    return Pv(name=name, kind=kind, group=group, description=description, source=source, **more)


def _do(name: str, group: Group, description: str, **more: Any) -> Pv:
    more = {"access": "x", "write": "QB_EXPERT", "choices": ("Done", "Do"), **more}
    return Pv(name=name, kind="bool", group=group, description=description, **more)


_PROCESSING: tuple[Pv, ...] = (
    _set(
        *("Acquire", "bool", "Processing", "Clean the frames that come"),
        *("status:processing.on",),
        choices=("Done", "Acquire"),
    ),
    _r(
        *("DenoiserState_RBV", "enum", "Processing", "State of denoising", "view:state"),
        choices=STATES,
        severities=("", "", "", "MINOR", "MAJOR"),
    ),
    _r("StatusMessage_RBV", "string", "Processing", "State in words", "view:message"),
    _set(
        *("Denoiser", "enum", "Processing", "Proven networks, or classical held"),
        *("status:model.held",),
        choices=("Live", "Classical"),
    ),
    _r(
        *("DenoiserName_RBV", "string", "Processing", "What cleans now", "frame:denoiser"),
        length=64,
        attribute="Denoiser",
    ),
    _set(
        *("EnableTraining", "bool", "Processing", "Learn from the stream"),
        *("view:training",),
        choices=("Disable", "Enable"),
    ),
    _set(
        *("FreezeWeights", "bool", "Processing", "Keep the weights in use as they are"),
        *("status:model.frozen",),
        choices=("Follow", "Freeze"),
        write="QB_EXPERT",
    ),
    _set(
        *("RollBackTo", "int", "Processing", "Model for RollBack; -1: the one before"),
        *("view:own",),
        drive=(-1, 1_000_000),
        initial=-1,
        write="QB_EXPERT",
    ),
    _do("RollBack", "Processing", "Use an earlier model again"),
    _do("Checkpoint", "Processing", "Write the training state to disk"),
    _do("Reset", "Processing", "Forget what was learned"),
    _set(
        *("Record", "bool", "Processing", "The daemon's recorders take frames"),
        *("view:recording",),
        choices=("Stop", "Record"),
    ),
    _r(
        *("Degradation_RBV", "enum", "Processing", "What is given up under load"),
        *("status:degradation",),
        choices=DEGRADATIONS,
        severities=("", "MINOR", "MINOR", "MINOR", "MAJOR"),
    ),
)

_FRAMES: tuple[Pv, ...] = (
    _set(
        *("ArrayCounter", "int", "Frames", "Cleaned frames; may be set"),
        *("view:array_counter",),
        drive=(0, 2**31 - 1),
    ),
    _r("UniqueId_RBV", "int", "Frames", "Detector's number of the frame", "view:unique_id"),
    _r(
        *("TimeStamp_RBV", "float", "Frames", "Detector clock of the frame", "view:time_s"),
        unit="s",
        precision=6,
    ),
    _r("ArrayRate_RBV", "float", "Frames", "Cleaned frames", "status:pipeline.clean_hz", unit="Hz"),
    _r(
        *("InputRate_RBV", "float", "Frames", "Frames that come in"),
        *("status:pipeline.received_hz",),
        unit="Hz",
    ),
    _set(
        *("DroppedArrays", "int", "Frames", "Frames given up at any stage; may be set"),
        *("view:dropped",),
        drive=(0, 2**31 - 1),
    ),
    _r("InputMissed_RBV", "int", "Frames", "Frames missing in the input", "status:frames.missing"),
    _set(
        *("QueueSize", "int", "Frames", "Frames that may wait for the denoiser"),
        *("status:queues.capacity.denoise",),
        drive=(1, 2**31 - 1),
        access="r",
        write="",
    ),
    _r("QueueUse", "int", "Frames", "Frames that wait for the denoiser", "status:pipeline.backlog"),
    _r(
        *("ExecutionTime_RBV", "float", "Frames", "Latency, median of the last frames"),
        *("view:latency_p50_ms",),
        unit="ms",
    ),
    _r(
        *("Latency_RBV", "float", "Frames", "From arrival to the clean frame", "view:latency_ms"),
        unit="ms",
        attribute="LatencyMs",
        fresh=True,
    ),
    *(
        _r(f"ArraySize{axis}_RBV", "int", "Frames", f"Size along {axis}", f"view:size_{number}")
        for number, pair in enumerate((("X", 0), ("Y", 1), ("Z", 2)))
        for axis in pair
    ),
    _r("ArraySize_RBV", "int", "Frames", "Size of a clean frame", "view:bytes", unit="B"),
    _r("NDimensions_RBV", "int", "Frames", "Dimensions of a frame", "view:dimensions"),
    _r(
        *("DataType_RBV", "enum", "Frames", "Of clean frames", "fixed:Float32"),
        choices=DATA_TYPES,
        initial=DATA_TYPES.index("Float32"),
    ),
    _r(
        *("ColorMode_RBV", "enum", "Frames", "Mono, or RGB3: channels are planes"),
        *("view:color_mode",),
        choices=COLOR_MODES,
    ),
    _r("PortName_RBV", "string", "Frames", "Name of the daemon", "view:port", length=64),
    _set(
        *("NDArrayPort", "string", "Frames", "Where frames come from", "view:source"),
        length=64,
        access="rw",
        write="QB_EXPERT",
    ),
    _set("NDArrayAddress", "int", "Frames", "Always 0", "fixed:0", drive=(0, 0), write="QB_EXPERT"),
    _set(
        *("EnableCallbacks", "bool", "Frames", "Image PVs are updated", "view:own"),
        choices=("Disable", "Enable"),
        initial=1,
        autosave=True,
    ),
    _set(
        *("MinCallbackTime", "float", "Frames", "Least time between two images", "view:own"),
        drive=(0, 3600),
        initial=0,
        unit="s",
        autosave=True,
    ),
    _set(
        *("BlockingCallbacks", "bool", "Frames", "Always No", "fixed:0"),
        choices=("No", "Yes"),
        write="QB_EXPERT",
    ),
    _set(
        *("NDAttributesFile", "string", "Frames", "Not used", "view:own"),
        rbv=False,
        write="QB_EXPERT",
    ),
    _r("PluginType_RBV", "string", "Frames", "Kind of plugin", "fixed:NDPluginDenoise", length=40),
    _r("ADCoreVersion_RBV", "string", "Frames", "Conventions followed", "fixed:3.14.0", length=40),
    _r("DriverVersion_RBV", "string", "Frames", "Version of quietbeam", "view:version", length=40),
)

_MODEL: tuple[Pv, ...] = (
    _r(
        *("ModelVersion_RBV", "int", "Model", "Promoted model in use; 0: classical"),
        *("frame:model_version",),
        attribute="ModelVersion",
    ),
    _r(
        *("ModelStep_RBV", "int", "Model", "Training steps done", "status:trainer.progress.steps"),
        attribute="ModelStep",
    ),
    _r(
        *("LearningRate_RBV", "float", "Model", "Of the next training step"),
        *("status:trainer.progress.learning_rate",),
        precision=6,
    ),
    _r("TrainLoss_RBV", "float", "Model", "Training loss", "status:trainer.progress.loss"),
    _r(
        *("ValLoss_RBV", "float", "Model", "Loss on guard data"),
        *("status:trainer.progress.validation_loss",),
    ),
    _r("Promotions_RBV", "int", "Model", "Models that passed the gate", "view:promotions"),
)

_DAEMON: tuple[Pv, ...] = (
    _r(
        *("Connected_RBV", "bool", "Daemon", "The daemon lives and speaks", "view:connected"),
        choices=("No", "Yes"),
        severities=("MAJOR", ""),
    ),
    _r(
        *("Generation_RBV", "int", "Daemon", "Which daemon; one more at every start"),
        *("status:generation.number",),
        attribute="Generation",
    ),
    _r(
        *("StartTime_RBV", "float", "Daemon", "When it started, Unix time"),
        *("status:generation.started_unix_s",),
        unit="s",
        attribute="StartTime",
    ),
    _r(
        *("Version_RBV", "string", "Daemon", "Version of the daemon"),
        *("status:generation.version",),
        length=40,
        attribute="Version",
    ),
    _r("ConfigHash_RBV", "string", "Daemon", "sha256 of its file", "status:config.sha256"),
    _r("SourceState_RBV", "string", "Daemon", "State of the source", "status:source.state"),
    _r("Alarms_RBV", "string", "Daemon", "What is wrong with the producer", "view:alarms"),
    _r(
        *("ViewDropped_RBV", "int", "Daemon", "Frames this server was too slow for"),
        *("view:own_dropped",),
    ),
)

_RUN: tuple[Pv, ...] = (
    _set("RunUid", "string", "Run", "bluesky run; kept with recordings", "view:run_uid"),
    _set(
        *("ScanId", "int", "Run", "bluesky scan number", "view:scan_id"),
        drive=(-(2**31), 2**31 - 1),
        attribute="ScanId",
    ),
    _r("SeriesId_RBV", "string", "Run", "Run as the detector names it", "view:series_id"),
    _r("RunFrames_RBV", "int", "Run", "Frames of this run", "status:pipeline.run_frames"),
)

ROIS = 4


def _roi(number: int) -> tuple[Pv, ...]:
    """Give the PVs of one region, named as those of areaDetector's ROIStat."""
    p = f"ROIStat1:{number}:"
    whole = {"drive": (0, 2**31 - 1), "unit": "px", "autosave": True}
    return (
        _set(
            *(f"{p}Use", "bool", "Regions", f"Region {number} is measured", "view:own"),
            choices=("No", "Yes"),
            autosave=True,
        ),
        *(
            _set(f"{p}{what}{axis}", "int", "Regions", f"{words}, {axis}", "view:own", **whole)
            for what, words in (("Min", "First pixel"), ("Size", "Pixels, 0: to the edge"))
            for axis in "XY"
        ),
        *(
            _r(
                *(f"{p}{name}_RBV", "float", "Regions", words, f"roi:{number}.{what}"),
                fresh=True,
                precision=4,
                unit="" if what == "pixels" else "count",
            )
            for name, what, words in (
                ("MeanValue", "mean", "Mean of the cleaned pixels"),
                ("MeanSd", "sd", "Scatter of its pixels"),
                ("MinValue", "least", "Least cleaned pixel"),
                ("MaxValue", "most", "Greatest cleaned pixel"),
                ("Total", "total", "Sum of the cleaned pixels"),
                ("NPixels", "pixels", "Pixels with a value"),
            )
        ),
        _r(
            *(f"Snap:Roi{number}Mean_RBV", "float", "Snap", f"Mean in region {number}"),
            *(f"snap-roi:{number}.mean",),
            precision=4,
            unit="count",
        ),
    )


_REGIONS = tuple(pv for number in range(1, ROIS + 1) for pv in _roi(number))

_SNAP: tuple[Pv, ...] = (
    _set(
        *("Snap:NumFrames", "int", "Snap", "Frames a measurement takes", "view:own"),
        drive=(1, 100_000),
        initial=1,
        autosave=True,
    ),
    _set(
        *("Snap:Timeout", "float", "Snap", "Longest time it may take", "view:own"),
        drive=(0.01, 86_400),
        initial=10,
        unit="s",
        autosave=True,
    ),
    _do("Snap:Trigger", "Snap", "Measure; done after NumFrames new frames", write="QB_OPERATOR"),
    _r(
        *("Snap:State_RBV", "enum", "Snap", "Of the last measurement", "snap:state"),
        choices=SNAP_STATES,
        severities=("", "", "", "MAJOR", "MAJOR"),
    ),
    _r("Snap:Count_RBV", "int", "Snap", "Frames measured", "snap:count"),
    _r("Snap:FirstId_RBV", "int", "Snap", "First frame measured", "snap:first_id"),
    _r("Snap:LastId_RBV", "int", "Snap", "Last frame measured", "snap:last_id"),
    _r("Snap:ModelVersion_RBV", "int", "Snap", "Model of the last frame", "snap:model_version"),
    _r("Snap:Generation_RBV", "int", "Snap", "Daemon that measured", "snap:generation"),
    _r(
        *("Snap:TimeStamp_RBV", "float", "Snap", "Detector clock, last frame", "snap:time_s"),
        unit="s",
        precision=6,
    ),
    _r("Snap:Serial_RBV", "int", "Snap", "Measurements that have ended", "snap:serial"),
)

_CAPTURE: tuple[Pv, ...] = (
    _set("HDF1:FilePath", "string", "Capture", "Directory, below the root", "capture:path"),
    _set("HDF1:FileName", "string", "Capture", "Name of the file", "capture:name", initial="clean"),
    _set(
        *("HDF1:FileTemplate", "string", "Capture", "printf of path, name", "capture:template"),
        initial="%s%s.h5",
    ),
    _r("HDF1:FullFileName_RBV", "string", "Capture", "The file", "capture:file", length=1024),
    _r(
        *("HDF1:FilePathExists_RBV", "bool", "Capture", "Directory may be used", "capture:exists"),
        choices=("No", "Yes"),
        severities=("MINOR", ""),
    ),
    _set(
        *("HDF1:NumCapture", "int", "Capture", "Frames to take; 0: until stopped"),
        *("capture:num_capture",),
        drive=(0, 2**31 - 1),
    ),
    _r("HDF1:NumCaptured_RBV", "int", "Capture", "Frames safe in the file", "capture:captured"),
    _r("HDF1:Missed_RBV", "int", "Capture", "Gaps in the frames taken", "capture:missed"),
    _set(
        *("HDF1:WriteMode", "enum", "Capture", "All frames, or one per Snap", "capture:mode"),
        choices=("Stream", "PerTrigger"),
    ),
    _set(
        *("HDF1:Capture", "bool", "Capture", "The file is open", "capture:open"),
        choices=("Done", "Capture"),
    ),
    _do("HDF1:Start", "Capture", "Append NumCapture frames from now", write="QB_OPERATOR"),
    _do("HDF1:FlushNow", "Capture", "Make what was written visible", write="QB_OPERATOR"),
    _r(
        *("HDF1:WriteStatus", "enum", "Capture", "Of the last request", "capture:status"),
        choices=WRITE_STATES,
        severities=("", "MAJOR"),
    ),
    _r("HDF1:WriteMessage", "string", "Capture", "Why it was refused", "capture:message"),
    _r(
        *("HDF1:SWMRMode", "bool", "Capture", "Readable while written", "fixed:1"),
        choices=("Off", "On"),
        initial=1,
    ),
)

_IMAGES: tuple[Pv, ...] = (
    _r("Pva1:Image", "image", "Images", "Cleaned frame", "image:clean"),
    _r("Pva2:Image", "image", "Images", "Raw frame of the same number", "image:raw"),
    _r("Pva3:Image", "image", "Images", "Labels, 0 none", "image:labels", dtype="uint8"),
    _r("Pva4:Image", "image", "Images", "Preview of the cleaned frame", "image:preview"),
    _r("Pva5:Image", "image", "Images", "One standard deviation", "image:sd"),
    _r("Pva6:Image", "image", "Images", "Phases, 0 none", "image:phases", dtype="uint8"),
    *(
        _r(f"Pva{n}:PvName_RBV", "string", "Images", f"Channel of image {n}", f"view:pva{n}")
        for n in range(1, 7)
    ),
    _r(
        *("image1:ArrayData", "array", "Images", "Preview for Channel Access", "view:preview"),
        length=PREVIEW_PX * PREVIEW_PX,
        fresh=True,
    ),
    _r(
        *("image1:ArraySize0_RBV", "int", "Images", "Columns of the preview", "view:preview_x"),
    ),
    _r("image1:ArraySize1_RBV", "int", "Images", "Rows of the preview", "view:preview_y"),
    _r("Metrics", "struct", "Images", "All metrics of one frame, every frame", "struct:metrics"),
    _r("PVI", "struct", "Images", "Names of all process variables", "struct:pvi"),
)

FIXED: tuple[Pv, ...] = (
    *(*_PROCESSING, *_FRAMES, *_MODEL, *_DAEMON),
    *(*_RUN, *_REGIONS, *_SNAP, *_CAPTURE, *_IMAGES),
)


def table(
    metrics: Mapping[str, Mapping[str, Any]], alarms: Mapping[str, Limits] | None = None
) -> tuple[Pv, ...]:
    """Give every PV of a daemon.

    Args:
        metrics: As the daemon declares them: name to ``unit``, ``description``, ``shape``.
        alarms: Limits by name of metric.
    """
    return (*FIXED, *_metrics(metrics, alarms or {}))


def _metrics(metrics: Mapping[str, Any], alarms: Mapping[str, Limits]) -> Iterator[Pv]:
    for name, spec in metrics.items():
        count = math.prod(spec["shape"])
        texts = {"unit": str(spec["unit"])[:15], "description": str(spec["description"])[:40]}
        if spec["shape"]:
            sizes = {"length": count, "dtype": "float64"}
            yield Pv(
                name=f"{camel(name)}_RBV",
                kind="array",
                group="Metrics",
                **{"source": f"metric:{name}", "fresh": True, **sizes, **texts},
            )
            continue
        yield Pv(
            name=f"{camel(name)}_RBV",
            kind="float",
            group="Metrics",
            precision=4,
            **{"source": f"metric:{name}", "fresh": True, "attribute": camel(name), **texts},
            alarm=alarms.get(name, Limits()),
        )
        yield Pv(
            name=f"Snap:{camel(name)}_RBV",
            kind="float",
            group="Snap",
            **{"precision": 4, "source": f"snap-metric:{name}", **texts},
        )


def scalars(pvs: Sequence[Pv]) -> dict[str, Pv]:
    """Give the PVs of scalar metrics, by name of metric."""
    return {
        pv.source.removeprefix("metric:"): pv
        for pv in pvs
        if pv.source.startswith("metric:") and pv.kind == "float"
    }
