"""SimulatedKms: keys for guests whose evidence it has verified, over HTTPS."""

from collections.abc import Callable

import pytest

from attestkit.backends.simulator import simulated_roots
from attestkit.errors import KmsError, UsageError
from attestkit.kms import KmsClient, SimulatedKms
from attestkit.kms.release.authorization import Decision
from attestkit.kms.release.roots import KmsRoots, release_app_keys
from attestkit.testing import SimulatedTee
from attestkit.testing.tee import SEED


def client(kms: SimulatedKms, tee: SimulatedTee) -> KmsClient:
    """Return a client of the KMS that pins its root."""
    return KmsClient(kms.url, roots=[kms.root], attester=tee.attester)


def test_client_gets_the_keys_of_its_app(kms: SimulatedKms, tee: SimulatedTee) -> None:
    """The keys are those that the derivation gives for the app and instance in the evidence."""
    keys, info = client(kms, tee).get_app_keys(), tee.app_info
    expected = release_app_keys(KmsRoots.from_seed(SEED), info.app_id, info.instance_id)
    assert keys.k256_key == expected.k256_key
    assert keys.k256_signature == expected.k256_signature
    assert keys.disk_crypt_key == expected.disk_crypt_key
    assert keys.env_crypt_key == expected.env_crypt_key
    assert keys.key_provider_id == kms.root.provider_id


def test_function_decides(kms_factory: Callable[..., SimulatedKms], tee: SimulatedTee) -> None:
    """A refusal of the function is an error with its reason."""
    kms = kms_factory(auth=lambda boot: Decision.refuse(f"not {boot.app_id.hex()}"))
    with pytest.raises(KmsError) as caught:
        client(kms, tee).get_app_keys()
    assert caught.value.reason == "refused"
    assert f"App not allowed: Boot denied: not {tee.app_info.app_id.hex()}" in str(caught.value)


def test_closed_kms_does_not_listen(kms: SimulatedKms, tee: SimulatedTee) -> None:
    """After `close`, which may be repeated, connections fail."""
    kms.close()
    kms.close()
    with pytest.raises(KmsError) as caught:
        client(kms, tee).get_app_keys()
    assert caught.value.reason == "connection"


def test_seed_and_folder_exclude_each_other(
    kms_factory: Callable[..., SimulatedKms], tmp_path: object
) -> None:
    """A folder has its own keys."""
    with pytest.raises(UsageError) as caught:
        kms_factory(seed=SEED, state_dir=tmp_path)
    assert caught.value.reason == "conflict"


def test_roots_are_those_of_attester_and_kms(
    kms: SimulatedKms, kms_factory: Callable[..., SimulatedKms], tee: SimulatedTee
) -> None:
    """A client pins the KMS by them; a KMS that nothing attests has only `root`."""
    roots = kms_factory(attester=tee.attester).roots
    assert roots == simulated_roots(SEED)
    found = KmsClient(kms.url, roots=roots, attester=tee.attester)
    assert found.get_app_keys().key_provider_id == kms.root.provider_id
    with pytest.raises(UsageError, match="requires a simulated attester"):
        _ = kms.roots
