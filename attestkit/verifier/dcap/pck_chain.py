"""Decoding of the PCK certificate chain of a quote, without verification."""

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit._crypto.x509.pem_chain import split_chain
from attestkit._crypto.x509.sgx_extension import PckExtension, read_sgx_extension
from attestkit._sanitize import shown
from attestkit.errors import FormatError
from attestkit.quote import Quote
from attestkit.verifier.dcap.reasons import refuse

ChainReason = Literal["quote_format", "cert_malformed"]
"""Reason of a malformed PCK certificate chain, which is in the quote or in the collateral."""

Reader = Callable[[bytes], Certificate]

INTEL: Final = frozenset({"O=Intel Corporation", "L=Santa Clara", "ST=CA", "C=US"})
"""Attributes common to all names in Intel's PKI."""
IN_QUOTE: Final = "quote_format"
"""Reason of a malformed chain in the quote."""
PEM_CHAIN: Final = 5
"""Type of certification data with a PCK certificate chain."""
_LEAF: Final = INTEL | {"CN=Intel SGX PCK Certificate"}
_AUTHORITIES: Final = (
    INTEL | {"CN=Intel SGX PCK Platform CA"},
    INTEL | {"CN=Intel SGX PCK Processor CA"},
)
_SHOWN: Final = 200  # characters of an untrusted name


class PckChain(NamedTuple):
    """PCK certificate chain, with the SGX extension of the PCK certificate."""

    leaf: Certificate
    authority: Certificate
    root: Certificate | None  # optional in the quote
    platform: PckExtension

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """Certificates of the chain, leaf first."""
        return tuple(one for one in self[:3] if isinstance(one, Certificate))


def select_chain(quote: Quote, pck_certificate_chain: str | None) -> tuple[ChainReason, bytes]:
    """Return the PCK certificate chain of `quote`, and the reason to use if it is malformed.

    Raises:
        CollateralError: If neither quote nor collateral has the chain.
    """
    kind, data = quote.certification
    if kind == PEM_CHAIN:
        return IN_QUOTE, data
    if pck_certificate_chain is None:
        raise refuse(
            "pck_chain_missing",
            f"the quote has no certificate chain (its certification data are of type {kind}, not "
            f"{PEM_CHAIN}), and the collateral has no pck_certificate_chain; get it from a PCCS",
        )
    return "cert_malformed", pck_certificate_chain.encode("utf-8", "replace")


def read_pck_chain(reason: ChainReason, data: bytes, read: Reader = read_certificate) -> PckChain:
    """Decode a chain of PCK certificate, PCK CA and optionally the root.

    Raises:
        FormatError, CollateralError: If a certificate or the SGX extension is malformed; the class
            depends on `reason`.
        SignatureError: If the chain has other certificates (`chain_length`, `unexpected_subject`).
    """
    try:
        chain = read_chain(data, read)
        if len(chain) not in {2, 3}:
            raise refuse(
                "chain_length",
                f"PCK certificate chain: {len(chain)} certificates, must be the PCK certificate, "
                "its CA and the root",
            )
        leaf, authority = chain[:2]
        names = frozenset(leaf.subject.split(",")), frozenset(authority.subject.split(","))
        if names[0] != _LEAF or names[1] not in _AUTHORITIES:
            raise refuse(
                "unexpected_subject",
                f"PCK certificate chain: begins with {shown(leaf.subject, _SHOWN)} and "
                f"{shown(authority.subject, _SHOWN)}, must be Intel SGX PCK Certificate and its CA",
            )
        root = chain[2] if len(chain) == 3 else None
        return PckChain(leaf, authority, root, read_sgx_extension(leaf.der))
    except FormatError as error:
        what = error.message.removeprefix("PCK certificate chain: ")
        raise refuse(reason, f"PCK certificate chain: {what}") from error


def read_chain(data: bytes, read: Reader = read_certificate) -> tuple[Certificate, ...]:
    """Decode PEM certificates separated by white space; `read` decodes one in DER.

    Raises:
        FormatError: If one is malformed, or there is other text.
    """
    return tuple(read(der) for der in split_chain(data, 0))
