"""Derived bytes and keys match the published formulas."""

from typing import Any

import pytest

from attestkit._crypto.ecdsa import K256Key, P256Key, k256_public_key
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.hashes import keccak256
from attestkit.keys import derive_bytes, derive_p256, derive_x25519, separated_path
from tests.vectors import load, needs_shared

KDF = load("kdf.json")
ALL_ALGORITHMS = ("secp256k1", "ed25519", "p256", "x25519")


@needs_shared
@pytest.mark.parametrize("case", KDF.get("hkdf", []))
def test_derive_bytes_matches_vector(case: dict[str, Any]) -> None:
    """HKDF over the joined parts."""
    parts = [bytes.fromhex(part) for part in case["info_parts"]]
    assert (
        derive_bytes(bytes.fromhex(case["ikm"]), *parts, length=case["length"]).hex() == case["okm"]
    )


@needs_shared
@pytest.mark.parametrize("case", KDF.get("p256_key_pairs", []))
def test_derive_p256_matches_vector(case: dict[str, Any]) -> None:
    """P-256 keys with their DER and PEM."""
    key = derive_p256(
        bytes.fromhex(case["seed"]), *(bytes.fromhex(part) for part in case["info_parts"])
    )
    assert key.pkcs8_der.hex() == case["pkcs8_der"]
    assert key.spki_der.hex() == case["spki_der"]
    assert key.pkcs8_pem == case["pkcs8_pem"]
    assert key.public_point.hex() == case["public_key_uncompressed"][2:]
    assert P256Key.from_pem(case["pkcs8_pem"]) == key


@needs_shared
def test_derive_x25519_matches_vector() -> None:
    """The secret is a hash over the DER key pair, and is not clamped."""
    case = KDF["dh_secret"]
    secret = derive_x25519(
        bytes.fromhex(case["root_scalar"]), *(bytes.fromhex(part) for part in case["info_parts"])
    )
    assert secret.hex() == case["expected_secret"]
    assert x25519_public_key(secret).hex() == case["x25519_public_key"]


@needs_shared
def test_kms_derivation_matches_vectors() -> None:
    """A KMS derives an application's keys from its two roots."""
    case = KDF["kms"]
    p256_root, k256_root = (
        bytes.fromhex(case["root_p256_scalar"]),
        bytes.fromhex(case["root_k256_key"]),
    )
    app, instance = bytes.fromhex(case["app_id"]), bytes.fromhex(case["instance_id"])
    app_key = derive_bytes(k256_root, app, b"app-key")
    assert app_key.hex() == case["app_k256_key"]
    message = b"dstack-kms-issued:" + app + k256_public_key(app_key)
    assert message.hex() == case["signed_message"]
    signature = K256Key(k256_root).sign_recoverable(keccak256(message))
    assert signature.hex() == case["app_k256_signature"]
    disk = derive_x25519(p256_root, app, instance, b"app-disk-crypt-key")
    assert disk.hex() == case["disk_crypt_key"]
    env = derive_x25519(p256_root, app, b"env-encrypt-key")
    assert env.hex() == case["env_crypt_key"]
    assert x25519_public_key(env).hex() == case["env_crypt_public_key"]


def test_separated_paths_are_distinct() -> None:
    """No algorithm name is a prefix of another, so two pairs never give the same path."""
    assert separated_path("a/b", "k256") == "attestkit/v1/secp256k1/a/b"
    written = {
        separated_path(path, name)
        for name in ALL_ALGORITHMS
        for path in ("", "a", "/a", "secp256k1/a", "ed25519/a")
    }
    assert len(written) == 20
