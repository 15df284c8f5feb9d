"""The app against a TEE of each test's own."""

from collections.abc import Callable

import pytest
from doorman import Door, prove

from attestkit import AppraisalPolicy
from attestkit.errors import BackendBusyError
from attestkit.testing import SimulatedTee


def test_a_healthy_tee_is_let_in(tee: SimulatedTee) -> None:
    """Its evidence is about the challenge, and passes the default policy."""
    door = Door(tee.verifier())
    assert door.let_in(prove(tee.attester, door.challenge())) == "welcome"


def test_evidence_is_good_once(tee: SimulatedTee) -> None:
    """What was shown before opens no door."""
    door = Door(tee.verifier())
    evidence = prove(tee.attester, door.challenge())
    assert door.let_in(evidence) == "welcome"
    assert door.let_in(evidence) == "nobody asked"
    door.challenge()
    assert door.let_in(evidence).startswith("PolicyError")


def test_somebody_else_s_tee_is_not(tee_factory: Callable[..., SimulatedTee]) -> None:
    """Another root is not the one that the door trusts."""
    ours, other = tee_factory(), tee_factory(seed=bytes(32))
    door = Door(ours.verifier())
    assert "Error" in door.let_in(prove(other.attester, door.challenge()))


def test_an_outdated_platform_is_not(tee_factory: Callable[..., SimulatedTee]) -> None:
    """Nor is one that Intel has published updates for; who develops may do with it."""
    tee = tee_factory(scenario="tcb-OutOfDate")
    door = Door(tee.verifier())
    assert door.let_in(prove(tee.attester, door.challenge())).startswith("PolicyError")
    door = Door(tee.verifier(policy=AppraisalPolicy.development()))
    assert door.let_in(prove(tee.attester, door.challenge())) == "welcome"


def test_a_busy_device_is_asked_again(tee_factory: Callable[..., SimulatedTee]) -> None:
    """Twice busy is let in; three times is an error."""
    tee = tee_factory(faults="ebusy:2")
    door = Door(tee.verifier())
    assert door.let_in(prove(tee.attester, door.challenge())) == "welcome"
    tee.arm("ebusy:3")
    with pytest.raises(BackendBusyError):
        prove(tee.attester, b"")
