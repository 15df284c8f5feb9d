"""Policies in all their forms, by role, and their required content."""

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit.client.proofs.trust import ANY_ROLE, FIRST_USE, HARDWARE_ONLY, Trust
from attestkit.client.services.service import Machine
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    ConfigError,
    PolicyError,
    ServiceError,
    UsageError,
)
from attestkit.testing import AttestedServer
from attestkit.verifier import AppraisalPolicy
from tests.client.proofs.saved_proofs import saved_proof
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped


def clock() -> datetime:
    """Return the time."""
    return datetime.now(timezone.utc)


def machine(role: str = "server") -> Machine:
    """Return a machine with evidence."""
    [found] = saved_proof().proof.claims.machines
    return Machine(role, found.evidence, found.report_data)


def pinned() -> AppraisalPolicy:
    """Return a policy that names the app of this machine, and its image."""
    return AppraisalPolicy.from_evidence(saved_proof().proof.result)


def trust(policy: Any, **options: Any) -> Trust:
    """Return what accepts simulated evidence."""
    saved = saved_proof()
    collateral = saved.proof.bundle.collateral[0]
    settings = {"trust_anchor": saved.trust_anchor, "collateral": collateral, **options}
    return Trust(policy, untyped(settings), clock)


def test_policy_and_path(tmp_path: Path) -> None:
    """A policy, its file as a path or a text, and a Verifier accept the same machine."""
    path = tmp_path / "policy.toml"
    path.write_text(pinned().to_toml())
    for policy in (pinned(), path, str(path)):
        found = trust(policy)
        verified = found.verify(machine(), clock(), gpu=False)
        assert verified.result.simulated
        assert found.code == "policy"
        assert verified.source == (
            "as the policy pins it"
            if policy is not path and policy != str(path)
            else f"as pinned in {path}"
        )
    with_own = Trust(saved_proof().policy, {}, clock)
    assert with_own.verify(machine(), clock(), gpu=False).role == "server"


@pytest.mark.parametrize("policy", [AppraisalPolicy.default(), "strict", {"server": "strict"}])
def test_policy_must_name_the_program(policy: Any) -> None:
    """One that accepts any program is refused, and the text names the word for that."""
    with raises(UsageError, "any_app", part=HARDWARE_ONLY):
        trust(policy)


def test_verifier_must_name_the_program() -> None:
    """Also where it is inside of a Verifier."""
    with AttestedServer() as server, raises(UsageError, "any_app"):
        Trust(server.tee.verifier(), {}, clock)


def test_hardware_only() -> None:
    """Any program is accepted, and the proof states that no program was verified."""
    found = trust(HARDWARE_ONLY)
    verified = found.verify(machine(), clock(), gpu=False)
    assert (found.code, found.hardware_only, found.first_use) == ("nobody", True, False)
    assert "any program" in verified.source
    assert trust(FIRST_USE).first_use


def test_roles() -> None:
    """A role's own policy counts before that of all others; without one, nothing is accepted."""
    other = pinned().replace(app_id=[bytes(20)])
    found = trust({"gateway": other, ANY_ROLE: pinned()})
    found.verify(machine("model"), clock(), gpu=False)
    with pytest.raises(AttestKitError) as caught:
        found.verify(machine("gateway"), clock(), gpu=False)
    assert caught.value.reason == "app_id"
    alone = trust({"gateway": pinned()})
    alone.verify(machine("gateway"), clock(), gpu=False)
    with raises(UsageError, "missing", part="model"):
        alone.verify(machine("model"), clock(), gpu=False)
    with raises(UsageError, "missing"):
        trust({})


def test_source_of_accepted_programs_is_that_of_the_role(tmp_path: Path) -> None:
    """A file of another role, or of all others, is not named as the source."""
    path, other = tmp_path / "gateway.toml", tmp_path / "others.toml"
    for one in (path, other):
        one.write_text(pinned().to_toml())
    found = trust({"server": pinned(), "gateway": path, ANY_ROLE: other})
    sources = [
        found.verify(machine(role), clock(), gpu=False).source
        for role in ("server", "gateway", "model")
    ]
    assert sources == ["as the policy pins it", f"as pinned in {path}", f"as pinned in {other}"]


@every_case("policy", [None, 1, b"policy.toml", ["policy.toml"], {"server": None}])
def test_other_types(policy: Any) -> None:
    """Values that are not policies are refused."""
    with raises(UsageError, "wrong_type"):
        trust(policy)


def test_verifier_excludes_options() -> None:
    """Options beside a Verifier would be without effect."""
    with raises(UsageError, "conflict", part="trust_anchor"):
        Trust(saved_proof().policy, {"trust_anchor": b""}, clock)


def test_missing_file(tmp_path: Path) -> None:
    """An error of configuration names it."""
    with raises(ConfigError, "unreadable", part="missing.toml"):
        trust(tmp_path / "missing.toml")


def test_report_data_are_those_of_the_claims() -> None:
    """Genuine evidence with other report data is refused."""
    for at in (0, 31, 32, 63):
        changed = bytearray(machine().report_data)
        changed[at] ^= 1
        other = Machine("server", machine().evidence, bytes(changed))
        with raises(PolicyError, "report_data"):
            trust(pinned()).verify(other, clock(), gpu=False)


def test_evidence_of_gpus_is_for_the_same_report_data() -> None:
    """Evidence of other GPUs, beside genuine evidence of a CPU, is refused."""
    binding: Any = untyped(type("Binding", (), {"report_data": bytes(64)})())
    found = Machine("server", machine().evidence, machine().report_data, gpu=binding)
    with raises(ServiceError, "other_key"):
        trust(pinned()).verify(found, clock(), gpu=True)


def test_collateral_replaces_the_options() -> None:
    """That of a bundle is used in place of the Verifier's."""
    saved = saved_proof()
    found = Trust(pinned(), {"trust_anchor": saved.trust_anchor, "pccs_url": None}, clock)
    with pytest.raises(CollateralError):
        found.verify(machine(), clock(), gpu=False)
    collateral = saved.proof.bundle.collateral[0]
    verified = found.verify(machine(), clock(), gpu=False, collateral=collateral)
    assert verified.collateral == collateral


def test_simulated_evidence_needs_its_root() -> None:
    """Without the simulator's trust anchor, `connect` refuses simulated evidence."""
    with AttestedServer() as server:
        with pytest.raises(AttestKitError) as caught:
            attestkit.connect(server.url, policy=HARDWARE_ONLY, server_ca=server.ca, pccs_url=None)
        assert caught.value.reason in ("untrusted_root", "missing", "fetch_needed")
        assert server.requests == []
