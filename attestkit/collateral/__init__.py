"""Endorsements of Intel about a platform: one value, where it is fetched, and where it is kept.

Nothing here is believed: a `Collateral` has the right shape and a span of validity, and a verifier
checks its signatures.
"""

from typing import TYPE_CHECKING

from attestkit.collateral.intel_collateral import Collateral

if TYPE_CHECKING:
    from datetime import timedelta

    from attestkit.collateral.cache import CollateralCache
    from attestkit.collateral.pccs_client import Getter
    from attestkit.quote import Quote

__all__ = ["Collateral"]


def _fetch(
    quote: "Quote",
    pccs_url: str,
    getter: "Getter | None",
    cache: "CollateralCache | None",
    max_age: "timedelta | None",
) -> Collateral:
    # Late: only who fetches pays for it.
    from attestkit.collateral.caching_source import CollateralSource

    source = CollateralSource(pccs_url, getter=getter, cache=cache, max_age=max_age)
    return source.find(quote).collateral


Collateral.fetcher = _fetch
