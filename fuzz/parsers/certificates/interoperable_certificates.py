"""Fuzz target: certificates with evidence in the formats of other RA-TLS implementations."""

from attestkit.errors import FormatError, UnsupportedError, VerificationError
from attestkit.ra_tls.interoperable_certificates import CertificateEvidence, read_interoperable
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys
from tests.ra_tls.other_maker import GRAMINE, INTEROPERABLE, certificate, claims, tagged


def _accepted(raw: bytes, found: CertificateEvidence) -> None:
    check_same("report data", len(found.report_data), 64)
    check_same("the second half", found.report_data[32:], bytes(32))
    if not raw.lstrip().startswith(b"-----BEGIN"):
        check("the key as sent", found.spki in raw)
        check("the evidence as sent", found.evidence in raw)


def certificate_samples() -> list[bytes]:
    """Return certificates of both forms, refused ones, and one without evidence."""
    return [
        certificate((INTEROPERABLE, tagged(b"quote", claims(nonce=b"n")))),
        certificate((INTEROPERABLE, tagged(b"token", claims(), 0xC0C001))),
        certificate((GRAMINE, b"quote")),
        certificate(),
    ]


def targets() -> list[ParserTarget]:
    """Return the target of this file."""
    refusals = FormatError, UnsupportedError, VerificationError
    contract = obeys(read_interoperable, *refusals, accepted=_accepted, grows=True)
    return [ParserTarget("interoperable_certificate", contract, certificate_samples)]
