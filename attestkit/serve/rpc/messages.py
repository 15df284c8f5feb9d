"""Messages of the dstack guest agent API v0: protobuf package `dstack_guest`, at `/` and `/v0`.

`message_fields` explains how a message is described.
"""

from typing import Annotated, Final, NamedTuple

from attestkit.serve.rpc.message_fields import PACKAGES, UNNUMBERED, Bounds

PACKAGE: Final = PACKAGES["messages"]
"""Protobuf package of these messages and their services."""

X509_TIME = Bounds(most=253_402_300_799)  # the last second of the year 9999
X509_NAME = Bounds(most=64)
ASCII = Bounds(pattern=r"^[\x00-\x7f]*$")

EPOCH: Final = Bounds(most=0)
"""Epochs of the available keys."""

_PRINTABLE = Bounds(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")
_KEYS = Bounds(one_of=("secp256k1", "k256", "ed25519"))  # k256 is another name of secp256k1
_KEYS_OR_NONE = Bounds(one_of=("", *_KEYS.one_of))
_SIGNATURES = Bounds(one_of=(*_KEYS.one_of, "secp256k1_prehashed"))
_HASHES = Bounds(
    one_of=(
        *("", "sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512"),
        *("keccak256", "keccak384", "keccak512", "raw"),
    )
)


class GetTlsKeyArgs(NamedTuple):
    """Contents of the certificate of a new TLS key.

    Attributes:
        subject: Common name; empty: no common name.
        alt_names: DNS names and IP addresses; internationalised names in their xn-- form.
        usage_ra_tls: Include evidence over the key, so that RA-TLS clients can verify the
            certificate.
        usage_server_auth: Allow the certificate for TLS servers.
        usage_client_auth: Allow the certificate for TLS clients.
        not_before: Start of the validity, Unix time; 0 or unset: the year 1975.
        not_after: End of the validity, Unix time; 0 or unset: in ten years.
        with_app_info: Include the app's identity.
    """

    subject: Annotated[str, 1, X509_NAME] = ""
    alt_names: Annotated[tuple[str, ...], 2, ASCII] = ()
    usage_ra_tls: Annotated[bool, 3] = False
    usage_server_auth: Annotated[bool, 4] = False
    usage_client_auth: Annotated[bool, 5] = False
    not_before: Annotated[int | None, 6, X509_TIME] = None
    not_after: Annotated[int | None, 7, X509_TIME] = None
    with_app_info: Annotated[bool, 8] = False


class GetTlsKeyResponse(NamedTuple):
    """A private key, and the chain of its certificate, in PEM.

    Attributes:
        key: The private key, PKCS#8.
        certificate_chain: Certificate of the key, then those of the issuers.
    """

    key: Annotated[str, 1] = ""
    certificate_chain: Annotated[tuple[str, ...], 2] = ()

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(key=..., certificate_chain=<{len(self.certificate_chain)}>)"


class DeriveKeyArgs(NamedTuple):
    """Arguments of the legacy method DeriveKey.

    Attributes:
        path: Path of the key: the same path gives the same key.
        subject: Common name of the certificate; empty: no common name.
        alt_names: DNS names and IP addresses; internationalised names in their xn-- form.
        usage_ra_tls: Include evidence in the certificate.
        usage_server_auth: Allow the certificate for TLS servers.
        usage_client_auth: Allow the certificate for TLS clients.
        random_seed: Return a new key instead of the path's.
    """

    path: Annotated[str, 1] = ""
    subject: Annotated[str, 2, X509_NAME] = ""
    alt_names: Annotated[tuple[str, ...], 3, ASCII] = ()
    usage_ra_tls: Annotated[bool, 4] = False
    usage_server_auth: Annotated[bool, 5] = False
    usage_client_auth: Annotated[bool, 6] = False
    random_seed: Annotated[bool, 7] = False


class GetKeyArgs(NamedTuple):
    """Path and algorithm of a key, and the purpose in its signature chain.

    Attributes:
        path: Path of the key: the same path gives the same key, for every algorithm.
        purpose: Text that is signed in the signature chain, and does not change the key. No control
            characters.
        algorithm: Algorithm of the key; empty: secp256k1.
        root_epoch: Epoch of the KMS root key; only in JSON and queries. Other epochs than 0 are
            refused.
        app_epoch: Epoch of the app's root key; only in JSON and queries. Other epochs than 0 are
            refused.
    """

    path: Annotated[str, 1] = ""
    purpose: Annotated[str, 2, _PRINTABLE] = ""
    algorithm: Annotated[str, 3, _KEYS_OR_NONE] = ""
    root_epoch: Annotated[int | None, UNNUMBERED, EPOCH] = None
    app_epoch: Annotated[int | None, UNNUMBERED, EPOCH] = None


class GetKeyResponse(NamedTuple):
    """A derived key of 32 bytes and two recoverable signatures of 65 bytes.

    Attributes:
        key: The private key.
        signature_chain: Signature of the app's root key over purpose and public key; signature of
            the KMS over the app's root key, empty without a KMS.
        root_epoch: Epoch of the KMS root key, if the request named an epoch; only in JSON.
        app_epoch: Epoch of the app's root key, if the request named an epoch; only in JSON.
    """

    key: Annotated[bytes, 1, Bounds(32, 32)] = b""
    signature_chain: Annotated[tuple[bytes, ...], 2] = ()
    root_epoch: Annotated[int | None, UNNUMBERED, EPOCH] = None
    app_epoch: Annotated[int | None, UNNUMBERED, EPOCH] = None

    def __repr__(self) -> str:
        return "GetKeyResponse(key=..., signature_chain=...)"


class DeriveK256KeyResponse(NamedTuple):
    """Response of the legacy method DeriveK256Key.

    Attributes:
        k256_key: The private key.
        k256_signature_chain: As the signature_chain of GetKey.
    """

    k256_key: Annotated[bytes, 1, Bounds(32, 32)] = b""
    k256_signature_chain: Annotated[tuple[bytes, ...], 2] = ()

    def __repr__(self) -> str:
        return "DeriveK256KeyResponse(k256_key=..., k256_signature_chain=...)"


class RawQuoteArgs(NamedTuple):
    """Report data of a quote.

    Attributes:
        report_data: Report data, up to 64 bytes; zero-padded to 64.
    """

    report_data: Annotated[bytes, 1, Bounds(most=64)] = b""


class GetQuoteResponse(NamedTuple):
    """A quote, the event log that replays to its registers, and the VM's configuration.

    Attributes:
        quote: The TDX quote.
        event_log: JSON array of the events that replay to the quote's registers.
        report_data: The report data in the quote, zero-padded to 64 bytes.
        vm_config: JSON of the VM's configuration, as the host provided it.
    """

    quote: Annotated[bytes, 1] = b""
    event_log: Annotated[str, 2] = ""
    report_data: Annotated[bytes, 3, Bounds(64, 64)] = b""
    vm_config: Annotated[str, 4] = ""


class AttestResponse(NamedTuple):
    """Evidence that a verifier accepts unchanged.

    Attributes:
        attestation: Evidence in dstack's versioned format; a CMW collection in CBOR for a platform
            that this does not define.
    """

    attestation: Annotated[bytes, 1] = b""


class TdxQuoteArgs(NamedTuple):
    """Content that the legacy service hashes to report data of 64 bytes.

    Attributes:
        report_data: The content; with the algorithm `raw` the report data themselves.
        hash_algorithm: Hash algorithm of the content; empty: sha512.
        prefix: Prefix of the content, hashed before it with a colon; empty: app-data.
    """

    report_data: Annotated[bytes, 1] = b""
    hash_algorithm: Annotated[str, 2, _HASHES] = ""
    prefix: Annotated[str, 3] = ""


class TdxQuoteResponse(NamedTuple):
    """A quote and its event log, and how its report data were computed.

    Attributes:
        quote: The TDX quote.
        event_log: JSON array of the events that replay to the quote's registers.
        hash_algorithm: The hash algorithm that was used, also if the request had none.
        prefix: The prefix that was hashed, also if the request had none; empty with `raw`.
    """

    quote: Annotated[bytes, 1] = b""
    event_log: Annotated[str, 2] = ""
    hash_algorithm: Annotated[str, 3] = ""
    prefix: Annotated[str, 4] = ""


class EmitEventArgs(NamedTuple):
    """A runtime event that extends RTMR3.

    Attributes:
        event: Name of the event, without a colon, and not a reserved name of a boot event.
        payload: Payload of the event.
    """

    event: Annotated[str, 1, Bounds(1, pattern="^[^:]*$")] = ""
    payload: Annotated[bytes, 2] = b""


class AppInfo(NamedTuple):
    """Identity of the app; field numbers 6, 7 and 11 belonged to older versions and are reserved.

    Attributes:
        app_id: App id.
        instance_id: Id of this instance of the app.
        app_cert: Chain of a demo certificate of the app, PEM; empty until it is issued.
        tcb_info: JSON of registers, event log and app-compose.json; empty if the app hides it.
        app_name: The name in app-compose.json.
        device_id: Hash of the processor's identity.
        mr_aggregated: Hash of all registers.
        os_image_hash: Hash of the OS image.
        key_provider_info: JSON with the provider of the app's keys.
        compose_hash: SHA-256 of app-compose.json.
        vm_config: JSON of the VM's configuration; empty if the app hides it.
        cloud_vendor: Vendor of the machine, from its firmware.
        cloud_product: Product name of the machine, from its firmware.
    """

    app_id: Annotated[bytes, 1] = b""
    instance_id: Annotated[bytes, 2] = b""
    app_cert: Annotated[str, 3] = ""
    tcb_info: Annotated[str, 4] = ""
    app_name: Annotated[str, 5] = ""
    device_id: Annotated[bytes, 8] = b""
    mr_aggregated: Annotated[bytes, 9] = b""
    os_image_hash: Annotated[bytes, 10] = b""
    key_provider_info: Annotated[str, 12] = ""
    compose_hash: Annotated[bytes, 13] = b""
    vm_config: Annotated[str, 14] = ""
    cloud_vendor: Annotated[str, 15] = ""
    cloud_product: Annotated[str, 16] = ""


class SignRequest(NamedTuple):
    """Data to sign with the app's signing key.

    Attributes:
        algorithm: Signature algorithm.
        data: Data to sign; with secp256k1_prehashed a digest of 32 bytes.
    """

    algorithm: Annotated[str, 1, _SIGNATURES] = ""
    data: Annotated[bytes, 2] = b""


class SignResponse(NamedTuple):
    """A signature of 64 bytes, and its chain to the root key.

    Attributes:
        signature: The signature.
        signature_chain: The signature, then the signature chain of the signing key.
        public_key: Public key: 32 bytes for Ed25519, 33 for secp256k1.
    """

    signature: Annotated[bytes, 1, Bounds(64, 64)] = b""
    signature_chain: Annotated[tuple[bytes, ...], 2] = ()
    public_key: Annotated[bytes, 3, Bounds(32, 33)] = b""


class VerifyRequest(NamedTuple):
    """A signature to verify.

    Attributes:
        algorithm: Signature algorithm.
        data: The signed data; with secp256k1_prehashed a digest of 32 bytes.
        signature: The signature.
        public_key: Public key: 32 bytes for Ed25519, 33 or 65 for secp256k1.
    """

    algorithm: Annotated[str, 1, _SIGNATURES] = ""
    data: Annotated[bytes, 2] = b""
    signature: Annotated[bytes, 3, Bounds(64, 64)] = b""
    public_key: Annotated[bytes, 4, Bounds(32, 65)] = b""


class VerifyResponse(NamedTuple):
    """Result of a signature verification.

    Attributes:
        valid: Whether the signature is valid.
    """

    valid: Annotated[bool, 1] = False


class WorkerVersion(NamedTuple):
    """Release of the API and revision of the server.

    Attributes:
        version: Release of the guest agent API.
        rev: Revision of the server.
    """

    version: Annotated[str, 1] = ""
    rev: Annotated[str, 2] = ""


class GetAttestationForAppKeyRequest(NamedTuple):
    """Request for evidence that is bound to the app's signing key.

    Attributes:
        algorithm: Algorithm of the signing key.
    """

    algorithm: Annotated[str, 1, _SIGNATURES] = ""


class Error(NamedTuple):
    """Error in the binary encoding.

    Attributes:
        message: Description of the error and its remedy.
    """

    message: Annotated[str, 1] = ""
