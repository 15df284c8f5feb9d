"""Authentication of TDX and SGX quotes: with given collateral, or from a PCCS or its cache.

`dcap` verifies a quote with its collateral. Forged quotes with arbitrary FMSPCs could otherwise
trigger PCCS requests. A request is therefore sent only for a quote whose checks without collateral
pass (`Dcap.precheck`). Cached collateral is used at once, because the full verification includes
these checks.
"""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, CollateralError
from attestkit.quote import Quote
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.dcap.reasons import is_independent_of_collateral

if TYPE_CHECKING:
    from attestkit.collateral.caching_source import CollateralLookup, CollateralSource
    from attestkit.verifier.dcap.engine import Dcap

_NO_FETCH: Final = (
    "collateral: must be fetched for this quote, but fetch is false; pass fetch=True, or collateral"
)


def authenticate_quote(
    dcap: "Dcap",
    quote: Quote,
    collateral: Collateral | None,
    now: datetime,
    *,
    behind_paravisor: bool = False,
) -> Authenticated:
    """Verify a quote with its collateral, and return its signed content.

    Args:
        dcap: Authenticator of quotes.
        quote: Quote of a TD or an SGX enclave.
        collateral: Collateral for the quote's platform; None is an error.
        now: Time of the verification, with a time zone.
        behind_paravisor: Whether a paravisor runs in the TD, so that SEPT_VE_DISABLE is not
            required.

    Raises:
        CollateralError: If `collateral` is None (`missing`).
        AttestKitError: As for `Dcap.authenticate`.
    """
    if collateral is None:
        raise CollateralError(
            "collateral: missing, and required for an SGX or TDX quote; pass it, or a PCCS "
            "URL to fetch it from",
            reason="missing",
        )
    time = int(now.timestamp())
    return dcap.authenticate(quote, collateral, time, behind_paravisor=behind_paravisor)


class FetchNeededError(CollateralError):
    """Collateral must be fetched, but `fetch` is false; the evidence was not verified."""


def authenticate_fetching(
    source: "CollateralSource",
    quote: Quote,
    authenticate: Callable[[Collateral], Authenticated],
    precheck: Callable[[str | None], object],
    *,
    fetch: bool,
) -> tuple[Authenticated, Collateral]:
    """Authenticate `quote` with collateral of `source`; return the content and the collateral.

    If the verification fails with cached collateral, it is repeated once with fresh collateral.

    Args:
        source: Source of collateral: a PCCS or Intel's PCS, with a cache.
        quote: Quote of a TD or an SGX enclave.
        authenticate: Function that authenticates the quote with the collateral that it gets.
        precheck: Function for the checks without collateral. Its argument is the PCK certificate
            chain, if the quote has none and the service returned it.
        fetch: Whether requests may be sent.

    Raises:
        FetchNeededError: If a request is needed, and `fetch` is false.
        AttestKitError: If the verification fails, or collateral is not available.
    """

    def before(chain: str | None) -> None:
        precheck(chain)
        if not fetch:
            raise FetchNeededError(_NO_FETCH, reason="fetch_needed")

    def refetch(doubted: "CollateralLookup") -> "CollateralLookup | None":
        try:
            return source.refetch(doubted, before)
        except FetchNeededError:
            raise
        except AttestKitError:  # the first verification's error is more useful
            return None

    found = source.find(quote, before)
    try:
        authenticated = authenticate(found.collateral)
    except Exception as error:
        if is_independent_of_collateral(error) or (again := refetch(found)) is None:
            raise
        found, authenticated = again, authenticate(again.collateral)
    source.mark_verified(found)
    return authenticated, found.collateral
