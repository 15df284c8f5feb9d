"""Authentication of AWS NitroTPM evidence (vtpm.md, section 9.3).

The document of a NitroTPM has all PCRs of the SHA-384 bank and is signed by the hypervisor under
AWS's root; `nitro` verifies the signature. There is no evidence of a TEE: the hypervisor is
trusted. The evidence of a dstack guest has in addition the runtime events that its PCR 14 replays
to; a bare document, as AWS's tools write it, has none.
"""

import hmac
from datetime import datetime
from typing import Final

from attestkit._verification_steps import VerificationStep
from attestkit.attestation import Attestation
from attestkit.attestation.nitro import NitroDocument
from attestkit.attestation.wire.evidence_parts import NitroTpm
from attestkit.errors import ReplayError, VerificationError
from attestkit.event_log.journal_protocols import ZERO, replay_from
from attestkit.event_log.runtime_events import check_runtime_events
from attestkit.tpm.pcrs import EVENT_PCR
from attestkit.verifier.claims import Authenticated, VtpmFacts, passed, skipped
from attestkit.verifier.platforms.nitro import Nitro
from attestkit.verifier.platforms.vtpm.pcr_logs import unexplained_steps

BANK: Final = "sha384"
WITHOUT_TEE: Final = skipped(
    "hardware_to_ak",
    "the evidence has no report of a TEE: the PCRs are a statement of the hypervisor, which is "
    "trusted",
)
_REPORT_DATA_SIZE: Final = 64  # bytes


def authenticate_nitro_tpm(aws: Nitro, attestation: Attestation, now: datetime) -> Authenticated:
    """Verify the evidence of a NitroTPM, and return its signed content.

    Args:
        aws: Authenticator of the document.
        attestation: Evidence whose platform is `NitroTpm`.
        now: Time of the verification, with a time zone.

    Raises:
        FormatError: If the document is malformed, or of an enclave.
        VerificationError: As `Nitro.verify_document`, and if the document has no user data or
            other ones than the evidence (`report_data_mismatch`).
        ReplayError: If PCR 14 is not the replay of the runtime events (`pcr_mismatch`).
    """
    platform = attestation.evidence.platform
    assert isinstance(platform, NitroTpm)
    signed = aws.verify_document(platform.attestation_doc, now, tpm=True)
    found = signed.content
    user_data = _check_user_data(found, attestation)
    events = _replay_runtime_events(attestation)
    facts = _facts(found, ((BANK, EVENT_PCR),) if events.outcome == "passed" else ())
    rest = unexplained_steps(
        {(bank, index): value for bank, index, value in facts.pcrs}, facts.replayed
    )
    return Authenticated(
        report_data=found.user_data,
        device=found.module_id.encode(),
        chain=signed.chain,
        steps=(*signed.steps, user_data, WITHOUT_TEE, *rest, events),
        vtpm=facts,
    )


def _facts(document: NitroDocument, replayed: tuple[tuple[str, int], ...]) -> VtpmFacts:
    """Return the facts of a document, which has the PCRs, and no key of the TPM."""
    return VtpmFacts(
        attestation_key=b"",
        key_trust="certificate",
        joins=(),
        pcrs=tuple([(BANK, index, value) for index, value in sorted(document.pcrs.items())]),
        replayed=replayed,
        details=_details(document),
    )


def _details(document: NitroDocument) -> tuple[tuple[str, str], ...]:
    """Return what the document names; nonce and key are the caller's, and are not interpreted."""
    found = [("module_id", document.module_id)]
    if document.nonce:
        found.append(("nonce", document.nonce.hex()))
    if document.public_key:
        found.append(("public_key", document.public_key.hex()))
    return tuple(found)


def _replay_runtime_events(attestation: Attestation) -> VerificationStep:
    """Compare PCR 14 with the replay of the runtime events; skipped for a bare document.

    Raises:
        ReplayError: If they differ (`pcr_mismatch`).
        VerificationError: If an event's digest is ambiguous (`event`).
        FormatError: If the document has no PCR 14.
    """
    if attestation.is_bare:
        text = f"replay was left out: a bare document has no events, so PCR {EVENT_PCR} is unproven"
        return skipped("event_log", text)
    document = attestation.nitro_document
    assert document is not None
    quoted, events = document.pcr(EVENT_PCR), attestation.runtime_events
    check_runtime_events(events)
    replayed = replay_from(ZERO, events)
    if not hmac.compare_digest(quoted, replayed):
        raise ReplayError(
            f"PCR {EVENT_PCR}: the document has {quoted.hex()}, but the runtime events replay to "
            f"{replayed.hex()}",
            reason="pcr_mismatch",
            expected=replayed,
            actual=quoted,
        )
    text = f"the {len(events)} runtime events replay to PCR {EVENT_PCR} of the SHA-384 bank"
    return passed("event_log", text)


def _check_user_data(document: NitroDocument, attestation: Attestation) -> VerificationStep:
    """Compare the user data of a document with the report data of the evidence."""
    signed, stated = document.user_data, attestation.report_data
    if attestation.is_bare:
        if not hmac.compare_digest(signed, stated):
            raise _user_data_error("is not the report data of the evidence")
        if not signed:
            return skipped("user_data", "the document has no user data, so it is bound to nothing")
        return passed("user_data", f"the document has user data of {len(signed)} bytes")
    if not signed:
        raise _user_data_error("missing")
    if len(signed) != _REPORT_DATA_SIZE or not hmac.compare_digest(signed, stated):
        raise _user_data_error("is not the report data of the evidence")
    return passed("user_data", "the document's user data is the report data of the evidence")


def _user_data_error(problem: str) -> VerificationError:
    return VerificationError(
        f"NitroTPM document: user_data: {problem}; request a document over the report data",
        reason="report_data_mismatch",
    )
