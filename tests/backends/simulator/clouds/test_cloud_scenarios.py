"""Scenarios and faults of guests behind a vTPM: each has the outcome that its name promises."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from attestkit._crypto.x509.ak_certificates.path import IssuerMissingError
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.clouds.azure import PARAVISOR_SNP
from attestkit.backends.simulator.scenarios.named_case import NO_STATUS
from attestkit.backends.simulator.scenarios.registry import CLOUDS
from attestkit.errors import (
    AttestKitError,
    BackendError,
    PolicyError,
    QuoteUnavailableError,
    SignatureError,
    UsageError,
)
from attestkit.factory import open as open_attester
from attestkit.verifier import AppraisalPolicy, Verifier
from tests.backends.simulator.clouds.guests import PLATFORMS, open_cloud, verifier_of, verify_once
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

GOOD: Final = [name for name, named in CLOUDS.items() if named.outcome in {"UpToDate", NO_STATUS}]


@pytest.fixture(params=PLATFORMS)
def guest(request: pytest.FixtureRequest) -> Iterator[Attester[Simulator]]:
    """Return a guest of each platform."""
    with open_cloud(platform=request.param) as tee:
        yield tee


@pytest.mark.slow
@every_case("name", CLOUDS)
def test_scenario_has_named_outcome(name: str) -> None:
    """A verifier whose policy names the platform has the outcome of the table."""
    expected = CLOUDS[name].outcome
    with open_cloud(scenario=name) as tee:
        if name in GOOD:
            result = verify_once(tee)
            status = result.tcb.status
            assert (NO_STATUS if status is None else str(status)) == expected
            assert result.simulated
            assert result.fresh
        else:
            with pytest.raises(AttestKitError) as caught:
                verify_once(tee)
            assert untyped(caught.value).reason == expected


def test_guest_is_refused_under_vendors_roots(guest: Attester[Simulator]) -> None:
    """Without the simulated root as trust anchor, no simulated evidence is accepted."""
    nonce = secrets.token_bytes(32)
    evidence = guest.attest(nonce=nonce).to_bytes()
    verifier = verifier_of(guest, vlek_providers={"attestkit-simulator"})
    assert verifier.verify(evidence, nonce=nonce).simulated
    genuine = Verifier(policy=verifier.policy, collateral=verifier._collateral)
    # The certificate of a plain TPM's key comes without its issuer.
    without_issuer = guest.backend.platform == "tpm"
    error = IssuerMissingError if without_issuer else SignatureError
    with raises(error, "missing" if without_issuer else "untrusted_root"):
        genuine.verify(evidence, nonce=nonce)


def test_guest_of_equal_seed_has_equal_root() -> None:
    """The root is a function of the seed."""
    for platform in PLATFORMS:
        with open_cloud(platform=platform) as one, open_cloud(platform=platform) as two:
            assert one.backend.trust_anchor == two.backend.trust_anchor


def test_vlek_of_aws_is_accepted_by_its_provider() -> None:
    """A policy that lists the provider accepts the reports of aws-snp."""
    with open_cloud(platform="aws-snp") as tee:
        result = verify_once(tee, vlek_providers={"attestkit-simulator"})
    assert str(result.tcb.status) == "UpToDate"


def test_pinned_paravisor_makes_it_azure() -> None:
    """Only a policy that pins the paravisor turns hcl-snp into azure-snp."""
    with open_cloud(platform="azure-snp") as tee:
        assert verify_once(tee).claims.platform == "hcl-snp"
        nonce = secrets.token_bytes(32)
        policy = AppraisalPolicy.default().replace(
            platforms={"azure-snp"}, paravisor_measurement={PARAVISOR_SNP}
        )
        verifier = Verifier(trust_anchor=tee.backend.trust_anchor, policy=policy)
        result = verifier.verify(tee.attest(nonce=nonce), nonce=nonce)
        assert result.claims.platform == "azure-snp"
        assert "paravisor" not in result.not_proven
        other = policy.replace(paravisor_measurement={bytes(48)})
        with raises(PolicyError, "paravisor_measurement"):
            Verifier(trust_anchor=tee.backend.trust_anchor, policy=other).verify(
                tee.attest(nonce=nonce), nonce=nonce
            )


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["azure-snp", "gcp-tdx", "gcp-snp", "aws-nitro-tpm"])
def test_policy_pinned_from_one_vm_accepts_another(platform: str) -> None:
    """A policy from the evidence of a VM accepts another VM of the same platform and image."""
    with open_cloud(platform=platform) as tee:
        pinned = AppraisalPolicy.from_evidence(verify_once(tee))
    nonce = secrets.token_bytes(32)
    with open_attester("simulator", seed=bytes([1]) * 32, platform=platform) as other:
        evidence = other.attest(nonce=nonce).to_bytes()
        assert other.verifier(policy=pinned).verify(evidence, nonce=nonce).fresh


@every_case("platform", ["azure-snp", "gcp-tdx", "gcp-snp", "aws-nitro-tpm", "tpm"])
def test_busy_tpm_and_raced_pcr_are_retried(platform: str) -> None:
    """A busy TPM, and a PCR that is extended between quote and values, delay evidence only."""
    # Google's TD quotes PCRs 0, 2 and 14, not 10; a document of AWS has the values in it.
    races = platform not in {"gcp-tdx", "aws-nitro-tpm"}
    faults = "tpm_busy:2 pcr_race" if races else "tpm_busy:2"
    with open_cloud(platform=platform, faults=faults) as tee:
        assert verify_once(tee).fresh
        assert not tee.backend.faults.any


def test_busy_tpm_of_an_instance_with_sev_snp_is_retried() -> None:
    """The fault is of the instance's NitroTPM; SEV-SNP reports do not need it."""
    nonce = secrets.token_bytes(32)
    with open_cloud(platform="aws-snp", faults="tpm_busy:2") as tee:
        assert verify_once(tee, vlek_providers={"attestkit-simulator"}).fresh
        assert tee.backend.faults.any
        with Attester(untyped(tee.backend).open_nitro_tpm()) as other:
            assert other.attest(nonce=nonce).nitro_document is not None
        assert not tee.backend.faults.any


@pytest.mark.parametrize("platform", ["azure-snp", "gcp-tdx", "tpm"])
def test_tpm_in_failure_mode_is_an_error(platform: str) -> None:
    """TPM_RC_FAILURE at the quote ends the request, and the next one succeeds."""
    with open_cloud(platform=platform, faults="tpm_failure") as tee:
        with pytest.raises(BackendError):
            tee.attest(nonce=bytes(32))
        assert verify_once(tee).fresh


@pytest.mark.parametrize(
    ("fault", "error", "reason"),
    [
        ("imds_unavailable:4", QuoteUnavailableError, "quoting_service"),
        ("imds_slow", QuoteUnavailableError, "timed_out"),
        ("imds_huge", BackendError, "too_large"),
        ("imds_redirect", QuoteUnavailableError, "request_failed"),
    ],
)
@pytest.mark.parametrize("platform", ["azure-snp", "azure-tdx"])
def test_faulty_metadata_service_is_an_error(
    platform: str, fault: str, error: type[BackendError], reason: str
) -> None:
    """A service that fails, stalls, floods or redirects ends the request with its reason."""
    with open_cloud(platform=platform, faults=fault) as tee:
        with raises(error, reason):
            tee.attest(nonce=bytes(32))
        assert verify_once(tee).fresh


def test_metadata_service_that_recovers_is_retried() -> None:
    """Three responses of status 503 delay evidence only."""
    with open_cloud(platform="azure-snp", faults="imds_unavailable:3") as tee:
        assert verify_once(tee).fresh


def test_inapplicable_options_are_refused() -> None:
    """Guests behind a vTPM keep no state, and boot no dstack image."""
    for options in ({"quote_version": 4}, {"image": Path("x")}):
        with raises(UsageError, "not_applicable"):
            open_cloud(platform="azure-snp", **options)
    with raises(UsageError, "not_applicable"):
        open_cloud(platform="tpm", faults="imds_slow")
