"""Tests of error messages of `attestkit.collateral`: subject, problem, value and remedy."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from attestkit.collateral import Collateral
from attestkit.collateral.cache import CollateralCache
from attestkit.collateral.http_getter import HttpGetter
from attestkit.errors import AttestKitError
from tests.collateral.services import BASE, COLLATERAL, TCB, Service


def _fetch(status: int) -> object:
    return Service({TCB: lambda response: response._replace(status=status)}).fetch()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: Collateral.from_json("{}"),
            (
                "collateral: missing field: pck_crl_issuer_chain, root_ca_crl, pck_crl, "
                "tcb_info_issuer_chain, tcb_info, tcb_info_signature, qe_identity_issuer_chain, "
                "qe_identity, qe_identity_signature"
            ),
        ),
        (
            lambda: replace(COLLATERAL, tcb_info_signature=bytes(63)),
            "tcb_info_signature: wrong size: 63 bytes, must be 64",
        ),
        (
            lambda: Collateral.load(Path("/nowhere/x.json")),
            (
                "/nowhere/x.json: cannot be read: [Errno 2] No such file or directory: "
                "'/nowhere/x.json'"
            ),
        ),
        (
            lambda: CollateralCache(None, limit=0),
            "limit: out of range: 0, must be at least 1",
        ),
        (
            lambda: HttpGetter()("ftp://h/"),
            "ftp://h/: unsupported scheme; must be http or https",
        ),
        (
            lambda: _fetch(404),
            (
                f"{BASE}{TCB}?fmspc=A77E57000000: HTTP status 404; check the URL, and that the "
                "platform is registered with the PCCS"
            ),
        ),
        (
            lambda: Service().fetch(base="ftp://h"),
            (
                "PCCS URL: unsupported scheme, no host, or a query or fragment: ftp://h; must be "
                "http://HOST:PORT or https://HOST:PORT with an optional path"
            ),
        ),
    ],
)
def test_error_text_names_subject_value_and_remedy(call: Callable[[], object], text: str) -> None:
    """An error names its subject, what is wrong with it, and what to do."""
    with pytest.raises(AttestKitError) as caught:
        call()
    assert str(caught.value) == text
