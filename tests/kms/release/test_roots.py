"""Private keys of a simulated KMS: from a seed, random, and replaced."""

import copy
import pickle
from random import Random
from typing import Any

import pytest

from attestkit.errors import UsageError
from attestkit.kms.release.roots import ROOT_CA, RPC, TEMP_CA, KmsRoots
from tests.kms.release.kms_vectors import row_id, rows
from tests.vectors import needs_shared

SEED = bytes(range(32))


@needs_shared
@pytest.mark.parametrize("row", rows("seeded_kms"), ids=row_id)
def test_from_seed_matches_vector(row: dict[str, Any]) -> None:
    """All keys and the serial number of the root CA are those of the seed and epoch."""
    roots = KmsRoots.from_seed(bytes.fromhex(row["seed"]), epoch=row["epoch"])
    assert roots.ca_key.scalar.hex() == row["root_ca_scalar"]
    assert roots.k256_secret.hex() == row["root_k256_key"]
    assert roots.k256_public_key.hex() == row["root_k256_public_key"]
    assert roots.provider_id == row["key_provider_id"]
    assert roots.temp_ca_key.scalar.hex() == row["temp_ca_scalar"]
    assert roots.rpc_key.scalar.hex() == row["rpc_scalar"]
    assert f"{roots.serial_number(ROOT_CA):x}" == row["root_ca_serial"]


def test_successor_of_seeded_roots_is_next_epoch() -> None:
    """A replacement changes both roots, and keeps temporary CA and TLS key."""
    first = KmsRoots.from_seed(SEED)
    second = first.successor()
    assert second.epoch == 1
    assert second.ca_key == KmsRoots.from_seed(SEED, epoch=1).ca_key
    assert second.ca_key != first.ca_key
    assert second.k256_public_key != first.k256_public_key
    assert second.temp_ca_key == first.temp_ca_key
    assert second.rpc_key == first.rpc_key
    assert second.serial_number(ROOT_CA) != first.serial_number(ROOT_CA)
    assert second.serial_number(RPC) == first.serial_number(RPC)


def test_generate_uses_random_and_successor_changes_roots() -> None:
    """Random keys depend on nothing but the random bytes; a successor has new roots."""
    first = KmsRoots.generate(Random(1).randbytes)
    assert first.ca_key == KmsRoots.generate(Random(1).randbytes).ca_key
    assert not first.is_seeded
    assert first.serial_number(TEMP_CA) is None
    second = first.successor(Random(2).randbytes)
    assert second.ca_spki != first.ca_spki
    assert second.k256_public_key != first.k256_public_key
    assert second.temp_ca_key == first.temp_ca_key
    assert second.rpc_key == first.rpc_key


@pytest.mark.parametrize("size", [0, 31, 33])
def test_from_seed_rejects_other_sizes(size: int) -> None:
    """A seed has 32 bytes."""
    with pytest.raises(UsageError) as caught:
        KmsRoots.from_seed(bytes(size))
    assert caught.value.reason == "wrong_size"


def test_from_seed_rejects_epoch_out_of_range() -> None:
    """Epochs are not negative."""
    with pytest.raises(UsageError) as caught:
        KmsRoots.from_seed(SEED, epoch=-1)
    assert caught.value.reason == "out_of_range"


def test_serial_number_rejects_unknown_name() -> None:
    """Only the certificates of the KMS itself have a serial number from the seed."""
    with pytest.raises(UsageError) as caught:
        KmsRoots.from_seed(SEED).serial_number("app-ca")
    assert caught.value.reason == "unknown_name"


def test_repr_has_no_secret_and_objects_are_not_copied() -> None:
    """Secrets are not in the text of the object, which cannot be pickled or copied."""
    roots = KmsRoots.from_seed(SEED)
    text = repr(roots)
    assert "simulated" in text
    for secret in (SEED, roots.k256_secret, roots.ca_key.scalar, roots.rpc_key.scalar):
        assert secret.hex() not in text
    with pytest.raises(UsageError):
        pickle.dumps(roots)
    with pytest.raises(UsageError):
        copy.copy(roots)


def test_secrets_are_wiped_with_the_object() -> None:
    """The secrets are overwritten when the object is destroyed."""
    roots = KmsRoots.from_seed(SEED)
    held = memoryview(roots._k256_secret)
    seed = memoryview(roots._seed)
    assert any(held)
    assert any(seed)
    del roots
    assert not any(held)
    assert not any(seed)
