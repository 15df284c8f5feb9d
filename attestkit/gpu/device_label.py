"""Name of a device in messages, and errors about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from attestkit._reasons import GpuReason
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
        """Return the error that refuses the device."""
        message = f"{self}: {problem}"
        return GpuEvidenceError(message, reason=reason, device=self.number, by_policy=by_policy)

    @contextmanager
    def refused_as(self, reason: GpuReason) -> Iterator[None]:
        """Replace an error that rejects the evidence by the GpuEvidenceError of a check.

        A CollateralError remains one: endorsements are missing or unusable, and nothing is known.
        """
        try:
            yield
        except GpuEvidenceError as error:
            if error.device is not None:
                raise
            raise self.error(error, error.reason) from error
        except (FormatError, VerificationError) as error:
            raise self.error(error, reason) from error
        except CollateralError as error:
            raise CollateralError(f"{self}: {error}", reason=error.reason) from error
