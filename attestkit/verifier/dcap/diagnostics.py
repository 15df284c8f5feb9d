"""Errors of dcap-qvl whose text needs values of the evidence.

Each function takes dcap-qvl's text and its input, and returns the exception to raise.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from functools import partial
from typing import Final, NamedTuple

from attestkit._crypto.x509.app_certificates import Certificate
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError
from attestkit.quote import Quote, TdQuoteBody
from attestkit.verifier.dcap.collateral_checks import Endorsements, not_valid
from attestkit.verifier.dcap.pck_chain import PckChain, read_chain
from attestkit.verifier.dcap.reasons import DcapReason, moment, refuse
from attestkit.verifier.dcap.tcb_levels import shortfall, unsupported
from attestkit.verifier.result import ANOTHER_ROOT

_FRESH: Final = "fetch fresh collateral"
_PCK_CHAIN: Final = "the quote's PCK certificate chain"


class QvlInput(NamedTuple):
    """Input of dcap-qvl."""

    quote: Quote
    endorsed: Endorsements
    chain: PckChain
    root: Certificate  # the trust anchor
    now: int  # Unix seconds


def _moment(seconds: float) -> str:
    return moment(datetime.fromtimestamp(seconds, timezone.utc))


def _part_not_valid(part: str, _: str, given: QvlInput) -> AttestKitError:
    return not_valid(given.endorsed, given.root, given.now, part)


def _crl_expired(text: str, given: QvlInput) -> AttestKitError:
    # The root's CRL is checked first, by itself; an error in a chain is about the PCK CA's CRL.
    part = "the root CA's CRL" if text.startswith("CrlExpired") else "the PCK CA's CRL"
    return not_valid(given.endorsed, given.root, given.now, part)


def _certificate_expired(_: str, given: QvlInput) -> AttestKitError:
    for name, certificate in _certificates(given):
        if (error := not_valid_at(given.now, name, certificate)) is not None:
            return error
    return refuse("cert_expired", f"a certificate is not valid at {_moment(given.now)}; {_FRESH}")


def not_valid_at(now: int, name: str, certificate: Certificate) -> AttestKitError | None:
    """Return the exception if a certificate is not valid at `now`, Unix seconds; else None."""
    start, end = certificate.valid_from, certificate.valid_until
    at = f"and the verification is at {_moment(now)}"
    if now < start.timestamp():
        message = f"{name} is valid from {moment(start)}, {at}; check the clock"
        return refuse("cert_expired", message)
    if now > end.timestamp():
        return refuse("cert_expired", f"{name} was valid until {moment(end)}, {at}; {_FRESH}")
    return None


def named(chain: PckChain) -> tuple[tuple[str, Certificate], ...]:
    """Return the PCK certificate and its issuer, with their names in error texts."""
    return (
        ("the platform's PCK certificate", chain.leaf),
        ("the PCK CA's certificate", chain.authority),
    )


def _certificates(given: QvlInput) -> Iterator[tuple[str, Certificate]]:
    """Yield the certificates in the order of dcap-qvl, with their names in error texts."""
    collateral = given.endorsed.collateral
    for name, chain in (
        ("TCB info", collateral.tcb_info_issuer_chain),
        ("QE identity", collateral.qe_identity_issuer_chain),
    ):
        yield f"the certificate that signs {name}", read_chain(chain.encode())[0]
    yield from named(given.chain)


def _certificate_revoked(text: str, given: QvlInput) -> AttestKitError:
    if text.startswith("CertRevoked"):
        return refuse("cert_revoked", "the root CA's CRL revokes the root itself")
    collateral = given.endorsed.collateral
    for name, certificate in _certificates(given):
        serial = abs(certificate.serial_number)
        octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
        # A search is enough: dcap-qvl has found that one of the certificates is revoked.
        if octets in collateral.root_ca_crl or octets in collateral.pck_crl:
            return refuse("cert_revoked", f"{name} is on the CRL of its issuer")
    return refuse(
        "cert_revoked", "a certificate of the quote or the collateral is revoked: it is on a CRL"
    )


def _root_crl(text: str, given: QvlInput) -> AttestKitError:
    if "InvalidCrlSignatureForPublicKey" not in text:
        return refuse("crl_malformed", f"the root CA's CRL is malformed; {_FRESH}")
    if given.endorsed.roots[0] == given.root.spki_der:
        message = f"the root CA's CRL is not signed by the trust anchor; {_FRESH}"
        return refuse("crl_bad_signature", message)
    return refuse(
        "crl_bad_signature",  # the first check of dcap-qvl
        "the collateral has another root than the trust anchor: the trust anchor did not sign its "
        f"root CA's CRL; {ANOTHER_ROOT}",
    )


def _unsigned_certificate(_: str, given: QvlInput) -> AttestKitError:
    ends = [
        ("the issuer chain of TCB info", given.endorsed.roots[0]),
        ("the issuer chain of QE identity", given.endorsed.roots[1]),
    ]
    return unsigned(given.chain, given.root, ends)


def unsigned(
    chain: PckChain, root: Certificate, ends: Iterable[tuple[str, bytes]] = ()
) -> AttestKitError:
    """Return the exception for a certificate path that does not end at the trust anchor.

    Args:
        chain: PCK certificate chain.
        root: Trust anchor.
        ends: Name of each other chain, and the public key of its last certificate.
    """
    own = () if chain.root is None else ((_PCK_CHAIN, chain.root.spki_der),)
    for name, key in (*ends, *own):
        if key != root.spki_der:
            message = f"{name} leads to another root than the trust anchor; {ANOTHER_ROOT}"
            return refuse("untrusted_root", message)
    return refuse(
        "cert_bad_signature",
        "a certificate is not signed by the next certificate in its chain, or by the trust anchor",
    )


def _not_supported(_: str, given: QvlInput) -> AttestKitError:
    why = _why(unsupported, given)
    return refuse("tcb_not_supported", f"the platform is below every TCB level: {why}")


def _component_not_supported(_: str, given: QvlInput) -> AttestKitError:
    why = _why(shortfall, given)
    return refuse("tcb_not_supported", f"a component is below all of its TCB levels: {why}")


def _tcb_revoked(_: str, given: QvlInput) -> AttestKitError:
    why = _why(shortfall, given)
    message = f"Intel has revoked the TCB of this platform, and no policy accepts it: {why}"
    return refuse("tcb_revoked", message)


def _why(tell: Callable[[Collateral, Quote], str], given: QvlInput) -> str:
    try:
        return tell(given.endorsed.collateral, given.quote)
    except AttestKitError:
        return "the outdated component is not known"


def _debug(_: str, given: QvlInput) -> AttestKitError:
    reason: DcapReason = "td_debug" if given.quote.tee_type else "enclave_debug"
    what = "TD" if given.quote.tee_type else "enclave"
    return refuse(
        reason,
        f"the {what} runs in debug mode{_attributes(given)}: its host can read and change all of "
        "it; start it without debug mode",
    )


def _td_attributes(text: str, given: QvlInput) -> AttestKitError:
    for said, meant in (
        ("SEPT_VE_DISABLE", "SEPT_VE_DISABLE is not set: the host can inject exceptions"),
        ("TD profiling", "a profiling bit is set: the host can watch the TD"),
        ("TD migration", "MIGRATABLE is set"),
        ("SERVTD_EXT", "SERVTD_EXT is set"),
    ):
        if said in text:
            return refuse("td_attributes", f"TD attributes{_attributes(given)}: {meant}")
    return refuse("td_attributes", f"TD attributes{_attributes(given)}: a reserved bit is set")


def _attributes(given: QvlInput) -> str:
    body = given.quote.body
    value = body.td_attributes if isinstance(body, TdQuoteBody) else body.attributes
    return f" ({value.hex()})"


EXPLAINED: Final[dict[str, Callable[[str, QvlInput], AttestKitError]]] = {
    "CrlExpired": _crl_expired,
    "CertExpired": _certificate_expired,
    "CertNotValidYet": _certificate_expired,
    "CertRevoked": _certificate_revoked,
    "Failed to parse root CA CRL": _root_crl,
    "InvalidSignatureForPublicKey": _unsigned_certificate,
    "UnknownIssuer": _unsigned_certificate,
    "TCBInfo expired": partial(_part_not_valid, "TCB info"),
    "TCBInfo issue date is in the future": partial(_part_not_valid, "TCB info"),
    "QE Identity expired": partial(_part_not_valid, "QE identity"),
    "QE Identity issue date is in the future": partial(_part_not_valid, "QE identity"),
    "No matching TCB level found": _not_supported,
    "TDX module ISVSVN": _component_not_supported,
    "QE ISVSVN": _component_not_supported,
    "TCB status is invalid: Revoked": _tcb_revoked,
    "Debug mode is enabled": _debug,
    "TD profiling is enabled": _td_attributes,
    "SERVTD_EXT is enabled": _td_attributes,
    "SEPT_VE_DISABLE is not enabled": _td_attributes,
    "TD migration is enabled": _td_attributes,
    "Reserved bits in TD attributes are set": _td_attributes,
}
"""Functions that return the exception, by prefix of dcap-qvl's error or of one of its causes."""
