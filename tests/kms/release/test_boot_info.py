"""BootInfo of evidence, and the identity of an app when it requests keys."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import (
    config_id_v1,
    config_id_v2,
    config_id_v3,
    host_data,
)
from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent, Stack
from attestkit.backends.simulator.td_reports import OWN_APP
from attestkit.errors import (
    AttestKitError,
    FormatError,
    PolicyError,
    UsageError,
    VerificationError,
)
from attestkit.kms.release.authorization import BootInfo, VerifiedGuest, verify_guest
from attestkit.kms.release.roots import KmsRoots
from attestkit.testing.tee import SimulatedTee
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.evidence.checks import KeyRequest, ParsedEvidence, key_time_app_info
from attestkit.verifier.policy.platforms import VERIFIED_PLATFORMS
from tests.kms.release.kms_vectors import row_id, rows
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared
from tests.verifier.platforms import amd, intel
from tests.verifier.platforms.intel import APP_ID, BOOT, COMPOSE_HASH, IMAGE, NONCE, NOW

KMS = KmsRoots.from_seed(bytes(range(32)))
REPORT_DATA = NONCE.ljust(64, b"\0")
AT_KEY_TIME = BOOT[:5]  # up to boot-mr-done
PROVIDER = ("key-provider", b'{"name":"kms","id":"00"}')
UNSEALED = bytes(48)


def verify(attestation: Attestation, **options: Any) -> VerifiedGuest:
    """Verify evidence of the simulated Intel PKI for the KMS."""
    policy = options.pop("policy", None)
    found = Attestation.from_bytes(attestation.to_bytes())
    defaults: dict[str, Any] = {"report_data": REPORT_DATA, "ca_spki": KMS.ca_spki}
    return verify_guest(intel.verifier(policy=policy), found, **{**defaults, **options})


def refusal(attestation: Attestation, **options: Any) -> AttestKitError:
    """Return the error for evidence."""
    with pytest.raises(AttestKitError) as caught:
        verify(attestation, **options)
    return caught.value


@needs_shared
@pytest.mark.parametrize("row", rows("boot_info"), ids=row_id)
def test_boot_info_matches_vector(row: dict[str, Any]) -> None:
    """The body of the webhook's request is the vector's byte for byte."""
    raw = data(row["evidence"].removeprefix("data/"))
    if row["evidence"].endswith(".json"):
        raw = bytes.fromhex(json.loads(raw)["attestation"])
    attestation = Attestation.from_bytes(raw)
    info = attestation.read_app_info(boottime=row["boottime"])
    found = BootInfo.of(attestation.platform, info, row["tcb_status"], tuple(row["advisory_ids"]))
    assert found.to_json() == row["body"]


# -- identity at key time --------------------------------------------------------------------------


def test_guest_is_named_before_system_ready() -> None:
    """A guest that has just measured boot-mr-done has its identity, and a verified image."""
    found = verify(intel.evidence(AT_KEY_TIME))
    boot = found.boot_info
    assert boot.tee_variant == "dstack-tdx"
    assert (boot.app_id, boot.compose_hash, boot.instance_id) == (APP_ID, COMPOSE_HASH, bytes(20))
    assert boot.os_image_hash == IMAGE.os_image_hash
    assert boot.key_provider_info == b""
    assert boot.tcb_status == "UpToDate"
    assert len(boot.device_id) == 32
    assert found.result.app_info is not None
    assert found.result.bound_to == "report_data"


def test_relying_parties_do_not_accept_that_identity() -> None:
    """`Verifier.verify` names no app without system-ready."""
    result = intel.verifier().verify(intel.evidence(AT_KEY_TIME), report_data=NONCE)
    assert result.app_info is not None
    assert result.app_info.app_id == b""


def test_registers_are_those_of_both_variants_while_booting() -> None:
    """Up to boot-mr-done, mr_system and mr_aggregated are those of the boottime variant."""
    evidence = intel.evidence(AT_KEY_TIME)
    boot, full = verify(evidence).boot_info, evidence.read_app_info(boottime=True)
    assert (boot.mr_system, boot.mr_aggregated) == (full.mr_system, full.mr_aggregated)


def test_registers_cover_the_whole_log() -> None:
    """After the boot, they are the full registers, and the boottime ones if asked for."""
    evidence = intel.evidence((*BOOT, ("model", b"weights")))
    full, early = evidence.read_app_info(), evidence.read_app_info(boottime=True)
    boot = verify(evidence).boot_info
    assert (boot.mr_system, boot.mr_aggregated) == (full.mr_system, full.mr_aggregated)
    assert boot.key_provider_info == dict(BOOT)["key-provider"]
    boot = verify(evidence, boottime=True).boot_info
    assert (boot.mr_system, boot.mr_aggregated) == (early.mr_system, early.mr_aggregated)
    assert boot.key_provider_info == b""


@pytest.mark.parametrize("boottime", [False, True])
def test_events_of_the_app_do_not_change_its_identity(*, boottime: bool) -> None:
    """Events that an app emits after boot-mr-done do not change its identity."""
    forged = [("app-id", bytes(20)), ("compose-hash", bytes(32)), ("instance-id", b"\1" * 20)]
    for events in ((*AT_KEY_TIME, *forged), (*BOOT, *forged, ("boot-mr-done", b""))):
        boot = verify(intel.evidence(events), boottime=boottime).boot_info
        assert (boot.app_id, boot.compose_hash, boot.instance_id) == (
            APP_ID,
            COMPOSE_HASH,
            bytes(20),
        )


def test_key_provider_is_the_first_before_system_ready() -> None:
    """A key-provider event of the app after system-ready does not count."""
    events = (*AT_KEY_TIME, ("system-ready", b""), PROVIDER)
    assert verify(intel.evidence(events)).boot_info.key_provider_info == b""
    events = (*AT_KEY_TIME, PROVIDER, ("key-provider", b"other"))
    assert verify(intel.evidence(events)).boot_info.key_provider_info == PROVIDER[1]


@every_case(
    "events",
    [
        (),
        BOOT[:4],
        (*BOOT[:4], *BOOT[5:]),
        (*BOOT[:4], ("system-ready", b""), ("boot-mr-done", b"")),
        (("boot-mr-done", b""), *BOOT[:4]),
        (*BOOT[:2], ("app-id", bytes(20)), *BOOT[2:5]),
        (("app-id", bytes(19)), *BOOT[2:5]),
        BOOT[2:5],
    ],
    ids=str,
)
def test_log_without_clear_identity_is_refused(events: Sequence[tuple[str, bytes]]) -> None:
    """boot-mr-done is required, an event that names the app occurs once before it."""
    error = refusal(intel.evidence(events, mr_config_id=UNSEALED))
    assert isinstance(error, VerificationError)
    assert error.reason == "identity"


def test_missing_boot_mr_done_has_its_text() -> None:
    """The error names the missing event."""
    assert "event 'boot-mr-done': missing" in str(refusal(intel.evidence(BOOT[:4])))


def test_other_report_data_is_refused() -> None:
    """Evidence that is bound to another key is refused."""
    error = refusal(intel.evidence(AT_KEY_TIME), report_data=bytes(64))
    assert isinstance(error, PolicyError)
    assert error.reason == "report_data"


@needs_shared
def test_nitro_enclave_is_refused() -> None:
    """The app id of an enclave is not measured."""
    raw = data("dstack/dstack-attest/nitro_attestation.bin")
    platform, stack = Attestation.from_bytes(raw).evidence
    events = tuple(RuntimeEvent(name, payload, 1) for name, payload in AT_KEY_TIME)
    attestation = Attestation(Evidence(platform, stack._replace(runtime_events=events)))
    with pytest.raises(VerificationError) as caught:
        key_time_app_info(ParsedEvidence.of(attestation), b"", b"", KeyRequest(KMS.ca_spki))
    assert caught.value.reason == "identity"


@pytest.mark.parametrize("platform", ["tdx", "snp", "gcp-tdx", "aws-nitro-tpm"])
def test_simulated_guest_is_named_on_every_platform(platform: str) -> None:
    """Guests of all platforms that measure or seal their app are named."""
    compose = json.dumps({**json.loads(OWN_APP), "key_provider": "kms"}).encode()
    with SimulatedTee(platform=platform, app_compose=compose) as tee:
        policy = AppraisalPolicy.development().replace(platforms=VERIFIED_PLATFORMS)
        evidence = tee.attest(report_data=bytes(64))
        found = verify_guest(
            tee.verifier(policy=policy),
            evidence,
            report_data=evidence.report_data,
            ca_spki=KMS.ca_spki,
        )
    boot = found.boot_info
    assert boot.compose_hash == sha256(compose)
    assert boot.app_id == sha256(compose)[:20]
    assert (len(boot.os_image_hash), boot.tcb_status) == (32, "UpToDate")


@pytest.mark.parametrize("platform", ["gcp-snp", "azure-snp", "azure-tdx"])
def test_simulated_guest_without_measured_app_is_refused(platform: str) -> None:
    """Guests whose platform does not measure the app get no keys."""
    with SimulatedTee(platform=platform) as tee:
        evidence = tee.attest(report_data=bytes(64))
        verifier = tee.verifier(policy=AppraisalPolicy.development())
    with pytest.raises(VerificationError) as caught:
        verify_guest(verifier, evidence, report_data=evidence.report_data, ca_spki=KMS.ca_spki)
    assert caught.value.reason == "identity"


# -- sealed configuration --------------------------------------------------------------------------


def document_of(**fields: str) -> str:
    """Return an mr_config document of the app."""
    values = {"compose_hash": COMPOSE_HASH.hex(), "app_id": APP_ID.hex(), "key_provider": "kms"}
    return json.dumps({**values, **fields})


def sealed_with(document: str) -> Attestation:
    """Return evidence at key time with version 3 of the sealed configuration."""
    log = intel.log_of(AT_KEY_TIME)
    quote = intel.quote_of(log, mr_config_id=config_id_v3(document))
    config = json.dumps({**json.loads(IMAGE.vm_config), "mr_config": document})
    return Attestation.for_tdx(quote, log, config)


REQUIRE = AppraisalPolicy.default().replace(require_mr_config=True)


@pytest.mark.parametrize(
    "config_id",
    [
        config_id_v1(COMPOSE_HASH),
        config_id_v2(COMPOSE_HASH, APP_ID, "kms", KMS.ca_spki),
        config_id_v2(COMPOSE_HASH, APP_ID, "kms", b""),
    ],
    ids=["1", "2", "2 any KMS"],
)
def test_sealed_configuration_of_this_kms_is_accepted(config_id: bytes) -> None:
    """Versions 1 and 2 are compared, and meet `require_mr_config`."""
    found = verify(intel.evidence(AT_KEY_TIME, mr_config_id=config_id), policy=REQUIRE)
    assert ("mr_config", "passed") in {(step.check, step.outcome) for step in found.result.steps}


@every_case(
    "config_id",
    [
        config_id_v1(bytes(32)),
        config_id_v2(COMPOSE_HASH, APP_ID, "kms", bytes(91)),
        config_id_v2(COMPOSE_HASH, APP_ID, "none", b""),
        config_id_v2(COMPOSE_HASH, APP_ID, "tpm", KMS.ca_spki),
        config_id_v2(bytes(32), APP_ID, "kms", b""),
        config_id_v2(COMPOSE_HASH, bytes(20), "kms", b""),
    ],
    ids=["other app", "other KMS", "none", "tpm", "other compose hash", "other app id"],
)
def test_sealed_configuration_of_another_app_or_provider_is_refused(config_id: bytes) -> None:
    """Another app, kind of key provider, or KMS contradicts MR_CONFIG_ID."""
    error = refusal(intel.evidence(AT_KEY_TIME, mr_config_id=config_id))
    assert isinstance(error, VerificationError)
    assert error.reason == "mr_config"


@pytest.mark.parametrize("provider_id", [None, KMS.provider_id])
def test_document_that_names_this_kms_is_accepted(provider_id: str | None) -> None:
    """Version 3 must name a KMS, with no id or that of this KMS."""
    fields = {} if provider_id is None else {"key_provider_id": provider_id}
    verify(sealed_with(document_of(**fields)), policy=REQUIRE)


@every_case(
    "fields",
    [
        {"key_provider": "none"},
        {"key_provider": "local", "key_provider_id": KMS.provider_id},
        {"key_provider_id": "00"},
        {"key_provider_id": bytes(91).hex()},
        {"app_id": bytes(20).hex()},
        {"compose_hash": bytes(32).hex()},
        {"instance_id": "01" * 20},
    ],
    ids=str,
)
def test_document_of_another_app_or_provider_is_refused(fields: dict[str, str]) -> None:
    """Every field of the document is compared."""
    error = refusal(sealed_with(document_of(**fields)))
    assert isinstance(error, VerificationError)
    assert error.reason == "mr_config"


def test_required_document_must_be_in_the_evidence() -> None:
    """Version 3 without its document is accepted unless the policy requires it."""
    config_id = config_id_v3(document_of())
    evidence = intel.evidence(AT_KEY_TIME, mr_config_id=config_id)
    verify(evidence)
    assert refusal(evidence, policy=REQUIRE).reason == "require_mr_config"
    assert (
        refusal(intel.evidence(AT_KEY_TIME, mr_config_id=UNSEALED), policy=REQUIRE).reason
        == "require_mr_config"
    )


def snp_evidence(document: str) -> Attestation:
    """Return evidence of an SEV-SNP guest that was launched with a document."""
    raw = amd.report({0xC0: host_data(document)})
    return Attestation(
        Evidence(amd.evidence(raw, mr_config=document), Stack(amd.REPORT_DATA, (), ""))
    )


def verify_snp(document: str, ca_spki: bytes | None = KMS.ca_spki) -> VerifiedGuest:
    """Verify evidence of an SEV-SNP guest for the KMS."""
    return verify_guest(
        Verifier(trust_anchor=amd.ark(), clock=lambda: NOW),
        snp_evidence(document),
        report_data=amd.REPORT_DATA,
        ca_spki=ca_spki,
    )


@pytest.mark.parametrize("provider_id", ["", KMS.provider_id])
def test_snp_guest_is_named_by_its_document(provider_id: str) -> None:
    """Identity and key provider are those of the document in HOST_DATA."""
    boot = verify_snp(document_of(key_provider_id=provider_id)).boot_info
    assert (boot.tee_variant, boot.tcb_status) == ("dstack-amd-sev-snp", "UpToDate")
    assert (boot.app_id, boot.compose_hash) == (APP_ID, COMPOSE_HASH)
    assert json.loads(boot.key_provider_info) == {"name": "kms", "id": provider_id}


def test_snp_guest_that_is_a_kms_may_have_another_provider() -> None:
    """The document of a KMS names the provider of its own keys."""
    found = verify_snp(document_of(key_provider="none"), ca_spki=None)
    assert json.loads(found.boot_info.key_provider_info) == {"name": "none", "id": ""}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key_provider": "none"}, "mr_config"),
        ({"key_provider_id": "00"}, "mr_config"),
        ({"app_id": ""}, "identity"),
    ],
    ids=str,
)
def test_snp_guest_of_another_provider_is_refused(fields: dict[str, str], reason: str) -> None:
    """The document must name a KMS, with no id or that of this KMS, and an app."""
    with pytest.raises(VerificationError) as caught:
        verify_snp(document_of(**fields))
    assert caught.value.reason == reason


# -- images and policies ---------------------------------------------------------------------------


def without_document() -> Attestation:
    """Return evidence whose configuration names an image and does not prove it."""
    log = intel.log_of(AT_KEY_TIME)
    return Attestation.for_tdx(intel.quote_of(log), log, json.dumps({"os_image_hash": "bb" * 32}))


def test_image_that_is_not_verified_has_no_hash() -> None:
    """A claimed image hash does not count."""
    assert verify(without_document()).boot_info.os_image_hash == b""


def test_claimed_image_counts_only_if_asked_for_and_simulation_is_accepted() -> None:
    """The option is refused with a policy that refuses simulated evidence."""
    found = verify(without_document(), use_claimed_image=True)
    assert found.boot_info.os_image_hash == b"\xbb" * 32
    log = intel.log_of(AT_KEY_TIME)
    short = Attestation.for_tdx(intel.quote_of(log), log, json.dumps({"os_image_hash": "bb" * 31}))
    assert refusal(short, use_claimed_image=True).reason == "identity"
    real = AppraisalPolicy.default().replace(refuse_simulated=True)
    error = refusal(without_document(), use_claimed_image=True, policy=real)
    assert isinstance(error, UsageError)
    assert error.reason == "conflict"


def test_configuration_of_the_request_must_agree() -> None:
    """A copy in the request is used if the evidence has none, and may not contradict it."""
    config = IMAGE.vm_config
    log = intel.log_of(AT_KEY_TIME)
    bare = Attestation.for_tdx(intel.quote_of(log), log)
    found = verify(bare, vm_config=config)
    assert found.boot_info.os_image_hash == IMAGE.os_image_hash
    found = verify(intel.evidence(AT_KEY_TIME), vm_config=json.dumps({"vm_config": config}))
    assert found.boot_info.os_image_hash == IMAGE.os_image_hash
    for other in ('{"os_image_hash":"cc"}', "{", "[]"):
        error = refusal(intel.evidence(AT_KEY_TIME), vm_config=other)
        assert isinstance(error, FormatError)


def test_policy_is_chosen_for_the_app() -> None:
    """The policy of an app replaces the verifier's; None leaves that."""
    strict = AppraisalPolicy.default().replace(compose_hash=[bytes(32)])
    accepting = AppraisalPolicy.default().replace(
        app_id=[APP_ID], compose_hash=[COMPOSE_HASH], os_image_hash=[IMAGE.os_image_hash]
    )
    evidence = intel.evidence(AT_KEY_TIME)
    error = refusal(evidence, choose_policy=lambda _: strict)
    assert isinstance(error, PolicyError)
    assert error.reason == "compose_hash"
    found = verify(evidence, choose_policy=lambda info: accepting if info.app_id else None)
    assert found.result.policy == accepting
    error = refusal(evidence, policy=strict, choose_policy=lambda _: None)
    assert error.reason == "compose_hash"


@pytest.mark.parametrize("name", ["mr_aggregated", "mr_system"])
def test_policy_can_pin_measurements_of_a_kms(name: str) -> None:
    """The rules for another KMS hold for the registers in BootInfo."""
    evidence = intel.evidence(AT_KEY_TIME)
    value = getattr(verify(evidence).boot_info, name)
    verify(evidence, policy=AppraisalPolicy.default().replace(**{name: [value]}))
    other = AppraisalPolicy.default().replace(**{name: [bytes(32)]})
    assert refusal(evidence, policy=other).reason == name


@pytest.mark.parametrize(("name", "size"), [("report_data", 63), ("ca_spki", 90)])
def test_arguments_of_other_size_are_refused(name: str, size: int) -> None:
    """Report data have 64 bytes, and the KMS's key 91."""
    error = refusal(intel.evidence(AT_KEY_TIME), **{name: bytes(size)})
    assert isinstance(error, UsageError)
    assert error.reason == "wrong_size"
