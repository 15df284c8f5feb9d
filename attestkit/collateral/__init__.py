"""Endorsements of Intel for a platform, and certificates of TPM keys' issuers: retrieval and cache.

A `Collateral` is well formed and has a period of validity; its signatures are verified by the
verifier.
"""

from typing import TYPE_CHECKING

from attestkit.collateral.intel_collateral import Collateral

if TYPE_CHECKING:
    from datetime import timedelta

    from attestkit.collateral.cache import CollateralCache
    from attestkit.collateral.responses import Getter
    from attestkit.quote import Quote

__all__ = ["Collateral"]


def _fetch(
    quote: "Quote",
    pccs_url: str,
    getter: "Getter | None",
    cache: "CollateralCache | None",
    max_age: "timedelta | None",
) -> Collateral:
    # Lazy: only fetching needs it.
    from attestkit.collateral.caching_source import CollateralSource

    source = CollateralSource(pccs_url, getter=getter, cache=cache, max_age=max_age)
    return source.find(quote).collateral


Collateral.fetcher = _fetch
