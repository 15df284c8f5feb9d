"""Tests of the notary with real evidence and injected faults, on attestkit's fixtures."""

import secrets
from collections.abc import Callable

import pytest
from notary import NONCE, RULES, Notary, believe, check_stamp

import attestkit
from attestkit import AppraisalPolicy
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    PolicyError,
    SignatureError,
    VerificationError,
)
from attestkit.testing import SimulatedTee
from attestkit.verifier import RequiredEvent

COMPOSE = b'{"manifest_version":2,"name":"notary","runner":"bash","bash_script":"python notary"}'
Factory = Callable[..., SimulatedTee]


@pytest.fixture
def policy(tee_factory: Factory) -> AppraisalPolicy:
    """Pin image, app and rules of a known good deployment, as `attestkit policy` does."""
    good = tee_factory(app_compose=COMPOSE)
    nonce = secrets.token_bytes(NONCE)
    result = good.verify(good.attest(nonce=nonce), nonce=nonce)
    pinned = AppraisalPolicy.from_evidence(result)
    rules = RequiredEvent(name="notary-rules", payload=RULES)
    return pinned.replace(required_events={*pinned.required_events, rules})


def introduced(tee: SimulatedTee, policy: AppraisalPolicy) -> Notary:
    """Return a notary that a customer has accepted."""
    notary, nonce = Notary(tee.attester), secrets.token_bytes(NONCE)
    evidence = notary.introduce(nonce)
    result = believe(evidence, notary.public_key, nonce, tee.verifier(policy=policy))
    assert result.simulated, "or this test has met hardware"
    return notary


def test_check_stamp_accepts_only_the_stamped_document(
    tee_factory: Factory, policy: AppraisalPolicy
) -> None:
    """A stamp is valid for its document only."""
    notary = introduced(tee_factory(app_compose=COMPOSE), policy)
    stamp = notary.stamp(b"a deed")
    check_stamp(b"a deed", stamp, notary.public_key)
    with pytest.raises(SignatureError):
        check_stamp(b"another deed", stamp, notary.public_key)


def test_notary_after_restart_has_same_key(tee: SimulatedTee) -> None:
    """The rules are measured once per boot, and the key is the same."""
    first, second = Notary(tee.attester), Notary(tee.attester)
    assert first.public_key == second.public_key
    assert [event.name for event in tee.event_log().events].count("notary-rules") == 1


def test_believe_other_app_is_rejected(tee: SimulatedTee, policy: AppraisalPolicy) -> None:
    """The same code in another app is rejected."""
    with pytest.raises(PolicyError, match="launch what the policy was made for"):
        introduced(tee, policy)


def test_believe_other_nonce_or_key_is_rejected(
    tee_factory: Factory, policy: AppraisalPolicy
) -> None:
    """An introduction is valid for one nonce and key."""
    tee = tee_factory(app_compose=COMPOSE)
    notary, nonce = Notary(tee.attester), secrets.token_bytes(NONCE)
    evidence, verifier = notary.introduce(nonce), tee.verifier(policy=policy)
    with pytest.raises(PolicyError, match="report data"):
        believe(evidence, notary.public_key, secrets.token_bytes(NONCE), verifier)
    with pytest.raises(PolicyError, match="report data"):
        believe(evidence, bytes(32), nonce, verifier)
    with pytest.raises(ValueError, match="32 bytes"):
        believe(evidence, nonce + notary.public_key, b"", verifier)


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("pck-revoked", "cert_revoked"),
        ("tcb-OutOfDate", "tcb_status"),
        ("qe-debug", "qe_identity_mismatch"),
        ("collateral-expired", "crl_expired"),
    ],
)
def test_believe_bad_platform_is_rejected(
    tee_factory: Factory, policy: AppraisalPolicy, scenario: str, reason: str
) -> None:
    """A valid app on an unacceptable platform is rejected."""
    with pytest.raises(VerificationError) as caught:
        introduced(tee_factory(scenario=scenario, app_compose=COMPOSE), policy)
    assert caught.value.reason == reason


def test_introduce_retries_busy_device(tee: SimulatedTee) -> None:
    """After three retries with growing waits it fails."""
    waited: list[float] = []
    notary = Notary(tee.attester, wait=waited.append)
    tee.arm("ebusy:2")
    assert notary.introduce(bytes(NONCE))
    assert waited == [0.1, 0.5]
    tee.arm("ebusy:*")
    with pytest.raises(BackendBusyError):
        notary.introduce(bytes(NONCE))
    assert waited[2:] == [0.1, 0.5, 2.0]


def test_notary_unmeasured_rules_fails_at_start(tee: SimulatedTee) -> None:
    """The notary does not start if its rules cannot be measured."""
    tee.arm("rtmr_extend_fails")
    with pytest.raises(BackendError):
        Notary(tee.attester)


def test_notary_uses_agent_socket(tee: SimulatedTee) -> None:
    """The notary finds the agent by the environment, and has the same key."""
    assert tee.client["DSTACK_SIMULATOR_ENDPOINT"] == tee.socket
    with attestkit.open() as deployed:
        assert deployed.backend.name == "dstack_agent"
        assert Notary(deployed).public_key == Notary(tee.attester).public_key
