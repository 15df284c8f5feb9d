"""A quote authenticated with collateral from a PCCS or its cache, and nothing fetched in vain.

Whoever sends evidence chooses which platform it names, and so what is asked for. Therefore a
service is only asked for a quote that has shown what it can without collateral
(`checks_before_fetch`); what is in the cache is used at once, since the verification with it checks
the same and more.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, CollateralError
from attestkit.quote import Quote
from attestkit.verifier.dcap.reasons import is_own_fault
from attestkit.verifier.result import Authenticated

if TYPE_CHECKING:
    from attestkit.collateral.caching_source import CollateralSource, Found

__all__ = ["FetchNeededError", "authenticate_fetching"]


class FetchNeededError(CollateralError):
    """Collateral has to be fetched, by who did not want to wait for that: nothing was said yet."""


def authenticate_fetching(
    source: "CollateralSource",
    quote: Quote,
    ask: Callable[[Collateral], Authenticated],
    vouch: Callable[[str | None], object],
    *,
    fetch: bool,
) -> tuple[Authenticated, Collateral]:
    """Return what Intel vouches for, and the collateral; a second try where that may be to blame.

    Args:
        source: A service, with its cache.
        quote: Of a TD or an SGX enclave.
        ask: Authenticates the quote with collateral.
        vouch: Checks what needs none; it is handed the chain of the PCK certificate if the quote
            does not carry it and the service has told it.
        fetch: Whether the service may be asked.

    Raises:
        FetchNeededError: It has to be, and may not.
        AttestKitError: The evidence is refused, or collateral cannot be had.
    """

    def before(chain: str | None) -> None:
        vouch(chain)
        if not fetch:
            raise FetchNeededError("the collateral for this quote has to be fetched")

    found = source.find(quote, before)
    try:
        authenticated = ask(found.collateral)
    except Exception as error:
        again = None if is_own_fault(error) else _find_again(source, found, before)
        if again is None:
            raise
        found = again
        authenticated = ask(found.collateral)
    source.passed(found)
    return authenticated, found.collateral


def _find_again(
    source: "CollateralSource", doubted: "Found", before: Callable[[str | None], None]
) -> "Found | None":
    try:
        return source.find_again(doubted, before)
    except FetchNeededError:
        raise
    except AttestKitError:  # the evidence is to blame, and why it was refused is known already
        return None
