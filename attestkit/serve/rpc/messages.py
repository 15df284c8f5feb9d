r"""Every message of the dstack guest agent API, each described once.

A field's annotation tells its type and, in `Annotated`, its protobuf number; its place tells its
place in JSON; its default is the value that an absent field has in both encodings. Codecs read
this description with `fields_of` and methods see plain `NamedTuple`s, so neither knows the other.
Documents take their words from the docstrings, and from `Bounds` what a field may hold.

| annotation        | protobuf         | JSON of a response    |
|-------------------|------------------|-----------------------|
| `str`             | string           | string                |
| `bool`            | bool             | `true`, `false`       |
| `int`             | uint64           | number                |
| `int \| None`      | optional uint64  | number or `null`      |
| `bytes`           | bytes            | lowercase hex         |
| `tuple[str, ...]` | repeated string  | array of strings      |
| `tuple[bytes, ...]` | repeated bytes | array of hex          |
"""

import types
from functools import cache
from typing import (
    Annotated,
    Any,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

__all__ = [
    "OMIT_EMPTY",
    "PACKAGE",
    "AppInfo",
    "AttestResponse",
    "Bounds",
    "DeriveK256KeyResponse",
    "DeriveKeyArgs",
    "EmitEventArgs",
    "Error",
    "Field",
    "GetAttestationForAppKeyRequest",
    "GetKeyArgs",
    "GetKeyResponse",
    "GetQuoteResponse",
    "GetTlsKeyArgs",
    "GetTlsKeyResponse",
    "GpuInfoResponse",
    "RawQuoteArgs",
    "SignRequest",
    "SignResponse",
    "TdxQuoteArgs",
    "TdxQuoteResponse",
    "VerifyRequest",
    "VerifyResponse",
    "WorkerVersion",
    "defaults_of",
    "fields_of",
]

OMIT_EMPTY = "left out of JSON when it is empty"
PACKAGE = "dstack_guest"
"""The package of all messages and services in protobuf."""


M = TypeVar("M", bound=NamedTuple)


class Bounds(NamedTuple):
    """What a field may hold, or each item of one; methods check it, documents tell it."""

    least: int = 0  # bytes, characters, or the number itself
    most: int | None = None
    one_of: tuple[str, ...] = ()
    pattern: str = ""  # of a text


class Field(NamedTuple):
    """One field of a message, as codecs and documents need it."""

    name: str
    number: int  # of protobuf
    kind: type  # str, bool, int (uint64) or bytes: of the value, or of each item
    repeated: bool
    optional: bool  # None means absent, and differs from the kind's zero
    omit_empty: bool
    default: Any  # of an absent field
    bounds: Bounds


def defaults_of(message: type[M]) -> M:
    """Return the message whose fields are at their defaults, which all have."""
    return cast("M", _defaults(message))


@cache
def _defaults(message: type[NamedTuple]) -> NamedTuple:
    return message._make(message._field_defaults.values())


def fields_of(message: type[NamedTuple]) -> tuple[Field, ...]:
    """Return the fields of a message class, in the order of JSON."""
    return _described(message)


@cache
def _described(message: type[NamedTuple]) -> tuple[Field, ...]:
    hints = get_type_hints(message, include_extras=True)
    defaults = message._field_defaults
    return tuple(_field(name, hint, defaults[name]) for name, hint in hints.items())


def _field(name: str, hint: object, default: object) -> Field:
    annotation, number, *marks = get_args(hint)
    origin, arguments = get_origin(annotation), get_args(annotation)
    optional = origin in (types.UnionType, Union)
    repeated = origin is tuple
    kind = arguments[0] if optional or repeated else annotation
    bounds = next((mark for mark in marks if isinstance(mark, Bounds)), Bounds())
    return Field(name, number, kind, repeated, optional, OMIT_EMPTY in marks, default, bounds)


_X509_TIME = Bounds(most=253_402_300_799)  # the last second of the year 9999
_X509_NAME = Bounds(most=64)
_ASCII = Bounds(pattern=r"^[\x00-\x7f]*$")
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
    """What the certificate of a new TLS key shall say.

    Attributes:
        subject: Common name; empty is none.
        alt_names: DNS names and IP addresses; names outside ASCII in their xn-- form.
        usage_ra_tls: Put evidence into it, so that it can be judged by RA-TLS.
        usage_server_auth: It is for TLS servers.
        usage_client_auth: It is for TLS clients.
        not_before: First second of its validity, since 1970; 0 is unset, and then 1975.
        not_after: Last second of its validity, since 1970; 0 is unset, and then in ten years.
        with_app_info: Put the app's identity into it.
    """

    subject: Annotated[str, 1, _X509_NAME] = ""
    alt_names: Annotated[tuple[str, ...], 2, _ASCII] = ()
    usage_ra_tls: Annotated[bool, 3] = False
    usage_server_auth: Annotated[bool, 4] = False
    usage_client_auth: Annotated[bool, 5] = False
    not_before: Annotated[int | None, 6, _X509_TIME] = None
    not_after: Annotated[int | None, 7, _X509_TIME] = None
    with_app_info: Annotated[bool, 8] = False


class GetTlsKeyResponse(NamedTuple):
    """A private key and its certificates, in PEM.

    Attributes:
        key: The private key, PKCS#8.
        certificate_chain: Its certificate, then those of the issuers.
    """

    key: Annotated[str, 1] = ""
    certificate_chain: Annotated[tuple[str, ...], 2] = ()

    def __repr__(self) -> str:
        return f"GetTlsKeyResponse(key=..., certificate_chain=<{len(self.certificate_chain)}>)"


class DeriveKeyArgs(NamedTuple):
    """What the legacy service's DeriveKey takes.

    Attributes:
        path: Which key: the same path gives the same key.
        subject: Common name of the certificate; empty is none.
        alt_names: DNS names and IP addresses; names outside ASCII in their xn-- form.
        usage_ra_tls: Put evidence into the certificate.
        usage_server_auth: The certificate is for TLS servers.
        usage_client_auth: The certificate is for TLS clients.
        random_seed: Make a new key instead of the path's.
    """

    path: Annotated[str, 1] = ""
    subject: Annotated[str, 2, _X509_NAME] = ""
    alt_names: Annotated[tuple[str, ...], 3, _ASCII] = ()
    usage_ra_tls: Annotated[bool, 4] = False
    usage_server_auth: Annotated[bool, 5] = False
    usage_client_auth: Annotated[bool, 6] = False
    random_seed: Annotated[bool, 7] = False


class GetKeyArgs(NamedTuple):
    """Which key is wanted, and what its signature chain shall say it is for.

    Attributes:
        path: Which key: the same path gives the same key, for every algorithm.
        purpose: Any text; the signature chain vouches for it, the key does not depend on it.
        algorithm: Kind of key; empty is secp256k1.
    """

    path: Annotated[str, 1] = ""
    purpose: Annotated[str, 2] = ""
    algorithm: Annotated[str, 3, _KEYS_OR_NONE] = ""


class GetKeyResponse(NamedTuple):
    """A derived key of 32 bytes and two recoverable signatures of 65.

    Attributes:
        key: The private key.
        signature_chain: By the app's root key over purpose and public key; then by the KMS over the
            app's root key, empty where there is no KMS.
    """

    key: Annotated[bytes, 1, Bounds(32, 32)] = b""
    signature_chain: Annotated[tuple[bytes, ...], 2] = ()

    def __repr__(self) -> str:
        return "GetKeyResponse(key=..., signature_chain=...)"


class DeriveK256KeyResponse(NamedTuple):
    """What GetKey answers, under the names of the legacy service.

    Attributes:
        k256_key: The private key.
        k256_signature_chain: As the signature_chain of GetKey.
    """

    k256_key: Annotated[bytes, 1, Bounds(32, 32)] = b""
    k256_signature_chain: Annotated[tuple[bytes, ...], 2] = ()

    def __repr__(self) -> str:
        return "DeriveK256KeyResponse(k256_key=..., k256_signature_chain=...)"


class RawQuoteArgs(NamedTuple):
    """The bytes a quote is asked for; up to 64.

    Attributes:
        report_data: What the quote vouches for; filled up to 64 bytes with zeros.
    """

    report_data: Annotated[bytes, 1, Bounds(most=64)] = b""


class GetQuoteResponse(NamedTuple):
    """A quote, the log that explains its registers, and the machine's configuration.

    Attributes:
        quote: The quote; empty on platforms that have none.
        event_log: JSON array of the events that replay to the quote's registers.
        report_data: What the quote vouches for, with its zeros.
        vm_config: JSON of the machine's configuration, as the host gave it.
        attestation: Evidence of platforms that have no quote.
    """

    quote: Annotated[bytes, 1] = b""
    event_log: Annotated[str, 2] = ""
    report_data: Annotated[bytes, 3, Bounds(64, 64)] = b""
    vm_config: Annotated[str, 4] = ""
    attestation: Annotated[bytes, 5, OMIT_EMPTY] = b""


class AttestResponse(NamedTuple):
    """Evidence in one parcel, ready for a verifier.

    Attributes:
        attestation: Evidence in dstack's versioned format.
    """

    attestation: Annotated[bytes, 1] = b""


class TdxQuoteArgs(NamedTuple):
    """Content that the legacy service hashes into the 64 bytes.

    Attributes:
        report_data: The content; with the algorithm `raw` the 64 bytes themselves.
        hash_algorithm: How the content is hashed; empty is sha512.
        prefix: What the content is, hashed before it and a colon; empty is app-data.
    """

    report_data: Annotated[bytes, 1] = b""
    hash_algorithm: Annotated[str, 2, _HASHES] = ""
    prefix: Annotated[str, 3] = ""


class TdxQuoteResponse(NamedTuple):
    """A quote and its log, with how the 64 bytes came about.

    Attributes:
        quote: The quote.
        event_log: JSON array of the events that replay to the quote's registers.
        hash_algorithm: The algorithm that was used.
        prefix: The prefix that was used; empty with `raw`.
    """

    quote: Annotated[bytes, 1] = b""
    event_log: Annotated[str, 2] = ""
    hash_algorithm: Annotated[str, 3] = ""
    prefix: Annotated[str, 4] = ""


class EmitEventArgs(NamedTuple):
    """A runtime event to extend RTMR3 with.

    Attributes:
        event: Its name; without a colon, and none of the names that only the boot may use.
        payload: Its content.
    """

    event: Annotated[str, 1, Bounds(1, pattern="^[^:]*$")] = ""
    payload: Annotated[bytes, 2] = b""


class AppInfo(NamedTuple):
    """Who the app is; numbers 6, 7 and 11 belonged to older shapes and stay unused.

    Attributes:
        app_id: The app.
        instance_id: This instance of it.
        app_cert: A certificate chain made to show that it works; empty until there is one.
        tcb_info: JSON of the registers, the whole event log and app-compose.json; empty where the
            app hides it.
        app_name: The name in app-compose.json.
        device_id: Hash of what identifies the processor.
        mr_aggregated: Hash of all registers.
        os_image_hash: Hash of the operating system.
        key_provider_info: JSON of who provided the app's keys.
        compose_hash: SHA-256 of app-compose.json.
        vm_config: JSON of the machine's configuration; empty where the app hides it.
        cloud_vendor: Who made the machine, as its firmware says.
        cloud_product: Which machine it is, as its firmware says.
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


class GpuInfoResponse(NamedTuple):
    """The text that the GPU attestation wrote at boot.

    Attributes:
        attestation: The text as it is; empty where there is none.
    """

    attestation: Annotated[str, 1] = ""


class SignRequest(NamedTuple):
    """Bytes to sign with the app's signing key.

    Attributes:
        algorithm: How to sign.
        data: What to sign; a digest of 32 bytes with secp256k1_prehashed.
    """

    algorithm: Annotated[str, 1, _SIGNATURES] = ""
    data: Annotated[bytes, 2] = b""


class SignResponse(NamedTuple):
    """A signature of 64 bytes, and the chain from it to the root of the keys.

    Attributes:
        signature: The signature.
        signature_chain: The signature, then the signature chain of the key that made it.
        public_key: The key that verifies it: 32 bytes of Ed25519 or 33 of secp256k1.
    """

    signature: Annotated[bytes, 1, Bounds(64, 64)] = b""
    signature_chain: Annotated[tuple[bytes, ...], 2] = ()
    public_key: Annotated[bytes, 3, Bounds(32, 33)] = b""


class VerifyRequest(NamedTuple):
    """A signature and what it shall be checked against.

    Attributes:
        algorithm: How it was signed.
        data: What was signed.
        signature: The signature.
        public_key: 32 bytes of Ed25519; 33 or 65 of secp256k1.
    """

    algorithm: Annotated[str, 1, _SIGNATURES] = ""
    data: Annotated[bytes, 2] = b""
    signature: Annotated[bytes, 3, Bounds(64, 64)] = b""
    public_key: Annotated[bytes, 4, Bounds(32, 65)] = b""


class VerifyResponse(NamedTuple):
    """Whether the signature holds.

    Attributes:
        valid: Whether it does.
    """

    valid: Annotated[bool, 1] = False


class WorkerVersion(NamedTuple):
    """The release of the API that is spoken, and the revision of the server.

    Attributes:
        version: Release of the guest agent API.
        rev: Revision of the server.
    """

    version: Annotated[str, 1] = ""
    rev: Annotated[str, 2] = ""


class GetAttestationForAppKeyRequest(NamedTuple):
    """The algorithm of the signing key that the evidence shall speak for.

    Attributes:
        algorithm: Kind of the key.
    """

    algorithm: Annotated[str, 1, _KEYS] = ""


class Error(NamedTuple):
    """What went wrong, in the binary encoding.

    Attributes:
        message: What it was, and what to do about it.
    """

    message: Annotated[str, 1] = ""
