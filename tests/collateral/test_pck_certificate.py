"""Tests of PCK certificates that the PCCS client requests for quotes without a certificate."""

from collections.abc import Callable
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest

from attestkit._crypto.pem import encode_pem
from attestkit.collateral.responses import Response
from attestkit.errors import CollateralError, FormatError, UsageError
from attestkit.quote import Quote
from tests.collateral.services import (
    BASE,
    COLLATERAL,
    PCKCERT,
    PKI,
    PLATFORM,
    QUOTE,
    TCB,
    Service,
    create_quote_with_ppid,
    replace_headers,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped


@pytest.mark.parametrize(("data_type", "size"), [(2, 256), (3, 384)])
def test_fetch_requests_pck_certificate_by_encrypted_ppid(data_type: int, size: int) -> None:
    """The PCK certificate is requested with the quote's values, and its chain is returned."""
    service = Service()
    fetched = service.fetch(create_quote_with_ppid(data_type, size))
    assert fetched == replace(COLLATERAL, pck_certificate_chain=PLATFORM.pck_chain)
    assert parse_qs(urlsplit(service.urls[0]).query) == {
        "qeid": [PLATFORM.qe_id.hex()],
        "encrypted_ppid": [(bytes(range(256)) * 2)[:size].hex()],
        "cpusvn": [PKI.config.cpusvn.hex()],
        "pcesvn": ["0d00"],
        "pceid": ["0000"],
    }


def test_fetch_unknown_platform_makes_one_request() -> None:
    """FMSPC and PPID are not verified yet, so the first failure ends the fetch."""
    unknown = {path: lambda r: r._replace(status=404) for path in (TCB, PCKCERT)}
    for quote, path in ((QUOTE, TCB), (create_quote_with_ppid(3, 384), PCKCERT)):
        service = Service(unknown)
        with raises(CollateralError, "fetch_failed"):
            service.fetch(quote)
        assert [urlsplit(url).path for url in service.urls] == [path]


@every_case(
    ("change", "reason", "fragment"),
    [
        (lambda r: r._replace(status=404), "fetch_failed", "404"),
        (lambda r: replace_headers(r, SGX_TCBm="00" * 18), "malformed", "SGX-TCBm"),
        (lambda r: replace_headers(r, SGX_TCBm=None), "malformed", "SGX-TCBm"),
        (
            lambda r: replace_headers(r, SGX_PCK_Certificate_Issuer_Chain=None),
            "malformed",
            "SGX-PCK-Certificate-Issuer-Chain",
        ),
        (lambda r: r._replace(body=b"x"), "malformed", "PEM"),
        (lambda r: r._replace(body=b"\xff"), "malformed", "PEM"),
        (lambda r: r._replace(body=PLATFORM.pck_der), "malformed", "PEM"),
        (lambda r: r._replace(body=r.body * 2), "malformed", "2 certificates"),
        (
            lambda r: r._replace(body=encode_pem("CERTIFICATE", PKI.root_der).encode()),
            "malformed",
            "PCK certificate",
        ),
    ],
)
def test_fetch_malformed_pck_certificate_is_named(
    change: Callable[[Response], Response], reason: str, fragment: str
) -> None:
    """The error names the URL and the malformed part of the response."""
    with raises(CollateralError, reason, start=f"{BASE}{PCKCERT}?", part=fragment):
        Service({PCKCERT: change}).fetch(create_quote_with_ppid(3, 384))


def test_fetch_unusable_certification_data_is_rejected() -> None:
    """A plain PPID cannot be used, and data of a wrong size raise FormatError."""
    service = Service()
    with raises(CollateralError, "pck_chain_missing"):
        service.fetch(create_quote_with_ppid(1, 16))
    with raises(FormatError, "wrong_size"):
        service.fetch(create_quote_with_ppid(3, 256))
    assert not service.urls


def test_fetch_chain_without_pck_certificate_raises_format_error() -> None:
    """A PCK chain that does not start with a PCK certificate raises FormatError."""
    chain = encode_pem("CERTIFICATE", PKI.pck_ca_der).encode()
    raw = bytearray(QUOTE.raw[:1254]) + len(chain).to_bytes(4, "little") + chain
    raw[766:770] = (len(raw) - 770).to_bytes(4, "little")
    raw[632:636] = (len(raw) - 636).to_bytes(4, "little")
    service = Service()
    with raises(FormatError, "missing"):
        service.fetch(Quote.parse(bytes(raw)))
    with raises(UsageError, "wrong_type"):
        service.fetch(untyped(QUOTE.raw))
    assert not service.urls
