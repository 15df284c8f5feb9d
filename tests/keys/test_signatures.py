"""Signatures and chains are judged as the agent does: true, false, or malformed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import K256Key
from attestkit.errors import SignatureError, UsageError
from attestkit.keys import AppKeys, LocalKeys, recover_issuers, recover_root, verify_signature
from tests.vectors import load, needs_shared

GETKEY, SIGN = load("getkey.json"), load("sign_verify.json")
SEED = bytes(range(32))


def unhex(text: str) -> bytes:
    """Return the bytes of hex text."""
    return bytes.fromhex(text)


@needs_shared
def test_chain_leads_to_the_kms(keys: LocalKeys) -> None:
    """The two signatures give the application's root key and the key service's."""
    link = GETKEY["kms_link"]
    found = keys.derive("any", "purpose")
    chain = (found.signature_chain[0], found.signature_chain[1])
    root, kms = recover_issuers(found.public_key, "purpose", chain, unhex(link["app_id"]))
    assert root.hex() == GETKEY["app_root_public_key"]
    assert kms.hex() == link["recovered_kms_root_public_key"]
    other, _ = recover_issuers(found.public_key, "another", chain, unhex(link["app_id"]))
    assert other != root
    with pytest.raises(SignatureError, match="65 bytes"):
        recover_issuers(found.public_key, "purpose", (chain[0], b""), unhex(link["app_id"]))


def test_the_root_is_told_without_a_kms() -> None:
    """The chain's first signature leads to the application's root key, for its purpose alone."""
    with AppKeys.from_seed(SEED) as app:
        found = LocalKeys(app).derive("any", "purpose", "ed25519")
        first, kms = found.signature_chain
        assert kms == b""
        assert recover_root(found.public_key, "purpose", first) == app.root_public_key
        assert recover_root(found.public_key, "another", first) != app.root_public_key
    with pytest.raises(SignatureError, match="65 bytes"):
        recover_root(found.public_key, "purpose", first[:-1])


@needs_shared
@pytest.mark.parametrize("case", SIGN.get("verify", []), ids=lambda case: case["note"] or None)
def test_verify(case: dict[str, Any]) -> None:
    """Right is True, wrong is False."""
    request = case["request"]
    data, signature, public = (unhex(request[key]) for key in ("data", "signature", "public_key"))
    found = verify_signature(request["algorithm"], data, signature, public)
    assert found is case["response"]["valid"]


@needs_shared
@pytest.mark.parametrize("case", SIGN.get("errors", []))
def test_sign_and_verify_errors(keys: LocalKeys, case: dict[str, Any]) -> None:
    """Errors have the agent's texts where those are fixed."""
    request = {key: value for key, value in case["request"].items() if key != "algorithm"}
    fields = {key: unhex(value) for key, value in request.items()}
    call = keys.sign if case["method"] == "Sign" else verify_signature
    with pytest.raises(UsageError) as caught:
        call(algorithm=case["request"]["algorithm"], **fields)
    assert case["error"] in {None, str(caught.value)}


@pytest.mark.parametrize("algorithm", ["secp256k1", "k256", "ed25519", "secp256k1_prehashed"])
def test_signatures_hold_and_bits_count(app_keys: AppKeys, algorithm: str) -> None:
    """What we sign we verify; with another message, key or signature we do not."""
    keys, data = LocalKeys(app_keys), bytes(range(32))
    found = keys.sign(data, algorithm)
    assert verify_signature(algorithm, data, found.signature, found.public_key)
    assert not verify_signature(algorithm, data[:-1] + b"!", found.signature, found.public_key)
    flipped = bytes([found.signature[0] ^ 1]) + found.signature[1:]
    assert not verify_signature(algorithm, data, flipped, found.public_key)
    other = LocalKeys(AppKeys.from_seed(bytes(32))).sign(data, algorithm)
    assert not verify_signature(algorithm, data, found.signature, other.public_key)


def test_prehashed_verification_pads_and_cuts() -> None:
    """Of longer data 32 bytes count; 16 to 31 bytes get zeros in front; fewer never hold."""
    key = K256Key(SEED)
    for size in (16, 24, 31, 32):
        data = b"d" * size
        signature = key.sign(data.rjust(32, b"\0"))
        assert verify_signature("secp256k1_prehashed", data, signature, key.public_key)
    signature = key.sign(b"d" * 32)
    assert verify_signature("secp256k1_prehashed", b"d" * 32 + b"more", signature, key.public_key)
    for size in (0, 1, 15):
        data = b"d" * size
        signature = key.sign(data.rjust(32, b"\0"))
        assert not verify_signature("secp256k1_prehashed", data, signature, key.public_key)
        with pytest.raises(UsageError):  # parsing comes first, whatever the data is
            verify_signature("secp256k1_prehashed", data, bytes(64), key.public_key)


@given(st.text(max_size=8), st.binary(max_size=70), st.binary(max_size=70), st.binary(max_size=70))
def test_verify_takes_any_bytes(name: str, data: bytes, signature: bytes, public: bytes) -> None:
    """Random input never holds, and raises UsageError alone."""
    for algorithm in (name, "secp256k1", "ed25519", "secp256k1_prehashed"):
        try:
            assert not verify_signature(algorithm, data, signature, public)
        except UsageError:
            continue


@pytest.mark.parametrize("data", ["text", bytearray(32), None])
def test_only_bytes_are_signed(keys: LocalKeys, data: Any) -> None:
    """Text and buffers that may change are refused by name."""
    with pytest.raises(UsageError, match="what is signed is bytes"):
        keys.sign(data, "ed25519")
