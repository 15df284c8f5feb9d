"""Attempts on PCRs of a TPM, logs that explain them, and messages of go-tpm-tools."""

from functools import cache
from typing import Any

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import sha256
from attestkit.attestation.go_tpm_tools import (
    GceInstanceInfo,
    GoTpmToolsMessage,
    GoTpmToolsQuote,
)
from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.errors import (
    AttestKitError,
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    VerificationError,
)
from attestkit.verifier import AttestationResult, Verifier
from tests.attacks.attempts import Surfaces
from tests.attacks.vtpm.tpm_evidence import (
    BOUND,
    LOG,
    NONCE,
    NOW,
    OTHER,
    PCRS,
    POLICY,
    ROOT,
    altered,
    check,
    genuine,
    policy_of,
)
from tests.verifier.platforms.vtpm.made_tpm import (
    KEY,
    certificates,
    pcrs_of,
    public_area,
    sign_quote,
    vtpm_quote,
)
from tests.verifier.platforms.vtpm.test_pcr_logs import boot_log, extended, record

attacks = Surfaces("vtpm")


# -- PCRs and logs -----------------------------------------------------------------------------


@attacks.attempt("forge", PolicyError, "pcrs")
def quote_without_the_pinned_pcr() -> object:
    """The TPM signs what the host selects."""
    genuine()
    some = tuple(one for one in PCRS if one.number != 7)
    return check(Tpm(vtpm_quote(sha256(BOUND), some)))


@attacks.attempt("confuse", PolicyError, "pcrs")
def pinned_value_in_another_bank() -> object:
    """The host's SHA-384 bank has a number 7, too."""
    genuine()
    other = pcrs_of("sha384", pcr7=PCRS[7].value + bytes(16))
    return check(Tpm(vtpm_quote(sha256(BOUND), other)))


@attacks.attempt("forge", VerificationError, "pcr_selection")
def sha1_bank_alone_of_a_listed_tpm() -> object:
    """Collisions of SHA-1 make the PCRs any software's."""
    genuine()
    return check(Tpm(vtpm_quote(sha256(BOUND), pcrs_of("sha1"))), policy_of(pcrs=()))


@attacks.attempt("recombine", ReplayError, "pcr_mismatch")
def log_of_another_boot() -> object:
    """The events of a good boot beside the PCRs of a bad one."""
    genuine()
    bad = pcrs_of(pcr7=extended("sha256", 7, b"keys of the attacker"))
    parts = vtpm_quote(sha256(BOUND), bad)._replace(boot_log=LOG)
    return check(Tpm(parts), policy_of(pcrs=()))


@attacks.attempt("forge", ReplayError, "pcr_mismatch")
def log_without_the_records_of_an_extended_pcr() -> object:
    """Records about what the firmware ran are left out."""
    genuine()
    pcrs = pcrs_of(pcr7=PCRS[7].value, pcr4=extended("sha256", 4, b"boot kit"))
    return check(Tpm(vtpm_quote(sha256(BOUND), pcrs)._replace(boot_log=LOG)))


@attacks.attempt("forge")
def records_that_extend_nothing_explain_a_pcr() -> None:
    """EV_NO_ACTION records are not measured, so they explain nothing."""
    found = check(altered(boot_log=boot_log() + record(("sha256",), 7, 3, POLICY)))
    assert found.claims.vtpm is not None
    assert found.claims.vtpm.replayed == ()
    assert "pcr_log" in found.not_proven


@attacks.attempt("forge", ReplayError, "pcr_mismatch")
def record_that_extends_nothing_among_others() -> object:
    """The record of PCR 7 is said to be informative, while the firmware measured it."""
    genuine()
    log = boot_log((4, b"loader")) + record(("sha256",), 7, 3, POLICY)
    pcrs = pcrs_of(pcr7=PCRS[7].value, pcr4=extended("sha256", 4, b"loader"))
    return check(Tpm(vtpm_quote(sha256(BOUND), pcrs)._replace(boot_log=log)))


@attacks.attempt("forge", AttestKitError, "pcr_mismatch", "conflict", "duplicate", "wrong_value")
def second_locality_of_the_start() -> object:
    """Two statements of the locality, of which one fits the PCR."""
    genuine()
    log = boot_log((7, POLICY), locality=3)
    log += record(("sha256",), 0, 3, b"StartupLocality\0\4")
    return check(altered(boot_log=log))


@attacks.attempt("confuse")
def log_of_a_bank_by_name_only() -> None:
    """A log that names SHA-256 and has digests of SHA-384 alone explains no PCR of SHA-256."""
    genuine()
    log = boot_log(banks=("sha256", "sha384")) + record(("sha384",), 7, 0xD, POLICY)
    found = check(altered(boot_log=log)).claims.vtpm
    assert found is not None
    assert found.replayed == ()


@attacks.attempt("exhaust", FormatError, "event_size")
def log_with_a_record_of_four_gigabytes() -> object:
    """The stated size of the data is not there."""
    genuine()
    return check(altered(boot_log=LOG[: -4 - len(POLICY)] + b"\xff" * 4 + POLICY))


@attacks.attempt("exhaust", FormatError, "digest_count")
def log_with_four_billion_digests() -> object:
    """A record states 2^32 - 1 digests."""
    genuine()
    return check(altered(boot_log=boot_log() + b"\7\0\0\0\x0d\0\0\0\xff\xff\xff\xff" + bytes(64)))


@attacks.attempt("exhaust", FormatError, "too_many_records")
def log_with_seventy_thousand_records() -> object:
    """Each extends a PCR."""
    genuine()
    return check(altered(boot_log=boot_log() + record(("sha256",), 7, 0xD, b"") * 70_000))


# -- messages of go-tpm-tools ------------------------------------------------------------------


def check_message(message: GoTpmToolsMessage, **options: Any) -> AttestationResult:
    """Verify a message of go-tpm-tools for the nonce."""
    rules = options.pop("rules", {})
    verifier = Verifier(policy=policy_of(**rules), **options)
    return verifier.verify(message.encode(), nonce=NONCE, now=NOW)


@cache
def message() -> GoTpmToolsMessage:
    """Return a message of the listed TPM, which is accepted."""
    found = GoTpmToolsMessage(public_area(), (quote(),), LOG)
    assert check_message(found).fresh
    return found


def quote(extra: bytes = BOUND, key: P256Key = KEY, **pcrs: bytes) -> GoTpmToolsQuote:
    """Return a quote in the form of go-tpm-tools."""
    values: Any = {"pcr7": PCRS[7].value} | pcrs
    return sign_quote(extra, pcrs_of(**values), key)


@attacks.attempt("forge", PolicyError, "pcrs")
def quote_of_a_bank_that_no_firmware_extends() -> object:
    """Zero PCRs need no log, whatever was booted."""
    unused = sign_quote(BOUND, pcrs_of("sha512"), KEY)
    return check_message(message()._replace(quotes=(unused,), event_log=b""), rules={"pcrs": ()})


@attacks.attempt("recombine", SignatureError, "tpm_quote_bad_signature")
def second_quote_by_a_key_of_the_attacker() -> object:
    """go-tpm-tools stops at the first quote that verifies."""
    return check_message(message()._replace(quotes=(quote(), quote(key=OTHER))))


@attacks.attempt("replay", VerificationError, "tpm_qualifying_data")
def second_quote_of_an_earlier_nonce() -> object:
    """PCRs of an earlier, better state."""
    return check_message(message()._replace(quotes=(quote(), quote(b"earlier"))))


@attacks.attempt("recombine", VerificationError, "pcr_digest")
def two_quotes_of_two_states() -> object:
    """The same PCR with two values, both signed."""
    return check_message(message()._replace(quotes=(quote(), quote(pcr7=b"\1" * 32))))


@attacks.attempt("confuse", FormatError, "missing")
def message_without_a_quote() -> object:
    """Key and log alone prove nothing."""
    return check_message(message()._replace(quotes=()))


@attacks.attempt("forge", VerificationError, "instance_info")
def claims_about_an_instance_that_the_certificate_does_not_name() -> object:
    """The unsigned claims name the victim's VM."""
    first, issuer = certificates()
    claims = GceInstanceInfo("us-central1-a", "victim", 1, "victim-vm", 2)
    found = message()._replace(ak_certificate=first, intermediates=(issuer,), instance=claims)
    return check_message(found, ak_roots=(ROOT,))


@attacks.attempt("forge", PolicyError, "gce_instance")
def claims_about_an_instance_without_a_certificate() -> object:
    """A rule about the instance is met by a certificate only."""
    claims = GceInstanceInfo("us-central1-a", "victim", 1, "victim-vm", 2)
    rules = {"gce_instance": ["victim-vm"]}
    return check_message(message()._replace(instance=claims), rules=rules)


@attacks.attempt("exhaust", FormatError, "too_many")
def message_with_a_thousand_quotes() -> object:
    """Each costs a verification of a signature."""
    return check_message(message()._replace(quotes=(quote(),) * 1000))


@attacks.attempt("confuse", FormatError, "duplicate")
def message_with_two_public_areas() -> object:
    """A protobuf reader keeps the last one of a field that occurs twice."""
    own = GoTpmToolsMessage(public_area(key=OTHER)).encode()
    verifier = Verifier(policy=policy_of())
    return verifier.verify(own + message().encode(), nonce=NONCE, now=NOW)


@attacks.attempt("confuse", FormatError, "duplicate")
def message_whose_quote_is_merged_of_two() -> object:
    """A protobuf reader merges a sub-message that occurs twice in a quote."""
    one = quote().encode()
    body = one + one
    size = len(body)
    field = b"\x12" + bytes([size & 0x7F | 0x80, size >> 7]) + body
    raw = GoTpmToolsMessage(public_area(), (), LOG).encode() + field
    message()
    return Verifier(policy=policy_of()).verify(raw, nonce=NONCE, now=NOW)
