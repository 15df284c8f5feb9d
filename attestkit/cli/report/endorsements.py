"""The report's endorsements: the certificate chain, and how long each part of collateral holds."""

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

__all__ = ["Link", "Part", "Row", "chain", "day", "parts", "presented_chain"]

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


class Row(NamedTuple):
    """A fact: its name and value."""

    name: str
    value: str
    mono: bool = False


class Link(NamedTuple):
    """One certificate of a chain."""

    title: str
    css: str  # of the state
    state: str
    rows: tuple[Row, ...]


class Part(NamedTuple):
    """One part of collateral."""

    name: str
    start: str
    end: str
    css: str  # of the state
    state: str


def day(moment: datetime) -> str:
    """Return a moment as people read it, to the minute, in UTC."""
    return moment.strftime("%Y-%m-%d %H:%M")


def _state(start: datetime, end: datetime, at: datetime) -> tuple[str, str]:
    if at < start:
        return "no", "not yet valid"
    return ("no", "expired") if at > end else ("ok", "in force")


def presented_chain(evidence: Attestation | Quote) -> tuple[bytes, ...]:
    """Return the certificates that evidence brings along, of which nothing has been verified."""
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
        except (AttestKitError, UnicodeDecodeError):  # what is no certificate is not shown as one
            continue
    return tuple(found)


def chain(certificates: Sequence[bytes], at: datetime) -> tuple[Link, ...]:
    """Describe certificates, DER, in their order; what is none is left out."""
    links = []
    for der in certificates[:MOST]:
        try:
            links.append(_link(read_certificate_text(der), at))
        except AttestKitError:
            continue
    return tuple(links)


def _link(certificate: CertificateText, at: datetime) -> Link:
    subject, issuer = name_text(certificate.subject), name_text(certificate.issuer)
    css, state = _state(certificate.valid_from, certificate.valid_until, at)
    span = f"{day(certificate.valid_from)} to {day(certificate.valid_until)}"
    rows = (
        Row("Subject", printable(subject, 300)),
        Row("Issuer", "itself" if subject == issuer else printable(issuer, 300)),
        Row("Valid", span),
        Row("Serial number", certificate.serial_number, mono=True),
        Row("Key (SHA-256)", certificate.key_id, mono=True),
    )
    return Link(printable(certificate.common_name, 100), css, state, rows)


def parts(collateral: Collateral, at: datetime) -> tuple[Part, ...]:
    """Return when each part of collateral holds."""
    found = []
    for field, name in _PARTS.items():
        try:
            start, end = part_window(field, getattr(collateral, field))
        except AttestKitError:
            found.append(Part(name, "", "", "no", "unreadable"))
            continue
        found.append(Part(name, day(start), day(end), *_state(start, end, at)))
    return tuple(found)
