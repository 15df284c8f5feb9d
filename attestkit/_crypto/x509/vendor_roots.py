"""Root certificates of vendors and clouds, and a check of chains up to Intel's root.

The check distinguishes hardware from simulators. It is not a verification: validity, revocation
and TCB status are not checked.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from attestkit._crypto.ecdsa import P256_SPKI_HEAD
from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.cert_path import check_issued, read_path_certificate
from attestkit._crypto.x509.path_rules import P256_RULES, require_p256_spki
from attestkit._outcomes.reasons import SignatureReason
from attestkit.errors import FormatError, SignatureError


def _root(name: str) -> bytes:
    """Return a packaged certificate in DER, self-signed unless its name ends with `ca_NUMBER`."""
    return split_pem((Path(__file__).parent / "roots" / f"{name}.pem").read_text())[0]


_PCK_CHAIN: Final = ("PCK certificate", "Intel's CA certificate", "Intel's root certificate")

INTEL_ROOT: Final = bytes.fromhex(
    "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"
)
"""SHA-256 of the SubjectPublicKeyInfo of Intel's SGX Root CA (2018)."""

INTEL_ROOT_DER: Final = _root("intel_sgx")
"""Intel's SGX Root CA (2018) in DER."""

AMD_ROOTS: Final = {
    "Milan": _root("amd_milan"),
    "Genoa": _root("amd_genoa"),
    "Turin": _root("amd_turin"),
}
"""AMD's root certificate (ARK, DER) of each product line; Genoa includes Bergamo and Siena."""

AWS_ROOT: Final = _root("aws_nitro")
"""AWS Nitro Enclaves Root G1 in DER."""


@cache
def google_roots() -> tuple[bytes, ...]:
    """Return Google's roots (DER) for keys of its TPMs: EK/AK CA Root (2022), and that of 2018."""
    return _root("google_ek_ak"), _root("google_tpm_ek_v1")


@cache
def azure_root() -> bytes:
    """Return Azure Virtual TPM Root Certificate Authority 2023 in DER."""
    return _root("azure_virtual_tpm_2023")


@cache
def azure_authorities() -> tuple[bytes, ...]:
    """Return CAs (DER) below Azure's root that evidence lacks: Global Virtual TPM CA - 03."""
    return (_root("azure_global_virtual_tpm_ca_03"),)


NVIDIA_DEVICE_ROOT: Final = bytes.fromhex(
    "a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4"
)
"""SHA-256 of the SubjectPublicKeyInfo of NVIDIA Device Identity CA.

NVIDIA published two certificates of this name and key, so the key is pinned.
"""

NVIDIA_RIM_ROOT: Final = bytes.fromhex(
    "dec1dc316477aa851eebdf51327ae9f864bc8d89254657ed1e7eb9168af1e1a3"
)
"""SHA-256 of the SubjectPublicKeyInfo of NVIDIA CoRIM signing Root CA."""


@cache
def nvidia_roots() -> tuple[bytes, bytes]:
    """Return NVIDIA's roots in DER: Device Identity CA (2021), CoRIM signing Root CA (2023)."""
    return _root("nvidia_device"), _root("nvidia_rim")


def pck_key(chain: Sequence[bytes]) -> bytes:
    """Return the public key of a PCK certificate whose chain ends at Intel's root.

    Args:
        chain: PCK certificate, its CA certificate and the root certificate, in DER.

    Returns:
        P-256 point: x and y, 64 bytes.

    Raises:
        SignatureError: If there are not 3 certificates, one is malformed or not signed by the next
            one, the root is not Intel's, or the key is not on P-256.
    """
    if len(chain) != 3:
        raise _bad(f"must have 3 certificates, not {len(chain)}", "chain_length")
    try:
        leaf, authority, root = (
            (name, read_path_certificate(der)) for name, der in zip(_PCK_CHAIN, chain, strict=True)
        )
    except FormatError as error:
        raise _bad("malformed certificate", "cert_malformed") from error
    if sha256(root[1].spki) != INTEL_ROOT:
        raise _bad("the root is not Intel's SGX Root CA", "untrusted_root")
    for certificate, issuer in ((leaf, authority), (authority, root), (root, root)):
        check_issued(certificate, issuer, "cert_bad_signature", P256_RULES)
    require_p256_spki(leaf[1].spki)
    return leaf[1].spki[len(P256_SPKI_HEAD) :]


def _bad(problem: str, reason: SignatureReason) -> SignatureError:
    return SignatureError(f"PCK certificate chain: {problem}", reason=reason)
