"""The client against a simulated KMS: each of its faults, and everything that it can be asked."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final

import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._system.clock import current_time
from attestkit.backends.simulator.faults.kms_faults import KMS_FAULTS
from attestkit.errors import KmsError, SignatureError
from attestkit.kms import (
    CertRequest,
    KmsClient,
    SimulatedKms,
    TimeLimits,
    verify_app_certificate,
)
from attestkit.kms.answers import ReceivedKeys
from attestkit.report_data import ReportData
from attestkit.testing import SimulatedTee
from tests.raising import raises

Factory = Callable[..., SimulatedKms]

LEAF_KEY: Final = P256Key.from_scalar(b"\x21" * 32)
# Faults of GetAppKey, and the reasons of the client. `:2`: the first connection, which does not
# verify the server, has the fault, too.
GET_APP_KEY: Final[dict[str, tuple[str, ...]]] = {
    "kms_refuses": ("refused",),
    "kms_fails": ("connection",),
    "kms_slow:3s": ("timeout",),
    "kms_closes": ("connection",),
    "kms_truncates": ("connection",),
    "kms_wrong_root": ("wrong_root",),
    "kms_other_kms": ("wrong_root",),
    "kms_temp_ca_expired": ("expired",),
    "kms_app_cert:2": ("wrong_usage",),
    "kms_no_usage:2": ("wrong_usage",),
    "kms_bad_signature": ("bad_signature",),
    "kms_short_key": ("wrong_size",),
    "kms_other_image": ("wrong_image",),
    "kms_rollover": ("wrong_root",),
}


def client_of(kms: SimulatedKms, tee: SimulatedTee, **changes: Any) -> KmsClient:
    """Return a client that pins the KMS."""
    fields: dict[str, Any] = {"roots": [kms.root], "attester": tee.attester, **changes}
    return KmsClient(fields.pop("urls", kms.url), **fields)


def request_of(tee: SimulatedTee) -> CertRequest:
    """Return a request of the guest's app."""
    bound = ReportData.bind(ReportData.RATLS_CERT, LEAF_KEY.spki_der)
    evidence = tee.attester.attest(report_data=bound)
    return CertRequest(LEAF_KEY.spki_der, "a.example.com", evidence, usage_server_auth=True)


def test_every_fault_is_tried() -> None:
    """The faults that are not of GetAppKey, or need a verifier, have tests of their own."""
    tried = {name.partition(":")[0] for name in GET_APP_KEY}
    assert KMS_FAULTS.keys() - tried == {"kms_unattested", "kms_signs_other"}


@pytest.mark.parametrize("fault", GET_APP_KEY)
def test_fault_of_a_kms_gives_no_keys(kms_factory: Factory, tee: SimulatedTee, fault: str) -> None:
    """Each fault is an error with its reason; the next URL then releases the keys."""
    kms = kms_factory()
    client = client_of(kms, tee, limits=TimeLimits(call=1.0) if "slow" in fault else None)
    kms.arm(fault)
    with raises(KmsError, *GET_APP_KEY[fault]) as caught:
        client.get_app_keys()
    assert caught.value.url == f"{kms.url}/prpc"


@pytest.mark.parametrize("fault", ["", "kms_other_image"])
def test_received_keys_are_wiped_while_others_hold_them(
    kms: SimulatedKms, tee: SimulatedTee, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The answer's keys are zeros after the call, whatever keeps the answer."""
    received: list[ReceivedKeys] = []
    real = ReceivedKeys.__init__

    def read(self: ReceivedKeys, fields: dict[str, Any]) -> None:
        real(self, fields)
        received.append(self)

    monkeypatch.setattr(ReceivedKeys, "__init__", read)
    if fault:
        kms.arm(fault)
    with raises(KmsError, "wrong_image") if fault else nullcontext():
        client_of(kms, tee).get_app_keys().close()
    [keys] = received
    assert {keys.k256_key, keys.env_crypt_key, keys.disk_crypt_key} == {bytes(32)}


def test_next_url_releases_the_keys(kms_factory: Factory, tee: SimulatedTee) -> None:
    """A KMS with a fault and a sound one with the same roots: the second one's keys are used."""
    faulty, sound = kms_factory(faults="kms_bad_signature"), kms_factory()
    found = client_of(sound, tee, urls=[faulty.url, sound.url]).fetch_app_keys()
    assert found.url == f"{sound.url}/prpc"


def test_root_that_is_not_that_of_the_server_fails_in_the_handshake(
    kms_factory: Factory, tee: SimulatedTee
) -> None:
    """Without a pin, another root in GetTempCaCert is noticed by TLS."""
    kms = kms_factory(faults="kms_wrong_root")
    with raises(KmsError, "wrong_certificate"):
        client_of(kms, tee, roots="first-use").get_app_keys()


def test_evidence_of_the_kms_is_required_with_a_verifier(
    kms_factory: Factory, tee: SimulatedTee
) -> None:
    """An attested KMS is verified; without evidence it is refused if a verifier is given."""
    kms = kms_factory(attester=tee.attester)
    found = client_of(kms, tee, verifier=tee.verifier()).fetch_app_keys()
    assert found.evidence is not None
    assert found.evidence.app_info is not None
    assert found.evidence.app_info.app_id == tee.app_info.app_id
    kms.arm("kms_unattested:2")
    client_of(kms, tee).get_app_keys()
    kms.arm("kms_unattested:2")
    with raises(KmsError, "no_evidence"):
        client_of(kms, tee, verifier=tee.verifier()).get_app_keys()


def test_certificate_for_another_key_or_app_is_refused(
    kms: SimulatedKms, tee: SimulatedTee
) -> None:
    """A sound KMS signs for this key and app; one that signs another is refused."""
    chain = client_of(kms, tee).sign_certificate(request_of(tee), LEAF_KEY)
    app_id, now = tee.app_info.app_id, current_time()
    found = verify_app_certificate(chain, app_id=app_id, kms_roots=[kms.root], now=now)
    assert found.spki == LEAF_KEY.spki_der
    kms.arm("kms_signs_other")
    with raises(KmsError, "wrong_certificate"):
        client_of(kms, tee).sign_certificate(request_of(tee), LEAF_KEY)


def test_kms_reports_its_roots_and_environment_keys(kms: SimulatedKms, tee: SimulatedTee) -> None:
    """Meta data and the public key for environments are those of the pinned roots."""
    client = client_of(kms, tee)
    meta = client.get_meta()
    assert (meta.is_dev, meta.k256_public_key) == (True, kms.root.k256_public_key)
    assert len(client.env_public_key(tee.app_info.app_id)) == 32


def test_roots_are_replaced_while_the_kms_runs(kms: SimulatedKms, tee: SimulatedTee) -> None:
    """After a rollover only the new pin gets keys, and old chains verify with the old pin only."""
    old = kms.root
    client = client_of(kms, tee)
    chain = client.sign_certificate(request_of(tee), LEAF_KEY)
    kept = client.get_app_keys()
    kms.arm("kms_rollover")
    with raises(KmsError, "wrong_root"):
        client.get_app_keys()
    assert kms.root != old
    both = client_of(kms, tee, roots=[old, kms.root])
    assert both.fetch_app_keys().root == kms.root
    assert both.get_app_keys().k256_key != kept.k256_key
    app_id, now = tee.app_info.app_id, current_time()
    verify_app_certificate(chain, app_id=app_id, kms_roots=[old], now=now)
    with raises(SignatureError, "untrusted_root"):
        verify_app_certificate(chain, app_id=app_id, kms_roots=[kms.root], now=now)
