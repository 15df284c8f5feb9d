"""Keys from a local key provider: an SGX enclave on the host of a TD (dstack, local-key-provider).

The provider derives the keys from its sealing key and the measurements of the TD, and identifies
itself by a quote. Names are loaded when they are used.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.kms.local_provider.client import (
        HostApi,
        TcpProvider,
        fetch_local_keys,
        provider_policy,
    )
    from attestkit.kms.local_provider.provider import SimulatedLocalProvider
    from attestkit.kms.local_provider.sealed_key import SealedKey
else:
    # Lazy: most programs have no local key provider.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "client": ["HostApi", "TcpProvider", "fetch_local_keys", "provider_policy"],
            "sealed_key": ["SealedKey"],
            "provider": ["SimulatedLocalProvider"],
        },
    )

__all__ = [
    "HostApi",
    "SealedKey",
    "SimulatedLocalProvider",
    "TcpProvider",
    "fetch_local_keys",
    "provider_policy",
]
