"""Whether certificates lead to Intel: the key of a chain that ends at the SGX Root CA.

This tells hardware from stand-ins and is no verification: neither dates nor revocation nor the
platform's state are looked at.
"""

from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from attestkit._crypto.certificates import read_certificate
from attestkit._crypto.ecdsa import P256_SPKI_HEAD
from attestkit._crypto.hashes import sha256
from attestkit.errors import FormatError, SignatureError

__all__ = ["INTEL_ROOT", "pck_key"]

INTEL_ROOT: Final = bytes.fromhex(
    "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"
)
"""The SHA-256 of the SubjectPublicKeyInfo of Intel's SGX Root CA, the one of 2018."""


def pck_key(chain: Sequence[bytes]) -> bytes:
    """Return the P-256 point (64 bytes, x and y) of the PCK certificate, if Intel vouches for it.

    Args:
        chain: DER of the PCK certificate, its authority and the root, as a quote has them.

    Raises:
        SignatureError: The chain is another, or does not hold.
    """
    if len(chain) != 3:
        raise SignatureError(f"a PCK certificate chain has 3 certificates, not {len(chain)}")
    try:
        leaf, root = read_certificate(chain[0]), read_certificate(chain[2])
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
    except (FormatError, ValueError, x509.InvalidVersion) as error:
        raise SignatureError("the PCK certificate chain is malformed") from error
    if sha256(root.spki_der) != INTEL_ROOT:
        raise SignatureError("the root certificate's key is not that of Intel's SGX Root CA")
    issuers = (*certificates[1:], certificates[2])
    for certificate, issuer in zip(certificates, issuers, strict=True):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise SignatureError("the PCK certificate chain does not hold") from error
    if not leaf.spki_der.startswith(P256_SPKI_HEAD):
        raise SignatureError("the key of the PCK certificate is not P-256")
    return leaf.spki_der[len(P256_SPKI_HEAD) :]
