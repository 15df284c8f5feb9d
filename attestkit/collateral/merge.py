"""The newer of two collaterals for one platform, part by part.

Every part has its own signature and dates, so parts of two answers go together. A service behind
others may be a day behind another one; who stands in the way may answer with what was current
before the last TCB recovery, or before something was revoked. Both end the same: a part that has
passed a verification stays until a newer one comes.
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

__all__ = ["issued", "newest", "root_of"]


def newest(known: Collateral, fetched: Collateral) -> Collateral:
    """Return `fetched` with those parts of `known` in their place that are newer.

    Args:
        known: Authentic: it has passed a verification.
        fetched: Nothing of it need be authentic, since a verifier will look at what is returned.
            A part that cannot be read stays: it will be refused.
    """
    kept = {
        name: getattr(known, name)
        for names, age in _PARTS
        if _is_newer(age, known, fetched)
        for name in names
    }
    return replace(fetched, **kept) if kept else fetched


def issued(collateral: Collateral) -> datetime:
    """Return when the latest of those parts was issued that a verifier looks at.

    Certificates that come along have dates, too, and some of those nobody looks at: whoever stands
    in the way could write any there.

    Raises:
        CollateralError: A part has no dates.
    """
    return max(part_window(name, getattr(collateral, name)).start for (name, *_), _ in _PARTS)


def root_of(collateral: Collateral) -> str | None:
    """Return a name for the root that TCB info is issued under, if only by its own words.

    One root's collateral is never held to another's. What says another root here than the one that
    signed it is refused by every verifier, and so is what says none, for which this is None.
    """
    try:
        chain = split_chain(collateral.tcb_info_issuer_chain.encode("utf-8", "replace"), 0)
        return sha256(read_certificate(chain[-1]).spki_der).hex()
    except AttestKitError:
        return None


_Age = tuple[int, datetime]


def _is_newer(age: Callable[[Collateral], _Age], known: Collateral, fetched: Collateral) -> bool:
    try:
        return age(known) > age(fetched)
    except CollateralError:
        return False


def _body_age(name: str) -> Callable[[Collateral], _Age]:
    """Return what tells how new TCB info or QE identity is.

    The number tells what Intel knew (its "tcbEvaluationDataNumber" only grows), the date is when
    it said so again.
    """

    def age(collateral: Collateral) -> _Age:
        text = getattr(collateral, name)
        number = json_object(name, text).get("tcbEvaluationDataNumber")
        if not isinstance(number, int):
            raise CollateralError(f"{name} has no tcbEvaluationDataNumber")
        return number, part_window(name, text).start

    return age


def _crl_age(name: str) -> Callable[[Collateral], _Age]:
    """Return what tells how new a CRL is: its thisUpdate."""
    return lambda collateral: (0, part_window(name, getattr(collateral, name)).start)


_PARTS: Final = (
    (
        ("tcb_info", "tcb_info_signature", "tcb_info_issuer_chain"),
        _body_age("tcb_info"),
    ),
    (
        ("qe_identity", "qe_identity_signature", "qe_identity_issuer_chain"),
        _body_age("qe_identity"),
    ),
    (("pck_crl", "pck_crl_issuer_chain"), _crl_age("pck_crl")),
    (("root_ca_crl",), _crl_age("root_ca_crl")),
)
