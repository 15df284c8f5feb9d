"""PCK certificates: a fast reader for Intel's layout, and the general one for any other."""

from dataclasses import replace

from attestkit._crypto.ecdsa import P256PublicKey
from attestkit._crypto.x509.intel_certificates import (
    PCK_CERTIFICATE,
    IntelCertificate,
    read_intel_certificate,
)
from attestkit._crypto.x509.sgx_extension import PckExtension, parse_sgx_extension
from attestkit._native import PckCertificateFields, read_pck_certificate
from attestkit.errors import FormatError, SignatureError

_WHAT = "PCK certificate"


def read_pck(der: bytes, issuer: IntelCertificate) -> tuple[IntelCertificate, PckExtension]:
    """Verify that `issuer` signed a PCK certificate; return it and its SGX extension.

    Raises:
        FormatError: If the certificate or its extension is malformed, or the extension is missing.
        SignatureError: If the certificate does not conform to Intel's profile, or `issuer` did not
            sign it.
    """
    fields = read_pck_certificate(der)
    if fields is not None:
        certificate = _certificate(der, fields)
        certificate.check_issued_by(issuer, _WHAT)
        return _without_signature(certificate), PckExtension(*fields[8:])
    certificate = read_intel_certificate(der, _WHAT, (PCK_CERTIFICATE,))
    certificate.check_issued_by(issuer, _WHAT)
    if certificate.sgx_extension is None:
        raise FormatError("has no SGX extension", reason="missing")
    return _without_signature(certificate), parse_sgx_extension(certificate.sgx_extension)


def _without_signature(verified: IntelCertificate) -> IntelCertificate:
    """Return a certificate without what only its verification needs, 1 KiB of each platform."""
    return replace(verified, signed=b"", signature=b"", sgx_extension=None)


def _certificate(der: bytes, fields: PckCertificateFields) -> IntelCertificate:
    try:
        key = P256PublicKey(fields.point[1:])
    except SignatureError as error:
        message = f"{_WHAT}: public key is not on P-256"
        raise SignatureError(message, reason="cert_constraints") from error
    return IntelCertificate(
        der=der,
        common_name=PCK_CERTIFICATE,
        subject=fields.subject,
        issuer=fields.issuer,
        serial_number=int.from_bytes(fields.serial, "big"),
        start=fields.not_before,
        end=fields.not_after + 1,
        key=key,
        signed=fields.tbs,
        signature=fields.signature,
        sgx_extension=None,
    )
