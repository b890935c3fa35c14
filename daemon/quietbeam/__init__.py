"""quietbeam: clean detector frames while the beam is on.

These names are the whole world of a plugin author.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from quietbeam.core.denoiser import StreamingDenoiser
from quietbeam.core.errors import (
    ConfigError,
    DataError,
    EngineError,
    QuietbeamError,
    SinkError,
    SourceError,
)
from quietbeam.core.events import Dropped, Event, Frame, Rejected, RunEnd, RunStart
from quietbeam.core.plugin import (
    AnalysisPlugin,
    CorrectionPlugin,
    DenoiserPlugin,
    InversionPlugin,
    Link,
    Measured,
    Observation,
    RecordingSink,
    Sink,
    SinkPlugin,
    SourcePlugin,
    ViewSink,
)
from quietbeam.core.result import MapClass, MapSpec, MetricSpec, Result

if TYPE_CHECKING:
    from quietbeam.offline.denoise import denoise as denoise

__version__ = "0.1.0"

__all__ = [
    "AnalysisPlugin",
    "ConfigError",
    "CorrectionPlugin",
    "DataError",
    "DenoiserPlugin",
    "Dropped",
    "EngineError",
    "Event",
    "Frame",
    "InversionPlugin",
    "Link",
    "MapClass",
    "MapSpec",
    "Measured",
    "MetricSpec",
    "Observation",
    "QuietbeamError",
    "RecordingSink",
    "Rejected",
    "Result",
    "RunEnd",
    "RunStart",
    "Sink",
    "SinkError",
    "SinkPlugin",
    "SourceError",
    "SourcePlugin",
    "StreamingDenoiser",
    "ViewSink",
    "denoise",
]


def __getattr__(name: str) -> object:
    """Give ``quietbeam.denoise`` lazily: it needs torch, the rest does not."""
    if name == "denoise":
        # by name: the root package must not pull ``offline`` into whoever imports it
        return import_module("quietbeam.offline.denoise").denoise
    raise AttributeError(f"module 'quietbeam' has no attribute {name!r}")
