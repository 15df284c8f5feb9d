"""Messages of a key management service, its onboarding and its administration.

The protobuf package is `kms`, as in the `.proto` file of dstack's KMS. `message_fields` explains
how a message is described.
"""

from typing import Annotated, Final, NamedTuple

from attestkit.serve.rpc.message_fields import PACKAGES, UINT32

PACKAGE: Final = PACKAGES["messages_kms"]
"""Protobuf package of these messages and their services."""


class GetAppKeyRequest(NamedTuple):
    """Request for the keys of the app whose evidence is in the client's certificate.

    Attributes:
        api_version: Version of the request, 0 or 1.
        vm_config: VM configuration, JSON; empty: that of the evidence.
    """

    api_version: Annotated[int, 1, UINT32] = 0
    vm_config: Annotated[str, 2] = ""


class AppKeyResponse(NamedTuple):
    """Keys of an instance of an app.

    Attributes:
        ca_cert: Certificate of the root CA, PEM.
        disk_crypt_key: Key of the instance's disk, 32 bytes.
        env_crypt_key: X25519 key of the app's encrypted environment, 32 bytes.
        k256_key: secp256k1 root key of the app, 32 bytes.
        k256_signature: Signature of the KMS over the app's public root key, 65 bytes.
        tproxy_app_id: Older name of `gateway_app_id`.
        gateway_app_id: App id of the gateway.
        os_image_hash: Hash of the OS image.
    """

    ca_cert: Annotated[str, 1] = ""
    disk_crypt_key: Annotated[bytes, 2] = b""
    env_crypt_key: Annotated[bytes, 3] = b""
    k256_key: Annotated[bytes, 4] = b""
    k256_signature: Annotated[bytes, 5] = b""
    tproxy_app_id: Annotated[str, 6] = ""
    gateway_app_id: Annotated[str, 7] = ""
    os_image_hash: Annotated[bytes, 8] = b""

    def __repr__(self) -> str:
        return "AppKeyResponse(<secret>)"


class AppId(NamedTuple):
    """Id of an app.

    Attributes:
        app_id: App id, 20 bytes.
    """

    app_id: Annotated[bytes, 1] = b""


class PublicKeyResponse(NamedTuple):
    """Public key for the encrypted environment of an app.

    Attributes:
        public_key: X25519 key, 32 bytes.
        signature: Signature of the KMS over app id and public key, 65 bytes.
        timestamp: Unix time in `signature_v1`.
        signature_v1: Signature of the KMS over app id, time and public key, 65 bytes.
    """

    public_key: Annotated[bytes, 1] = b""
    signature: Annotated[bytes, 2] = b""
    timestamp: Annotated[int, 3] = 0
    signature_v1: Annotated[bytes, 4] = b""


class BootstrapRequest(NamedTuple):
    """Request to create the keys of a new KMS.

    Attributes:
        domain: DNS name or IP address of the KMS, for its certificate.
    """

    domain: Annotated[str, 1] = ""


class BootstrapResponse(NamedTuple):
    """Public keys of a new KMS.

    Attributes:
        ca_pubkey: Public key of the root CA, SubjectPublicKeyInfo in DER.
        k256_pubkey: Public secp256k1 root key, 33 bytes.
        attestation: Evidence over both keys; empty if the KMS does not attest itself.
    """

    ca_pubkey: Annotated[bytes, 1] = b""
    k256_pubkey: Annotated[bytes, 2] = b""
    attestation: Annotated[bytes, 3] = b""


class GetMetaResponse(NamedTuple):
    """Description of a KMS, which is neither signed nor attested.

    Attributes:
        ca_cert: Certificate of the root CA, PEM.
        allow_any_upgrade: Whether every compose hash of an app gets its keys.
        k256_pubkey: Public secp256k1 root key, 33 bytes.
        bootstrap_info: Public keys and evidence over them, from Bootstrap; unset if the keys were
            copied from another KMS.
        is_dev: Whether the KMS is for development.
        gateway_app_id: App id of the gateway.
        kms_contract_address: Address of the Ethereum contract that authorizes apps.
        chain_id: Id of the Ethereum chain of the contract.
        app_auth_implementation: Address of the app contract's implementation.
    """

    ca_cert: Annotated[str, 1] = ""
    allow_any_upgrade: Annotated[bool, 2] = False
    k256_pubkey: Annotated[bytes, 3] = b""
    bootstrap_info: Annotated[BootstrapResponse | None, 4] = None
    is_dev: Annotated[bool, 5] = False
    gateway_app_id: Annotated[str | None, 6] = None
    kms_contract_address: Annotated[str | None, 7] = None
    chain_id: Annotated[int | None, 8] = None
    app_auth_implementation: Annotated[str | None, 9] = None


class GetKmsKeyRequest(NamedTuple):
    """Request for the root keys, by another KMS whose evidence is in the client's certificate.

    Attributes:
        vm_config: VM configuration, JSON; empty: that of the evidence.
    """

    vm_config: Annotated[str, 1] = ""


class KmsKeys(NamedTuple):
    """Root keys of a KMS.

    Attributes:
        ca_key: Key of the root CA, PKCS#8 in PEM.
        k256_key: secp256k1 root key, 32 bytes.
    """

    ca_key: Annotated[str, 1] = ""
    k256_key: Annotated[bytes, 2] = b""

    def __repr__(self) -> str:
        return "KmsKeys(<secret>)"


class KmsKeyResponse(NamedTuple):
    """All keys that are copied to another KMS.

    Attributes:
        temp_ca_key: Key of the temporary CA, PKCS#8 in PEM.
        keys: Root keys, one entry.
    """

    temp_ca_key: Annotated[str, 1] = ""
    keys: Annotated[tuple[KmsKeys, ...], 2] = ()

    def __repr__(self) -> str:
        return "KmsKeyResponse(<secret>)"


class GetTempCaCertResponse(NamedTuple):
    """The temporary CA, which certifies the keys of clients; its key is public by design.

    Attributes:
        temp_ca_cert: Certificate of the temporary CA, PEM.
        temp_ca_key: Private key of the temporary CA, PKCS#8 in PEM.
        ca_cert: Certificate of the root CA, PEM.
    """

    temp_ca_cert: Annotated[str, 1] = ""
    temp_ca_key: Annotated[str, 2] = ""
    ca_cert: Annotated[str, 3] = ""

    def __repr__(self) -> str:
        return "GetTempCaCertResponse(<secret>)"


class SignCertRequest(NamedTuple):
    """Request to sign a certificate of an app, which contains the evidence.

    Attributes:
        api_version: 1 or 2, the version of `csr`.
        csr: Certificate request in SCALE.
        signature: ECDSA signature over `csr` by the key to be certified, DER.
        vm_config: VM configuration, JSON; empty: that of the evidence.
    """

    api_version: Annotated[int, 1, UINT32] = 0
    csr: Annotated[bytes, 2] = b""
    signature: Annotated[bytes, 3] = b""
    vm_config: Annotated[str, 4] = ""


class SignCertResponse(NamedTuple):
    """A certificate chain.

    Attributes:
        certificate_chain: Leaf, CA of the app and root CA, PEM each.
    """

    certificate_chain: Annotated[tuple[str, ...], 1] = ()


class OnboardRequest(NamedTuple):
    """Request to copy the keys of another KMS to this one.

    Attributes:
        source_url: URL of the other KMS.
        domain: DNS name or IP address of this KMS, for its certificate.
    """

    source_url: Annotated[str, 1] = ""
    domain: Annotated[str, 2] = ""


class OnboardResponse(NamedTuple):
    """Result of an onboarding.

    Attributes:
        k256_pubkey: Public secp256k1 root key, which both KMS now have, 33 bytes.
    """

    k256_pubkey: Annotated[bytes, 1] = b""


class AttestationInfoResponse(NamedTuple):
    """Identity of a KMS that has no keys yet, for its authorization.

    Attributes:
        device_id: Hash of the processor's identity.
        mr_aggregated: Hash of all measurements.
        os_image_hash: Hash of the OS image.
        tee_variant: Platform, such as dstack-tdx.
        site_name: Name of the site.
        eth_rpc_url: URL of an RPC server of the Ethereum chain.
        kms_contract_address: Address of the Ethereum contract that authorizes apps.
        ppid: PPID of the processor, not encrypted; empty without one.
    """

    device_id: Annotated[bytes, 1] = b""
    mr_aggregated: Annotated[bytes, 2] = b""
    os_image_hash: Annotated[bytes, 3] = b""
    tee_variant: Annotated[str, 4] = ""
    site_name: Annotated[str, 5] = ""
    eth_rpc_url: Annotated[str, 6] = ""
    kms_contract_address: Annotated[str, 7] = ""
    ppid: Annotated[bytes, 8] = b""


class ClearImageCacheRequest(NamedTuple):
    """Request to remove cached images and measurements.

    Attributes:
        image_hash: Key of an image in hex, `all`, or empty for none.
        config_hash: Key of measurements in hex, `all`, or empty for none.
    """

    image_hash: Annotated[str, 1] = ""
    config_hash: Annotated[str, 2] = ""
