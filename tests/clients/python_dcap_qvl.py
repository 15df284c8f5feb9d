"""Typed access to dcap-qvl, an independent verifier, with attestkit's types."""

import json
from typing import Any, Final, NamedTuple

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
    theirs = _collateral(collateral)
    try:
        if root is None:
            report = dcap_qvl.verify(quote, theirs, now)
        else:
            report = dcap_qvl.verify_with_root_ca(quote, theirs, root, now)
    except ValueError as error:
        return Verdict(REJECT, text=str(error))
    return Verdict(report.status, tuple(report.advisory_ids), report=report.to_json())


def get_dcap_qvl_claims(
    quote: bytes, collateral: Collateral, root: bytes, now: int
) -> dict[str, Any]:
    """Return dcap-qvl's claims of a quote that it accepts: dates, levels and PCK certificate."""
    policy = dcap_qvl.QuotePolicy.claims_only(now)
    verifier = dcap_qvl.QuoteVerifier(root)
    claims = verifier.verify_with_policy(quote, _collateral(collateral), now, policy)
    found: dict[str, Any] = json.loads(claims.to_json())
    return found


def _collateral(collateral: Collateral) -> dcap_qvl.QuoteCollateralV3:
    return dcap_qvl.QuoteCollateralV3(
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


def through_json(text: str) -> str:
    """Return JSON collateral after a round trip through dcap-qvl."""
    again: str = dcap_qvl.QuoteCollateralV3.from_json(text).to_json()
    return again
