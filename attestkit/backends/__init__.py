"""Backends: load one by name, or detect the first usable one.

Packages add backends by the entry point group `attestkit.backends`; these are used only by name.
"""

from attestkit.backends.detection import AUTO_ORDER, detect, probe_all
from attestkit.backends.environment import find_agent_endpoint, find_kernel_paths
from attestkit.backends.hardware_signs import HardwareSign, check_hardware_signs, detect_hardware
from attestkit.backends.registry import BUILTIN, create, load, names

__all__ = [
    "AUTO_ORDER",
    "BUILTIN",
    "HardwareSign",
    "check_hardware_signs",
    "create",
    "detect",
    "detect_hardware",
    "find_agent_endpoint",
    "find_kernel_paths",
    "load",
    "names",
    "probe_all",
]
