"""The endorsements in the report: certificate chain, and validity of each part of collateral."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from attestkit._crypto.pem import split_pem
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.cli.output.certificate_text import CertificateText, name_text, read_certificate_text
from attestkit.collateral import Collateral
from attestkit.collateral.parts import part_window
from attestkit.errors import AttestKitError
from attestkit.event_log.display import printable
from attestkit.quote import Quote

__all__ = [
    "ChainCertificate",
    "CollateralPart",
    "Fact",
    "describe_chain",
    "describe_parts",
    "format_minute",
    "presented_chain",
]

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


class Fact(NamedTuple):
    """A name and its value."""

    name: str
    value: str
    mono: bool = False


class ChainCertificate(NamedTuple):
    """One certificate of a chain."""

    title: str
    css: str  # of the state
    state: str
    rows: tuple[Fact, ...]


class CollateralPart(NamedTuple):
    """One part of collateral."""

    name: str
    start: str
    end: str
    css: str  # of the state
    state: str


def format_minute(moment: datetime) -> str:
    """Format a time to the minute, in UTC."""
    return moment.strftime("%Y-%m-%d %H:%M")


def _state(start: datetime, end: datetime, at: datetime) -> tuple[str, str]:
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
    if not isinstance(platform, SevSnp):
        return ()
    found: list[bytes] = []
    for item in platform.cert_chain:
        try:
            found.extend(split_pem(item.decode("ascii")) if item[:1] == b"-" else [item])
        except (AttestKitError, UnicodeDecodeError):  # skip anything but certificates
            continue
    return tuple(found)


def describe_chain(certificates: Sequence[bytes], at: datetime) -> tuple[ChainCertificate, ...]:
    """Describe DER certificates in their order; skip unreadable ones."""
    described = []
    for der in certificates[:MOST]:
        try:
            described.append(_describe_certificate(read_certificate_text(der), at))
        except AttestKitError:
            continue
    return tuple(described)


def _describe_certificate(certificate: CertificateText, at: datetime) -> ChainCertificate:
    subject, issuer = name_text(certificate.subject), name_text(certificate.issuer)
    css, state = _state(certificate.valid_from, certificate.valid_until, at)
    span = f"{format_minute(certificate.valid_from)} to {format_minute(certificate.valid_until)}"
    rows = (
        Fact("Subject", printable(subject, 300)),
        Fact("Issuer", "itself" if subject == issuer else printable(issuer, 300)),
        Fact("Valid", span),
        Fact("Serial number", certificate.serial_number, mono=True),
        Fact("Key (SHA-256)", certificate.key_id, mono=True),
    )
    return ChainCertificate(printable(certificate.common_name, 100), css, state, rows)


def describe_parts(collateral: Collateral, at: datetime) -> tuple[CollateralPart, ...]:
    """Return the validity of each part of collateral."""
    found = []
    for field, name in _PARTS.items():
        try:
            start, end = part_window(field, getattr(collateral, field))
        except AttestKitError:
            found.append(CollateralPart(name, "", "", "no", "unreadable"))
            continue
        found.append(
            CollateralPart(name, format_minute(start), format_minute(end), *_state(start, end, at))
        )
    return tuple(found)
