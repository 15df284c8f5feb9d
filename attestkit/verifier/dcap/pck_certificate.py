"""PCK certificates: a fast reader for Intel's layout, and the general one for any other."""

from dataclasses import replace

from attestkit._crypto.ecdsa import P256PublicKey
from attestkit._crypto.x509.intel_certificates import (
    PCK_CERTIFICATE,
    IntelCertificate,
    check_issuer,
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
        check_issuer(certificate.issuer, fields.signature, fields.tbs, issuer, _WHAT)
        return certificate, PckExtension(*fields[8:])
    certificate = read_intel_certificate(der, _WHAT, (PCK_CERTIFICATE,))
    certificate.check_issued_by(issuer, _WHAT)
    if certificate.sgx_extension is None:
        raise FormatError("has no SGX extension", reason="missing")
    extension = parse_sgx_extension(certificate.sgx_extension)
    # Drop what only the verification needs, 1 KiB of each platform.
    return replace(certificate, signed=b"", signature=b"", sgx_extension=None), extension


def _certificate(der: bytes, fields: PckCertificateFields) -> IntelCertificate:
    """Return the certificate of these fields, without what only its verification needs."""
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
        signed=b"",
        signature=b"",
        sgx_extension=None,
    )
