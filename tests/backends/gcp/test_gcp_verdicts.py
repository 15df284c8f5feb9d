"""Verdicts on evidence of the backend `gcp`, from the attester to the policy."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import GcpTdx
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.quote_reader import collect_quote
from attestkit.errors import PolicyError, ReplayError
from attestkit.report_data import ReportData
from attestkit.tpm import PcrSelection
from attestkit.tpm.handles import ENDORSEMENT
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from tests.backends.gcp.machine import RSA, Machine, certify, make_machine
from tests.raising import raises
from tests.vectors import needs_shared

NONCE = b"a nonce of a challenger"
RAW = bytes(range(64))

pytestmark = needs_shared


@pytest.fixture
def machine(software_tpm: TpmClient, tmp_path: Path) -> Machine:
    """Return a TDX machine whose boot events are in RTMR 3 and PCR 14."""
    found = make_machine(software_tpm, tmp_path / "root", Simulator())
    found.extend_by_events()
    return found


def attest(machine: Machine, **options: Any) -> Attestation:
    """Return evidence of the machine."""
    return Attester(machine.open(), host=machine.hardware).attest(**options)


def verifier(machine: Machine, rules: str = "") -> Verifier:
    """Return a verifier that trusts the machine, with these rules of a policy."""
    return Verifier(
        trust_anchor=machine.hardware.trust_anchor,
        collateral=machine.hardware.collateral(),
        ak_certificates=[machine.ca.intermediate_der],
        policy=AppraisalPolicy.from_toml(f'preset = "development"\n{rules}'),
    )


def verify(machine: Machine, evidence: Attestation, rules: str = "") -> AttestationResult:
    """Verify evidence with a nonce, after a round trip of its bytes."""
    return verifier(machine, rules).verify(evidence.to_bytes(), nonce=NONCE)


def test_a_nonce_makes_a_fresh_result_with_both_joins(machine: Machine) -> None:
    """Nothing about the join is left unproven; the same holds in another process."""
    evidence = attest(machine, nonce=NONCE)
    result = verify(machine, evidence, 'require_joins = ["hardware_to_ak", "ak_to_hardware"]')
    assert result.fresh
    assert (result.bound_to, result.nonce) == ("nonce", NONCE)
    assert result.claims.vtpm is not None
    assert result.claims.vtpm.joins == ("hardware_to_ak", "ak_to_hardware")
    assert not {"hardware_to_ak", "ak_to_hardware"} & set(result.not_proven)
    assert "ak_revocation" in result.not_proven
    copied = pickle.loads(pickle.dumps(verifier(machine)))
    assert copied.verify(evidence, nonce=NONCE).claims == result.claims


def test_image_of_dstack_excludes_records_of_shim_before_the_events(machine: Machine) -> None:
    """Shim's records precede the events in PCR 14, but not in evidence of an image of dstack."""
    evidence = attest(machine, nonce=NONCE)
    texts = [step.text for step in verify(machine, evidence).steps if step.check == "pcr_log"]
    assert any("records of the firmware's log and the" in text for text in texts)
    found = evidence.evidence
    claimed = found._replace(stack=found.stack._replace(config='{"gcp_measurement": {}}'))
    with raises(ReplayError, "pcr_mismatch", start="PCR14 mismatch"):
        verify(machine, Attestation(claimed))


def test_raw_report_data_leave_one_direction_unproven(machine: Machine) -> None:
    """The result says so, and a policy can require the direction."""
    evidence = attest(machine, report_data=RAW)
    result = verifier(machine).verify(evidence, report_data=RAW)
    assert result.bound_to == "report_data"
    assert "hardware_to_ak" in result.not_proven
    strict = verifier(machine, 'require_joins = ["hardware_to_ak"]')
    with pytest.raises(PolicyError) as caught:
        strict.verify(evidence, report_data=RAW)
    assert caught.value.reason == "require_joins"


def test_a_nonce_alone_is_accepted_as_of_dstack(machine: Machine) -> None:
    """Other attesters bind the nonce alone; the result is fresh, and the join is not proven."""
    result = verify(machine, attest(machine, report_data=ReportData.for_nonce(NONCE)))
    assert result.fresh
    assert "hardware_to_ak" in result.not_proven


def test_another_tpm_cannot_stand_in(machine: Machine) -> None:
    """A TDX quote over another TPM's key is refused, though this TPM is Google's, too."""
    evidence = attest(machine, nonce=NONCE).evidence
    platform = evidence.platform
    assert isinstance(platform, GcpTdx)
    # The RSA key of this TPM plays the TPM of another VM.
    certificate = certify(machine.client, "rsa", machine.ca.issue_ak_certificate)
    with machine.client.primary_key(ENDORSEMENT, RSA) as key:
        selections = (PcrSelection("sha256", (0, 2, 14)),)
        found = collect_quote(machine.client, key.handle, sha256(platform.quote), selections)
    other = platform.tpm_quote._replace(
        message=found.message, signature=found.signature, ak_cert=certificate
    )
    relayed = Attestation(evidence._replace(platform=platform._replace(tpm_quote=other)))
    with pytest.raises(PolicyError) as caught:
        verify(machine, relayed)
    assert caught.value.reason == "report_data"


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ('gce_project = "attestkit-simulated"\ngce_instance = "simulated-vm"', None),
        ('gce_zone = "us-central1-a"', None),
        ('gce_project = "other"', "gce_project"),
        ('gce_zone = "other"', "gce_zone"),
        ('gce_instance = "other"', "gce_instance"),
    ],
)
def test_a_policy_names_the_instance(machine: Machine, rules: str, reason: str | None) -> None:
    """Project, zone and instance are those of the certificate of the TPM's key."""
    evidence = attest(machine, nonce=NONCE)
    if reason is None:
        assert verify(machine, evidence, rules).fresh
        return
    with pytest.raises(PolicyError) as caught:
        verify(machine, evidence, rules)
    assert caught.value.reason == reason


def test_evidence_shortened_for_a_certificate_verifies(machine: Machine) -> None:
    """RTMR 3 and PCR 14 replay from the runtime events, which stay."""
    evidence = attest(machine, nonce=NONCE)
    short = evidence.stripped()
    assert len(short.to_bytes()) < len(evidence.to_bytes())
    result = verify(machine, short)
    assert result.claims.event_registers == (3,)
    assert result.claims.vtpm is not None
    assert ("sha256", 14) in result.claims.vtpm.replayed
