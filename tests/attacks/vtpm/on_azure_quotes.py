"""Attempts on Azure's hardware reports, the quotes of its TPMs, and policies about both."""

from functools import partial
from typing import Any, Final

from attestkit.attestation.azure import HclReport
from attestkit.attestation.wire.evidence_parts import PcrValue
from attestkit.backends.simulator.pki.cloud_pki import make_own_root
from attestkit.errors import (
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    UsageError,
    VerificationError,
)
from attestkit.tpm import PcrSelection, TpmtSignature
from attestkit.verifier import AppraisalPolicy, ReferenceValues
from tests.attacks.attempts import Surfaces
from tests.attacks.vtpm.azure_vms import (
    POLICY,
    SEPT_VE_DISABLE,
    SIGNING_KEY,
    VMPL,
    both,
    check,
    evidence_of,
    genuine,
    policy_of,
    sign,
    with_quote,
)
from tests.verifier.platforms import azure
from tests.verifier.platforms.test_azure_policy import BOUND, MEASUREMENT
from tests.verifier.platforms.vtpm import made_tpm
from tests.verifier.platforms.vtpm.test_pcr_logs import boot_log

attacks = Surfaces("vtpm")


# -- hardware ----------------------------------------------------------------------------------


@attacks.attempt("forge", VerificationError, "vmpl")
def report_of_the_guest_itself_beside_the_paravisor() -> object:
    """The guest, at VMPL 2, asks the processor for a report over runtime data of its own."""
    genuine("snp")
    return check(evidence_of("snp", offsets={VMPL: b"\2"}))


@attacks.attempt("confuse", SignatureError, "signing_key")
def report_signed_with_a_key_of_the_provider() -> object:
    """Azure's reports are signed by the chip."""
    genuine("snp")
    return check(evidence_of("snp", offsets={SIGNING_KEY: b"\4"}))


@attacks.attempt("forge", PolicyError, "debug", "snp_policy", "guest_policy")
def snp_guest_that_the_host_may_debug() -> object:
    """The host reads the memory of a guest whose policy allows it."""
    genuine("snp")
    return check(evidence_of("snp", offsets={POLICY + 2: b"\x0b"}))


@attacks.attempt("forge", VerificationError, "td_debug", "debug")
def td_that_the_host_may_debug() -> object:
    """The attribute DEBUG of a TD."""
    genuine("tdx")
    return check(evidence_of("tdx", td_attributes=b"\1" + bytes(7)))


def extended_td(register: str) -> object:
    """Verify a TD with a register that its paravisor should have left alone."""
    fields: Any = {register: b"\1" * 48}
    return check(evidence_of("tdx", **fields))


def quote_of_other_td(field: str) -> object:
    """Verify the TD report of one TD beside the quote of another."""
    size = {"td_attributes": 8, "report_data": 64}.get(field, 48)
    quoted = {field: SEPT_VE_DISABLE if size == 8 else b"\x10" + bytes(size - 1)}
    runtime, quote = azure.runtime(BOUND), azure.quote(BOUND)
    return check(azure.tdx(runtime, quoted, quote, mrtd=MEASUREMENT["tdx"]))


for register in ("rtmr0", "rtmr1", "rtmr2", "rtmr3"):
    run_register = partial(extended_td, register)
    title = f"TD behind a paravisor with {register} set"
    attacks.add("confuse", title, run_register, ReplayError, "rtmr_mismatch")

for field in ("mrtd", "td_attributes", "mr_config_id", "mr_owner", "report_data"):
    run_field = partial(quote_of_other_td, field)
    title = f"TD quote of a TD with another {field}"
    attacks.add("recombine", title, run_field, VerificationError, "hcl_binding")


# -- quotes ------------------------------------------------------------------------------------

SHA1: Final = (PcrSelection("sha1", tuple(range(24))),)
SOME: Final = (PcrSelection("sha256", tuple(range(8, 24))),)

both(
    attacks,
    "forge",
    "quote of the SHA-1 bank alone",
    lambda kind: evidence_of(
        kind,
        quote=azure.quote(
            BOUND, selections=SHA1, pcrs={("sha1", number): bytes(20) for number in range(24)}
        ),
    ),
    VerificationError,
    "pcr_selection",
)
both(
    attacks,
    "forge",
    "quote without the PCRs of the firmware",
    lambda kind: evidence_of(kind, quote=azure.quote(BOUND, selections=SOME)),
    VerificationError,
    "pcr_selection",
)
both(
    attacks,
    "confuse",
    "quote by the right key with another hash than the key's",
    lambda kind: evidence_of(kind, quote=azure.quote(BOUND, hash_name="sha384")),
    SignatureError,
    "tpm_quote_algorithm",
)
both(
    attacks,
    "confuse",
    "signature that is said to be of RSAPSS",
    lambda kind: with_quote(
        kind,
        signature=TpmtSignature(
            "rsapss",
            "sha256",
            TpmtSignature.parse(genuine(kind).vtpm_quote.signature).signature,
        ).encode(),
    ),
    SignatureError,
    "tpm_quote_algorithm",
)
both(
    attacks,
    "confuse",
    "PCR value delivered twice, the last one as expected",
    lambda kind: with_quote(
        kind,
        pcr_values=(
            *genuine(kind).vtpm_quote.pcr_values,
            PcrValue(7, "sha256", azure.PCRS["sha256", 7]),
        ),
    ),
    VerificationError,
    "pcr_selection",
)
both(
    attacks,
    "confuse",
    "expected PCR of a bank that is not quoted",
    lambda kind: with_quote(
        kind,
        pcr_values=(
            *genuine(kind).vtpm_quote.pcr_values,
            PcrValue(7, "sha384", bytes(48)),
        ),
    ),
    VerificationError,
    "pcr_selection",
)
both(
    attacks,
    "forge",
    "log of another boot",
    lambda kind: with_quote(kind, boot_log=boot_log((7, b"secure boot of another machine"))),
    ReplayError,
    "pcr_mismatch",
)


@attacks.attempt("confuse", FormatError, "wrong_type")
def certification_of_a_key_in_place_of_a_quote() -> object:
    """TPM2_Certify signs qualifying data of the caller, too, and no PCRs."""
    message = bytearray(genuine("snp").vtpm_quote.message)
    message[4:6] = b"\x80\x17"
    signed = sign(bytes(message))
    return check(with_quote("snp", message=bytes(message), signature=signed))


@attacks.attempt("forge", FormatError, "unrecognized")
def quote_without_the_magic_of_the_tpm() -> object:
    """A restricted key signs any text that does not begin with this magic."""
    message = b"\0TCG" + genuine("snp").vtpm_quote.message[4:]
    return check(with_quote("snp", message=message, signature=sign(message)))


@attacks.attempt("confuse", FormatError, "duplicate", "conflict")
def quote_that_selects_a_bank_twice() -> object:
    """Of the two selections a reader may keep the last one only."""
    banks = (azure.ALL[0], PcrSelection("sha384", (7,)))
    pcrs = azure.PCRS | {("sha384", 7): bytes(48)}
    message = azure.quote(BOUND, selections=banks, pcrs=pcrs).message
    twice = message.replace(b"\x00\x0c\x03", b"\x00\x0b\x03")
    assert twice != message
    return check(with_quote("snp", message=twice, signature=sign(twice)))


@attacks.attempt("confuse", FormatError, "trailing_data")
def quote_with_bytes_behind_it() -> object:
    """A second quote in the same signed message."""
    message = genuine("snp").vtpm_quote.message * 2
    return check(with_quote("snp", message=message, signature=sign(message)))


# -- policies ----------------------------------------------------------------------------------


@attacks.attempt("confuse", UsageError, "missing", "conflict", "wrong_value")
def policy_for_azure_that_identifies_no_paravisor() -> object:
    """Such a policy would accept any guest of the kind under Azure's name."""
    return check(genuine("snp"), AppraisalPolicy.default().replace(platforms=("azure-snp",)))


@attacks.attempt("confuse", PolicyError, "app_id")
def policy_about_an_app_with_evidence_that_measures_none() -> object:
    """An app pin must not be met by silence."""
    return check(genuine("snp"), policy_of("snp").replace(app_id=[bytes(20)]))


@attacks.attempt("confuse", PolicyError, "reference_value")
def zero_pinned_where_the_platform_leaves_zero() -> object:
    """RTMRs are zero behind a paravisor: a policy that asks for zero must not be met by design."""
    zero = ReferenceValues(rtmr3=[bytes(48)])
    return check(genuine("tdx"), AppraisalPolicy.default().replace(reference_values=zero))


@attacks.attempt("forge", PolicyError, "require_joins")
def policy_that_requires_a_join_which_azure_lacks() -> object:
    """The TPM does not sign the hardware's evidence."""
    policy = policy_of("snp").replace(require_joins=["ak_to_hardware"])
    return check(genuine("snp"), policy)


@attacks.attempt("forge")
def certificate_of_an_own_ca_names_the_vm() -> None:
    """A certificate under another root is left out, and so is every name in it."""
    from attestkit.backends.simulator.pki.cloud_pki import issue_azure_certificate

    spki = HclReport.parse(genuine("snp").hcl_report).content.attestation_key.spki
    top = make_own_root(made_tpm.secrets)
    name = "victim.TrustedVM.Azure.windows.net"
    leaf = issue_azure_certificate(top, spki, name, made_tpm.secrets)
    result = check(with_quote("snp", ak_certificates=(leaf,)))
    assert "ak_certificate" in result.not_proven
    assert result.claims.vtpm is not None
    assert "ak_certificate_name" not in dict(result.claims.vtpm.details)


@attacks.attempt("exhaust", SignatureError, "chain_length")
def hundred_certificates_beside_the_key() -> object:
    """Each could be a step of a path."""
    spki = HclReport.parse(genuine("snp").hcl_report).content.attestation_key.spki
    leaf, issuer = made_tpm.certificates(spki)
    return check(with_quote("snp", ak_certificates=(leaf, *[issuer] * 100)))
