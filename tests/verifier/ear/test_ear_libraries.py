"""Tests of interoperability: PyJWT and pycose verify EARs, and reject altered ones."""

import base64
from datetime import datetime, timezone
from typing import Any, cast

import cbor2
import jwt
from pycose.headers import KID, Algorithm
from pycose.keys.ec2 import EC2Key
from pycose.keys.okp import OKPKey
from pycose.messages.sign1message import Sign1Message

from attestkit._crypto.hashes import sha256
from attestkit.verifier.ear.content import PROFILE
from attestkit.verifier.ear.result_token import sign_ear
from attestkit.verifier.ear.signed_token import EarKey
from tests.verifier.ear.ears import (
    ED25519,
    NONCE,
    NOW,
    P256,
    create_ear,
    create_small_result,
    every_key,
)


@every_key
def test_pyjwt_verifies_ear(key: EarKey) -> None:
    """PyJWT, with the key from the JWKS, verifies signature and expiry, and reads EAR's claims."""
    result = create_small_result(nonce=NONCE, verified_at=datetime.now(timezone.utc))
    token = sign_ear(result, key, policy_id="urn:policy")
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
    assert appraisal["attestkit.result"] == result.to_dict()


@every_key
def test_pycose_verifies_ear(key: EarKey) -> None:
    """Pycose verifies the signature, and cbor2 reads the claims by the drafts' numbers."""
    message = create_pycose_message(
        cbor2.loads(create_ear("cose", key, policy_id="urn:policy")).value, key
    )
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
                "attestkit.result": create_small_result(nonce=NONCE).to_dict(),
            }
        },
    }
    assert claims[10] != NONCE[::-1]


def create_pycose_message(parts: Any, key: EarKey) -> Any:
    """Return a pycose message of the four parts of a COSE_Sign1, with the key."""
    # decode() requires lists and dicts, where cbor2 6 returns other types.
    protected, unprotected, *others = parts
    found = [protected, dict(unprotected), *others]
    message = cast("Any", Sign1Message.from_cose_obj(found, allow_unknown_attributes=True))
    x = key.public.key
    message.key = (
        OKPKey(crv="ED25519", x=x) if key is ED25519 else EC2Key(crv="P_256", x=x[:32], y=x[32:])
    )
    return message


def test_key_thumbprints_match_rfcs() -> None:
    """Thumbprints match RFC 8037, A.3 (Ed25519) and RFC 9679, 6 (P-256)."""
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    public = type(ED25519.public).from_jwk({"kty": "OKP", "crv": "Ed25519", "x": x})
    assert public.to_jwk()["kid"] == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    point = P256.public.key
    hashed = bytes.fromhex("a401022001215820") + point[:32] + bytes.fromhex("225820") + point[32:]
    assert P256.public.cose_thumbprint == sha256(hashed)
