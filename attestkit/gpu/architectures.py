"""Chips of NVIDIA, by the names in their device certificates (nvidia-gpu.md, section 3.1)."""

import re
from typing import Final, Literal, NamedTuple, TypeAlias

Architecture: TypeAlias = Literal["HOPPER", "BLACKWELL", "LS10"]
"""Architecture as evidence states it; `LS10` is that of NVSwitches."""

DeviceKind: TypeAlias = Literal["gpu", "switch"]

ARCHITECTURES: Final[tuple[Architecture, ...]] = ("HOPPER", "BLACKWELL", "LS10")

PDI_SIZE: Final = 8
"""Bytes of the lasting identifier of a device (PDI)."""

NVDEC_INDEX: Final = 35
"""Index of the measurement that is not compared while the video decoder 0 is off (section 4.4)."""

_CHIP: Final = re.compile(r"(GH[0-9]{3}|GB[0-9]{3}|LS_?10) [ -~]{1,64}")
_SWITCH: Final = "LS10"


class Chip(NamedTuple):
    """A chip."""

    name: str  # GH100, GB100, LS10, as the product of a RIM
    architecture: Architecture

    @property
    def kind(self) -> DeviceKind:
        """Whether it is a GPU or an NVSwitch."""
        return kind_of(self.architecture)


def kind_of(architecture: Architecture | None) -> DeviceKind:
    """Return the kind of device of an architecture; GPUs are assumed if it is not known."""
    return "switch" if architecture == _SWITCH else "gpu"


def chip_of(common_name: str) -> Chip | None:
    """Return the chip that the common name of a device certificate begins with; None if unknown.

    Args:
        common_name: Of the leaf or the certificate above it, such as `GH100 A01 GSP BROM` or
            `LS_10 A01 FSP FMC LF`.
    """
    found = _CHIP.fullmatch(common_name)
    if found is None:
        return None
    name = found[1].replace("_", "")
    if name == _SWITCH:
        return Chip(name, "LS10")
    return Chip(name, "HOPPER" if name.startswith("GH") else "BLACKWELL")


def find_architecture(stated: str) -> Architecture | None:
    """Return the architecture of a word in evidence, in any case; None if unknown."""
    upper = stated.upper()
    return next((known for known in ARCHITECTURES if known == upper), None)
