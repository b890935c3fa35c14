"""Detectors that are not there: what they would send, and when."""

from quietbeam.testing.simulators.detector import Report, simulate, simulated_run
from quietbeam.testing.simulators.encoders import FORMATS, Compression, Encoder, encoder

__all__ = [
    "FORMATS",
    "Compression",
    "Encoder",
    "Report",
    "encoder",
    "simulate",
    "simulated_run",
]
