"""Tests of ACPI tables that the host chose: a caution, or a rejection where RTMR0 is pinned."""

from typing import Final

import pytest

import attestkit
from attestkit.attestation import Attestation
from attestkit.backends.simulator.boot_log import boot_log, boot_records, replay_records
from attestkit.errors import PolicyError
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import runtime_event
from attestkit.verifier import AppraisalPolicy, ReferenceValues, VerificationStep
from attestkit.verifier.ear.token_claims import trustworthiness_vector
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import BOOT, IMAGE, NONCE
from tests.verifier.policy.policy_samples import (
    IMAGE_HASH,
    NITRO,
    SGX,
    SNP,
    TDX,
    appraise_in_steps,
    authenticated,
    bare_claims,
    claims,
    register,
    result,
    rules,
    vtpm,
)

TABLES_FROM_HOST: Final = "the host chose the ACPI tables"
TABLES_UNMEASURED: Final = "the ACPI tables from the host of an SEV-SNP guest are not measured"
IMAGE_POLICY: Final = AppraisalPolicy.strict().replace(os_image_hash={IMAGE.os_image_hash})


def create_evidence_with_host_tables() -> Attestation:
    """Return evidence of the vendor's image with ACPI tables of the host."""
    image = intel.with_digests(IMAGE, {"acpi-tables": b"\xee" * 48})
    firmware = EventLog.from_ccel(boot_log(image))
    log = firmware.with_runtime([runtime_event(name, payload, 1) for name, payload in BOOT])
    quote = intel.quote_of(log, rtmr0=replay_records(boot_records(image))[0])
    return Attestation.for_tdx(quote, log, IMAGE.vm_config)


def pin_registers(values: dict[str, bytes]) -> ReferenceValues:
    """Return reference values for these registers."""
    return ReferenceValues(**{name: (value,) for name, value in values.items()})


def find_acpi_cautions(steps: tuple[VerificationStep, ...]) -> list[str]:
    """Return the cautions about ACPI tables."""
    return [step.text for step in steps if (step.check, step.outcome) == ("acpi_tables", "caution")]


@every_case("policy", [IMAGE_POLICY, AppraisalPolicy.default()])
@every_case("evidence", [intel.evidence(), create_evidence_with_host_tables()])
def test_recognised_image_without_pinned_rtmr0_gives_caution(
    evidence: Attestation, policy: AppraisalPolicy
) -> None:
    """A recognised image gives a caution about its ACPI tables unless RTMR0 is pinned."""
    found = intel.verifier(policy=policy).verify(evidence.to_bytes(), report_data=NONCE)
    assert found.claims.os_image_hash == IMAGE.os_image_hash
    [caution] = find_acpi_cautions(found.steps)
    assert caution.startswith(TABLES_FROM_HOST)
    assert "pin rtmr0" in caution


def test_not_proven_has_open_checks() -> None:
    """The checks that were skipped or have a caution are data, without those of the TCB status."""
    evidence = intel.evidence().to_bytes()
    found = intel.verifier().verify(evidence, report_data=NONCE)
    assert found.not_proven == ("acpi_tables",)
    pinned = AppraisalPolicy.from_evidence(found)
    assert intel.verifier(policy=pinned).verify(evidence, report_data=NONCE).not_proven == ()
    app_only = AppraisalPolicy.default().replace(app_id={intel.APP_ID})
    loose = intel.verifier(policy=app_only).verify(evidence, report_data=None)
    assert {"report_data", "os_image_hash"} <= {*loose.not_proven}
    with attestkit.open("simulator", scenario="tcb-OutOfDate") as tee:
        verifier = tee.verifier(policy="development")
        outdated = verifier.verify(tee.attest(nonce=bytes(32)), nonce=bytes(32))
    assert ("tcb_status", "caution") in [step[:2] for step in outdated.steps]
    assert outdated.not_proven == ("acpi_tables",)
    bare = intel.verifier().verify(intel.quote_of(intel.log_of(BOOT)), report_data=NONCE)
    assert {"event_log", "os_image", "app"} <= {*bare.not_proven}


def test_pinned_rtmr0_rejects_tables_of_host() -> None:
    """A policy that pins RTMR0, as `attestkit policy` writes it, rejects tables of the host."""
    good = intel.verifier().verify(intel.evidence().to_bytes(), report_data=NONCE)
    rtmr0 = good.claims.get("rtmr0")
    assert rtmr0 is not None
    values = pin_registers({"rtmr0": rtmr0})
    pinned = AppraisalPolicy.from_evidence(good)
    for policy in (IMAGE_POLICY.replace(reference_values=values), pinned):
        verifier = intel.verifier(policy=policy)
        found = verifier.verify(intel.evidence().to_bytes(), report_data=NONCE)
        assert find_acpi_cautions(found.steps) == []
        with raises(PolicyError, "reference_value", start="rtmr0: "):
            verifier.verify(create_evidence_with_host_tables().to_bytes(), report_data=NONCE)


def test_image_registers_without_rtmr0_give_caution() -> None:
    """Pinning MRTD, RTMR1 and RTMR2 alone gives the caution; pinning RTMR0 too removes it."""
    registers = dict(claims().registers)
    image = {name: registers[name] for name in ("mrtd", "rtmr1", "rtmr2")}
    for found in (claims(), claims(os_image_hash=b""), bare_claims()):
        assert find_acpi_cautions(
            appraise_in_steps(rules(reference_values=pin_registers(image)), found)
        )[0].startswith(TABLES_FROM_HOST)
        all_four = pin_registers({**image, "rtmr0": registers["rtmr0"]})
        assert find_acpi_cautions(appraise_in_steps(rules(reference_values=all_four), found)) == []
    assert find_acpi_cautions(appraise_in_steps(rules(), bare_claims())) == []


@pytest.mark.parametrize(
    ("platform", "expected"), [(SNP, TABLES_UNMEASURED), (NITRO, ""), (SGX, "")]
)
def test_acpi_caution_by_platform(platform: str, expected: str) -> None:
    """SEV-SNP measures no ACPI tables, which is a caution; enclaves have none."""
    platform_claims = authenticated(platform)
    steps = appraise_in_steps(rules(), claims(platform), platform_claims)
    assert [step.startswith(expected) for step in find_acpi_cautions(steps)] == [True] * bool(
        expected
    )
    unnamed = appraise_in_steps(rules(), claims(platform, os_image_hash=b""), platform_claims)
    assert find_acpi_cautions(unnamed) == []


# -- EAR claims ------------------------------------------------------------------------------------


def test_executables_claim_of_td_requires_pinned_rtmr0() -> None:
    """AR4SI's value 3 requires approved executables only, and ACPI tables contain code."""
    rtmr0 = dict(claims().registers)["rtmr0"]
    named = rules(os_image_hash=(IMAGE_HASH,))
    pinned = named.replace(reference_values=pin_registers({"rtmr0": rtmr0}))
    assert trustworthiness_vector(result(policy=pinned))["executables"] == 3
    of_another = named.replace(reference_values=pin_registers({"rtmr0": bytes(48)}))
    unnamed = rules(reference_values=pin_registers({"rtmr0": rtmr0}))
    for policy in (named, of_another, unnamed, rules()):
        assert "executables" not in trustworthiness_vector(result(policy=policy))


@pytest.mark.parametrize("joined", [False, True])
def test_executables_claim_at_google_requires_that_the_hardware_names_the_tpm(
    *, joined: bool
) -> None:
    """The TPM measures the image there; without the join it may be another machine's."""
    pinned = rules(os_image_hash=(IMAGE_HASH,), reference_values=pin_registers(boot_of_td()))
    joins = ("hardware_to_ak", "ak_to_hardware") if joined else ("ak_to_hardware",)
    found = claims("dstack-gcp-tdx", vtpm=vtpm(joins=joins))
    vector = trustworthiness_vector(result(found, policy=pinned))
    assert ("executables" in vector) == joined


def boot_of_td() -> dict[str, bytes]:
    """Return the registers of a TD's firmware and boot."""
    registers = dict(claims("dstack-gcp-tdx").registers)
    return {name: registers[name] for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")}


@pytest.mark.parametrize("missing", ["mrtd", "rtmr0", "rtmr1", "rtmr2"])
def test_executables_claim_at_google_requires_the_registers_of_the_boot(missing: str) -> None:
    """The PCRs there have firmware and UKI, and not its command line or what it loads."""
    some = {name: value for name, value in boot_of_td().items() if name != missing}
    found = claims("dstack-gcp-tdx", vtpm=vtpm(joins=("hardware_to_ak", "ak_to_hardware")))
    for pins in (some, {**some, missing: register(0x77)}):
        policy = rules(os_image_hash=(IMAGE_HASH,), reference_values=pin_registers(pins))
        assert "executables" not in trustworthiness_vector(result(found, policy=policy))


def test_recomputed_tables_count_as_pinned() -> None:
    """Tables that QEMU makes for the VM's shape need no reference value, and give no caution."""
    named = rules(os_image_hash=(IMAGE_HASH,))
    found = claims(acpi_tables_verified=True)
    assert trustworthiness_vector(result(found, policy=named))["executables"] == 3
    steps = appraise_in_steps(named, found, authenticated(TDX))
    assert find_acpi_cautions(steps) == []
    appraise_in_steps(rules(require_acpi_tables=True), found, authenticated(TDX))


@pytest.mark.parametrize(("platform", "claimed"), [(TDX, False), (SNP, False), (NITRO, True)])
def test_executables_claim_by_platform(platform: str, *, claimed: bool) -> None:
    """For an enclave, which has no ACPI tables, the image hash suffices."""
    named = rules(os_image_hash=(IMAGE_HASH,))
    vector = trustworthiness_vector(result(claims(platform), policy=named))
    assert ("executables" in vector) is claimed


@pytest.mark.parametrize("named", [True, False])
def test_pinned_launch_measurement_gives_caution(named: bool) -> None:
    """A pinned `measurement` is a pinned image of SEV-SNP, also without the hash of an image."""
    found = claims(SNP) if named else claims(SNP, os_image_hash=b"")
    pinned = rules(
        reference_values=pin_registers({"measurement": dict(found.registers)["measurement"]})
    )
    [step] = find_acpi_cautions(appraise_in_steps(pinned, found, authenticated(SNP)))
    assert step.startswith(TABLES_UNMEASURED)
    if not named:
        assert find_acpi_cautions(appraise_in_steps(rules(), found, authenticated(SNP))) == []
