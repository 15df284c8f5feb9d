"""Sample results, keys and EARs, valid and malformed."""

import base64
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import cbor2
import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.ed25519 import Ed25519Key
from attestkit._formats.compact_jws import to_base64url
from attestkit.errors import VerificationError
from attestkit.verifier import AppraisalPolicy
from attestkit.verifier.claims import Claims, TcbStatus
from attestkit.verifier.ear.content import Ear
from attestkit.verifier.ear.result_token import sign_ear, verify_ear
from attestkit.verifier.ear.signed_token import EarKey
from attestkit.verifier.ear.token_claims import LABELS
from attestkit.verifier.result import AttestationResult, BoundTo
from tests.verifier.policy import policy_samples

NOW: Final = policy_samples.NOW
NONCE: Final = b"a client's nonce"
ED25519: Final = EarKey(Ed25519Key(bytes(range(32))))
P256: Final = EarKey(P256Key.from_scalar(bytes(range(1, 33))))
KEYS: Final = {"EdDSA": ED25519, "ES256": P256}
IMAGE: Final = b"\x1d" * 32
FORMS: tuple[Literal["jwt", "cose"], ...] = ("jwt", "cose")
every_form = pytest.mark.parametrize("form", FORMS)
every_key = pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)


def create_small_result(
    *,
    status: TcbStatus | None = TcbStatus.UP_TO_DATE,
    simulated: bool = False,
    platform: str = "dstack-tdx",
    registers: tuple[tuple[str, bytes], ...] = (),
    nonce: bytes | None = None,
    policy: AppraisalPolicy | None = None,
    bound_to: BoundTo | None = None,
    verified_at: datetime = NOW,
    evidence: object = None,
) -> AttestationResult:
    """Return a minimal attestation result."""
    found = Claims(platform, b"data", registers, (), (), (), IMAGE)
    verified = policy_samples.authenticated(status=status)
    return policy_samples.result(
        found,
        verified,
        None,
        simulated=simulated,
        nonce=nonce,
        policy=policy,
        bound_to=bound_to,
        verified_at=verified_at,
        evidence=evidence,
    )


def create_jwt(header: Any, claims: Any, key: EarKey = ED25519) -> bytes:
    """Return a correctly signed JWT of any header and claims; bytes are used as they are."""
    parts = [
        part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)
    ]
    to_be_signed = ".".join(map(to_base64url, parts)).encode()
    return to_be_signed + b"." + to_base64url(key.sign(to_be_signed)).encode()


def create_cose(
    header: Any, claims: Any, key: EarKey = ED25519, *, unprotected: Any = None, tag: int = 18
) -> bytes:
    """Return a correctly signed COSE_Sign1 of any header and claims."""
    protected, payload = [
        part if isinstance(part, bytes) else cbor2.dumps(part, canonical=True)
        for part in (header, claims)
    ]
    signature = key.sign(cbor2.dumps(["Signature1", protected, b"", payload]))
    return cbor2.dumps(cbor2.CBORTag(tag, [protected, unprotected or {}, payload, signature]))


def create_ear(
    form: Literal["jwt", "cose"] = "jwt",
    key: EarKey = ED25519,
    nonce: bytes | None = NONCE,
    **options: Any,
) -> bytes:
    """Return an EAR of evidence that is bound to a nonce."""
    result = create_small_result(nonce=nonce, evidence=options.get("raw_evidence"))
    return sign_ear(result, key, form=form, **options)


def read(token: bytes, key: EarKey = ED25519, **options: Any) -> Ear:
    """Verify an EAR one minute after it was signed, by default with NONCE."""
    if not options.keys() & {"report_data", "any_freshness"}:
        options = {"nonce": NONCE, **options}
    return verify_ear(token, key.public, **{"now": NOW + timedelta(minutes=1), **options})


def get_rejection_reason(token: bytes, key: EarKey = ED25519, **options: Any) -> str:
    """Return the reason for which an EAR is rejected."""
    with pytest.raises(VerificationError) as caught:
        read(token, key, **options)
    return caught.value.reason


def decode_claims(token: bytes) -> dict[str, Any]:
    """Return the payload of a JWT."""
    body = token.split(b".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + b"=="))
    return found


def create_altered_ear(
    form: Literal["jwt", "cose"], alter: Callable[[dict[Any, Any], Callable[[str], Any]], object]
) -> bytes:
    """Return a correctly signed EAR whose claims `alter` changed; it gets claims and their keys."""
    if form == "jwt":
        claims = decode_claims(create_ear())
        alter(claims, str)
        return create_jwt({"alg": "EdDSA"}, claims)
    claims = cbor2.loads(cbor2.loads(create_ear("cose")).value[2])
    alter(claims, lambda name: LABELS.get(name, name))
    return create_cose({1: -8}, claims)


def flip_bit(data: bytes, bit: int) -> bytes:
    """Return the bytes with one bit flipped."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
