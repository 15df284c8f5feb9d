"""Tests of the notary against real evidence and real failure; the fixtures are attestkit's."""

import secrets
from collections.abc import Callable

import pytest
from notary import NONCE, RULES, Notary, believe, is_stamped

import attestkit
from attestkit import AppraisalPolicy
from attestkit.errors import BackendBusyError, BackendError, PolicyError, VerificationError
from attestkit.testing import SimulatedTee
from attestkit.verifier import RequiredEvent
from attestkit.verifier.policy.toml_writer import pin

COMPOSE = b'{"manifest_version":2,"name":"notary","runner":"bash","bash_script":"python notary"}'
Factory = Callable[..., SimulatedTee]


@pytest.fixture
def policy(tee_factory: Factory) -> AppraisalPolicy:
    """Pin image and app of a known-good deployment, as `attestkit policy` does, and the rules."""
    good = tee_factory(app_compose=COMPOSE)
    pinned = pin(good.verify(good.attest(b"pin"), report_data=b"pin"))
    rules = RequiredEvent(name="notary-rules", payload=RULES)
    return pinned.replace(required_events={*pinned.required_events, rules})


def introduced(tee: SimulatedTee, policy: AppraisalPolicy) -> Notary:
    """Return a notary that a customer believes."""
    notary, nonce = Notary(tee.attester), secrets.token_bytes(NONCE)
    evidence = notary.introduce(nonce)
    result = believe(evidence, notary.public_key, nonce, tee.verifier(policy=policy))
    assert result.simulated, "or this test has met hardware"
    return notary


def test_stamps_of_a_notary_that_is_believed(tee_factory: Factory, policy: AppraisalPolicy) -> None:
    """They hold for their document alone."""
    notary = introduced(tee_factory(app_compose=COMPOSE), policy)
    stamp = notary.stamp(b"a deed")
    assert is_stamped(b"a deed", stamp, notary.public_key)
    assert not is_stamped(b"another deed", stamp, notary.public_key)


def test_the_key_outlives_a_restart(tee: SimulatedTee) -> None:
    """The rules are measured once a boot, and the key is the same."""
    first, second = Notary(tee.attester), Notary(tee.attester)
    assert first.public_key == second.public_key
    assert [event.name for event in tee.event_log().events].count("notary-rules") == 1


def test_another_app_is_not_believed(tee: SimulatedTee, policy: AppraisalPolicy) -> None:
    """Whoever runs this code as part of another app is no notary of ours."""
    with pytest.raises(PolicyError, match="launch what the policy was made for"):
        introduced(tee, policy)


def test_an_introduction_holds_for_one_nonce_and_key(
    tee_factory: Factory, policy: AppraisalPolicy
) -> None:
    """It can neither be used again nor by another."""
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
def test_on_a_bad_platform_it_is_not_believed(
    tee_factory: Factory, policy: AppraisalPolicy, scenario: str, reason: str
) -> None:
    """However honest the app is."""
    with pytest.raises(VerificationError) as caught:
        introduced(tee_factory(scenario=scenario, app_compose=COMPOSE), policy)
    assert caught.value.reason == reason


def test_a_busy_device_is_waited_for(tee: SimulatedTee) -> None:
    """Three times, a little longer each time; then it is an error."""
    waited: list[float] = []
    notary = Notary(tee.attester, wait=waited.append)
    tee.arm("ebusy:2")
    assert notary.introduce(bytes(NONCE))
    assert waited == [0.1, 0.5]
    tee.arm("ebusy:*")
    with pytest.raises(BackendBusyError):
        notary.introduce(bytes(NONCE))
    assert waited[2:] == [0.1, 0.5, 2.0]


def test_rules_that_cannot_be_measured_are_no_notary(tee: SimulatedTee) -> None:
    """It does not start without them."""
    tee.arm("rtmr_extend_fails")
    with pytest.raises(BackendError):
        Notary(tee.attester)


def test_behind_an_agent_s_socket(tee: SimulatedTee) -> None:
    """As it is deployed: it finds the agent by the environment, and has the same key."""
    assert tee.client["DSTACK_SIMULATOR_ENDPOINT"] == str(tee.socket)
    with attestkit.open() as deployed:
        assert deployed.backend.name == "dstack_agent"
        assert Notary(deployed).public_key == Notary(tee.attester).public_key
