"""What a quote has to show before anything is fetched for it: all that holds without collateral.

Anybody can write a quote that names a platform, and would have a service asked for each name that
he thinks of. So the trust anchor must vouch for the PCK certificate at that time, this for the
quoting enclave's report, the report for the attestation key, and the key for the quote. Whether
something was revoked, is of Intel's enclave or up to date, collateral tells: dcap-qvl judges all
of it then, this included, and says yes alone.
"""

from attestkit._crypto.ecdsa import P256_SPKI_HEAD, p256_verify
from attestkit._crypto.x509.app_certificates import Certificate
from attestkit.errors import SignatureError
from attestkit.quote import Quote
from attestkit.verifier.dcap.diagnostics import named, not_valid_at, unsigned
from attestkit.verifier.dcap.pck_chain import PckChain
from attestkit.verifier.dcap.reasons import BAD_QE_REPORT, BAD_QUOTE, refuse

__all__ = ["check_chain", "check_quote"]


def check_chain(chain: PckChain, root: Certificate, now: int) -> None:
    """Check that `root` vouches for the PCK certificate at `now`, Unix seconds.

    Raises:
        SignatureError: It does not (`untrusted_root`, `cert_bad_signature`).
        CollateralExpiredError: A certificate is not valid at `now` (`cert_expired`).
    """
    if chain.root is not None and chain.root.spki_der != root.spki_der:
        raise unsigned(chain, root)
    try:
        chain.authority.check_signed_by(root.spki_der)
        chain.leaf.check_signed_by(chain.authority.spki_der)
    except SignatureError as error:
        raise unsigned(chain, root) from error
    for name, certificate in named(chain):
        if (late := not_valid_at(now, name, certificate)) is not None:
            raise late


def check_quote(quote: Quote, chain: PckChain | None) -> None:
    """Check that the quote is signed by the key that its QE report vouches for.

    Args:
        quote: Of a TD or an SGX enclave.
        chain: With whose first key the QE report is signed; None: that is not known yet.

    Raises:
        SignatureError: It is not (`qe_report_bad_signature`, `quote_bad_signature`).
    """
    if chain is not None:
        point = chain.leaf.spki_der.removeprefix(P256_SPKI_HEAD)
        report = quote.qe_report.raw
        _check(point, quote.qe_report_signature, report, BAD_QE_REPORT)
    # That the report is about this key, Quote.parse has seen (quote-formats.md, 6: qe_binding).
    _check(quote.attestation_key, quote.signature, quote.signed_region, BAD_QUOTE)


def _check(point: bytes, signature: bytes, signed: bytes, refusal: tuple[str, str]) -> None:
    try:
        p256_verify(point, signature, signed)
    except SignatureError as error:
        raise refuse(*refusal) from error
