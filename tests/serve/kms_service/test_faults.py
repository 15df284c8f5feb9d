"""Each fault of a simulated KMS: what the client meets, and that it gets no keys."""

import http.client
import ssl
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from attestkit.backends.simulator.faults.kms_faults import KMS_FAULTS
from attestkit.backends.simulator.scenarios.config import PkiConfig, Scenario
from attestkit.errors import KmsError, UsageError
from attestkit.kms import CertRequest, KmsClient, SimulatedKms
from attestkit.kms.https_call import TimeLimits
from attestkit.report_data import ReportData
from attestkit.testing import SimulatedTee
from tests.raising import raises
from tests.serve.kms_service.kms_clients import KEY, anonymous

MakeTee = Callable[..., SimulatedTee]
MakeKms = Callable[..., SimulatedKms]
# Reason of the client's error when the fault is armed for good.
REASONS = {
    "kms_refuses": {"refused"},
    "kms_fails": {"connection"},
    "kms_slow:30s": {"timeout"},
    "kms_closes": {"connection"},
    "kms_truncates": {"connection"},
    "kms_wrong_root": {"wrong_root"},
    "kms_other_kms": {"wrong_root"},
    "kms_temp_ca_expired": {"expired"},
    "kms_app_cert": {"wrong_usage"},
    "kms_no_usage": {"wrong_usage"},
    "kms_unattested": {"no_evidence"},
    "kms_bad_signature": {"bad_signature"},
    "kms_short_key": {"wrong_size"},
    "kms_other_image": {"wrong_image"},
    "kms_rollover@1": {"bad_signature"},
}


def client_of(kms: SimulatedKms, tee: SimulatedTee, **options: Any) -> KmsClient:
    """Return a client that pins the roots and requires evidence of the KMS."""
    limits = TimeLimits(connect=5.0, call=options.pop("call", 20.0))
    options.setdefault("verifier", tee.verifier())
    return KmsClient(kms.url, roots=[kms.root], attester=tee.attester, limits=limits, **options)


@pytest.fixture
def attested(kms_factory: MakeKms, tee: SimulatedTee) -> SimulatedKms:
    """A KMS with evidence in its certificate."""
    return kms_factory(attester=tee.attester)


@pytest.mark.slow
@pytest.mark.parametrize("fault", REASONS)
def test_client_takes_no_keys(fault: str, attested: SimulatedKms, tee: SimulatedTee) -> None:
    """The client reports each fault; without the fault it gets the keys."""
    client = client_of(attested, tee, call=0.5 if "slow" in fault else 20.0)
    assert client_of(attested, tee).get_app_keys().k256_key
    attested.arm(fault if "@" in fault else f"{fault}:*")
    with pytest.raises(KmsError) as caught:
        client.get_app_keys()
    assert caught.value.reason in REASONS[fault]
    attested.faults.clear()


def test_every_fault_is_tested() -> None:
    """No fault of the list is forgotten."""
    tested = {name.partition(":")[0].partition("@")[0] for name in REASONS}
    assert {*tested, "kms_signs_other"} == set(KMS_FAULTS)


def test_counted_fault_passes(attested: SimulatedKms, tee: SimulatedTee) -> None:
    """A fault that is armed once lets the next request pass."""
    attested.arm("kms_refuses")
    client = client_of(attested, tee)
    with pytest.raises(KmsError):
        client.get_app_keys()
    assert client.get_app_keys().k256_key


def test_refusals_are_400_and_failures_500(attested: SimulatedKms) -> None:
    """The texts are those of a KMS; a failure has no detail."""
    attested.arm("kms_fails")
    answer = anonymous(attested).call("GetMeta")
    assert (answer.status, answer.json()) == (500, {"error": "internal error"})


EXPIRED = Scenario(pki=PkiConfig(pck_not_after=datetime(2020, 2, 1, tzinfo=timezone.utc)))
OF_GUEST: dict[str, tuple[Any, dict[str, Any]]] = {
    "PCK certificate expired": (EXPIRED, {}),
    "VCEK certificate expired": ("snp-vcek-expired", {}),
    "no endorsements for this kind": (None, {"collateral": None}),
}
OF_KMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "its TCB info expired": ("tcb-info-expired", {}),
    "its CRL expired": ("pck-crl-expired", {}),
}


@pytest.mark.parametrize("case", [*OF_GUEST, *OF_KMS])
def test_missing_or_expired_endorsements(
    case: str, tee_factory: MakeTee, kms_factory: MakeKms
) -> None:
    """Those of the guest are a refusal with the reason, those of the KMS a failure to retry."""
    scenario, options = {**OF_GUEST, **OF_KMS}[case]
    tee = tee_factory(scenario=scenario)
    kms = kms_factory(tee.verifier(**options))
    client = KmsClient(kms.url, roots=[kms.root], attester=tee.attester)
    words = {"missing", "valid"}
    with raises(KmsError, "refused" if case in OF_GUEST else "connection") as caught:
        client.get_app_keys()
    assert any(word in str(caught.value) for word in words)


def test_truncated_response_has_half_of_its_body(attested: SimulatedKms) -> None:
    """The connection ends before Content-Length."""
    whole = anonymous(attested).call("GetMeta").body
    attested.arm("kms_truncates")
    with pytest.raises((http.client.IncompleteRead, ssl.SSLError)) as caught:
        anonymous(attested).call("GetMeta")
    if isinstance(caught.value, http.client.IncompleteRead):
        assert whole.startswith(caught.value.partial)


def test_unknown_fault_is_refused(attested: SimulatedKms) -> None:
    """Only the faults of a KMS can be armed."""
    with pytest.raises(UsageError) as caught:
        attested.arm("ebusy")
    assert caught.value.reason == "unknown_name"


def test_rollover_replaces_the_roots_for_good(attested: SimulatedKms, tee: SimulatedTee) -> None:
    """Clients with the new pin get other keys; those of the old epoch fail at the pin."""
    old_client, old_root = client_of(attested, tee), attested.root
    old_keys = old_client.get_app_keys()
    attested.arm("kms_rollover")
    assert anonymous(attested).call("GetMeta").status == 200
    assert attested.root != old_root
    with pytest.raises(KmsError) as caught:
        old_client.get_app_keys()
    assert caught.value.reason == "wrong_root"
    assert client_of(attested, tee).get_app_keys().k256_key != old_keys.k256_key


def test_rollover_of_stored_roots_is_refused(
    kms_factory: MakeKms, tmp_path: Path, tee: SimulatedTee
) -> None:
    """A folder would keep the old roots: the fault is refused at the start and later."""
    with pytest.raises(UsageError) as caught:
        kms_factory(state_dir=tmp_path / "kms", faults="kms_rollover@1")
    assert caught.value.reason == "conflict"
    kms = kms_factory(state_dir=tmp_path / "kms")
    root = kms.root
    for arm in (kms.arm, kms.faults.arm):
        with pytest.raises(UsageError) as caught:
            arm("kms_refuses kms_rollover")
        assert caught.value.reason == "conflict"
    assert client_of(kms, tee, verifier=None).get_app_keys().k256_key  # none was armed
    assert kms.root == root


def request_for(tee: SimulatedTee, **names: Any) -> CertRequest:
    """Return a certificate request with evidence over its key."""
    bound = ReportData.bind(ReportData.RATLS_CERT, KEY.spki_der)
    return CertRequest(KEY.spki_der, "app", tee.attest(report_data=bound), **names)


def test_certificate_of_another_key_is_refused(attested: SimulatedKms, tee: SimulatedTee) -> None:
    """SignCert signs; with the fault, its certificate is for another key and app."""
    client, request = client_of(attested, tee), request_for(tee, usage_server_auth=True)
    assert len(client.sign_certificate(request, KEY)) == 3
    attested.arm("kms_signs_other")
    with pytest.raises(KmsError) as caught:
        client.sign_certificate(request, KEY)
    assert caught.value.reason == "wrong_certificate"


def test_refused_certificate(attested: SimulatedKms, tee: SimulatedTee) -> None:
    """SignCert gives the bare reason, without the prefix of GetAppKey."""
    attested.arm("kms_refuses")
    with pytest.raises(KmsError, match="Boot denied: simulated fault kms_refuses") as caught:
        client_of(attested, tee).sign_certificate(request_for(tee), KEY)
    assert "App not allowed" not in str(caught.value)
