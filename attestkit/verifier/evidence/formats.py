"""Forms of evidence that a verifier accepts: objects, and bytes recognised by content."""

from typing import Final

from attestkit._argument_checks import wrong_type
from attestkit._native import unhex
from attestkit.attestation import MAX_SIZE, Attestation
from attestkit.attestation.nitro import is_nitro_document, read_nitro_document
from attestkit.attestation.wire.evidence_parts import Evidence as EvidenceParts
from attestkit.attestation.wire.evidence_parts import NitroEnclave, NitroTpm, SevSnp, Stack
from attestkit.errors import FormatError, UsageError
from attestkit.quote import Quote
from attestkit.snp_report import SIZE as SNP_REPORT_SIZE
from attestkit.snp_report import SnpReport
from attestkit.verifier.evidence.bundle import EvidenceBundle
from attestkit.verifier.evidence.checks import ParsedEvidence

Evidence = bytes | Attestation | Quote | SnpReport
"""Evidence as bytes or as a parsed object.

Bytes are evidence in any encoding, a raw quote, a bare SEV-SNP report (also with the host's
certificate table behind it), a bare AWS Nitro document (of an enclave or a NitroTPM), a guest
agent's JSON response, or the hex digits of one of these.
"""

_RAW_QUOTES: Final = (b"\3\0", b"\4\0", b"\5\0")  # quote versions; no evidence begins so
_SNP_VERSIONS: Final = range(2, 16)  # later versions too, for the error
_HEX_DIGITS: Final = frozenset(b"0123456789abcdefABCDEF")
_CERTIFICATES: Final = (b"\x30\x82", b"-----BEGIN CERTIFICATE-----")  # DER and PEM
_RESPONSE_KEYS: Final = (b'"attestation"', b'"quote"')
_BUNDLE_KEYS: Final = (b'"evidence"', b'"at"')


def parse_evidence(evidence: object) -> ParsedEvidence:
    """Parse evidence; bytes are recognised by content.

    Raises:
        FormatError: If it is malformed, or in an unknown form.
        UsageError: If it is an evidence bundle, or no `Evidence`.
    """
    if isinstance(evidence, bytes):
        return _parse_bytes(evidence)
    if isinstance(evidence, Attestation):
        return ParsedEvidence.of(evidence)
    if isinstance(evidence, Quote):
        return ParsedEvidence(None, evidence)
    if isinstance(evidence, SnpReport):
        return ParsedEvidence.of(attest_snp_report(evidence))
    if isinstance(evidence, EvidenceBundle):
        message = "evidence: pass an EvidenceBundle to Verifier.verify_bundle"
        raise UsageError(message, reason="wrong_type")
    raise wrong_type("evidence", "bytes, an Attestation, a Quote or an SnpReport", evidence)


def _parse_bytes(data: bytes) -> ParsedEvidence:
    if begins_with_snp_report(data):
        return ParsedEvidence.of(read_snp_report(data))
    if data[:2] in _RAW_QUOTES:
        return ParsedEvidence(None, Quote.parse(data))
    if is_nitro_document(data):
        return ParsedEvidence.of(attest_nitro_document(data))
    if data[:1] and data[0] in _HEX_DIGITS and (found := _unhex(data)) is not None:
        return _parse_bytes(found)
    if data.startswith(_CERTIFICATES):
        message = "evidence: a certificate; verify it and its evidence with ra_tls.verify"
        raise FormatError(message, reason="unsupported")
    try:
        return ParsedEvidence.of(Attestation.from_bytes(data))
    except FormatError as error:
        if data.lstrip()[:1] != b"{":
            raise
        if any(key in data for key in _RESPONSE_KEYS):
            return ParsedEvidence.of(Attestation.from_agent_response(data))
        if all(key in data for key in _BUNDLE_KEYS):
            message = "evidence: a bundle; pass EvidenceBundle.from_json to Verifier.verify_bundle"
            raise FormatError(message, reason="unsupported") from error
        raise


def _unhex(data: bytes) -> bytes | None:
    """Decode hex digits of data that is not hex digits itself; None for other data."""
    digits = data.strip()
    found = unhex(digits[2:] if digits[:2] in {b"0x", b"0X"} else digits)
    return found if found and found[0] not in _HEX_DIGITS else None


def begins_with_snp_report(data: bytes) -> bool:
    """Return whether data is long enough for an SEV-SNP report, and begins with its version.

    Bytes 2 and 3 of a quote of the same version are not zero.
    """
    return len(data) >= SNP_REPORT_SIZE and data[0] in _SNP_VERSIONS and data[1:4] == bytes(3)


def read_snp_report(data: bytes) -> Attestation:
    """Return evidence of a bare SEV-SNP report, with the certificate table behind it, if any.

    Linux returns them as `outblob` and `auxblob` of configfs-tsm.

    Raises:
        FormatError: If the report is malformed, or there are more than 10 MiB.
    """
    if len(data) > MAX_SIZE:
        message = f"SEV-SNP report and certificates: {len(data)} bytes, more than {MAX_SIZE}"
        raise FormatError(message, reason="too_large")
    report = SnpReport.parse(data[:SNP_REPORT_SIZE])
    return attest_snp_report(report, data[SNP_REPORT_SIZE:])


def attest_snp_report(report: SnpReport, certificates: bytes = b"") -> Attestation:
    """Return evidence of a bare SEV-SNP report, which identifies no app."""
    chain = (certificates,) if certificates else ()
    stack = Stack(report.report_data, (), "")
    return Attestation(EvidenceParts(SevSnp(report.raw, chain, ""), stack))


def attest_nitro_document(data: bytes) -> Attestation:
    """Return evidence of a bare AWS Nitro document, whose report data are its user data.

    Raises:
        FormatError: If the document is malformed.
    """
    document = read_nitro_document(data)
    platform = NitroTpm(data) if document.tpm else NitroEnclave(data)
    return Attestation(EvidenceParts(platform, Stack(document.user_data, (), "")))
