"""Tests of Azure's evidence: hardware, HCL report, TPM quote, and what joins them."""

import json
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.azure import HclReport
from attestkit.attestation.wire.evidence_parts import AzureSnp, AzureTdx
from attestkit.backends.simulator.pki.quoting_enclave import TdBody
from attestkit.errors import (
    AttestKitError,
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    VerificationError,
)
from attestkit.tpm import PcrSelection, TpmtPublic, TpmtSignature
from attestkit.verifier.claims import VtpmFacts
from tests.attestation.hcl import CLAIMS
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.vectors import data, needs_shared
from tests.verifier.platforms import amd, azure
from tests.verifier.platforms.vtpm.tpm_samples import vtpm_json

every_nth_byte = pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
both = pytest.mark.parametrize("make", [azure.snp, azure.tdx])

MAKE: TypeAlias = Callable[..., AzureSnp | AzureTdx]

# Bytes of an HCL report that no signature and no check covers.
VERSION = range(4, 8)  # 1 and 2 have the same layout
TD_VERSION = range(34, 35)  # of the TD report: 0 and 1, without service TDs
TD_CPUSVN = range(48, 64)  # the quote does not repeat it
TD_MAC = range(32 + 224, 32 + 256)  # only the processor can verify it


def flip(raw: bytes, at: int, bit: int = 0) -> bytes:
    """Return bytes with one bit flipped."""
    return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


def is_refused(platform: AzureSnp | AzureTdx) -> bool:
    """Return whether evidence is rejected by one of our errors, which is not an internal one."""
    try:
        azure.authenticate(platform)
    except AttestKitError as error:
        if error.reason == "internal":
            raise
        return True
    return False


def facts(platform: AzureSnp | AzureTdx) -> VtpmFacts:
    """Return the facts of the TPM in accepted evidence."""
    found = azure.authenticate(platform).vtpm
    assert found is not None
    return found


# -- accepted --------------------------------------------------------------------------------------


@both
def test_azure_evidence_is_authenticated_with_a_step_for_each_check(make: MAKE) -> None:
    """Hardware, join, quote and user data pass; logs and AK certificate are missing."""
    platform = make()
    found = azure.authenticate(platform)
    assert found.report_data == azure.REPORT_DATA
    outcomes = {step.check: step.outcome for step in found.steps}
    for check in ("hcl_report", "attestation_key", "hardware_to_ak", "tpm_quote", "user_data"):
        assert outcomes[check] == "passed", check
    assert outcomes["ak_certificate"] == "skipped"
    assert "host_data" not in outcomes
    order = [step.check for step in found.steps]
    wanted = ["hcl_report", "attestation_key", "tpm_quote", "tpm_clock", "user_data"]
    assert order[:5] == wanted
    assert order.index("signature") < order.index("hardware_to_ak") < order.index("ak_certificate")
    vtpm = found.vtpm
    assert vtpm is not None
    assert (vtpm.key_trust, vtpm.joins) == ("hardware_report", ("hardware_to_ak",))
    report = HclReport.parse(platform.hcl_report)
    assert vtpm.attestation_key == report.content.attestation_key.spki
    assert vtpm.pcrs == tuple((bank, n, value) for (bank, n), value in azure.PCRS.items())
    assert (vtpm.clock_ms, vtpm.reset_count, vtpm.restart_count) == (5000, 3, 1)
    details = dict(vtpm.details)
    assert details["vm_unique_id"] == CLAIMS["vmUniqueId"]
    assert (details["secure_boot"], details["console_enabled"]) == ("true", "false")
    assert details["tpm_persisted"] == "true"


@both
def test_azure_claims_are_of_an_unknown_paravisor(make: MAKE) -> None:
    """Without a policy that identifies the paravisor, evidence is never called Azure's.

    The owner of any genuine SEV-SNP or TDX guest can make such evidence with another TPM.
    """
    platform = make()
    examination = azure.examine(platform)
    examination.authenticate()
    examination.replay()
    assert examination.image_hash() == b""
    assert examination.app_info() is None
    found = examination.claims()
    assert found.platform == ("hcl-snp" if isinstance(platform, AzureSnp) else "hcl-tdx")
    names = [name for name, _ in found.registers]
    assert names[0] in {"measurement", "mrtd"}
    assert not [name for name in names if name.startswith("rtmr")]
    assert dict(found.registers)["pcr7"] == azure.PCRS["sha256", 7]
    assert not found.events
    assert not found.event_registers
    assert found.vtpm is not None
    skipped = {step.check for step in examination.steps if step.outcome == "skipped"}
    assert {"pcr_log", "os_image", "app"} <= skipped


@both
@pytest.mark.parametrize("user_data", [None, bytes(64)])
def test_azure_without_user_data_is_accepted_with_a_skipped_step(
    make: MAKE, user_data: bytes | None
) -> None:
    """Without user data, only the TPM's quote has the nonce, which the result states."""
    found = azure.authenticate(make(azure.runtime(user_data)))
    assert {step.check: step.outcome for step in found.steps}["user_data"] == "skipped"


def test_azure_short_qualifying_data_are_padded() -> None:
    """Qualifying data of fewer bytes are report data, zero-padded."""
    padded = b"challenge".ljust(64, b"\0")
    platform = azure.snp(azure.runtime(padded), vtpm_quote=azure.quote(b"challenge"))
    assert azure.authenticate(platform, padded).report_data == padded


def test_azure_tdx_attribute_sept_ve_disable_is_optional() -> None:
    """Genuine TDs have SEPT_VE_DISABLE or not; other attributes are judged as usual."""
    assert not is_refused(azure.tdx(td_attributes=(1 << 28).to_bytes(8, "little")))
    for bit, reason in ((0, "td_debug"), (4, "td_attributes"), (29, "td_attributes")):
        with raises(VerificationError, reason):
            azure.authenticate(azure.tdx(td_attributes=(1 << bit).to_bytes(8, "little")))


def test_azure_public_area_of_the_key_is_compared() -> None:
    """A TPMT_PUBLIC or SubjectPublicKeyInfo beside the quote must be that of the HCL report."""
    spki = HclReport.parse(azure.snp().hcl_report).content.attestation_key.spki
    area = TpmtPublic(
        *("rsa", "sha256", 0x00050472),
        scheme="rsassa",
        scheme_hash="sha256",
        bits=2048,
        modulus=azure.ak_modulus(),
    )
    for public in (spki, area.encode()):
        assert not is_refused(azure.snp(vtpm_quote=azure.quote(ak_public=public)))
    decrypting = area._replace(attributes=0x00070472).encode()
    other = area._replace(modulus=azure.ak_modulus("other")).encode()
    for public, reason in ((decrypting, "ak_attributes"), (other, "ak_mismatch")):
        with raises(SignatureError, reason):
            azure.authenticate(azure.snp(vtpm_quote=azure.quote(ak_public=public)))


# -- binding ---------------------------------------------------------------------------------------


@both
def test_azure_report_over_other_runtime_data_is_rejected(make: MAKE) -> None:
    """The hardware report is over SHA-256 of the exact JSON, then zeros."""
    platform = make()
    report = HclReport.parse(platform.hcl_report)
    spaced = report.runtime_data.replace(b'":', b'": ', 1)
    other = HclReport.create(report.report_type, report.hardware_report, spaced)
    changed: Any = platform
    with raises(VerificationError, "hcl_binding") as caught:
        azure.authenticate(changed._replace(hcl_report=other.encode()))
    assert "signature" in {step.check for step in caught.value.steps}


def test_azure_report_data_with_an_upper_half_is_rejected() -> None:
    """Bytes 32 to 63 of the hardware's report data must be zero."""
    with raises(VerificationError, "hcl_binding"):
        azure.authenticate(azure.snp(changes={0x50 + 63: b"\1"}))


@every_case(
    "name",
    ["tee_tcb_svn", "mr_seam", "td_attributes", "xfam", "mrtd", "mr_config_id", "mr_owner"],
)
def test_azure_td_report_that_is_not_the_quoted_is_rejected(name: str) -> None:
    """Each field of the TD report must be that of the TD quote."""
    value = {"td_attributes": (1 << 28).to_bytes(8, "little"), "xfam": b"\xe7\x18" + bytes(6)}
    sizes = {"tee_tcb_svn": bytes([7, 1, 4]) + bytes(13)}
    other = value.get(name) or sizes.get(name) or b"\1" * 48
    quoted = {name: other}
    if name == "mr_seam":  # the quoted module is known, that in the TD report is not
        platform = azure.tdx(mr_seam=other, quoted={"mr_seam": TdBody().mr_seam})
    else:
        platform = azure.tdx(quoted=quoted)
    with raises(VerificationError, "hcl_binding", part=name):
        azure.authenticate(platform)


@pytest.mark.parametrize("name", ["rtmr0", "rtmr3"])
def test_azure_rtmr_that_is_not_zero_is_rejected(name: str) -> None:
    """No log explains an RTMR behind a paravisor."""
    with raises(ReplayError, "rtmr_mismatch", start=name):
        changed: dict[str, Any] = {name: b"\1" * 48}
        azure.authenticate(azure.tdx(**changed))


def test_azure_report_of_other_hardware_is_rejected() -> None:
    """The HCL report is of the same kind of hardware as the evidence beside it."""
    snp, tdx = azure.snp(), azure.tdx()
    for platform in (
        snp._replace(hcl_report=tdx.hcl_report),
        tdx._replace(hcl_report=snp.hcl_report),
    ):
        with raises(FormatError, "inconsistent"):
            azure.authenticate(platform)


# -- hardware --------------------------------------------------------------------------------------


def test_azure_vmpl_other_than_0_is_rejected() -> None:
    """A guest behind the paravisor can request reports at VMPL 2 over data of its choice."""
    for vmpl in (1, 2, 3):
        with raises(PolicyError, "vmpl"):
            azure.authenticate(azure.snp(changes={0x30: bytes([vmpl])}))


@pytest.mark.parametrize(("bit", "reason"), [(19, "debug"), (18, "migration_agent")])
def test_azure_guest_policy_that_exposes_the_guest_is_rejected(bit: int, reason: str) -> None:
    """Debugging and migration agents are refused as on every SEV-SNP guest."""
    policy = (0x3_0000 | 1 << bit).to_bytes(8, "little")
    with raises(PolicyError, reason):
        azure.authenticate(azure.snp(changes={0x08: policy}))


def test_azure_report_signed_by_a_vlek_is_rejected() -> None:
    """Azure's reports are signed with the key of the chip."""
    platform = azure.snp(changes={0x48: b"\4"})._replace(cert_chain=(amd.vlek(), amd.asvk()))
    with raises(SignatureError, "signing_key"):
        azure.authenticate(platform)


# -- quote -----------------------------------------------------------------------------------------


def test_azure_quote_by_another_key_is_rejected() -> None:
    """The key of the HCL report verifies the quote, and no other."""
    with raises(SignatureError, "tpm_quote_bad_signature") as caught:
        azure.authenticate(azure.snp(vtpm_quote=azure.quote(name="other")))
    assert {"hcl_report", "signature"} <= {step.check for step in caught.value.steps}


def test_azure_quote_of_other_pcrs_is_rejected() -> None:
    """The quote selects PCRs 0 to 23 of the SHA-256 bank."""
    nine = (PcrSelection("sha256", tuple(range(9))),)
    sha1 = {("sha1", number): bytes(20) for number in range(24)}
    for quote in (
        azure.quote(selections=nine),
        azure.quote(selections=(PcrSelection("sha1", tuple(range(24))),), pcrs=sha1),
    ):
        with raises(VerificationError, "pcr_selection"):
            azure.authenticate(azure.snp(vtpm_quote=quote))


def test_azure_quote_with_other_values_is_rejected() -> None:
    """Each delivered value is in the digest of the quote."""
    quote = azure.quote()
    for at in range(24):
        values = list(quote.pcr_values)
        values[at] = values[at]._replace(value=flip(values[at].value, 31))
        with raises(VerificationError, "pcr_digest"):
            azure.authenticate(azure.snp(vtpm_quote=quote._replace(pcr_values=tuple(values))))


def test_azure_quote_by_another_scheme_is_rejected() -> None:
    """The paravisor's key signs by RSASSA with SHA-256."""
    signature = TpmtSignature("rsapss", "sha256", b"\1" * 256).encode()
    for quote in (azure.quote(signature=signature), azure.quote(hash_name="sha384")):
        with raises(SignatureError, "tpm_quote_algorithm"):
            azure.authenticate(azure.snp(vtpm_quote=quote))


def test_azure_qualifying_data_over_64_bytes_are_rejected() -> None:
    """Report data have at most 64 bytes."""
    platform = azure.snp(azure.runtime(None), vtpm_quote=azure.quote(bytes(range(65))))
    with raises(VerificationError, "tpm_qualifying_data"):
        azure.authenticate(platform)


def test_azure_report_data_beside_the_quote_are_compared() -> None:
    """The report data that the evidence states are those of the quote."""
    with raises(VerificationError, "report_data_mismatch"):
        azure.authenticate(azure.snp(), bytes(64))


@pytest.mark.parametrize("user_data", [b"\1" + bytes(63), azure.REPORT_DATA[:-1] + b"\0"])
def test_azure_user_data_of_another_request_are_rejected(user_data: bytes) -> None:
    """User data that are not the report data mean that the hardware report is of another request.

    All 64 bytes count.
    """
    with raises(VerificationError, "hcl_user_data"):
        azure.authenticate(azure.snp(azure.runtime(user_data)))


def test_azure_generation_1_may_have_user_data_of_another_request() -> None:
    """CoCo's generations 0 and 1 do not state that the user data are the report data."""
    platform = azure.snp(azure.runtime(b"\1" + bytes(63)))
    coco = Attestation(azure.attestation(platform).evidence).to_bytes("coco")
    assert json.loads(coco)["version"] == 1
    verifier = azure.verifier(platform, snp_certificates=[amd.ask()])
    examination = verifier.examine(Attestation.from_bytes(coco))
    [step] = [one for one in examination.authenticate().steps if one.check == "user_data"]
    assert step.outcome == "skipped"
    assert "of another request" in step.text


# -- every byte ------------------------------------------------------------------------------------


@pytest.mark.slow
@every_nth_byte
@both
def test_azure_hcl_report_with_changed_byte_is_rejected(make: MAKE, every: int) -> None:
    """Every byte of the HCL report is signed, hashed or has one valid value, padding included.

    Exceptions are the versions of HCL report and TD report, and in the TD report CPUSVN and MAC.
    """
    platform: Any = make()
    free = [*VERSION]
    if isinstance(platform, AzureTdx):
        free += [*TD_VERSION, *TD_CPUSVN, *TD_MAC]
    for at in limited(range(0, len(platform.hcl_report), every)):
        changed = platform._replace(hcl_report=flip(platform.hcl_report, at))
        assert is_refused(changed) or at in free, at
    if isinstance(platform, AzureTdx):
        for place in (TD_CPUSVN[0], TD_MAC[0]):
            assert not is_refused(platform._replace(hcl_report=flip(platform.hcl_report, place)))


@every_nth_byte
@pytest.mark.parametrize("part", ["message", "signature"])
def test_azure_quote_with_changed_byte_is_rejected(part: str, every: int) -> None:
    """Every byte of the message is signed, and every byte of the signature counts."""
    quote = azure.quote()
    raw = getattr(quote, part)
    for at in range(0, len(raw), every):
        changed: dict[str, Any] = {part: flip(raw, at)}
        assert is_refused(azure.snp(vtpm_quote=quote._replace(**changed))), at
    for other in (raw[:-1], b"", raw + b"\0"):
        changed = {part: other}
        assert is_refused(azure.snp(vtpm_quote=quote._replace(**changed)))


# -- logs ------------------------------------------------------------------------------------------


def replayed(changes: dict[tuple[str, int], bytes], **logs: Any) -> VtpmFacts:
    """Verify evidence with the PCRs of a genuine boot, some of them changed, and replay logs."""
    values = vtpm_json("generic/qemu-swtpm/pcrs-sha256.json")
    pcrs = {("sha256", int(number)): bytes.fromhex(value) for number, value in values.items()}
    examination = azure.examine(azure.snp(vtpm_quote=azure.quote(pcrs=pcrs | changes, **logs)))
    examination.authenticate()
    examination.replay()
    examination.image_hash()
    found = examination.claims().vtpm
    assert found is not None
    return found


@needs_shared
def test_azure_logs_replay_to_the_pcrs_of_the_quote() -> None:
    """The boot log explains the firmware's PCRs, and IMA's list PCR 10; init-data may follow."""
    boot_log = data("vtpm/generic/qemu-swtpm/binary_bios_measurements")
    ima_log = data("vtpm/generic/qemu-swtpm/binary_runtime_measurements")
    assert replayed({}).replayed == ()
    found = replayed({}, boot_log=boot_log, ima_log=ima_log).replayed
    assert {("sha256", 0), ("sha256", 7), ("sha256", 10)} <= {*found}
    with_init_data = replayed({("sha256", 8): b"\1" * 32}, boot_log=boot_log)
    assert ("sha256", 8) not in with_init_data.replayed
    with raises(ReplayError, "pcr_mismatch"):
        replayed({("sha256", 7): b"\1" * 32}, boot_log=boot_log)
