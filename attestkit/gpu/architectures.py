"""Chips of NVIDIA and names of devices in errors.

A chip is known by the name in its device certificates.
"""

import re
from types import TracebackType
from typing import Final, Literal, NamedTuple, TypeAlias

from attestkit._outcomes.steps import GpuReason
from attestkit.errors import CollateralError, FormatError, GpuEvidenceError, VerificationError

Architecture: TypeAlias = Literal["HOPPER", "BLACKWELL", "LS10"]
"""Architecture as evidence states it; `LS10` is that of NVSwitches."""
DeviceKind: TypeAlias = Literal["gpu", "switch"]
ARCHITECTURES: Final[tuple[Architecture, ...]] = ("HOPPER", "BLACKWELL", "LS10")
PDI_SIZE: Final = 8
"""Bytes of the lasting identifier of a device (PDI)."""
NVDEC_INDEX: Final = 35
"""Index of the measurement that is not compared while the video decoder 0 is off."""
_CHIP: Final = re.compile(r"(GH[0-9]{3}|GB[0-9]{3}|LS_?10) [ -~]{1,64}")
_SWITCH: Final = "LS10"


class Chip(NamedTuple):
    """A chip of NVIDIA: name, such as GH100, and architecture."""

    name: str  # GH100, GB100, LS10, as the product of a RIM
    architecture: Architecture

    @property
    def kind(self) -> DeviceKind:
        """Kind of the device with this chip: `gpu` or `switch`."""
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
    """Return the architecture `stated` in evidence, in upper or lower case; None if unknown."""
    upper = stated.upper()
    return next((known for known in ARCHITECTURES if known == upper), None)


class DeviceLabel(NamedTuple):
    """A device as messages name it, with its index in the evidence: "GPU 0", "switch 8"."""

    kind: DeviceKind
    number: int  # its index in the evidence

    def __str__(self) -> str:
        return f"{'GPU' if self.kind == 'gpu' else 'switch'} {self.number}"

    def error(
        self, problem: object, reason: GpuReason, *, by_policy: bool = False
    ) -> GpuEvidenceError:
        """Return an error whose text is the name of this device and `problem`.

        `by_policy` is whether a rule of the policy is violated.
        """
        message = f"{self}: {problem}"
        return GpuEvidenceError(message, reason=reason, device=self.number, by_policy=by_policy)

    def refused_as(self, reason: GpuReason) -> "RefusedAs":
        """Return a context manager: FormatError and VerificationError become GpuEvidenceError.

        The new error names this device and has `reason`; a GpuEvidenceError without a device gets
        this one. A CollateralError keeps its type and reason, as missing or unusable endorsements
        say nothing about the device; but a CollateralExpiredError is a VerificationError.
        """
        return RefusedAs(self, reason)


class RefusedAs:
    """The context manager that `DeviceLabel.refused_as` returns.

    It is a class because a generator with `contextlib.contextmanager` takes four times as long, and
    a verification enters a dozen contexts for each device.
    """

    __slots__ = ("_label", "_reason")

    def __init__(self, label: DeviceLabel, reason: GpuReason) -> None:
        self._label = label
        self._reason: GpuReason = reason

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if isinstance(error, GpuEvidenceError):
            if error.device is None:
                raise self._label.error(error, error.reason) from error
        elif isinstance(error, (FormatError, VerificationError)):
            raise self._label.error(error, self._reason) from error
        elif isinstance(error, CollateralError):
            message = f"{self._label}: {error}"
            raise CollateralError(message, reason=error.reason) from error
