r"""Every message of the dstack guest agent API, each described once.

A field's annotation tells its type and, in `Annotated`, its protobuf number; its place tells its
place in JSON; its default is the value that an absent field has in both encodings. Codecs read
this description with `fields_of` and methods see plain `NamedTuple`s, so neither knows the other.

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
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

__all__ = [
    "OMIT_EMPTY",
    "PACKAGE",
    "AppInfo",
    "AttestResponse",
    "DeriveK256KeyResponse",
    "DeriveKeyArgs",
    "EmitEventArgs",
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
    "fields_of",
]

OMIT_EMPTY = "left out of JSON when it is empty"
PACKAGE = "dstack_guest"
"""The package of all messages and services in protobuf."""


class Field(NamedTuple):
    """One field of a message, as a codec needs it."""

    name: str
    number: int  # of protobuf
    kind: type  # str, bool, int (uint64) or bytes: of the value, or of each item
    repeated: bool
    optional: bool  # None means absent, and differs from the kind's zero
    omit_empty: bool
    default: Any  # of an absent field


def fields_of(message: type[tuple[Any, ...]]) -> tuple[Field, ...]:
    """Return the fields of a message class, in the order of JSON."""
    return _described(message)


@cache
def _described(message: type[tuple[Any, ...]]) -> tuple[Field, ...]:
    hints = get_type_hints(message, include_extras=True)
    defaults: dict[str, Any] = message._field_defaults  # type: ignore[attr-defined]  # NamedTuple
    return tuple(_field(name, hint, defaults[name]) for name, hint in hints.items())


def _field(name: str, hint: object, default: object) -> Field:
    annotation, number, *marks = get_args(hint)
    origin, arguments = get_origin(annotation), get_args(annotation)
    optional = origin in (types.UnionType, Union)
    repeated = origin is tuple
    kind = arguments[0] if optional or repeated else annotation
    return Field(name, number, kind, repeated, optional, OMIT_EMPTY in marks, default)


class GetTlsKeyArgs(NamedTuple):
    """What the certificate of a new TLS key shall say."""

    subject: Annotated[str, 1] = ""
    alt_names: Annotated[tuple[str, ...], 2] = ()
    usage_ra_tls: Annotated[bool, 3] = False
    usage_server_auth: Annotated[bool, 4] = False
    usage_client_auth: Annotated[bool, 5] = False
    not_before: Annotated[int | None, 6] = None  # Unix seconds
    not_after: Annotated[int | None, 7] = None  # Unix seconds
    with_app_info: Annotated[bool, 8] = False


class GetTlsKeyResponse(NamedTuple):
    """A private key and its certificates, in PEM."""

    key: Annotated[str, 1] = ""
    certificate_chain: Annotated[tuple[str, ...], 2] = ()

    def __repr__(self) -> str:
        return f"GetTlsKeyResponse(key=..., certificate_chain=<{len(self.certificate_chain)}>)"


class DeriveKeyArgs(NamedTuple):
    """What the legacy service's DeriveKey takes."""

    path: Annotated[str, 1] = ""
    subject: Annotated[str, 2] = ""
    alt_names: Annotated[tuple[str, ...], 3] = ()
    usage_ra_tls: Annotated[bool, 4] = False
    usage_server_auth: Annotated[bool, 5] = False
    usage_client_auth: Annotated[bool, 6] = False
    random_seed: Annotated[bool, 7] = False


class GetKeyArgs(NamedTuple):
    """Which key is wanted, and what its signature chain shall say it is for."""

    path: Annotated[str, 1] = ""
    purpose: Annotated[str, 2] = ""
    algorithm: Annotated[str, 3] = ""


class GetKeyResponse(NamedTuple):
    """A derived key of 32 bytes and two recoverable signatures of 65."""

    key: Annotated[bytes, 1] = b""
    signature_chain: Annotated[tuple[bytes, ...], 2] = ()

    def __repr__(self) -> str:
        return "GetKeyResponse(key=..., signature_chain=...)"


class DeriveK256KeyResponse(NamedTuple):
    """What GetKey answers, under the names of the legacy service."""

    k256_key: Annotated[bytes, 1] = b""
    k256_signature_chain: Annotated[tuple[bytes, ...], 2] = ()

    def __repr__(self) -> str:
        return "DeriveK256KeyResponse(k256_key=..., k256_signature_chain=...)"


class RawQuoteArgs(NamedTuple):
    """The bytes a quote is asked for; up to 64."""

    report_data: Annotated[bytes, 1] = b""


class GetQuoteResponse(NamedTuple):
    """A quote, the log that explains its registers, and the machine's configuration."""

    quote: Annotated[bytes, 1] = b""
    event_log: Annotated[str, 2] = ""
    report_data: Annotated[bytes, 3] = b""
    vm_config: Annotated[str, 4] = ""
    attestation: Annotated[bytes, 5, OMIT_EMPTY] = b""


class AttestResponse(NamedTuple):
    """Evidence in one parcel, ready for a verifier."""

    attestation: Annotated[bytes, 1] = b""


class TdxQuoteArgs(NamedTuple):
    """Content that the legacy service hashes into the 64 bytes."""

    report_data: Annotated[bytes, 1] = b""
    hash_algorithm: Annotated[str, 2] = ""
    prefix: Annotated[str, 3] = ""


class TdxQuoteResponse(NamedTuple):
    """A quote and its log, with how the 64 bytes came about."""

    quote: Annotated[bytes, 1] = b""
    event_log: Annotated[str, 2] = ""
    hash_algorithm: Annotated[str, 3] = ""
    prefix: Annotated[str, 4] = ""


class EmitEventArgs(NamedTuple):
    """A runtime event to extend RTMR3 with."""

    event: Annotated[str, 1] = ""
    payload: Annotated[bytes, 2] = b""


class AppInfo(NamedTuple):
    """Who the app is; numbers 6, 7 and 11 belonged to older shapes and stay unused."""

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
    """The text that the GPU attestation wrote at boot."""

    attestation: Annotated[str, 1] = ""


class SignRequest(NamedTuple):
    """Bytes to sign with the app's signing key."""

    algorithm: Annotated[str, 1] = ""
    data: Annotated[bytes, 2] = b""


class SignResponse(NamedTuple):
    """A signature of 64 bytes, and the chain from it to the root of the keys."""

    signature: Annotated[bytes, 1] = b""
    signature_chain: Annotated[tuple[bytes, ...], 2] = ()
    public_key: Annotated[bytes, 3] = b""


class VerifyRequest(NamedTuple):
    """A signature and what it shall be checked against."""

    algorithm: Annotated[str, 1] = ""
    data: Annotated[bytes, 2] = b""
    signature: Annotated[bytes, 3] = b""
    public_key: Annotated[bytes, 4] = b""


class VerifyResponse(NamedTuple):
    """Whether the signature holds."""

    valid: Annotated[bool, 1] = False


class WorkerVersion(NamedTuple):
    """The release of the API that is spoken, and the revision of the server."""

    version: Annotated[str, 1] = ""
    rev: Annotated[str, 2] = ""


class GetAttestationForAppKeyRequest(NamedTuple):
    """The algorithm of the signing key that the evidence shall speak for."""

    algorithm: Annotated[str, 1] = ""
