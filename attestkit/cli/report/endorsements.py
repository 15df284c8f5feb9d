"""The endorsements in the report: certificate chain, and validity of each part of collateral."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, TypeAlias

from attestkit._crypto.pem import split_pem
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import AzureSnp, GcpSnp, SevSnp
from attestkit.cli.output.certificate_text import name_text, read_certificate_text
from attestkit.collateral import Collateral
from attestkit.collateral.parts import part_window
from attestkit.errors import AttestKitError
from attestkit.quote import Quote

MOST: Final = 8  # certificates shown of a chain
_PARTS: Final = {
    "tcb_info": "TCB info",
    "qe_identity": "QE identity",
    "pck_crl": "CRL of the PCK CA",
    "root_ca_crl": "CRL of the root",
    "pck_crl_issuer_chain": "Chain of the PCK CA",
    "tcb_info_issuer_chain": "Chain of the TCB signer",
    "qe_identity_issuer_chain": "Chain of the QE identity's signer",
}


State: TypeAlias = tuple[str, str]  # CSS class and text


def format_minute(moment: datetime) -> str:
    """Format a time to the minute, in UTC."""
    return moment.strftime("%Y-%m-%d %H:%M")


def _state(start: datetime, end: datetime, at: datetime) -> State:
    if at < start:
        return "no", "not yet valid"
    return ("no", "expired") if at > end else ("ok", "valid")


def presented_chain(evidence: Attestation | Quote) -> tuple[bytes, ...]:
    """Return the unverified certificates in evidence."""
    try:
        quote = evidence if isinstance(evidence, Quote) else evidence.quote
        if quote is not None:
            return quote.pck_chain
    except AttestKitError:
        return ()
    assert isinstance(evidence, Attestation)
    platform = evidence.evidence.platform
    if not isinstance(platform, (SevSnp, GcpSnp, AzureSnp)):
        return ()
    found: list[bytes] = []
    for item in platform.cert_chain:
        try:
            found.extend(split_pem(item.decode("ascii")) if item[:1] == b"-" else [item])
        except (AttestKitError, UnicodeDecodeError):  # skip anything but certificates
            continue
    return tuple(found)


def describe_chain(
    certificates: Sequence[bytes], at: datetime
) -> list[tuple[str, State, dict[str, str]]]:
    """Return title, state and fields of DER certificates in their order; skip unreadable ones."""
    described = []
    for der in certificates[:MOST]:
        try:
            found = read_certificate_text(der)
        except AttestKitError:
            continue
        subject, issuer = name_text(found.subject), name_text(found.issuer)
        rows = {
            "Subject": subject,
            "Issuer": "itself" if subject == issuer else issuer,
            "Valid": f"{format_minute(found.valid_from)} to {format_minute(found.valid_until)}",
            "Serial number": found.serial_number,
            "Key (SHA-256)": found.key_id,
        }
        state = _state(found.valid_from, found.valid_until, at)
        described.append((found.common_name, state, rows))
    return described


def describe_parts(collateral: Collateral, at: datetime) -> list[tuple[str, str, str, State]]:
    """Return name, start, end and state of the validity of each part of collateral."""
    found = []
    for field, name in _PARTS.items():
        try:
            start, end = part_window(field, getattr(collateral, field))
        except AttestKitError:
            found.append((name, "", "", ("no", "unreadable")))
            continue
        state = _state(start, end, at)
        found.append((name, format_minute(start), format_minute(end), state))
    return found
