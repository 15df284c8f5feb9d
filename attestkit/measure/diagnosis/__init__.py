"""Diagnosis: the first event in which evidence differs from expected measurements, and why."""

from attestkit.measure.diagnosis.difference import Cause, CauseName, Difference, DifferenceKind
from attestkit.measure.diagnosis.evidence_comparison import (
    LoggedBoot,
    TdRegisters,
    explain,
    find_differences,
    uncompared_registers,
)
from attestkit.measure.diagnosis.evidence_shape import ShapeSource, read_machine_shape
from attestkit.measure.diagnosis.guest_inputs import GuestInputs
from attestkit.measure.diagnosis.guest_shape import (
    find_guest_shape,
    find_memory,
)
from attestkit.measure.diagnosis.launch_digest_causes import SnpInputs

__all__ = [
    "Cause",
    "CauseName",
    "Difference",
    "DifferenceKind",
    "GuestInputs",
    "LoggedBoot",
    "ShapeSource",
    "SnpInputs",
    "TdRegisters",
    "explain",
    "find_differences",
    "find_guest_shape",
    "find_memory",
    "read_machine_shape",
    "uncompared_registers",
]
