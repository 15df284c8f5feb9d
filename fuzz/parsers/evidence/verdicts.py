"""Targets: signed verdicts, the keys they come with, and how somebody asks for one."""

import base64
import json
from datetime import timedelta
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestkit.errors import FormatError, VerificationError
from attestkit.serve.verifier_service.query import VerifyQuery
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.ear.content import Ear
from attestkit.verifier.ear.result_token import sign_ear, verify_ear
from attestkit.verifier.ear.signed_token import EarKey, EarPublicKey
from attestkit.verifier.ear.token_claims import Tier
from attestkit.verifier.result import AttestationResult
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short
from tests.verifier.ear.ears import (
    ED25519,
    FORMS,
    NONCE,
    NOW,
    P256,
    create_cose,
    create_jwt,
    create_small_result,
)

_HEADER_JWT: Final = {"alg": "EdDSA"}
_HEADER_COSE: Final = {1: -8}
_EVIDENCE: Final = b"\0\1"


def _ear(raw: bytes) -> object:
    """Read what the first byte says: a token as it is, or parts of one whose signature holds."""
    kind, rest = raw[:1], raw[1:]
    if kind == b"k":
        return EarPublicKey.from_jwks(rest)
    if kind == b"s":
        return EarKey.from_bytes(rest).public  # private halves do not compare
    if kind == b"q":
        return VerifyQuery.from_request(rest, ((b"accept", rest[::2]),))
    token = {
        b"j": lambda: create_jwt(_HEADER_JWT, rest),
        b"c": lambda: create_cose(_HEADER_COSE, rest),
        b"h": lambda: create_jwt(rest, b"{}"),
        b"p": lambda: create_cose(rest, b"\xa0"),
    }.get(kind, lambda: rest)()
    key = P256 if kind == b"e" else ED25519
    return verify_ear(token, key.public, any_freshness=True, now=NOW, leeway=timedelta(minutes=5))


def _read(_raw: bytes, found: object) -> None:
    if isinstance(found, Ear):
        worst = max(Tier.worst(found.vector), Tier.WARNING)
        check("no better than its vector", found.status is worst or found.simulated)
        check("simulated is not real", not found.simulated or found.status is Tier.CONTRAINDICATED)
        check("it holds for a while", found.issued_at < found.expires_at)
    if isinstance(found, EarPublicKey):
        check_same("its JWK", EarPublicKey.from_jwk(found.to_jwk()), found)
    repr(found)


def ear_samples() -> list[bytes]:
    """Return tokens of each kind, their parts, keys, and queries."""
    found = [b"e" + sign_ear(create_small_result(nonce=NONCE), P256, form=form) for form in FORMS]
    for result in _results():
        more: dict[str, Any] = {"policy_id": "urn:p", "raw_evidence": _EVIDENCE}
        for options in ({}, more):
            found += _parts(result, **options)
    nonce = b"&nonce=0011223344556677"
    queries = [b"format=ear&encoding=" + form.encode() + nonce for form in FORMS]
    queries += [
        b"nonce=0011223344556677",
        b"report_data=00",
        b"format=json",
        b"format=ear&nonce=00",
        b"a=%66&format=e%61r&encoding=jwt",
    ]
    return [*found, *_keys(), *(b"q" + query for query in queries)]


def _results() -> list[AttestationResult]:
    """Return verdicts of each tier."""
    return [
        create_small_result(evidence=_EVIDENCE),
        create_small_result(status=TcbStatus.OUT_OF_DATE, evidence=_EVIDENCE),
        create_small_result(status=None, platform="dstack-amd-sev-snp", evidence=_EVIDENCE),
        create_small_result(simulated=True, registers=(("rtmr0", bytes(48)),), evidence=_EVIDENCE),
    ]


def _parts(result: AttestationResult, **options: Any) -> list[bytes]:
    """Return a verdict as a token in both forms, and what each is made of."""
    token, cose = [sign_ear(result, ED25519, form=form, **options) for form in FORMS]
    head, body, _ = [base64.urlsafe_b64decode(part + b"==") for part in token.split(b".")]
    protected, _, payload, _ = cbor2.loads(cose).value
    parts = (b"j" + body, b"c" + payload, b"h" + head, b"p" + protected)
    return [b"t" + token, b"t" + cose, *parts]


def _keys() -> list[bytes]:
    """Return key sets and private keys, of both kinds, and some that are refused."""
    ed25519, p256 = ED25519.public.to_jwk(), P256.public.to_jwk()
    mixed, private = [ed25519, p256, {"kty": "RSA"}], [{**p256, "d": "AA"}]
    sets: list[list[dict[str, Any]]] = [[ed25519], [p256], mixed, private, [{}], []]
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    edwards = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).private_bytes(*form)
    curve = ec.derive_private_key(7, ec.SECP256R1()).private_bytes(*form)
    seeds = (bytes(32), bytes(31), edwards, edwards.replace(b"MC4", b"MC5"), curve)
    public = [json.dumps({"keys": keys}).encode() for keys in sets]
    return [*(b"k" + one for one in public), *(b"s" + one for one in seeds)]


def targets() -> list[ParserTarget]:
    """Return the target of this file."""
    ear = obeys(_ear, FormatError, VerificationError, accepted=_read)
    return [ParserTarget("ear", ear, short(ear_samples), "cbor.dict")]
