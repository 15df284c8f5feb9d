"""Typed access to dcap-qvl, an independent verifier, with attestkit's types."""

from typing import Final, NamedTuple

import dcap_qvl

from attestkit.collateral import Collateral

REJECT: Final = "reject"


class Verdict(NamedTuple):
    """The result of dcap-qvl for a quote."""

    status: str  # Intel's TCB status, or "reject"
    advisories: tuple[str, ...] = ()
    text: str = ""  # reason of a rejection
    report: str = ""  # accepted report, JSON


def verify_with_dcap_qvl(
    quote: bytes, collateral: Collateral, root: bytes | None, now: int
) -> Verdict:
    """Return dcap-qvl's result at `now` for a root (DER); None: Intel's, its default."""
    theirs = dcap_qvl.QuoteCollateralV3(
        collateral.pck_crl_issuer_chain,
        collateral.root_ca_crl,
        collateral.pck_crl,
        collateral.tcb_info_issuer_chain,
        collateral.tcb_info,
        collateral.tcb_info_signature,
        collateral.qe_identity_issuer_chain,
        collateral.qe_identity,
        collateral.qe_identity_signature,
    )
    try:
        if root is None:
            report = dcap_qvl.verify(quote, theirs, now)
        else:
            report = dcap_qvl.verify_with_root_ca(quote, theirs, root, now)
    except ValueError as error:
        return Verdict(REJECT, text=str(error))
    return Verdict(report.status, tuple(report.advisory_ids), report=report.to_json())


def through_json(text: str) -> str:
    """Return JSON collateral after a round trip through dcap-qvl."""
    again: str = dcap_qvl.QuoteCollateralV3.from_json(text).to_json()
    return again
