"""Signed verdicts as other libraries see them: they read ours, and refuse what was changed."""

import base64
from datetime import datetime, timedelta, timezone
from typing import Any, cast

import cbor2
import jwt
import pytest
from pycose.headers import KID, Algorithm
from pycose.keys.ec2 import EC2Key
from pycose.keys.okp import OKPKey
from pycose.messages.sign1message import Sign1Message

from attestkit._crypto.hashes import sha256
from attestkit.verifier.ear.result_token import PROFILE, EarKey
from tests.verifier.ear.ears import ED25519, NONCE, NOW, P256, every_key, flipped, signed, verdict


@every_key
def test_another_library_reads_the_jwt(key: EarKey) -> None:
    """PyJWT, with the key from our JWKS, checks signature and expiry and finds EAR's claims."""
    token = signed("jwt", key, now=datetime.now(timezone.utc), policy_id="urn:policy")
    header = jwt.get_unverified_header(token)
    jwk = jwt.PyJWK(key.public.to_jwk())
    assert header == {"alg": key.public.algorithm, "kid": jwk.key_id, "typ": "eat+jwt"}
    claims = jwt.decode(token.decode(), jwk, algorithms=[key.public.algorithm])
    assert claims["eat_profile"] == PROFILE
    assert claims["exp"] == claims["iat"] + 300
    assert claims["eat_nonce"] == base64.urlsafe_b64encode(NONCE).rstrip(b"=").decode()
    assert set(claims["ear.verifier-id"]) == {"build", "developer"}
    appraisal = claims["submods"]["dstack-tdx"]
    assert appraisal["ear.status"] == "affirming"
    assert appraisal["ear.trustworthiness-vector"] == {"hardware": 2, "runtime-opaque": 2}
    assert appraisal["ear.appraisal-policy-id"] == "urn:policy"
    assert appraisal["attestkit.result"] == verdict().to_dict()


@every_key
def test_another_library_refuses_a_changed_jwt(key: EarKey) -> None:
    """PyJWT refuses any flipped bit of payload or signature, and what has expired.

    Who compares the nonce that it finds with another one, sees that too.
    """
    now = datetime.now(timezone.utc)
    jwk = jwt.PyJWK(key.public.to_jwk())

    def decode(token: bytes) -> dict[str, Any]:
        found: dict[str, Any] = jwt.decode(token, jwk, algorithms=[key.public.algorithm])
        return found

    token = signed("jwt", key, now=now)
    parts = [base64.urlsafe_b64decode(part + b"==") for part in token.split(b".")]
    for at in (1, 2):
        for bit in {0, 1, 8, 255, 8 * len(parts[at]) - 1}:
            changed = [*parts]
            changed[at] = flipped(parts[at], bit)
            with pytest.raises(jwt.InvalidSignatureError):
                decode(b".".join(map(base64url, changed)))
    found = decode(b".".join(map(base64url, parts)))["eat_nonce"].encode()
    assert found == base64url(NONCE)
    assert found != base64url(NONCE[::-1])
    with pytest.raises(jwt.ExpiredSignatureError):
        decode(signed("jwt", key, now=now - timedelta(minutes=10)))


@every_key
def test_another_library_reads_the_cose(key: EarKey) -> None:
    """Pycose checks the signature, and cbor2 finds the claims under the drafts' numbers."""
    message = pycoses(cbor2.loads(signed("cose", key, policy_id="urn:policy")).value, key)
    assert message.verify_signature() is True
    assert message.phdr[Algorithm].fullname in {"EDDSA", "ES256"}
    assert message.phdr[KID] == key.public.cose_thumbprint
    assert message.uhdr == {}
    claims = cbor2.loads(message.payload)
    now = int(NOW.timestamp())
    assert claims.pop(1004).keys() == {0, 1}
    assert claims == {
        265: PROFILE,
        6: now,
        4: now + 300,
        10: NONCE,
        266: {
            "dstack-tdx": {
                1000: 2,
                1001: {4: 2, 5: 2},
                1003: "urn:policy",
                "attestkit.result": verdict().to_dict(),
            }
        },
    }
    assert claims[10] != NONCE[::-1]


@every_key
def test_another_library_refuses_a_changed_cose(key: EarKey) -> None:
    """Pycose refuses any flipped bit of header, payload or signature, and what goes on."""
    parts = list(cbor2.loads(signed("cose", key)).value)
    assert pycoses(parts, key).verify_signature() is True
    for at in (2, 3):
        for bit in {0, 1, 8, 255, 8 * len(parts[at]) - 1}:
            changed = [*parts]
            changed[at] = flipped(parts[at], bit)
            assert pycoses(changed, key).verify_signature() is False
    assert pycoses([*parts[:2], parts[2] + b"\0", parts[3]], key).verify_signature() is False
    assert cbor2.loads(parts[2])[10] == NONCE


def pycoses(parts: Any, key: EarKey) -> Any:
    """Return the four parts of a COSE_Sign1 as pycose has them, with the key."""
    # Not decode(), which wants lists and dicts of cbor2 where that has others since its version 6.
    protected, unprotected, *others = parts
    found = [protected, dict(unprotected), *others]
    message = cast("Any", Sign1Message.from_cose_obj(found, allow_unknown_attributes=True))
    x = key.public.key
    message.key = (
        OKPKey(crv="ED25519", x=x) if key is ED25519 else EC2Key(crv="P_256", x=x[:32], y=x[32:])
    )
    return message


def base64url(data: bytes) -> bytes:
    """Return base64url without padding, by the standard library alone."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def test_thumbprints_are_those_of_the_rfcs() -> None:
    """RFC 8037, A.3 has an Ed25519 key with its name; RFC 9679, 6 has what is hashed of P-256."""
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    public = type(ED25519.public).from_jwk({"kty": "OKP", "crv": "Ed25519", "x": x})
    assert public.to_jwk()["kid"] == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    point = P256.public.key
    hashed = bytes.fromhex("a401022001215820") + point[:32] + bytes.fromhex("225820") + point[32:]
    assert P256.public.cose_thumbprint == sha256(hashed)
