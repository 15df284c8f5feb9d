"""Signatures and chains are verified like the agent does: valid, invalid, or malformed."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import K256Key
from attestkit.errors import SignatureError, UsageError
from attestkit.keys import AppKeys, LocalKeys, recover_issuers, recover_root, verify_signature
from attestkit.serve.rpc.error_responses import text_of
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import load, needs_shared

GETKEY, SIGN = load("getkey.json"), load("sign_verify.json")
SEED = bytes(range(32))


@needs_shared
def test_recover_issuers_returns_app_root_and_kms_root(keys: LocalKeys) -> None:
    """The two signatures recover the application's root key and that of the KMS."""
    link = GETKEY["kms_link"]
    found = keys.derive_compat("any", "purpose")
    chain = (found.signature_chain[0], found.signature_chain[1])
    root, kms = recover_issuers(found.public_key, "purpose", chain, bytes.fromhex(link["app_id"]))
    assert root.hex() == GETKEY["app_root_public_key"]
    assert kms.hex() == link["recovered_kms_root_public_key"]
    other, _ = recover_issuers(found.public_key, "another", chain, bytes.fromhex(link["app_id"]))
    assert other != root
    with pytest.raises(SignatureError):
        recover_issuers(found.public_key, "purpose", (chain[0], b""), bytes.fromhex(link["app_id"]))


def test_recover_issuers_without_kms_returns_app_root() -> None:
    """The first signature recovers the application's root key for its purpose only."""
    with AppKeys.from_seed(SEED) as app:
        found = LocalKeys(app).derive_compat("any", "purpose", "ed25519")
        first, kms = found.signature_chain
        assert kms == b""
        assert recover_root(found.public_key, "purpose", first) == app.root_public_key
        assert recover_root(found.public_key, "another", first) != app.root_public_key
    with pytest.raises(SignatureError):
        recover_root(found.public_key, "purpose", first[:-1])


@needs_shared
@every_case("case", SIGN.get("verify", []), ids=lambda case: case["note"] or None)
def test_verify_signature_matches_vector(case: dict[str, Any]) -> None:
    """A valid signature is accepted, an invalid one raises SignatureError."""
    request = case["request"]
    data, signature, public = (
        bytes.fromhex(request[key]) for key in ("data", "signature", "public_key")
    )
    invalid = raises(SignatureError, "bad_signature")
    with nullcontext() if case["response"]["valid"] else invalid:
        verify_signature(public, signature, data, algorithm=request["algorithm"])


@needs_shared
@pytest.mark.parametrize("case", SIGN.get("errors", []))
def test_sign_and_verify_errors_match_agent_texts(keys: LocalKeys, case: dict[str, Any]) -> None:
    """The server's errors have the agent's texts where they are specified."""
    request = {key: value for key, value in case["request"].items() if key != "algorithm"}
    fields = {key: bytes.fromhex(value) for key, value in request.items()}
    call = keys.sign if case["method"] == "Sign" else verify_signature
    with pytest.raises(UsageError) as caught:
        call(algorithm=case["request"]["algorithm"], **fields)
    assert case["error"] in {None, text_of(caught.value)}


@pytest.mark.parametrize("algorithm", ["secp256k1", "k256", "ed25519", "secp256k1_prehashed"])
def test_verify_signature_of_changed_input_fails(app_keys: AppKeys, algorithm: str) -> None:
    """A signature is invalid for another message, key or signature."""
    keys, data = LocalKeys(app_keys), bytes(range(32))
    found = keys.sign(data, algorithm)
    verify_signature(found.public_key, found.signature, data, algorithm=algorithm)
    flipped = bytes([found.signature[0] ^ 1]) + found.signature[1:]
    other = LocalKeys(AppKeys.from_seed(bytes(32))).sign(data, algorithm)
    for key, signature, message in (
        (found.public_key, found.signature, data[:-1] + b"!"),
        (found.public_key, flipped, data),
        (other.public_key, found.signature, data),
    ):
        with raises(SignatureError, "bad_signature"):
            verify_signature(key, signature, message, algorithm=algorithm)


def test_verify_signature_prehashed_pads_and_truncates() -> None:
    """Data is truncated to 32 bytes; 16 to 31 bytes are zero-padded in front; fewer are invalid."""
    key = K256Key(SEED)
    verify = partial(verify_signature, key.public_key, algorithm="secp256k1_prehashed")
    for size in (16, 24, 31, 32):
        data = b"d" * size
        signature = key.sign(data.rjust(32, b"\0"))
        verify(signature, data)
    signature = key.sign(b"d" * 32)
    verify(signature, b"d" * 32 + b"more")
    for size in (0, 1, 15):
        data = b"d" * size
        signature = key.sign(data.rjust(32, b"\0"))
        with raises(SignatureError, "bad_signature"):
            verify(signature, data)
        with pytest.raises(UsageError):  # the key is parsed before the data are checked
            verify(bytes(64), data)


@given(st.text(max_size=8), st.binary(max_size=70), st.binary(max_size=70), st.binary(max_size=70))
def test_verify_signature_of_arbitrary_bytes_fails(
    name: str, data: bytes, signature: bytes, public: bytes
) -> None:
    """Random input is never valid, and raises no other errors."""
    for algorithm in (name, "secp256k1", "ed25519", "secp256k1_prehashed"):
        with pytest.raises((SignatureError, UsageError)):
            verify_signature(public, signature, data, algorithm=algorithm)


@needs_shared
@pytest.mark.parametrize("data", ["text", bytearray(32), None])
def test_sign_of_other_type_is_usage_error(keys: LocalKeys, data: Any) -> None:
    """Text and mutable buffers are rejected by name."""
    with raises(UsageError, "wrong_type"):
        keys.sign(data, "ed25519")
