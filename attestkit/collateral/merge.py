"""Rollback protection: merge fetched collateral with verified collateral, part by part.

Every part has its own signature and dates, so parts of two responses can be combined. A PCCS may
be behind another one, and a network attacker may replay collateral of before the last TCB recovery
or revocation. A verified part is therefore used until a newer one is fetched.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.x509.pem_chain import split_chain
from attestkit.collateral.intel_collateral import Collateral
from attestkit.collateral.parts import json_object, part_window
from attestkit.errors import AttestKitError, CollateralError

__all__ = ["issue_time", "merge_newest", "root_key_id"]


def merge_newest(verified: Collateral, fetched: Collateral) -> Collateral:
    """Return `fetched`, with the parts replaced for which `verified` has a newer one.

    Args:
        verified: Collateral of a successful verification.
        fetched: Collateral that need not be authentic. A malformed part is not replaced: the
            verifier will reject it.
    """
    newer = {
        name: getattr(verified, name)
        for names, version in _PARTS
        if _is_newer(version, verified, fetched)
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
    return max(part_window(name, getattr(collateral, name)).start for (name, *_), _ in _PARTS)


def root_key_id(collateral: Collateral) -> str | None:
    """Return the SHA-256 of the key of the root in the TCB info issuer chain, in hex.

    It is not authenticated. Collateral of different roots is never compared; a chain with another
    root than the one that signed it is rejected by every verifier. A malformed chain gives None.
    """
    try:
        chain = split_chain(collateral.tcb_info_issuer_chain.encode("utf-8", "replace"), 0)
        return sha256(read_certificate(chain[-1]).spki_der).hex()
    except AttestKitError:
        return None


_Version = tuple[int, datetime]


def _is_newer(
    version: Callable[[Collateral], _Version], verified: Collateral, fetched: Collateral
) -> bool:
    try:
        return version(verified) > version(fetched)
    except CollateralError:
        return False


def _body_version(name: str) -> Callable[[Collateral], _Version]:
    """Return a function for the version of TCB info or QE identity.

    `tcbEvaluationDataNumber` grows with each TCB recovery; Intel issues the same evaluation again
    with a new issue date.
    """

    def version(collateral: Collateral) -> _Version:
        text = getattr(collateral, name)
        number = json_object(name, text).get("tcbEvaluationDataNumber")
        if not isinstance(number, int):
            raise CollateralError(
                f"{name}: missing member: tcbEvaluationDataNumber", reason="malformed"
            )
        return number, part_window(name, text).start

    return version


def _crl_version(name: str) -> Callable[[Collateral], _Version]:
    """Return a function for the version of a CRL: its thisUpdate."""
    return lambda collateral: (0, part_window(name, getattr(collateral, name)).start)


_PARTS: Final = (
    (
        ("tcb_info", "tcb_info_signature", "tcb_info_issuer_chain"),
        _body_version("tcb_info"),
    ),
    (
        ("qe_identity", "qe_identity_signature", "qe_identity_issuer_chain"),
        _body_version("qe_identity"),
    ),
    (("pck_crl", "pck_crl_issuer_chain"), _crl_version("pck_crl")),
    (("root_ca_crl",), _crl_version("root_ca_crl")),
)
