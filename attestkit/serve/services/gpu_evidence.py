"""Evidence of the machine's GPUs for the guest agent's methods: fresh, and of the boot."""

import json
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from attestkit.attester.gpu_source import collect_gpu_evidence
from attestkit.errors import BackendUnavailableError, UnsupportedError
from attestkit.serve.rpc.statuses import NotImplementedHereError
from attestkit.serve.services.context import Guest

_UNAVAILABLE: Final = "GPU attestation failed: GPU attestation is not available in this image"

if TYPE_CHECKING:
    from attestkit.gpu import GpuEvidence


@runtime_checkable
class _SimulatedMachine(Protocol):
    """A simulator that may have GPUs."""

    has_gpus: bool

    def gpu_boot_evidence(self) -> bytes: ...


def collect_output(guest: Guest, nonce: bytes) -> bytes:
    """Return evidence over a nonce of 32 bytes, as the JSON of `nvattest collect-evidence`.

    Raises:
        NotImplementedHereError: If the machine has no GPU whose driver can be asked.
        BackendError: If the driver fails.
    """
    devices = [device.to_object() for device in _collect(guest, nonce).devices]
    output = {"evidences": devices, "result_code": 0, "result_message": "Ok"}
    return json.dumps(output).encode("ascii")


def _collect(guest: Guest, nonce: bytes) -> "GpuEvidence":
    try:
        return collect_gpu_evidence(guest.attester.backend, nonce)
    except (BackendUnavailableError, UnsupportedError) as error:
        raise NotImplementedHereError(_UNAVAILABLE) from error


def boot_output(guest: Guest) -> bytes | None:
    """Return the output of `nvattest attest` at boot; None if there is none."""
    machine = _simulated(guest)
    return guest.machine.boot_gpu_evidence() if machine is None else machine.gpu_boot_evidence()


def _simulated(guest: Guest) -> _SimulatedMachine | None:
    """Return the backend if it is a simulated machine with GPUs."""
    backend: object = guest.attester.backend
    if guest.attester.simulated and isinstance(backend, _SimulatedMachine) and backend.has_gpus:
        return backend
    return None
