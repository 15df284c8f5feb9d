"""The protocols of field encryption in the vllm-proxy lineage (attested-client.md, 2.4).

ACI version 2 has its own associated data, in another module.
"""

from collections.abc import Mapping
from typing import Any, Final

from attestkit.client.sealing.field_cipher import FieldCipher
from attestkit.client.sealing.field_tables import ALL_ENDPOINTS, CONTENTS_CHAT, PARTS_CHAT
from attestkit.client.sealing.field_walk import Path
from attestkit.client.sealing.fields import (
    OPEN,
    AssociatedData,
    EndpointTables,
    FieldProtocol,
    MakeHeaders,
    RequestContext,
)
from attestkit.client.sealing.protocol import Headers
from attestkit.errors import ServiceError

_MOVED: Final = "that a relay has not moved sealed texts between fields or requests"
_STREAM: Final = "that no part of a streamed answer was left out or moved"
_SCORES: Final = "that scores and relevance in answers are hidden and unchanged"

_BOX: Final = FieldCipher("ed25519", "box")
_XCHACHA: Final = FieldCipher("ed25519", "xchacha20-poly1305", b"ed25519_encryption")
_ED25519_GCM: Final = FieldCipher("ed25519", "aes-256-gcm", b"ed25519_encryption")
_K256_GCM: Final = FieldCipher("secp256k1", "aes-256-gcm", b"ecdsa_encryption")


class PhalaAssociatedData:
    """Associated data of version 2 of Phala's proxy: text with bars, for chat."""

    def of_request(self, context: RequestContext, path: Path) -> bytes:
        """Return the associated data of the content of a message, or of a part of it.

        Raises:
            ServiceError: If the field is another one, or the model's name has a bar (`sealing`).
        """
        match path:
            case ("messages", int(message), "content"):
                place = f"m={message}|c=-"
            case ("messages", int(message), "content", int(part), "text"):
                place = f"m={message}|c={part}"
            case _:
                raise _unknown(path)
        return _joined("req", context, context.model, place)

    def of_answer(self, context: RequestContext, answer: Mapping[str, Any], path: Path) -> bytes:
        """Return the associated data of a field of a choice.

        Raises:
            ServiceError: As `of_request`, or if model or id of the answer are not text (`sealing`).
        """
        match path:
            case ("choices", int(choice), "message" | "delta", str(name)):
                pass
            case _:
                raise _unknown(path)
        model, identifier = answer.get("model", ""), answer.get("id", "")
        if not isinstance(model, str) or not isinstance(identifier, str):
            raise ServiceError("answer: model and id must be text", reason="sealing")
        _check(identifier)
        place = f"id={identifier}|choice={choice}|field={name}"
        return _joined("resp", context, model, place)


def _joined(kind: str, context: RequestContext, model: str, place: str) -> bytes:
    _check(model)
    start = f"v2|{kind}|algo={context.algorithm}|model={model}|{place}"
    return f"{start}|n={context.nonce}|ts={context.timestamp}".encode()


def _check(name: str) -> None:
    """Refuse a name that would be read as several parts of the associated data."""
    if not name.isprintable() or "|" in name:
        message = "model or id: must be printable, without bars, in associated data"
        raise ServiceError(message, reason="sealing")


def _unknown(path: Path) -> ServiceError:
    message = f"field {'.'.join(map(str, path))}: has no associated data in this protocol"
    return ServiceError(message, reason="sealing")


def _lineage(*more: tuple[str, str]) -> MakeHeaders:
    """Return what makes the headers that the lineage shares, and some more."""

    def make(context: RequestContext, client: bytes, server: bytes) -> Headers:
        return [
            ("X-Signing-Algo", context.algorithm),
            ("X-Client-Pub-Key", client.hex()),
            ("X-Model-Pub-Key", server.hex()),
            *more,
        ]

    return make


def _phala_headers(context: RequestContext, client: bytes, server: bytes) -> Headers:
    return [
        *_lineage(("X-E2EE-Version", "2"))(context, client, server),
        ("X-E2EE-Nonce", context.nonce),
        ("X-E2EE-Timestamp", str(context.timestamp)),
    ]


def _venice_headers(context: RequestContext, client: bytes, server: bytes) -> Headers:
    return [
        ("X-Venice-TEE-Signing-Algo", context.algorithm),
        ("X-Venice-TEE-Client-Pub-Key", client.hex()),
        ("X-Venice-TEE-Model-Pub-Key", server.hex()),
    ]


_NEAR: Final = (("X-Encrypt-All-Fields", "true"), ("X-No-Aliasing", "true"))
_CHAT: Final[Mapping[str, EndpointTables]] = {"chat/completions": CONTENTS_CHAT}
_PARTS: Final[Mapping[str, EndpointTables]] = {"chat/completions": PARTS_CHAT}


def _protocol(
    name: str,
    algorithm: str,
    cipher: FieldCipher,
    headers: MakeHeaders,
    *,
    endpoints: Mapping[str, EndpointTables] = _CHAT,
    associated: AssociatedData | None = None,
) -> FieldProtocol:
    limits = [OPEN, *([_MOVED] if associated is None else []), _STREAM]
    return FieldProtocol(
        name,
        algorithm,
        cipher,
        endpoints,
        headers,
        associated,
        # Only Phala's version 2 decrypts empty text; the others have it unsealed.
        seal_empty=associated is not None,
        not_proven=tuple(limits if endpoints is not ALL_ENDPOINTS else [*limits, _SCORES]),
    )


ED25519_V1: Final = _protocol("ed25519 version 1", "ed25519", _BOX, _lineage())
"""Boxes of NaCl; only the contents of messages are sealed."""

ECDSA_V1: Final = _protocol("ecdsa", "ecdsa", _K256_GCM, _lineage())
"""ECDH on secp256k1 with AES-256-GCM; only the contents of messages are sealed."""

VENICE: Final = _protocol("Venice", "ecdsa", _K256_GCM, _venice_headers)
"""As `ECDSA_V1`, with headers of Venice's own."""

NEAR_ED25519: Final = _protocol(
    "NEAR ed25519 version 2",
    "ed25519",
    _XCHACHA,
    _lineage(("X-Encryption-Version", "2"), *_NEAR),
    endpoints=ALL_ENDPOINTS,
)
"""XChaCha20-Poly1305; all fields are sealed."""

NEAR_ECDSA: Final = _protocol(
    "NEAR ecdsa", "ecdsa", _K256_GCM, _lineage(*_NEAR), endpoints=ALL_ENDPOINTS
)
"""As `ECDSA_V1`, with all fields."""

PHALA_ED25519: Final = _protocol(
    "Phala version 2",
    "ed25519",
    _ED25519_GCM,
    _phala_headers,
    endpoints=_PARTS,
    associated=PhalaAssociatedData(),
)
"""AES-256-GCM with X25519, bound to request and position."""

PHALA_ECDSA: Final = _protocol(
    "Phala version 2",
    "ecdsa",
    _K256_GCM,
    _phala_headers,
    endpoints=_PARTS,
    associated=PhalaAssociatedData(),
)
"""AES-256-GCM with secp256k1, bound to request and position."""
