"""The PCK certificate of a quote and who issued it, read out of a chain nobody has verified."""

from collections.abc import Callable
from typing import Final, NamedTuple

from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit._crypto.x509.pem_chain import split_chain
from attestkit._crypto.x509.sgx_extension import PckExtension, read_sgx_extension
from attestkit._sanitize import shown
from attestkit.errors import FormatError
from attestkit.quote import Quote
from attestkit.verifier.dcap.reasons import refuse

__all__ = [
    "INTEL",
    "IN_QUOTE",
    "PEM_CHAIN",
    "PckChain",
    "Reader",
    "chain_of",
    "read_chain",
    "read_pck_chain",
]

Reader = Callable[[bytes], Certificate]

INTEL: Final = frozenset({"O=Intel Corporation", "L=Santa Clara", "ST=CA", "C=US"})
"""What all names in Intel's hierarchy share."""
IN_QUOTE: Final = "quote_format"
"""The reason for a malformed chain that the quote carries."""
PEM_CHAIN: Final = 5
"""The type of certification data that are the PCK certificate chain."""
_LEAF: Final = INTEL | {"CN=Intel SGX PCK Certificate"}
_AUTHORITIES: Final = (
    INTEL | {"CN=Intel SGX PCK Platform CA"},
    INTEL | {"CN=Intel SGX PCK Processor CA"},
)
_SHOWN: Final = 200  # characters of a name that a stranger chose


class PckChain(NamedTuple):
    """The PCK certificate, its issuer and what the first says of its platform."""

    leaf: Certificate
    authority: Certificate
    root: Certificate | None  # as the quote has it, which may leave it out
    platform: PckExtension

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """All that are there, leaf first."""
        return tuple(one for one in self[:3] if isinstance(one, Certificate))


def chain_of(quote: Quote, pck_certificate_chain: str | None) -> tuple[str, bytes]:
    """Return the chain of the PCK certificate of `quote`, and `reason` if it is malformed.

    Raises:
        CollateralError: The quote does not carry its chain, and the collateral has none either.
    """
    kind, data = quote.certification
    if kind == PEM_CHAIN:
        return IN_QUOTE, data
    if pck_certificate_chain is None:
        raise refuse(
            "pck_chain_missing",
            f"the quote carries no certificate chain (its certification data are of type {kind}, "
            f"not {PEM_CHAIN}), and the collateral no pck_certificate_chain: get it from a PCCS",
        )
    return "cert_malformed", pck_certificate_chain.encode("utf-8", "replace")


def read_pck_chain(reason: str, data: bytes, read: Reader = read_certificate) -> PckChain:
    """Read a chain of PCK certificate, its authority and, if it is there, the root.

    Raises:
        FormatError, CollateralError: These are no certificates, or the first has no well-formed SGX
            extension; with `reason`, which says whose fault that is.
        SignatureError: There are other certificates than that (`chain_length`,
            `unexpected_subject`).
    """
    try:
        chain = read_chain(data, read)
        if len(chain) not in {2, 3}:
            raise refuse(
                "chain_length",
                f"a PCK certificate chain has the certificate, its CA and the root, not "
                f"{len(chain)} certificates",
            )
        leaf, authority = chain[:2]
        names = frozenset(leaf.subject.split(",")), frozenset(authority.subject.split(","))
        if names[0] != _LEAF or names[1] not in _AUTHORITIES:
            raise refuse(
                "unexpected_subject",
                "the first certificates of a PCK certificate chain are Intel SGX PCK Certificate "
                f"and its CA, not {shown(leaf.subject, _SHOWN)} and "
                f"{shown(authority.subject, _SHOWN)}",
            )
        root = chain[2] if len(chain) == 3 else None
        return PckChain(leaf, authority, root, read_sgx_extension(leaf.der))
    except FormatError as error:
        what = error.message.removeprefix("PCK certificate chain: ")
        raise refuse(reason, f"PCK certificate chain: {what}") from error


def read_chain(data: bytes, read: Reader = read_certificate) -> tuple[Certificate, ...]:
    """Read certificates with nothing but white space between them; `read` reads one, from DER.

    Raises:
        FormatError: They are something else.
    """
    return tuple(read(der) for der in split_chain(data, 0))
