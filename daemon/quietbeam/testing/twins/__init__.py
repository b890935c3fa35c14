"""Simulated experiments with known truth, one for each modality of the source paper.

No public recording of these exists, so the workflows are measured on them.
"""

from quietbeam.testing.twins.base import Twin
from quietbeam.testing.twins.neutron import NeutronTwin
from quietbeam.testing.twins.optical import OpticalTwin
from quietbeam.testing.twins.stxm import StxmTwin

TWINS: dict[str, type[Twin]] = {
    "neutron": NeutronTwin,
    "optical": OpticalTwin,
    "stxm": StxmTwin,
}
"""By modality."""

__all__ = ["TWINS", "NeutronTwin", "OpticalTwin", "StxmTwin", "Twin"]
