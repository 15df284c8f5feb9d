"""A user program that type checkers must reject: exactly the lines that end with the marker."""

from typing import TYPE_CHECKING

import attestkit
from attestkit import AppKeys, Attester, Collateral, KeyDeriver, Quote, Verifier, verify_key_chain

if TYPE_CHECKING:
    from attestkit.backends.simulator import Simulator


class NoBackend:
    """An object without a backend's methods."""


def wrong(tee: Attester, quote: Quote, verifier: Verifier, keys: KeyDeriver) -> None:
    """Type errors."""
    attestkit.open(NoBackend())  # E
    attestkit.open(7)  # E
    attestkit.opened()  # E
    attestkit.open(tee.backend, seed=bytes(32))  # E
    attestkit.aopen(tee.backend, seed=bytes(32))  # E
    _ = tee.backend.trust_anchor  # E
    attestkit.open().backend.collateral()  # E
    _ = attestkit.open("simulator").backend.trust_root  # E
    narrower: Attester[Simulator] = tee  # E
    del narrower
    tee.get_quote("nonce")  # E
    tee.emit_event("name")  # E
    _ = quote.rtmrs[4]  # E
    quote.mrtd.hex(1, 2, 3)  # E
    quote.version = 5  # E
    attestkit.verify(b"evidence")  # E
    verifier.verify(b"evidence")  # E
    verifier.verify(b"evidence", report_data="nonce")  # E
    verifier.verify(quote, report_data=None).simulated()  # E
    Verifier(policy=7)  # E
    Collateral.load(b"collateral.json")  # E
    keys.derive_compat("path", algorithm=256)  # E
    keys.derive_v1("domain")  # E
    verify_key_chain(b"", [], purpose="")  # E
    verify_key_chain(b"", [], app_root=b"", domain="")  # E
    verify_key_chain(b"", [], app_root=b"", kms_roots=[], purpose="")  # E
    AppKeys.from_seed("00")  # E
    attestkit.ra_tls.verify("certificate", None)  # E
    attestkit.quote_columns(["quote"])  # E
    _ = attestkit.errors.NoSuchError  # E
