"""Reference integrity manifests (RIMs) of NVIDIA: fetched, parsed, verified and compared.

A RIM is an XML document with an XML signature that lists the expected measurements of a driver, a
VBIOS or a switch (nvidia-gpu.md, section 4).
"""

from attestkit.gpu.rim.identity import RimSource, check_rim_identity
from attestkit.gpu.rim.manifest import Rim, RimMeasurement
from attestkit.gpu.rim.measurements import (
    MeasurementComparison,
    MeasurementMismatch,
    compare_measurements,
)
from attestkit.gpu.rim.rim_client import fetch_rim
from attestkit.gpu.rim.verification import VerifiedRim, verify_rim

__all__ = [
    "MeasurementComparison",
    "MeasurementMismatch",
    "Rim",
    "RimMeasurement",
    "RimSource",
    "VerifiedRim",
    "check_rim_identity",
    "compare_measurements",
    "fetch_rim",
    "verify_rim",
]
