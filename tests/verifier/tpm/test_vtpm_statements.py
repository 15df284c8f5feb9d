"""Statements in results of simulated guests with a TPM: key, joins, logs, what is not proven."""

import secrets
from functools import cache
from typing import Any, Final

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import GcpSnp
from attestkit.factory import open as open_attester
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from tests.runner.cases import every_case

# Platform: text of what certifies the key or the PCRs, joins that hold, PCRs that a log replays to
# in words, and checks that are not proven.
SAME_BOOT: Final = "sha256 PCRs 0-7, 9, 11-12"
STATEMENTS: Final[dict[str, tuple[tuple[str, str], set[str], str, set[str]]]] = {
    "azure-snp": (
        ("attestation_key", "runtime data of the HCL report have the attestation key"),
        {"hardware_to_ak"},
        SAME_BOOT,
        {"revocation", "ak_revocation", "os_image", "app", "paravisor", "pcrs"},
    ),
    "azure-tdx": (
        ("attestation_key", "runtime data of the HCL report have the attestation key"),
        {"hardware_to_ak"},
        SAME_BOOT,
        {"ak_revocation", "os_image", "app", "paravisor", "pcrs"},
    ),
    "gcp-tdx": (
        ("attestation_key", "statement of the cloud provider"),
        {"hardware_to_ak", "ak_to_hardware"},
        "sha256 PCRs 0, 2",
        {"ak_revocation", "pcrs"},
    ),
    "gcp-snp": (
        ("attestation_key", "statement of the cloud provider"),
        {"hardware_to_ak", "ak_to_hardware"},
        SAME_BOOT,
        {"revocation", "ak_revocation", "os_image", "app", "pcrs"},
    ),
    "aws-nitro-tpm": (
        ("hardware_to_ak", "statement of the hypervisor"),
        set(),
        "PCR 14 of the SHA-384 bank",
        {"revocation", "hardware_to_ak", "pcr_log", "pcrs"},
    ),
    "tpm": (
        ("attestation_key", "that of its certificate"),
        set(),
        SAME_BOOT,
        {"ak_revocation", "hardware_to_ak", "os_image", "app", "pcrs"},
    ),
}


@cache
def verified(platform: str) -> AttestationResult:
    """Return the result of a simulated guest's evidence, with a nonce and no expected PCRs."""
    nonce = secrets.token_bytes(32)
    with open_attester("simulator", seed=bytes(32), platform=platform) as tee:
        evidence, simulator = tee.attest(nonce=nonce), tee.backend
        options: dict[str, Any] = {"trust_anchor": simulator.trust_anchor}
        if platform.endswith("-tdx"):
            options["collateral"] = simulator.collateral()
        policy = AppraisalPolicy.default().replace(platforms={evidence.platform})
        return Verifier(policy=policy, **options).verify(evidence, nonce=nonce)


@every_case("platform", STATEMENTS)
def test_result_states_what_certifies_the_key(platform: str) -> None:
    """A step says what certifies the TPM's key, or whose statement the PCRs are."""
    (check, words), *_ = STATEMENTS[platform]
    assert any(words in step.text for step in verified(platform).steps if step.check == check)


@every_case("platform", STATEMENTS)
def test_result_states_which_joins_hold(platform: str) -> None:
    """Each direction that holds is a passed step, and no other is."""
    _, joins, _, _ = STATEMENTS[platform]
    result = verified(platform)
    assert result.claims.vtpm is not None
    assert set(result.claims.vtpm.joins) == joins
    directions = {"hardware_to_ak", "ak_to_hardware"}
    passed = {step.check for step in result.steps if step.outcome == "passed"}
    assert passed & directions == joins


@every_case("platform", STATEMENTS)
def test_result_states_which_pcrs_a_log_replays_to(platform: str) -> None:
    """A passed step lists the PCRs that a log explains."""
    _, _, pcrs, _ = STATEMENTS[platform]
    steps = [one for one in verified(platform).steps if one.check in {"pcr_log", "event_log"}]
    assert any(step.text.endswith(pcrs) for step in steps if step.outcome == "passed")


@every_case("platform", STATEMENTS)
def test_result_lists_what_is_not_proven(platform: str) -> None:
    """Checks that were skipped or need attention are listed."""
    *_, unproven = STATEMENTS[platform]
    assert unproven <= set(verified(platform).not_proven)
    directions = {"hardware_to_ak", "ak_to_hardware"}
    assert directions & set(verified(platform).not_proven) == directions & unproven


def test_nitro_tpm_with_one_rule_lists_the_pcrs_without_a_log() -> None:
    """A rule about one PCR does not hide that no log explains the others."""
    nonce = secrets.token_bytes(32)
    with open_attester("simulator", seed=bytes(32), platform="aws-nitro-tpm") as tee:
        evidence, root = tee.attest(nonce=nonce), tee.backend.trust_anchor
    policy = AppraisalPolicy.default().replace(
        platforms={evidence.platform}, pcrs={"sha384:16": bytes(48)}
    )
    result = Verifier(policy=policy, trust_anchor=root).verify(evidence, nonce=nonce)
    assert "pcrs" not in result.not_proven
    [step] = [step for step in result.steps if step.check == "pcr_log"]
    assert step.outcome == "skipped"
    assert "sha384 PCRs 0-" in step.text


def test_aws_snp_states_whose_key_signed_the_report() -> None:
    """The report of an AWS guest is signed by a key of the provider, and has no TPM beside it."""
    nonce = secrets.token_bytes(32)
    with open_attester("simulator", seed=bytes(32), platform="aws-snp") as tee:
        evidence, root = tee.attest(nonce=nonce), tee.backend.trust_anchor
    policy = AppraisalPolicy.default().replace(vlek_providers={"attestkit-simulator"})
    result = Verifier(policy=policy, trust_anchor=root).verify(evidence, nonce=nonce)
    assert result.claims.vtpm is None
    assert {"revocation", "minimum_svn"} <= set(result.not_proven)
    [step] = [step for step in result.steps if step.check == "vlek_providers"]
    assert step.text == "the VLEK of 'attestkit-simulator' is accepted"


def test_unknown_attributes_of_a_key_at_google_are_a_caution() -> None:
    """Without the public area of the key nothing says that it signs only what the TPM made."""
    nonce = secrets.token_bytes(32)
    with open_attester("simulator", seed=bytes(32), platform="gcp-snp") as tee:
        evidence = tee.attest(nonce=nonce).evidence
        platform = evidence.platform
        assert isinstance(platform, GcpSnp)
        for public, outcomes in (
            (platform.vtpm_quote.ak_public, ["passed"]),
            (b"", ["passed", "caution"]),
        ):
            quote = platform.vtpm_quote._replace(ak_public=public)
            found = Attestation(evidence._replace(platform=platform._replace(vtpm_quote=quote)))
            result = Verifier(trust_anchor=tee.backend.trust_anchor).verify(found, nonce=nonce)
            of_key = [step.outcome for step in result.steps if step.check == "attestation_key"]
            assert of_key == outcomes
