"""The simulator behind the kernel's own interfaces, for programs that do not use attestkit.

FUSE files, drivers and a mount namespace emulate the kernel; the TEE is that of the simulator.
"""

from attestkit.emulator.machine import PROVIDERS, Machine, Setup

__all__ = ["PROVIDERS", "Machine", "Setup"]
