"""App with a fresh TEE for each test."""

from collections.abc import Callable

import pytest
from doorman import Door, prove

from attestkit import AppraisalPolicy
from attestkit.errors import BackendBusyError
from attestkit.testing import SimulatedTee


def test_valid_evidence_is_admitted(tee: SimulatedTee) -> None:
    """The evidence is over the challenge, and satisfies the default policy."""
    door = Door(tee.verifier())
    assert door.let_in(prove(tee.attester, door.challenge())) == "welcome"


def test_replayed_evidence_is_refused(tee: SimulatedTee) -> None:
    """A challenge is valid for one attempt."""
    door = Door(tee.verifier())
    evidence = prove(tee.attester, door.challenge())
    assert door.let_in(evidence) == "welcome"
    assert door.let_in(evidence) == "no challenge"
    door.challenge()
    assert door.let_in(evidence).startswith("PolicyError")


def test_evidence_of_another_root_is_refused(tee_factory: Callable[..., SimulatedTee]) -> None:
    """The door trusts one root."""
    ours, other = tee_factory(), tee_factory(seed=bytes(32))
    door = Door(ours.verifier())
    assert "Error" in door.let_in(prove(other.attester, door.challenge()))


def test_outdated_platform_is_refused_by_default(tee_factory: Callable[..., SimulatedTee]) -> None:
    """The development policy admits it."""
    tee = tee_factory(scenario="tcb-OutOfDate")
    door = Door(tee.verifier())
    assert door.let_in(prove(tee.attester, door.challenge())).startswith("PolicyError")
    door = Door(tee.verifier(policy=AppraisalPolicy.development()))
    assert door.let_in(prove(tee.attester, door.challenge())) == "welcome"


def test_busy_device_is_tried_three_times(tee_factory: Callable[..., SimulatedTee]) -> None:
    """The third BackendBusyError is raised."""
    tee = tee_factory(faults="ebusy:2")
    door = Door(tee.verifier())
    assert door.let_in(prove(tee.attester, door.challenge())) == "welcome"
    tee.arm("ebusy:3")
    with pytest.raises(BackendBusyError):
        prove(tee.attester, b"")
