"""Access to the GPUs of a simulated machine: the part of a simulator that all platforms share.

It has the routes of NVIDIA's services too: OCSP responder, RIM service, NRAS. `attestkit.serve`
provides their sockets, beside the simulator's PCCS.
"""

from base64 import b64encode
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

from attestkit._crypto.hashes import sha256
from attestkit.backends.simulator.service_response import (
    JSON,
    ServiceResponse,
    content_response,
    json_response,
)
from attestkit.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
    from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
    from attestkit.gpu import GpuEndorsements, GpuEvidence, GpuRoots
    from attestkit.gpu.driver.nvml import MachineTelemetry


class GpuHost:
    """A machine that may have GPUs."""

    _gpus: "SimulatedGpus | None" = None

    @property
    def gpus(self) -> "SimulatedGpus":
        """The GPUs and switches.

        Raises:
            UnsupportedError: If the machine has no GPU.
        """
        if self._gpus is None:
            text = "simulator: the machine has no GPU; open it with gpus=1"
            raise UnsupportedError(text, reason="feature")
        return self._gpus

    @property
    def has_gpus(self) -> bool:
        """Whether the machine has GPUs."""
        return self._gpus is not None

    @property
    def gpu_roots(self) -> "GpuRoots":
        """The trust anchors for verifiers of the GPUs' evidence; UnsupportedError without GPUs."""
        return self.gpus.roots

    def gpu_endorsements(
        self, now: float | None = None, *, nonce: bytes | None = None
    ) -> "GpuEndorsements":
        """Return the endorsements of the GPUs and switches at a Unix time: RIMs and OCSP answers.

        Args:
            now: The time; None: at present.
            nonce: Nonce of the evidence, 32 bytes, to add tokens of NRAS and its key set; None:
                without them.

        Raises:
            UsageError: If the nonce is not 32 bytes.
            UnsupportedError: If the machine has no GPU.
        """
        return self.gpus.endorsements(self.unix_time() if now is None else now, nonce)

    def gpu_evidence(self, nonce: bytes) -> "GpuEvidence":
        """Return evidence of all GPUs and switches over a nonce of 32 bytes.

        Raises:
            UsageError: If the nonce is not 32 bytes.
            UnsupportedError: If the machine has no GPU.
        """
        return self.gpus.evidence(nonce)

    def gpu_boot_evidence(self) -> bytes:
        """Return the output of the GPU attestation at boot: JSON of `nvattest attest`.

        Raises:
            UnsupportedError: If the machine has no GPU.
        """
        return self.gpus.boot_output

    def gpu_telemetry(self) -> "MachineTelemetry":
        """Return the telemetry of the idle GPUs; UnsupportedError if the machine has none."""
        from attestkit.gpu.driver.nvml import MachineTelemetry  # lazy

        gpus = tuple([gpu.telemetry for gpu in self.gpus.gpus])
        return MachineTelemetry(gpus, enabled=True, ready=True)

    @property
    def _gpu_attestation(self) -> bytes | None:
        """The payload (JSON) of the event about the GPU attestation at boot; None without GPUs."""
        if self._gpus is None:
            return None
        from attestkit.backends.simulator.gpu.boot_attestation import boot_payload  # lazy

        return boot_payload(self._gpus.boot_output, len(self._gpus.devices))

    def unix_time(self) -> float:
        """Return the Unix time of the simulated machine."""
        raise NotImplementedError  # of the simulator

    def _attach_gpus(self, seed: bytes, gpus: "int | GpuConfig | None", fault: str | None) -> None:
        """Add GPUs to the machine.

        Args:
            seed: 32 bytes, from which the GPUs' keys are derived.
            gpus: Their number or configuration; None: those that `fault` needs, else no GPU.
            fault: Name of the scenario's GPU fault, or None.

        Raises:
            UsageError: If the configuration or the fault is invalid.
        """
        if gpus is None and fault is None:
            return
        # Lazy: most simulated machines have no GPU.
        from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
        from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus

        config = gpus if isinstance(gpus, GpuConfig) else GpuConfig(gpus)
        if fault is not None:
            if config.fault not in (None, fault):
                text = f"gpus: fault {config.fault}, but the scenario has {fault}; give only one"
                raise UsageError(text, reason="conflict")
            config = config.with_fault(fault)
        self._gpus = SimulatedGpus(seed, config)


_RIM: Final = "/v1/rim/"
_IDS: Final = "ids"
_OCSP: Final = "/ocsp"
_JWKS: Final = "/.well-known/jwks.json"


class SimulatedGpuServices:
    """Routes of the services: `/ocsp`, `/v1/rim/<id>`, `/v<n>/attest/<kind>` and the key set.

    Args:
        gpus: The devices that the services endorse.
        now: Returns Unix time.
    """

    def __init__(self, gpus: "SimulatedGpus", now: Callable[[], float]) -> None:
        self._gpus, self._now = gpus, now

    def get(self, path: str) -> ServiceResponse | None:
        """Return the response to a GET of `path`, such as "/v1/rim/ids"; None without a route.

        For an unknown RIM it is a response of status 404.
        """
        if path.startswith(_RIM):
            return self._rim(path.removeprefix(_RIM))
        if path == _JWKS:
            return content_response(JSON, self._gpus.nras.jwks(self._moment()))
        return None

    def post(self, path: str, body: bytes) -> ServiceResponse | None:
        """Return the response to a POST of `body` to `path`; None without a route.

        The body is an OCSP request (DER) or a request to NRAS (JSON). If it is malformed, the
        response is an OCSP error with status 200, or an error of NRAS with status 400.
        """
        if path.rstrip("/") == _OCSP:
            status = self._gpus.ocsp.respond(body, self._moment())
            return content_response("application/ocsp-response", status)
        answer = self._gpus.nras.attest(path, body, self._moment())
        return None if answer.status == 404 else answer

    def _rim(self, identifier: str) -> ServiceResponse:
        rims = self._gpus.rims
        if identifier == _IDS:
            return json_response({"ids": sorted(rims)})
        rim = rims.get(identifier)
        if rim is None:
            return json_response({"message": "RIM not found", "id": identifier[:256]}, 404)
        body = {
            "id": identifier,
            "rim": b64encode(rim).decode("ascii"),
            "sha256": sha256(rim).hex(),
            "last_updated": "2024-01-01T00:00:00Z",
            "rim_format": "TCG",
            "request_id": sha256(identifier.encode()).hex()[:32],
        }
        return json_response(body)

    def _moment(self) -> datetime:
        return datetime.fromtimestamp(int(self._now()), timezone.utc)
