"""Signatures of answers of vllm-proxy and its derivatives.

The signed text has the hashes of the bodies of request and answer as they were on the wire.
"""

import hmac
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, urlencode

from attestkit._argument_checks import utf8
from attestkit._crypto.ecdsa import k256_recover
from attestkit._crypto.ed25519 import ed25519_verify_strict
from attestkit._crypto.hashes import keccak256
from attestkit._crypto.k256_agreement import ethereum_address
from attestkit._sanitize import shown
from attestkit.client.services.service import AnswerRecord, Claims, Question, Signer
from attestkit.client.strict_answer import AnswerObject, read_answer_object
from attestkit.errors import ServiceError, SignatureError

MAX_TEXT: Final = 1024
"""Maximum number of characters of a signed text: two hashes, and the name of a model."""

_WHAT: Final = "signature of the answer"
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9._:@+-]{1,256}")
_PREFIX: Final = b"\x19Ethereum Signed Message:\n"  # EIP-191, version 0x45
_SIZES: Final[Mapping[str, int]] = {"ecdsa": 65, "ed25519": 64}
_KINDS: Final[Mapping[str, Signer]] = {"provider_tee": "model", "gateway": "gateway"}


def signature_question(template: str, answer: AnswerRecord, query: Mapping[str, str]) -> Question:
    """Return the request for the signature of an answer; a 404 means that it is not there yet.

    Args:
        template: Path, perhaps with a query, with `{id}` in place of the answer's identifier.
        answer: Identifier and hashes of the answer.
        query: Parameters that are added to the URL, not yet percent-encoded.

    Raises:
        ServiceError: If the answer has no valid identifier (reason `signature`).
    """
    if _IDENTIFIER.fullmatch(answer.identifier) is None:
        message = (
            f"{_WHAT}: id must be 1 to 256 letters, digits or ._:@+-, not "
            f"{shown(answer.identifier)}"
        )
        raise ServiceError(message, reason="signature")
    path = template.format(id=quote(answer.identifier, safe=""))
    return Question(f"{path}{'&' if '?' in path else '?'}{urlencode(query)}")


def check_answer_signature(
    document: bytes, answer: AnswerRecord, claims: Claims, model: str | None
) -> Signer:
    """Check the signature of an answer by a key of claims that were verified.

    Args:
        document: Answer to `signature_question`.
        answer: The answer that was signed, with the hashes of the bytes on the wire.
        claims: The claims, with the keys of model and gateway.
        model: Name of the model that the signed text must have, if it has one; None for any.

    Returns:
        Holder of the signing key: `"model"` or `"gateway"`.

    Raises:
        FormatError: If the document is malformed.
        ServiceError: If the signature is not valid, not for this request, answer and model, or not
            by a key of the claims (reason `signature`).
    """
    members = read_answer_object(document, _WHAT)
    text = members.text("text")
    if len(text) > MAX_TEXT:
        raise members.error("text", f"{len(text)} characters, at most {MAX_TEXT}", "too_large")
    signed = utf8(text, f"{_WHAT}: text")
    _check_text(text, answer, model)
    algorithm = members.text("signing_algo").lower()
    if algorithm not in _SIZES:
        problem = f"must be ecdsa or ed25519, not {shown(algorithm)}"
        raise members.error("signing_algo", problem, "unsupported_algorithm")
    signer = _signer(members)
    signature = members.prefixed_hex("signature", _SIZES[algorithm])
    keys = _keys(claims, signer, algorithm)
    if algorithm == "ecdsa":
        _check_ecdsa(signed, signature, keys, signer)
    elif not any(ed25519_verify_strict(key, signature, signed) for key in keys):
        raise _refusal(f"must be valid for the attested key of the {signer}")
    return signer


def _check_text(text: str, answer: AnswerRecord, model: str | None) -> None:
    """Check the signed text, `[model:]request hash:answer hash`, with hashes in hex.

    Args:
        text: The signed text; the model's name in it may have colons.
        answer: The expected hashes.
        model: The expected name, if the text has one; None for any.

    Raises:
        ServiceError: If a hash or the name differs (reason `signature`).
    """
    *front, request, response = ["", *text.rsplit(":", 2)][-3:]
    for what, stated, expected in (
        ("request", request, answer.request_sha256),
        ("answer", response, answer.response_sha256),
    ):
        if not hmac.compare_digest(stated.encode(), expected.hex().encode()):
            raise _refusal(f"hash of the {what} must be {expected.hex()}, not {shown(stated)}")
    if front[0] and model is not None and front[0] != model:
        raise _refusal(f"model must be {shown(model)}, not {shown(front[0])}")


def _signer(members: AnswerObject) -> Signer:
    if not members.has("signature_kind"):
        return "model"
    kind = members.text("signature_kind")
    if kind not in _KINDS:
        problem = f"must be {' or '.join(_KINDS)}, not {shown(kind)}"
        raise members.error("signature_kind", problem, "unsupported")
    return _KINDS[kind]


def _keys(claims: Claims, signer: Signer, algorithm: str) -> list[bytes]:
    """Return attested keys of a signer: Ethereum addresses (20 bytes), or Ed25519 keys (32).

    Args:
        claims: Claims with the keys by purpose.
        signer: `model` or `gateway`.
        algorithm: `ecdsa`, of Ethereum addresses, or `ed25519`.

    Raises:
        ServiceError: If the claims have no such key (reason `signature`).
    """
    name = f"signing-{algorithm}" if signer == "model" else f"{signer}-signing-{algorithm}"
    found = [key for purpose, key in claims.keys.items() if purpose.split("[")[0] == name]
    if not found:
        raise _refusal(f"{algorithm}: the evidence names no such key of the {signer}")
    return found


def _check_ecdsa(signed: bytes, signature: bytes, keys: list[bytes], signer: Signer) -> None:
    """Check an Ethereum signature (EIP-191) by an attested key.

    Args:
        signed: The signed text in UTF-8.
        signature: r, s and v, 65 bytes.
        keys: Ethereum addresses, 20 bytes each, one of which must be the signer's.
        signer: Owner of the keys, for the text of errors.

    Raises:
        ServiceError: If the signature is not by one of the addresses (reason `signature`).
    """
    version = signature[64] - 27 if signature[64] >= 27 else signature[64]
    digest = keccak256(_PREFIX + str(len(signed)).encode() + signed)
    try:
        key = k256_recover(signature[:64] + bytes([min(version, 4)]), digest)
    except SignatureError as error:
        raise ServiceError(f"{_WHAT}: {error}", reason="signature") from error
    address = ethereum_address(key)
    if not any(hmac.compare_digest(address, one) for one in keys):
        raise _refusal(f"must be by the attested key of the {signer}, not by {address.hex()}")


def _refusal(problem: str) -> ServiceError:
    return ServiceError(f"{_WHAT}: {problem}", reason="signature")
