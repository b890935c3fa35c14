"""Detectors that are not there: what they would send, and when."""

from quietbeam.testing.simulators.detector import Report, simulate, simulated_run
from quietbeam.testing.simulators.encoders import Compression, Encoder
from quietbeam.testing.simulators.formats import FORMATS, UNCOMPRESSED, encoder

__all__ = [
    "FORMATS",
    "UNCOMPRESSED",
    "Compression",
    "Encoder",
    "Report",
    "encoder",
    "simulate",
    "simulated_run",
]
