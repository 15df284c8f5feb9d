"""Configuration of the GPUs of a simulated machine."""

from typing import Final, Literal

import msgspec
import msgspec.structs

from attestkit.backends.simulator.gpu.deviations import GpuFault
from attestkit.backends.simulator.gpu.gpu_faults import find_gpu_fault
from attestkit.backends.simulator.gpu.gpu_reports import PROTECTED_GPUS
from attestkit.errors import UsageError
from attestkit.gpu.architectures import Architecture

_MOST_GPUS: Final = 16
_NO_FAULT: Final = GpuFault(None, "")


class GpuConfig(msgspec.Struct, frozen=True):
    """The GPUs and NVSwitches of a simulated machine, and their fault; all fields are optional.

    Raises:
        UsageError: If a value is out of range, the fault is unknown, or values contradict each
            other.
    """

    count: int | None = None  # GPUs, 1 to 16; None: as many as the fault needs
    architecture: Literal["HOPPER", "BLACKWELL"] | None = None  # None: that of the fault
    protected_pcie: bool | None = None  # None: with 8 Hopper GPUs
    fault: str | None = None  # see `gpu_faults`

    def __post_init__(self) -> None:
        count: object = self.count
        if count is not None and not (type(count) is int and 1 <= count <= _MOST_GPUS):
            text = f"gpus: must be 1 to {_MOST_GPUS}, not {count!r}"
            raise UsageError(text, reason="out_of_range")
        if self.architecture not in (None, "HOPPER", "BLACKWELL"):
            text = f"architecture: must be HOPPER or BLACKWELL, not {self.architecture!r}"
            raise UsageError(text, reason="wrong_value")
        self._check_fault()
        hopper, eight = self.chosen_architecture == "HOPPER", self.chosen_count == PROTECTED_GPUS
        if self.protected_pcie and not (hopper and eight):
            text = f"protected_pcie: needs {PROTECTED_GPUS} Hopper GPUs; set count, architecture"
            raise UsageError(text, reason="conflict")

    def _check_fault(self) -> None:
        """Check that the fault exists, and that it applies to these GPUs."""
        if self.fault is None:
            return
        fault = find_gpu_fault(self.fault)
        if self.chosen_count < fault.gpus:
            text = f"fault {self.fault}: needs {fault.gpus} GPUs or more, not {self.chosen_count}"
            raise UsageError(text, reason="conflict")
        if fault.only and self.chosen_architecture != fault.architecture:
            text = f"fault {self.fault}: needs the architecture {fault.architecture}"
            raise UsageError(text, reason="conflict")
        if fault.machine == "switch-missing" and not self.is_protected:
            text = f"fault {self.fault}: needs {PROTECTED_GPUS} GPUs with protected PCIe"
            raise UsageError(text, reason="conflict")

    @property
    def deviation(self) -> GpuFault:
        """What `fault` alters; without a fault nothing."""
        return _NO_FAULT if self.fault is None else find_gpu_fault(self.fault)

    @property
    def chosen_count(self) -> int:
        """The number of GPUs: `count`, otherwise as many as the fault needs, at least 1."""
        return self.count or self.deviation.gpus

    @property
    def chosen_architecture(self) -> Architecture:
        """The architecture of the GPUs: `architecture`, otherwise that of the fault, or Hopper."""
        return self.architecture or self.deviation.architecture

    @property
    def is_protected(self) -> bool:
        """Whether the machine is in protected-PCIe mode, with 4 switches."""
        if self.protected_pcie is not None:
            return self.protected_pcie
        return self.chosen_architecture == "HOPPER" and self.chosen_count == PROTECTED_GPUS

    def with_fault(self, fault: str) -> "GpuConfig":
        """Return the configuration with a fault, a key of `GPU_FAULTS` such as "nonce-other".

        Raises:
            UsageError: If the fault is unknown, or needs other GPUs.
        """
        return msgspec.structs.replace(self, fault=fault)
