"""Rollback protection: merge fetched collateral with verified collateral, part by part.

Every part has its own signature and dates, so parts of two responses can be combined. A PCCS may
be behind another one, and a network attacker may replay collateral of before the last TCB recovery
or revocation. A verified part is therefore used until a newer one is fetched.
"""

from dataclasses import replace
from datetime import datetime
from typing import Final

from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.x509.pem_chain import split_chain
from attestkit.collateral.intel_collateral import Collateral
from attestkit.collateral.parts import json_object, part_window
from attestkit.errors import AttestKitError, CollateralError


def merge_newest(verified: Collateral, fetched: Collateral) -> Collateral:
    """Return `fetched`; parts that are older than those in `verified` are replaced by the latter.

    Args:
        verified: Collateral of a successful verification.
        fetched: Collateral that need not be authentic. A malformed part is not replaced: the
            verifier will reject it.
    """
    newer = {
        name: getattr(verified, name)
        for names in _PARTS
        if _is_newer(names[0], verified, fetched)
        for name in names
    }
    return replace(fetched, **newer) if newer else fetched


def issue_time(collateral: Collateral) -> datetime:
    """Return the latest issue date of TCB info, QE identity and CRLs.

    The dates of the issuer chains do not count: the verifier does not check those of every
    certificate, so that a network attacker could choose them.

    Raises:
        CollateralError: If a part has no dates.
    """
    return max(part_window(name, getattr(collateral, name)).start for name, *_ in _PARTS)


def root_key_id(collateral: Collateral) -> str | None:
    """Return the SHA-256 of the key of the root in the TCB info issuer chain, in hex.

    The key is not authenticated. Collateral of different roots is never compared, and verifiers
    reject a chain that its root did not sign. None if the chain is malformed.
    """
    try:
        chain = split_chain(collateral.tcb_info_issuer_chain.encode("utf-8", "replace"), 0)
        return sha256(read_certificate(chain[-1]).spki_der).hex()
    except AttestKitError:
        return None


def _is_newer(part: str, verified: Collateral, fetched: Collateral) -> bool:
    try:
        return _version(part, verified) > _version(part, fetched)
    except CollateralError:
        return False


def _version(part: str, collateral: Collateral) -> tuple[int, datetime]:
    """Return the version of TCB info or QE identity, or of a CRL: its thisUpdate.

    `tcbEvaluationDataNumber` grows with each TCB recovery; Intel issues the same evaluation again
    with a new issue date.
    """
    value: str | bytes = getattr(collateral, part)
    number: object = 0
    if isinstance(value, str):
        number = json_object(part, value).get("tcbEvaluationDataNumber")
    if not isinstance(number, int):
        raise CollateralError(f"{part}: tcbEvaluationDataNumber missing", reason="malformed")
    return number, part_window(part, value).start


# Parts with a version, each followed by the fields that belong to it.
_PARTS: Final = (
    ("tcb_info", "tcb_info_signature", "tcb_info_issuer_chain"),
    ("qe_identity", "qe_identity_signature", "qe_identity_issuer_chain"),
    ("pck_crl", "pck_crl_issuer_chain"),
    ("root_ca_crl",),
)
