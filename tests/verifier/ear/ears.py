"""Sample results, keys and EARs, valid and malformed."""

import base64
import json
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal

import cbor2
import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.ed25519 import Ed25519Key
from attestkit.errors import VerificationError
from attestkit.verifier.ear.keys import to_base64url
from attestkit.verifier.ear.result_token import Ear, EarKey, sign_ear, verify_ear
from attestkit.verifier.result import (
    AttestationResult,
    Claims,
    ResultContent,
    Tcb,
    TcbStatus,
    create_result,
)

NOW: Final = datetime(2026, 9, 21, 14, 13, 20, tzinfo=timezone.utc)
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
) -> AttestationResult:
    """Return a minimal attestation result."""
    return create_result(
        ResultContent(
            claims=Claims(platform, b"data", registers, (), (), (), IMAGE),
            tcb_status=status,
            advisory_ids=(),
            tcb=Tcb(),
            simulated=simulated,
            app_info=None,
            verified_at=NOW + timedelta(milliseconds=500),
            certificate_chain=(),
            steps=(),
        )
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
    form: Literal["jwt", "cose"] = "jwt", key: EarKey = ED25519, **options: Any
) -> bytes:
    """Return an EAR with a nonce."""
    return sign_ear(create_small_result(), key, form=form, **{"nonce": NONCE, **options})


def read(token: bytes, key: EarKey = ED25519, **options: Any) -> Ear:
    """Verify an EAR one minute after it was signed."""
    now = NOW + timedelta(minutes=1)
    return verify_ear(token, key.public, **{"nonce": NONCE, "now": now, **options})


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


def flip_bit(data: bytes, bit: int) -> bytes:
    """Return the bytes with one bit flipped."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
