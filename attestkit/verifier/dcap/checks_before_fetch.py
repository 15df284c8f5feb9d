"""Checks of a quote without collateral, before collateral is fetched for it.

Forged quotes with arbitrary FMSPCs could otherwise trigger PCCS requests. The checks cover the PCK
certificate chain up to the trust anchor, its validity, the signature of the QE report, and the
signature of the quote. Revocation, QE identity and TCB levels need collateral; dcap-qvl then
verifies everything, these checks included.
"""

from attestkit._crypto.ecdsa import P256_SPKI_HEAD, p256_verify
from attestkit._crypto.x509.app_certificates import Certificate
from attestkit.errors import SignatureError
from attestkit.quote import Quote
from attestkit.verifier.dcap.diagnostics import named, not_valid_at, unsigned
from attestkit.verifier.dcap.pck_chain import PckChain
from attestkit.verifier.dcap.reasons import BAD_QE_REPORT, BAD_QUOTE, DcapReason, refuse


def check_chain(chain: PckChain, root: Certificate, now: int) -> None:
    """Verify the PCK certificate chain up to `root` at `now`, Unix seconds.

    Raises:
        SignatureError: If the chain is not valid (`untrusted_root`, `cert_bad_signature`).
        CollateralExpiredError: If a certificate is not valid at `now` (`cert_expired`).
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
    """Verify the signatures of the QE report and the quote.

    Args:
        quote: Quote of a TD or an SGX enclave.
        chain: PCK certificate chain; None skips the signature of the QE report.

    Raises:
        SignatureError: If a signature is not valid (`qe_report_bad_signature`,
            `quote_bad_signature`).
    """
    if chain is not None:
        point = chain.leaf.spki_der.removeprefix(P256_SPKI_HEAD)
        report = quote.qe_report.raw
        _check(point, quote.qe_report_signature, report, BAD_QE_REPORT)
    # Quote.parse has checked the key's hash in the QE report (quote-formats.md, 6: qe_binding).
    _check(quote.attestation_key, quote.signature, quote.signed_region, BAD_QUOTE)


def _check(point: bytes, signature: bytes, signed: bytes, refusal: tuple[DcapReason, str]) -> None:
    try:
        p256_verify(point, signature, signed)
    except SignatureError as error:
        raise refuse(*refusal) from error
