"""Attempts on evidence of Azure's paravisor: reports, runtime data and quotes of several VMs."""

from functools import partial
from typing import Any, Final

from attestkit._crypto.hashes import sha256
from attestkit.attestation.azure import HclReport
from attestkit.attestation.wire.evidence_parts import PcrValue
from attestkit.errors import (
    FormatError,
    PolicyError,
    SignatureError,
    VerificationError,
)
from attestkit.report_data import ReportData
from tests.attacks.attempts import Surfaces
from tests.attacks.vtpm.azure_vms import (
    OLDER,
    OTHER,
    both,
    check,
    evidence_of,
    genuine,
    with_quote,
    with_report,
)
from tests.attestation.hcl import CLAIMS, jwk
from tests.verifier.platforms import amd, azure
from tests.verifier.platforms.test_azure_policy import BOUND, ID_KEY, ID_KEY_DIGEST, NONCE
from tests.verifier.platforms.vtpm import made_tpm

attacks = Surfaces("vtpm")


# -- several VMs -------------------------------------------------------------------------------

both(
    attacks,
    "relay",
    "quote of another VM's TPM beside the victim's hardware report",
    lambda kind: genuine(kind)._replace(vtpm_quote=azure.quote(BOUND, name=OTHER)),
    SignatureError,
    "tpm_quote_bad_signature",
)
both(
    attacks,
    "relay",
    "runtime data of another VM, with its quote, in the victim's hardware report",
    lambda kind: with_report(genuine(kind), azure.runtime(BOUND, OTHER))._replace(
        vtpm_quote=azure.quote(BOUND, name=OTHER)
    ),
    VerificationError,
    "hcl_binding",
)
both(
    attacks,
    "relay",
    "genuine VM with a paravisor of the attacker's build",
    lambda kind: evidence_of(
        kind, offsets={0x090: b"\x66" * 48}, mrtd=b"\x66" * 48, quote=azure.quote(BOUND)
    ),
    PolicyError,
    "paravisor_measurement",
)
both(
    attacks,
    "recombine",
    "public area of another key beside the victim's quote",
    lambda kind: with_quote(kind, ak_public=made_tpm.public_area()),
    SignatureError,
    "ak_mismatch",
)
both(
    attacks,
    "recombine",
    "AK certificate of another key beside the victim's quote",
    lambda kind: with_quote(kind, ak_certificates=made_tpm.certificates()),
    SignatureError,
    "ak_mismatch",
)
both(
    attacks,
    "recombine",
    "PCR values of another boot with the victim's quote",
    lambda kind: with_quote(
        kind,
        pcr_values=tuple(
            PcrValue(one.number, one.algorithm, sha256(one.value))
            for one in genuine(kind).vtpm_quote.pcr_values
        ),
    ),
    VerificationError,
    "pcr_digest",
)


@attacks.attempt("recombine", FormatError, "inconsistent")
def hcl_report_of_an_snp_guest_in_evidence_of_a_td() -> object:
    """The kind of hardware is stated twice."""
    return check(genuine("tdx")._replace(hcl_report=genuine("snp").hcl_report))


@attacks.attempt("relay", VerificationError, "hcl_binding")
def quote_of_another_td_of_the_same_build() -> object:
    """The quote is genuine and of the same MRTD, but over other runtime data."""
    other = evidence_of("tdx", azure.runtime(BOUND, OTHER))
    return check(genuine("tdx")._replace(td_quote=other.td_quote))


# -- time --------------------------------------------------------------------------------------

both(
    attacks,
    "replay",
    "whole evidence of an earlier nonce",
    lambda kind: evidence_of(kind, azure.runtime(OLDER), azure.quote(OLDER)),
    PolicyError,
    "report_data",
)
both(
    attacks,
    "replay",
    "TPM quote of an earlier nonce beside a fresh report",
    lambda kind: evidence_of(kind, quote=azure.quote(OLDER)),
    VerificationError,
    "hcl_user_data",
)
both(
    attacks,
    "replay",
    "hardware report of an earlier nonce beside a fresh quote",
    lambda kind: evidence_of(kind, azure.runtime(OLDER)),
    VerificationError,
    "hcl_user_data",
)
both(
    attacks,
    "confuse",
    "quote over the first 32 bytes of the report data",
    lambda kind: evidence_of(kind, azure.runtime(None), azure.quote(BOUND[:32])),
    PolicyError,
    "report_data",
)
both(
    attacks,
    "confuse",
    "quote over the nonce itself, without the tag of a nonce",
    lambda kind: evidence_of(kind, azure.runtime(None), azure.quote(NONCE)),
    PolicyError,
    "report_data",
)
both(
    attacks,
    "confuse",
    "report data that bind the nonce to a TPM's key of the attacker",
    lambda kind: evidence_of(
        kind,
        azure.runtime(ReportData.for_nonce_and_ak(NONCE, made_tpm.SPKI)),
        azure.quote(ReportData.for_nonce_and_ak(NONCE, made_tpm.SPKI)),
    ),
    PolicyError,
    "report_data",
)
both(
    attacks,
    "confuse",
    "qualifying data longer than report data, of which they are a prefix",
    lambda kind: evidence_of(kind, azure.runtime(None), azure.quote(BOUND + b"++")),
    VerificationError,
    "tpm_qualifying_data",
)


# -- claims ------------------------------------------------------------------------------------

CHANGES: Final[dict[str, tuple[str, Any]]] = {
    "secure boot that is off": ("secure_boot", CLAIMS | {"secure-boot": False}),
    "secure boot that is not stated": (
        "secure_boot",
        {name: value for name, value in CLAIMS.items() if name != "secure-boot"},
    ),
    "console that is open": ("console_enabled", CLAIMS | {"console-enabled": True}),
}


def configured(claims: dict[str, Any], kind: str) -> Any:
    """Return evidence of a VM with another configuration."""
    return evidence_of(kind, azure.runtime(BOUND, vm_configuration=claims))


for title, (reason, claims) in CHANGES.items():
    both(
        attacks,
        "confuse",
        f"genuine VM with a {title}",
        partial(configured, claims),
        PolicyError,
        reason,
    )
both(
    attacks,
    "forge",
    "secure boot switched on in the runtime data after the report",
    lambda kind: with_report(
        evidence_of(kind, azure.runtime(BOUND, vm_configuration=CLAIMS | {"secure-boot": False})),
        azure.runtime(BOUND),
    ),
    VerificationError,
    "hcl_binding",
)
both(
    attacks,
    "confuse",
    "secure boot stated as text",
    lambda kind: evidence_of(
        kind, azure.runtime(BOUND, vm_configuration=CLAIMS | {"secure-boot": "true"})
    ),
    FormatError,
    "wrong_type",
)


def raw_snp(runtime: bytes) -> Any:
    """Return evidence over runtime data that `HclReport.create` would refuse."""
    good = genuine("snp")
    report = bytearray(HclReport.parse(good.hcl_report).encode())
    start = len(report) - len(HclReport.parse(good.hcl_report).runtime_data)
    block = start - 20
    del report[start:]
    report += runtime
    report[8:12] = len(report).to_bytes(4, "little")
    report[block : block + 4] = (20 + len(runtime)).to_bytes(4, "little")
    report[start - 4 : start] = len(runtime).to_bytes(4, "little")
    raw = amd.report({0x50: sha256(runtime) + bytes(32), ID_KEY_DIGEST: ID_KEY})
    report[32 : 32 + len(raw)] = raw
    return good._replace(hcl_report=bytes(report))


@attacks.attempt("confuse", FormatError, "duplicate")
def runtime_data_with_two_lists_of_keys() -> object:
    """The first list is for readers that keep the first member, the last for the others."""
    assert check(raw_snp(azure.runtime(BOUND))).fresh
    other = azure.runtime(BOUND, OTHER)
    return check(raw_snp(other[:-1] + b"," + azure.runtime(BOUND)[1:]))


@attacks.attempt("confuse", FormatError, "duplicate")
def runtime_data_with_two_attestation_keys() -> object:
    """One list has two keys of the same name."""
    keys = [jwk(modulus=azure.ak_modulus(name)) for name in ("AK", OTHER)]
    return check(raw_snp(azure.runtime(BOUND, keys=keys)))


@attacks.attempt("confuse", FormatError, "duplicate")
def runtime_data_with_two_user_data() -> object:
    """The fast reader of user data at the end must not hide an earlier member."""
    text = azure.runtime(OLDER)[:-1] + b',"user-data":"' + BOUND.hex().encode() + b'"}'
    return check(raw_snp(text))


@attacks.attempt("confuse", FormatError, "duplicate")
def runtime_data_with_an_escaped_name_of_user_data() -> object:
    """The same member, once in other characters of JSON."""
    text = azure.runtime(OLDER).replace(b'"user-data"', rb'"user\u002ddata"')
    return check(raw_snp(text[:-1] + b',"user-data":"' + BOUND.hex().encode() + b'"}'))


@attacks.attempt("forge", FormatError, "wrong_value", "not_canonical", "wrong_size")
def attestation_key_with_exponent_one() -> object:
    """Any text is its own signature under such a key."""
    key = jwk(modulus=azure.ak_modulus(), exponent=b"\1")
    return check(raw_snp(azure.runtime(BOUND, keys=[key])))


@attacks.attempt("forge", FormatError, "wrong_size")
def attestation_key_of_512_bits() -> object:
    """A key that anybody can factor."""
    key = jwk(modulus=b"\xc1" + bytes(62) + b"\1")
    return check(raw_snp(azure.runtime(BOUND, keys=[key])))


@attacks.attempt("exhaust", FormatError, "too_many")
def runtime_data_with_a_thousand_keys() -> object:
    """Each key would be loaded."""
    return check(raw_snp(azure.runtime(BOUND, keys=[{"kid": ""}] * 1000)))


@attacks.attempt("exhaust", FormatError, "too_deep")
def runtime_data_nested_without_end() -> object:
    """A recursive reader would exhaust the stack."""
    return check(raw_snp(azure.runtime(BOUND)[:-1] + b',"x":' + b"[" * 5000 + b"]" * 5000 + b"}"))


@attacks.attempt("exhaust", FormatError, "too_large")
def hcl_report_of_ten_megabytes() -> object:
    """Zeros after the report are padding, of a limited number."""
    return check(genuine("snp")._replace(hcl_report=genuine("snp").hcl_report.ljust(10**7, b"\0")))


@attacks.attempt("confuse", FormatError, "wrong_value")
def second_runtime_data_behind_the_first() -> object:
    """Bytes behind the hashed ones, for readers that search from the end."""
    report = HclReport.parse(genuine("snp").hcl_report).encode()
    return check(genuine("snp")._replace(hcl_report=report + azure.runtime(BOUND, OTHER)))


@attacks.attempt("confuse", FormatError, "unsupported_algorithm")
def runtime_data_that_state_another_hash() -> object:
    """The hash algorithm in the header is 384, of which the report data would be longer."""
    report = bytearray(genuine("snp").hcl_report)
    at = report.index(azure.runtime(BOUND)) - 8
    report[at : at + 4] = (2).to_bytes(4, "little")
    return check(genuine("snp")._replace(hcl_report=bytes(report)))
