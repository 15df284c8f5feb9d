"""Name of a device in messages, and errors about it."""

from types import TracebackType
from typing import NamedTuple

from attestkit._verification_steps import GpuReason
from attestkit.errors import CollateralError, FormatError, GpuEvidenceError, VerificationError
from attestkit.gpu.architectures import DeviceKind


class DeviceLabel(NamedTuple):
    """A device as messages name it, with its index in the evidence: "GPU 0", "switch 8"."""

    kind: DeviceKind
    number: int  # its index in the evidence

    def __str__(self) -> str:
        return f"{'GPU' if self.kind == 'gpu' else 'switch'} {self.number}"

    def error(
        self, problem: object, reason: GpuReason, *, by_policy: bool = False
    ) -> GpuEvidenceError:
        """Return an error about this device; `by_policy` marks a violated rule of the policy."""
        message = f"{self}: {problem}"
        return GpuEvidenceError(message, reason=reason, device=self.number, by_policy=by_policy)

    def refused_as(self, reason: GpuReason) -> "RefusedAs":
        """Replace an error that rejects the evidence by the GpuEvidenceError of a check.

        A CollateralError remains one: endorsements are missing or unusable, and nothing is known.
        """
        return RefusedAs(self, reason)


class RefusedAs:
    """The context of `DeviceLabel.refused_as`.

    A class, because contexts that `contextlib` makes of a generator take four times as long, and
    a verification enters a dozen for each device.
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
