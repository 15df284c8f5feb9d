"""Signature checks of untrusted keys and signatures raise only their documented errors."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto import ecdsa, ed25519
from attestkit._crypto.hashes import sha256
from attestkit._crypto.p384 import P384Key, p384_verify, p384_verify_der
from attestkit._crypto.public_key import rsa_pss_verify
from attestkit.errors import SignatureError, UsageError

P256 = ecdsa.P256Key.from_scalar(bytes(31) + b"\1").public_point
P384 = P384Key(1).spki
RSA = rsa.generate_private_key(65537, 2048).public_key()
CHECKS = [
    (ecdsa.p256_verify, P256),
    (ecdsa.p256_verify_der, P256),
    (p384_verify, P384),
    (p384_verify_der, P384),
    (rsa_pss_verify, RSA.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
    (ed25519.ed25519_verify, ed25519.ed25519_public_key(bytes(32))),
    (
        lambda key, signature, data: ecdsa.k256_verify(key, signature, sha256(data)),
        ecdsa.k256_public_key(bytes(31) + b"\1"),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("verify", "key"), CHECKS)
@settings(deadline=None)  # shared machines are slow
@given(
    st.binary(max_size=130),
    st.binary(max_size=130) | st.binary(min_size=64, max_size=64) | st.binary(min_size=256),
    st.binary(max_size=8),
)
def test_verify_of_arbitrary_bytes_fails(
    verify: Callable[[bytes, bytes, bytes], object],
    key: bytes,
    other: bytes,
    signature: bytes,
    data: bytes,
) -> None:
    """Random input is never valid: the result is False or a documented error."""
    for one in (key, other):
        with suppress(SignatureError, UsageError):
            assert verify(one, signature, data) is False
