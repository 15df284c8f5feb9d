"""Keys that a KMS releases, byte for byte as upstream's."""

import pickle
from typing import Any

import pytest

from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.hashes import keccak256, sha384
from attestkit.errors import UsageError
from attestkit.kms.release.roots import (
    KmsRoots,
    bootstrap_report_data,
    derive_app_ca,
    derive_app_root,
    key_provider_info,
    release_app_keys,
    sign_env_public_key,
)
from tests.kms.release.kms_vectors import VECTORS, roots_of, row_id, rows
from tests.runner.cases import every_case
from tests.vectors import needs_shared

ROOTS = KmsRoots.from_seed(bytes(range(32)))
APP, INSTANCE = bytes(20), bytes(range(20))


@needs_shared
@every_case("row", rows("app_keys"), ids=row_id)
def test_release_app_keys_matches_vector(row: dict[str, Any]) -> None:
    """Every released key, its signature and the app's CA key are those of the vector."""
    roots = roots_of(row["root"])
    app_id, instance_id = bytes.fromhex(row["app_id"]), bytes.fromhex(row["instance_id"])
    keys = release_app_keys(roots, app_id, instance_id)
    assert keys.disk_crypt_key.hex() == row["disk_crypt_key"]
    assert keys.env_crypt_key.hex() == row["env_crypt_key"]
    assert x25519_public_key(keys.env_crypt_key).hex() == row["env_public_key"]
    assert keys.k256_key.hex() == row["k256_key"]
    assert K256Key(keys.k256_key).public_key.hex() == row["k256_public_key"]
    assert keys.k256_signature.hex() == row["k256_signature"]
    app_ca = derive_app_ca(roots, app_id)
    assert app_ca.scalar.hex() == row["app_ca_scalar"]
    assert app_ca.spki_der.hex() == row["app_ca_spki"]


@needs_shared
@pytest.mark.parametrize("row", rows("app_keys_upstream"), ids=row_id)
def test_app_root_matches_upstream_unit_test(row: dict[str, Any]) -> None:
    """The derivation equals upstream's own numbers, with an app id that the RPC refuses."""
    secret, app_id = bytes.fromhex(row["k256_root_key"]), bytes.fromhex(row["app_id"])
    one = P256Key.from_scalar(bytes(31) + b"\x01")
    roots = KmsRoots(ca_key=one, k256_secret=secret, temp_ca_key=one, rpc_key=one)
    derived = derive_app_root(roots, app_id)
    assert derived.hex() == row["k256_key"]
    claim = b"dstack-kms-issued:" + app_id + K256Key(derived).public_key
    assert roots.k256_key.sign_recoverable(keccak256(claim)).hex() == row["k256_signature"]
    with pytest.raises(UsageError):
        release_app_keys(roots, app_id, b"")


@needs_shared
@pytest.mark.parametrize("row", rows("env_public_key"), ids=row_id)
def test_sign_env_public_key_matches_vector(row: dict[str, Any]) -> None:
    """The public key and both signatures are those of the vector."""
    found = sign_env_public_key(
        roots_of(row["root"]), bytes.fromhex(row["app_id"]), row["timestamp"]
    )
    assert found.public_key.hex() == row["public_key"]
    assert found.signature.hex() == row["signature"]
    assert found.timestamp == row["timestamp"]
    assert found.signature_v1.hex() == row["signature_v1"]


@needs_shared
@pytest.mark.parametrize("row", rows("identity"), ids=row_id)
def test_identity_matches_vector(row: dict[str, Any]) -> None:
    """Provider id, event payload and bootstrap report data are those of the vector."""
    roots = roots_of(row["root"])
    assert roots.provider_id == row["key_provider_id"]
    assert roots.k256_public_key.hex() == row["k256_public_key"]
    event = key_provider_info(roots.ca_spki)
    assert event.decode() == row["key_provider_event"]
    preimage = (0x08000001).to_bytes(4, "little") + b":key-provider:" + event
    assert sha384(preimage).hex() == row["digest_v1"]
    data = bootstrap_report_data(roots.ca_spki, roots.k256_public_key)
    assert data.hex() == row["bootstrap_report_data"]


@needs_shared
def test_vector_roots_name_their_public_keys() -> None:
    """Public forms of the roots agree with the vectors' own."""
    for name in ("A", "B"):
        roots, expected = roots_of(name), VECTORS["roots"][name]
        assert roots.provider_id == expected["root_ca_spki"]
        assert roots.k256_public_key.hex() == expected["root_k256_public_key"]


def test_keys_depend_on_app_and_disk_key_on_instance() -> None:
    """Another instance has another disk key and the same other keys; another app has others."""
    first = release_app_keys(ROOTS, APP, INSTANCE)
    second = release_app_keys(ROOTS, APP, b"")
    other = release_app_keys(ROOTS, b"\x01" * 20, INSTANCE)
    assert first.disk_crypt_key != second.disk_crypt_key
    assert (first.env_crypt_key, first.k256_key) == (second.env_crypt_key, second.k256_key)
    for name in ("disk_crypt_key", "env_crypt_key", "k256_key", "k256_signature"):
        assert getattr(first, name) != getattr(other, name)


@every_case(
    ("app_id", "instance_id"), [(bytes(19), b""), (bytes(21), b""), (APP, bytes(19)), (b"", b"")]
)
def test_release_app_keys_rejects_ids_of_other_size(app_id: bytes, instance_id: bytes) -> None:
    """Ids have fixed sizes, because derivations concatenate them without lengths."""
    with pytest.raises(UsageError) as caught:
        release_app_keys(ROOTS, app_id, instance_id)
    assert caught.value.reason == "wrong_size"


def test_functions_reject_app_id_of_other_size() -> None:
    """The CA key and the environment key need an app id of 20 bytes too."""
    with pytest.raises(UsageError):
        derive_app_ca(ROOTS, bytes(19))
    with pytest.raises(UsageError):
        sign_env_public_key(ROOTS, bytes(21), 0)


@pytest.mark.parametrize("timestamp", [-1, 1 << 64])
def test_sign_env_public_key_rejects_time_out_of_range(timestamp: int) -> None:
    """The time is signed in 8 bytes."""
    with pytest.raises(UsageError) as caught:
        sign_env_public_key(ROOTS, APP, timestamp)
    assert caught.value.reason == "out_of_range"


def test_bootstrap_report_data_rejects_other_sizes() -> None:
    """The keys have the sizes of a P-256 SPKI and a compressed point."""
    with pytest.raises(UsageError):
        bootstrap_report_data(bytes(90), bytes(33))
    with pytest.raises(UsageError):
        bootstrap_report_data(bytes(91), bytes(32))


def test_released_keys_are_secret_and_wiped() -> None:
    """Keys are not in the text of the object, cannot be pickled, and are wiped with it."""
    keys = release_app_keys(ROOTS, APP, INSTANCE)
    for name in ("disk_crypt_key", "env_crypt_key", "k256_key"):
        assert getattr(keys, name).hex() not in repr(keys)
    with pytest.raises(UsageError):
        pickle.dumps(keys)
    held, copied = memoryview(keys._k256_key), keys.k256_key
    assert copied == held
    del keys
    assert not any(held)
    assert any(copied)
