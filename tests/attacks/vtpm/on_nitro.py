"""Attempts on documents of a NitroTPM, alone and beside a TPM's quote."""

from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1

from attestkit._crypto.ecdsa import P256Key
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import (
    Evidence,
    NitroEnclave,
    NitroTpm,
    RuntimeEvent,
    Stack,
    Tpm,
)
from attestkit.errors import (
    AttestKitError,
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    VerificationError,
)
from attestkit.report_data import ReportData
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from tests.attacks.attempts import Surfaces
from tests.verifier.platforms import aws
from tests.verifier.platforms.vtpm.made_tpm import SPKI, pcrs_of, public_area, vtpm_quote

attacks = Surfaces("vtpm")

NONCE: Final = b"a nonce of the relying party"
BOUND: Final = ReportData.for_nonce(NONCE)
OLDER: Final = ReportData.for_nonce(b"the nonce of an earlier session")
PCRS: Final = {index: bytes([index]) * 48 for index in range(24)} | {14: bytes(48)}
OTHER: Final = P256Key.from_scalar(b"\x55" * 32)
POLICY: Final = AppraisalPolicy.default().replace(
    platforms=("dstack-aws-nitro-tpm", "tpm"), pcrs={"sha384:4": PCRS[4]}
)


def fields(**changes: Any) -> dict[str, Any]:
    """Return the fields of a document of the NitroTPM."""
    own = {"pcrs": ..., "nitrotpm_pcrs": PCRS, "module_id": "i-1-tpm2", "user_data": BOUND}
    return aws.payload(**{**own, **changes})


def check(
    document: bytes,
    *events: RuntimeEvent,
    now: datetime = aws.NOW,
    policy: AppraisalPolicy = POLICY,
    report_data: bytes = BOUND,
) -> AttestationResult:
    """Verify the evidence of a guest with this document."""
    evidence = Attestation(Evidence(NitroTpm(document), Stack(report_data, events, "{}")))
    verifier = Verifier(trust_anchor=aws.root(), policy=policy)
    return verifier.verify(evidence, nonce=NONCE, now=now)


@cache
def genuine() -> bytes:
    """Return a document that is accepted."""
    found = aws.document(fields())
    assert check(found).fresh
    return found


def add(kind: Any, name: str, change: Any, error: type[AttestKitError], *reasons: str) -> None:
    """Add an attempt with another document."""

    def run() -> object:
        genuine()
        return check(change())

    attacks.add(kind, name, run, error, *reasons)


add(
    "replay",
    "NitroTPM document of an earlier nonce",
    lambda: aws.document(fields(user_data=OLDER)),
    VerificationError,
    "report_data_mismatch",
)
add(
    "confuse",
    "NitroTPM document with the nonce in place of the user data",
    lambda: aws.document(fields(user_data=None, nonce=BOUND)),
    VerificationError,
    "report_data_mismatch",
)
add(
    "confuse",
    "NitroTPM document with half of the report data",
    lambda: aws.document(fields(user_data=BOUND[:32])),
    VerificationError,
    "report_data_mismatch",
)
add(
    "relay",
    "NitroTPM document of an instance with another image",
    lambda: aws.document(fields(nitrotpm_pcrs=PCRS | {4: b"\x66" * 48})),
    PolicyError,
    "pcrs",
)
add(
    "forge",
    "NitroTPM document without the pinned PCR",
    lambda: aws.document(fields(nitrotpm_pcrs={14: bytes(48)})),
    FormatError,
    "missing",
)
add(
    "confuse",
    "NitroTPM document with PCRs of an enclave, too",
    lambda: aws.document(fields(pcrs={0: bytes(48)})),
    FormatError,
    "inconsistent",
)
add(
    "confuse",
    "document of an enclave in place of one of a NitroTPM",
    lambda: aws.document(aws.payload(user_data=BOUND)),
    FormatError,
    "wrong_type",
)
add(
    "forge",
    "NitroTPM document signed by a key that the certificate does not have",
    lambda: aws.document(fields(), signer=aws.key("attacker", SECP384R1)),
    SignatureError,
    "document_bad_signature",
)
add(
    "forge",
    "NitroTPM document with an algorithm that is not protected",
    lambda: aws.document(fields(), protected=b"", unprotected={1: -35}),
    SignatureError,
    "document_algorithm",
)
add(
    "forge",
    "NitroTPM document with a signature of zeros",
    lambda: aws.document(fields(), signature=bytes(96)),
    SignatureError,
    "document_bad_signature",
)
add(
    "forge",
    "NitroTPM document whose chain has no CA",
    lambda: aws.document(fields(cabundle=[])),
    FormatError,
    "wrong_size",
)
add(
    "exhaust",
    "NitroTPM document with a hundred certificates",
    lambda: aws.document(fields(cabundle=list(aws.chain()) * 34)),
    FormatError,
    "wrong_size",
)
add(
    "exhaust",
    "NitroTPM document with a thousand PCRs",
    lambda: aws.document(fields(nitrotpm_pcrs={n: bytes(48) for n in range(1000)})),
    FormatError,
    "wrong_value",
)
add(
    "confuse",
    "NitroTPM document with PCRs of another hash",
    lambda: aws.document(fields(nitrotpm_pcrs=dict.fromkeys(range(24), bytes(32)))),
    FormatError,
    "wrong_size",
)
add(
    "confuse",
    "NitroTPM document with bytes behind it",
    lambda: genuine() + genuine(),
    FormatError,
    "trailing_data",
)


@attacks.attempt("replay", VerificationError, "document_expired")
def nitro_document_of_yesterday() -> object:
    """The certificates of a document live for hours."""
    return check(genuine(), now=aws.NOW + timedelta(days=2))


@attacks.attempt("confuse", PolicyError, "platform")
def nitro_tpm_under_a_policy_for_tees() -> object:
    """The hypervisor is trusted for all of it; a policy has to say so."""
    genuine()
    return check(genuine(), policy=AppraisalPolicy.default())


@attacks.attempt("confuse", FormatError, "wrong_type")
def nitro_tpm_document_in_evidence_of_an_enclave() -> object:
    """An enclave is isolated from the instance, whose document this is."""
    stack = Stack(BOUND, (), "{}")
    evidence = Attestation(Evidence(NitroEnclave(genuine()), stack))
    return Verifier(trust_anchor=aws.root()).verify(evidence, nonce=NONCE, now=aws.NOW)


@attacks.attempt("forge", ReplayError, "pcr_mismatch")
def events_that_the_instance_did_not_extend() -> object:
    """PCR 14 is at its start."""
    genuine()
    return check(genuine(), RuntimeEvent("app-id", bytes(20)))


@attacks.attempt("confuse", SignatureError, "untrusted_root")
def nitro_document_for_a_verifier_with_the_root_of_aws() -> object:
    """The simulated root has AWS's names."""
    evidence = Attestation(Evidence(NitroTpm(genuine()), Stack(BOUND, (), "{}")))
    return Verifier(policy=POLICY).verify(evidence, nonce=NONCE, now=aws.NOW)


# -- a quote beside a document -----------------------------------------------------------------

QUOTED: Final = tuple(one._replace(value=PCRS[one.number]) for one in pcrs_of("sha384"))


def quote_with(document: bytes, **parts: Any) -> AttestationResult:
    """Verify a TPM's quote whose key a document names."""
    found = vtpm_quote(BOUND, QUOTED)._replace(ak_certificates=(document,), **parts)
    evidence = Attestation(Evidence(Tpm(found), Stack(BOUND, (), "")))
    verifier = Verifier(policy=POLICY, ak_roots=[aws.root()], trust_anchor=aws.root())
    return verifier.verify(evidence, nonce=NONCE, now=aws.NOW)


def named(**changes: Any) -> bytes:
    """Return a document about the quote's key and nonce."""
    return aws.document(fields(**({"public_key": SPKI, "nonce": BOUND} | changes)))


@cache
def joined() -> bytes:
    """Return a document beside which the quote is accepted."""
    found = named()
    assert quote_with(found).fresh
    return found


DOCUMENTS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "of another nonce": ({"nonce": OLDER}, "tpm_qualifying_data"),
    "without a nonce": ({"nonce": None}, "tpm_qualifying_data"),
    "with the nonce as user data": ({"nonce": None, "user_data": BOUND}, "tpm_qualifying_data"),
    "about another key": ({"public_key": public_area(key=OTHER)}, "ak_mismatch"),
    "without a key": ({"public_key": None}, "missing"),
    "of another boot": ({"nitrotpm_pcrs": PCRS | {4: bytes(48)}}, "pcr_digest"),
}


def beside(changes: dict[str, Any]) -> object:
    """Verify the quote beside another document."""
    joined()
    return quote_with(named(**changes))


for title, (changes, reason) in DOCUMENTS.items():
    attacks.add(
        "recombine",
        f"TPM quote beside a NitroTPM document {title}",
        partial(beside, changes),
        AttestKitError,
        reason,
    )


@attacks.attempt("confuse", VerificationError, "pcr_selection")
def quote_of_a_bank_that_the_nitro_document_lacks() -> object:
    """Software made the quote of SHA-256, of which the hypervisor says nothing."""
    joined()
    other = vtpm_quote(BOUND, pcrs_of())
    return quote_with(
        joined(), message=other.message, signature=other.signature, pcr_values=other.pcr_values
    )
