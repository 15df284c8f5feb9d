"""CRLs of Intel's SGX PKI, read strictly by Intel's profile (dcap-verification.md, section 4)."""

from typing import Final

from attestkit._crypto.x509.crl import Crl, read_crl_content, read_signed_crl
from attestkit._crypto.x509.intel_certificates import ECDSA_SHA256, IntelCertificate
from attestkit.errors import SignatureError

__all__ = ["Crl", "read_crl"]

_FRESH: Final = "fetch fresh collateral"


def read_crl(der: bytes, issuer: IntelCertificate, what: str) -> Crl:
    """Verify that `issuer` signed a CRL, and parse it.

    Args:
        der: The CRL.
        issuer: The CA whose CRL it must be.
        what: Name of the CRL for error messages.

    Raises:
        FormatError: If the CRL is malformed.
        SignatureError: If it is the CRL of another CA (`crl_missing`), or its signature is not
            valid (`crl_bad_signature`).
    """
    crl = read_signed_crl(der)
    if crl.issuer != issuer.subject:
        message = f"{what}: its issuer must be {issuer.common_name}; {_FRESH} of this platform"
        raise SignatureError(message, reason="crl_missing")
    if (crl.algorithm, crl.inner_algorithm) != (ECDSA_SHA256, ECDSA_SHA256) or crl.unused:
        message = f"{what}: signature algorithm must be ECDSA on P-256 with SHA-256; {_FRESH}"
        raise SignatureError(message, reason="crl_bad_signature")
    # The signature first: a list of a million entries takes long to read.
    try:
        issuer.key.verify_der(crl.signature, crl.signed)
    except SignatureError as error:
        message = f"{what}: not signed by {issuer.common_name}; {_FRESH}"
        raise SignatureError(message, reason="crl_bad_signature") from error
    return read_crl_content(der)
