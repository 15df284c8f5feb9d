"""Messages of the guest agent API v1 (dstack 0.6): protobuf package `dstack.guest.v1`, at `/v1`.

`message_fields` explains how a message is described.
"""

from typing import Annotated, Final, NamedTuple

from attestkit.serve.rpc import messages
from attestkit.serve.rpc.message_fields import PACKAGES, UNNUMBERED, Bounds

PACKAGE: Final = PACKAGES["messages_v1"]
"""Protobuf package of these messages and their services."""

_ALGORITHMS = Bounds(one_of=("secp256k1", "ed25519"))


class IssueCertRequest(messages.GetTlsKeyArgs):
    """Contents of the certificate of a new TLS key, as in GetTlsKey of the older API."""

    __slots__ = ()


class IssueCertResponse(messages.GetTlsKeyResponse):
    """A private key, and the chain of its certificate, in PEM."""

    __slots__ = ()


class GetKeyRequest(NamedTuple):
    """Request for the key of a domain and an algorithm.

    Attributes:
        domain: Name of the key, any text: the same domain and algorithm give the same key.
        algorithm: Algorithm of the key, which is part of its derivation.
        root_epoch: Epoch of the KMS root key; only in JSON and queries. Other epochs than 0 are
            refused.
        app_epoch: Epoch of the app's root key; only in JSON and queries. Other epochs than 0 are
            refused.
    """

    domain: Annotated[str, 1] = ""
    algorithm: Annotated[str, 2, _ALGORITHMS] = ""
    root_epoch: Annotated[int | None, UNNUMBERED, messages.EPOCH] = None
    app_epoch: Annotated[int | None, UNNUMBERED, messages.EPOCH] = None


class GetKeyResponse(NamedTuple):
    """A derived key, its public key, and two recoverable signatures of 65 bytes.

    Attributes:
        key: The private key: a secp256k1 scalar, or an Ed25519 seed.
        public_key: Public key: 33 bytes for secp256k1, 32 for Ed25519.
        signature_chain: Signature of the app's root key over algorithm, domain and public key;
            signature of the KMS over the app's root key, empty without a KMS.
    """

    key: Annotated[bytes, 1, Bounds(32, 32)] = b""
    public_key: Annotated[bytes, 2, Bounds(32, 33)] = b""
    signature_chain: Annotated[tuple[bytes, ...], 3] = ()

    def __repr__(self) -> str:
        return f"GetKeyResponse(key=..., public_key={self.public_key!r}, signature_chain=...)"


class AttestRequest(NamedTuple):
    """Request for evidence over report data.

    Attributes:
        report_data: Report data, up to 64 bytes; zero-padded to 64.
        include_boottime_gpu_evidence: Return the output of the GPU attestation at boot too.
    """

    report_data: Annotated[bytes, 1, Bounds(most=64)] = b""
    include_boottime_gpu_evidence: Annotated[bool, 2] = False


class GpuEvidenceBundle(NamedTuple):
    """Evidence of GPUs, not bound to the report data: GPUs of any machine may have signed it.

    Attributes:
        vendor: Vendor of the GPUs: nvidia.
        format: Name of the format of `evidence`, such as nvidia-nvattest-boottime-json-v1.
        evidence: JSON, as the vendor's tool `nvattest` prints it.
    """

    vendor: Annotated[str, 1] = ""
    format: Annotated[str, 2] = ""
    evidence: Annotated[bytes, 3] = b""


class AttestResponse(NamedTuple):
    """Evidence in a format that a verifier reads without conversion.

    Attributes:
        attestation: Evidence in version 1 of dstack's evidence format, msgpack.
        boottime_gpu_evidence: Output of the GPU attestation at boot, if requested and available.
            The boot event gpu-attestation has its SHA-256.
    """

    attestation: Annotated[bytes, 1] = b""
    boottime_gpu_evidence: Annotated[tuple[GpuEvidenceBundle, ...], 2] = ()


class AttestGpuRequest(NamedTuple):
    """Request for new GPU evidence over a nonce.

    Attributes:
        nonce: Nonce, 32 bytes, which the GPU signs unchanged.
    """

    nonce: Annotated[bytes, 1, Bounds(32, 32)] = b""


class AttestGpuResponse(NamedTuple):
    """New GPU evidence over a nonce, not bound to the TEE: GPUs of any machine may have signed it.

    Attributes:
        bundles: One bundle with the evidence of all GPUs, in the JSON of `nvattest
            collect-evidence`; its format is nvidia-nvattest-collect-evidence-json-v1.
    """

    bundles: Annotated[tuple[GpuEvidenceBundle, ...], 1] = ()


class InfoRequest(NamedTuple):
    """Request without fields."""


class InfoResponse(NamedTuple):
    """Identity of the app; nothing in it is evidence.

    Attributes:
        app_id: App id.
        app_name: The name in app-compose.json.
        compose_hash: SHA-256 of app-compose.json.
        app_compose: Text of app-compose.json; empty if the app hides it.
        instance_id: Id of this instance of the app.
        device_id: Hash of the processor's identity.
        os_image_hash: Hash of the OS image.
        mr_aggregated: Hash of all registers.
        vm_config: JSON of the VM's configuration; empty if the app hides it.
        key_provider_info: JSON with the provider of the app's keys; empty if the app hides it.
        cloud_vendor: Vendor of the machine, from its firmware.
        cloud_product: Product name of the machine, from its firmware.
    """

    app_id: Annotated[bytes, 1] = b""
    app_name: Annotated[str, 2] = ""
    compose_hash: Annotated[bytes, 3] = b""
    app_compose: Annotated[str, 4] = ""
    instance_id: Annotated[bytes, 5] = b""
    device_id: Annotated[bytes, 6] = b""
    os_image_hash: Annotated[bytes, 7] = b""
    mr_aggregated: Annotated[bytes, 8] = b""
    vm_config: Annotated[str, 9] = ""
    key_provider_info: Annotated[str, 10] = ""
    cloud_vendor: Annotated[str, 11] = ""
    cloud_product: Annotated[str, 12] = ""


class VersionRequest(NamedTuple):
    """Request without fields."""


class VersionResponse(messages.WorkerVersion):
    """Release of the API and revision of the server."""

    __slots__ = ()


class HealthRequest(NamedTuple):
    """Request without fields."""


class ContainerHealth(NamedTuple):
    """A container that is not healthy.

    Attributes:
        name: Name of the container, or the source of the verdict in angle brackets.
        status: Reason why it is not healthy.
    """

    name: Annotated[str, 1] = ""
    status: Annotated[str, 2] = ""


class HealthResponse(NamedTuple):
    """Health of the app.

    Attributes:
        healthy: Whether the app is healthy, or does not require health checks.
        unhealthy: Containers that are not healthy.
        error: Why the health could not be determined; empty if it could.
    """

    healthy: Annotated[bool, 1] = False
    unhealthy: Annotated[tuple[ContainerHealth, ...], 2] = ()
    error: Annotated[str, 3] = ""
