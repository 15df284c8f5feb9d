"""Targets: signed verdicts, the keys they come with, and how somebody asks for one."""

from datetime import timedelta
from typing import Final

from attestkit.errors import FormatError, VerificationError
from attestkit.serve.ear import EarRequest
from attestkit.verifier.ear import Ear, EarKey, EarPublicKey, Tier, sign_ear, verify_ear
from fuzz.parser_contract import ParserTarget, check, check_same, obeys, short
from tests.verifier.ears import ED25519, NONCE, NOW, cose_of, jwt_of, verdict

_HEADER_JWT: Final = {"alg": "EdDSA"}
_HEADER_COSE: Final = {1: -8}


def _ear(raw: bytes) -> object:
    """Read what the first byte says: a token as it is, or parts of one whose signature holds."""
    kind, rest = raw[:1], raw[1:]
    if kind == b"k":
        return EarPublicKey.from_jwks(rest)
    if kind == b"s":
        return EarKey.from_bytes(rest).public  # private halves do not compare
    if kind == b"q":
        return EarRequest.from_request(rest, ((b"accept", rest[::2]),))
    token = {
        b"j": lambda: jwt_of(_HEADER_JWT, rest),
        b"c": lambda: cose_of(_HEADER_COSE, rest),
        b"h": lambda: jwt_of(rest, b"{}"),
        b"p": lambda: cose_of(rest, b"\xa0"),
    }.get(kind, lambda: rest)()
    return verify_ear(token, ED25519.public, nonce=None, now=NOW, leeway=timedelta(minutes=5))


def _read(_raw: bytes, found: object) -> None:
    if isinstance(found, Ear):
        check(
            "no better than its vector", found.status is Tier.worst(found.vector) or found.simulated
        )
        check("simulated is not real", not found.simulated or found.status is Tier.CONTRAINDICATED)
        check("it holds for a while", found.issued_at < found.expires_at)
    if isinstance(found, EarPublicKey):
        check_same("its JWK", EarPublicKey.from_jwk(found.to_jwk()), found)
    repr(found)


def ear_samples() -> list[bytes]:
    """Return tokens, their parts, keys, and a query."""
    import base64
    import json

    import cbor2

    token, cose = (
        sign_ear(verdict(), ED25519, nonce=NONCE),
        sign_ear(verdict(), ED25519, form="cose"),
    )
    head, body, _ = [base64.urlsafe_b64decode(part + b"==") for part in token.split(b".")]
    protected, _, payload, _ = cbor2.loads(cose).value
    keys = json.dumps({"keys": [ED25519.public.to_jwk()]}).encode()
    query = b"format=ear&encoding=cose&nonce=0011223344556677"
    return [
        *(b"t" + token, b"t" + cose),
        *(b"j" + body, b"c" + payload, b"h" + head, b"p" + protected),
        *(b"k" + keys, b"s" + bytes(32), b"q" + query),
    ]


def targets() -> list[ParserTarget]:
    """Return the target of this file."""
    ear = obeys(_ear, FormatError, VerificationError, accepted=_read)
    return [ParserTarget("ear", ear, short(ear_samples), "cbor.dict")]
