"""Service DstackGuest of the guest API v1, on dstack.sock: one function per method."""

import json
from typing import TYPE_CHECKING, Final

from attestkit.attester.evidence_source import collect_gpu_evidence
from attestkit.errors import BackendUnavailableError, UnsupportedError, UsageError
from attestkit.serve.machine_info import SimulatedMachine
from attestkit.serve.rpc import messages_v1 as m1
from attestkit.serve.rpc.error_responses import NotImplementedHereError
from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.service import Method, Service
from attestkit.serve.services.context import Guest, check_epochs

if TYPE_CHECKING:
    from attestkit.gpu import GpuEvidence


_REPORT_DATA_SIZE: Final = 64
_NONCE_SIZE: Final = 32
_VENDOR: Final = "nvidia"
_BOOTTIME_FORMAT: Final = "nvidia-nvattest-boottime-json-v1"
_COLLECTED_FORMAT: Final = "nvidia-nvattest-collect-evidence-json-v1"


def _issue_cert(guest: Guest, request: m1.IssueCertRequest) -> m1.IssueCertResponse:
    """Return a new TLS key and a certificate for it, issued by the app's CA.

    Each call makes a new key. With `usage_ra_tls` the certificate carries evidence.
    """
    return m1.IssueCertResponse(*guest.issuer.issue(request, encoding="v1"))


def _get_key(guest: Guest, request: m1.GetKeyRequest) -> m1.GetKeyResponse:
    """Derive the key of a domain and an algorithm, with its signature chain.

    The same app gets the same key on every machine that has the app's keys. It differs from every
    key of the GetKey of `/`.
    """
    check_epochs(request)
    derived = guest.keys.derive_v1(request.domain, request.algorithm)
    return m1.GetKeyResponse(derived.key, derived.public_key, derived.signature_chain)


def _attest(guest: Guest, request: m1.AttestRequest) -> PreparedResponse[m1.AttestResponse]:
    """Return encoded evidence over the report data; `Verifier.verify` accepts it unchanged.

    GPU evidence is returned only if it is requested and the machine has some; it is not bound to
    the report data.
    """
    if len(request.report_data) > _REPORT_DATA_SIZE:
        raise UsageError("report data is too long", reason="too_large")
    response = guest.attest_v1(request.report_data.ljust(_REPORT_DATA_SIZE, b"\0"))
    if request.include_boottime_gpu_evidence:
        evidence = _boot_output(guest)
        if evidence is not None:
            bundle = m1.GpuEvidenceBundle(_VENDOR, _BOOTTIME_FORMAT, evidence)
            found = response.message._replace(boottime_gpu_evidence=(bundle,))
            return PreparedResponse.of(found)
    return response


def _attest_gpu(guest: Guest, request: m1.AttestGpuRequest) -> m1.AttestGpuResponse:
    """Return new GPU evidence over a nonce; 501 without GPUs whose driver can be queried.

    The server does not verify the evidence. It is not bound to the guest: it does not show that the
    GPUs are those of this machine.
    """
    if (size := len(request.nonce)) != _NONCE_SIZE:
        text = f"GPU attestation failed: nonce must be exactly {_NONCE_SIZE} bytes, got {size}"
        raise UsageError(text, reason="wrong_size")
    evidence = _collect_output(guest, request.nonce)
    return m1.AttestGpuResponse((m1.GpuEvidenceBundle(_VENDOR, _COLLECTED_FORMAT, evidence),))


def _info(guest: Guest, _: m1.InfoRequest) -> PreparedResponse[m1.InfoResponse]:
    """Return the app's identity."""
    return get_info(guest)


def get_info(guest: Guest, *, hidden: bool = False) -> PreparedResponse[m1.InfoResponse]:
    """Return the response of Info; `hidden` empties the values that only the app may see.

    Those are app_compose, vm_config and key_provider_info.

    Raises:
        BackendError: If the platform produces no evidence, or no app can be read from it.
    """
    name = "hidden info of v1" if hidden else "info of v1"
    return guest.cached(name, lambda: _make_info(guest, hidden=hidden))


def _make_info(guest: Guest, *, hidden: bool) -> PreparedResponse[m1.InfoResponse]:
    info = guest.decode_evidence().info
    same = {name: getattr(info, name) for name in m1.InfoResponse._fields if name != "app_compose"}
    found = m1.InfoResponse(**same, app_compose=guest.app_compose.raw.decode("utf-8"))
    if hidden:
        found = found._replace(app_compose="", vm_config="", key_provider_info="")
    return PreparedResponse.of(found)


def version(guest: Guest, _: m1.VersionRequest) -> m1.VersionResponse:
    """Return the release of the API and the revision of the server."""
    return m1.VersionResponse(guest.release.version_v1, guest.release.rev)


_UNAVAILABLE: Final = "GPU attestation failed: GPU attestation is not available in this image"


def _collect_output(guest: Guest, nonce: bytes) -> bytes:
    """Return evidence over a nonce of 32 bytes, as the JSON of `nvattest collect-evidence`.

    Raises:
        NotImplementedHereError: If the machine has no GPU whose driver can be queried.
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


def _boot_output(guest: Guest) -> bytes | None:
    """Return the output of `nvattest attest` at boot; None if there is none."""
    machine: object = guest.attester.backend
    if guest.attester.simulated and isinstance(machine, SimulatedMachine) and machine.has_gpus:
        return machine.gpu_boot_evidence()
    return guest.machine.boot_gpu_evidence()


SERVICE: Final = Service(
    {
        "IssueCert": Method(_issue_cert, m1.IssueCertRequest, device=True, signs=True),
        "GetKey": Method(_get_key, m1.GetKeyRequest),
        "Attest": Method(_attest, m1.AttestRequest, device=True),
        "AttestGpu": Method(_attest_gpu, m1.AttestGpuRequest, device=True),
        "Info": Method(_info, m1.InfoRequest, device=True),
        "Version": Method(version, m1.VersionRequest),
    },
    mount="/v1/",
    name="DstackGuest",
    package=m1.PACKAGE,
)
"""DstackGuest of the guest API v1: `/v1/<Method>`."""
