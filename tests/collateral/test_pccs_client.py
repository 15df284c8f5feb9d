"""Tests of the PCCS client: responses are fetched verbatim, and errors name the URL."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest

from attestkit._crypto.pem import encode_pem
from attestkit.collateral import Collateral
from attestkit.collateral.pccs_client import base_url
from attestkit.collateral.responses import BODY_LIMIT, Response
from attestkit.errors import CollateralError, UsageError
from attestkit.quote import Quote
from tests.collateral.services import (
    BASE,
    COLLATERAL,
    CRL,
    PLATFORM,
    QE,
    QUOTE,
    ROOT_CRL,
    TCB,
    Service,
    replace_headers,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import data, needs_shared

URLS: Final = {
    CRL: f"{BASE}{CRL}?ca=platform&encoding=der",
    ROOT_CRL: f"{BASE}{ROOT_CRL}",
    TCB: f"{BASE}{TCB}?fmspc=507757000000",
    QE: f"{BASE}{QE}",
}
CHAINS: Final = {
    CRL: "SGX-PCK-CRL-Issuer-Chain",
    TCB: "TCB-Info-Issuer-Chain",
    QE: "SGX-Enclave-Identity-Issuer-Chain",
}


def get_error_text(path: str, change: Callable[[Response], Response], reason: str) -> str:
    """Return the error's text without URL for a changed response to `path`."""
    with raises(CollateralError, reason) as caught:
        Service({path: change}).fetch()
    url, _, text = str(caught.value).partition(": ")
    assert url == URLS[path]
    return text


def test_fetch_returns_served_collateral() -> None:
    """All nine fields are fetched verbatim, with one request for each of the four parts."""
    service = Service()
    assert service.fetch() == COLLATERAL
    assert sorted(service.urls) == sorted(URLS.values())


@every_case(
    ("url", "base"),
    [
        ("http://h", "http://h"),
        ("HTTP://H:80//", "http://h:80"),
        ("https://[::1]:8081/sgx/certification/v4", "https://[::1]:8081"),
        ("https://h/tdx/certification/v4/", "https://h"),
        ("https://h/a/b/sgx/certification/v4/", "https://h/a/b"),
        ("https://h/sgx/certification/v3", "https://h/sgx/certification/v3"),
    ],
)
def test_base_url_is_normalized(url: str, base: str) -> None:
    """The base URL may have a trailing slash and the path of API version 4."""
    assert base_url(url) == base
    service = Service()
    if urlsplit(base).path == "":
        assert service.fetch(base=url) == COLLATERAL
        assert all(url.startswith(f"{base}/") for url in service.urls)


@every_case(
    "url",
    [
        "",
        "ftp://h",
        "http://",
        "http://h:99999",
        "http://[::1",
        "http://h/?fmspc=1",
        "http://h /",
        "http://h\r\nX: y",
        "http://hôte/",
        "http://h\\@x/",
        None,
        b"http://h",
    ],
)
def test_fetch_invalid_base_url_raises_usage_error(url: Any) -> None:
    """An invalid base URL raises UsageError before any request."""
    service = Service()
    with raises(UsageError, "wrong_value"):
        Collateral.fetch(QUOTE, url, getter=service)
    assert not service.urls


def test_fetch_url_with_password_is_rejected() -> None:
    """A URL with credentials is rejected, and the error omits them."""
    with raises(UsageError, "wrong_value") as caught:
        Service().fetch(base="https://me:hunter2@h/")
    assert "hunter2" not in str(caught.value)


def test_fetch_from_intel_uses_root_crl_url() -> None:
    """Intel's root CRL is fetched from the URL in Intel's certificates."""
    service = Service()
    base = "https://api.trustedservices.intel.com/sgx/certification/v4/"
    assert service.fetch(base=base) == COLLATERAL
    [other] = [url for url in service.urls if not url.startswith("https://api.trusted")]
    assert other == "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"


@needs_shared
@pytest.mark.parametrize(
    ("name", "tee", "fmspc", "ca"),
    [
        ("dcap-qvl/sgx_quote", "sgx", "00A067110000", "processor"),
        ("dcap-qvl/tdx_quote", "tdx", "B0C06F000000", "platform"),
        ("go-tdx-guest/quote_v5_sample.dat", "tdx", "90C06F000000", "platform"),
    ],
)
def test_fetch_requests_of_hardware_quote(name: str, tee: str, fmspc: str, ca: str) -> None:
    """TEE, FMSPC and CA in requests are those of the quote and its PCK certificate."""
    service = Service()

    def answer(url: str) -> Response:
        """Respond as for the simulated platform."""
        service(url)
        requested = url.replace("/sgx/certification/v4/tcb", TCB).replace(fmspc, "507757000000")
        return Service()(requested.replace("/sgx/certification/v4/qe", "/tdx/certification/v4/qe"))

    quote = Quote.parse(data(f"quotes/{name}"))
    assert Collateral.fetch(quote, BASE, getter=answer) == COLLATERAL
    paths = {urlsplit(url).path: parse_qs(urlsplit(url).query) for url in service.urls}
    assert paths == {
        CRL: {"ca": [ca], "encoding": ["der"]},
        ROOT_CRL: {},
        f"/{tee}/certification/v4/tcb": {"fmspc": [fmspc]},
        f"/{tee}/certification/v4/qe/identity": {},
    }


@needs_shared
def test_fetch_recorded_intel_responses() -> None:
    """Bodies and CRLs recorded from Intel's service are extracted verbatim."""

    def recorded(name: str) -> Callable[[Response], Response]:
        return lambda response: response._replace(body=data(f"quotes/go-tdx-guest/{name}"))

    changes = {
        CRL: recorded("pckcrl"),
        ROOT_CRL: recorded("rootcrl.der"),
        TCB: recorded("sample_tcbInfo_response"),
        QE: recorded("sample_qeIdentity_response"),
    }
    fetched = Service(changes).fetch()
    tcb = data("quotes/go-tdx-guest/sample_tcbInfo_response").decode()
    assert (
        f'{{"tcbInfo":{fetched.tcb_info},"signature":"{fetched.tcb_info_signature.hex()}"}}' in tcb
    )
    identity = data("quotes/go-tdx-guest/sample_qeIdentity_response").decode()
    signature = fetched.qe_identity_signature.hex()
    assert f'{{"enclaveIdentity":{fetched.qe_identity},"signature":"{signature}"}}' in identity
    assert fetched.pck_crl == data("quotes/go-tdx-guest/pckcrl")
    assert fetched.root_ca_crl == data("quotes/go-tdx-guest/rootcrl.der")


def test_fetch_accepts_older_tcb_chain_header() -> None:
    """SGX-TCB-Info-Issuer-Chain alone is accepted, and header names ignore case."""
    old = Service({TCB: lambda r: replace_headers(r, TCB_Info_Issuer_Chain=None)})
    assert old.fetch() == COLLATERAL
    upper = Service(
        {TCB: lambda r: r._replace(headers={n.upper(): v for n, v in r.headers.items()})}
    )
    assert upper.fetch() == COLLATERAL


def test_fetch_accepts_crls_in_der_or_hex() -> None:
    """Both CRLs are accepted in DER and in hex."""
    as_hex = Service({CRL: lambda r: r._replace(body=r.body.hex().encode())})
    assert as_hex.fetch() == COLLATERAL
    as_der = Service({ROOT_CRL: lambda r: r._replace(body=COLLATERAL.root_ca_crl)})
    assert as_der.fetch() == COLLATERAL


def test_fetch_does_not_verify_signatures() -> None:
    """A forged body is fetched verbatim: signatures are checked by the verifier."""
    forged = COLLATERAL.tcb_info.replace('"UpToDate"', '"OutOfDate"')

    def forge(response: Response) -> Response:
        return response._replace(
            body=response.body.replace(COLLATERAL.tcb_info.encode(), forged.encode())
        )

    assert Service({TCB: forge}).fetch() == replace(COLLATERAL, tcb_info=forged)


@every_case("path", URLS)
@every_case(
    ("status", "remedy"),
    [
        (404, "check the URL, and that the platform is registered with the PCCS"),
        (400, "check that the service supports version 4 of the PCCS API"),
        (401, "the service requires credentials: pass a getter that sends them"),
        (302, "redirects are not followed: use the URL of the redirect's target"),
        (500, "the service is overloaded or failing: retry later"),
        (429, "the service is overloaded or failing: retry later"),
        (204, "check the URL"),
    ],
)
def test_fetch_error_status_has_remedy(path: str, status: int, remedy: str) -> None:
    """The error for each status and route has the URL, the status and a remedy."""
    text = get_error_text(path, lambda response: response._replace(status=status), "fetch_failed")
    assert text == f"HTTP status {status}; {remedy}"


@every_case("path", URLS)
def test_fetch_getter_exception_is_named(path: str) -> None:
    """An exception of a getter becomes a CollateralError; an AttestKitError is unchanged."""

    def fail(_: Response) -> Response:
        raise RuntimeError("secret")

    def own_error(_: Response) -> Response:
        raise CollateralError(f"{URLS[path]}: unchanged", reason="unreadable")

    assert "secret" not in get_error_text(path, fail, "fetch_failed")
    assert get_error_text(path, own_error, "unreadable") == "unchanged"


def test_fetch_getter_wrong_type_raises_usage_error() -> None:
    """A getter that does not return a Response raises UsageError."""
    with raises(UsageError, "wrong_type"):
        Collateral.fetch(QUOTE, BASE, getter=untyped(lambda _: {}))


_MALFORMED: Final = {
    "empty": "",
    "word": "x",
    "bad-escape": "%zz",
    "not-utf8": "%ff",
    "open": "-----BEGIN%20CERTIFICATE-----%0A",
    "no-certificate": encode_pem("CERTIFICATE", b"\x30\x00").replace("\n", "%0A"),
    "cut": COLLATERAL.pck_crl_issuer_chain[:-30].replace("\n", "%0A"),
    "more": (COLLATERAL.pck_crl_issuer_chain + "x").replace("\n", "%0A"),
    "twice": (COLLATERAL.pck_crl_issuer_chain + ", " + COLLATERAL.pck_crl_issuer_chain),
    "plus": COLLATERAL.pck_crl_issuer_chain.replace(" ", "+").replace("\n", "%0A"),
    "many": COLLATERAL.pck_crl_issuer_chain * 6,
}


@every_case(("path", "name"), CHAINS.items())
@every_case("value", _MALFORMED.values(), ids=_MALFORMED)
def test_fetch_malformed_chain_is_named(path: str, name: str, value: str) -> None:
    """The error for a malformed chain names header and URL."""
    changed = {name.replace("-", "_"): value}
    text = get_error_text(path, lambda response: replace_headers(response, **changed), "malformed")
    assert name.lower() in text.lower()


@pytest.mark.parametrize(("path", "name"), CHAINS.items())
def test_fetch_missing_chain_is_named(path: str, name: str) -> None:
    """The error for a missing chain names header and URL."""
    drop: dict[str, None] = dict.fromkeys((name, "SGX-TCB-Info-Issuer-Chain"))
    text = get_error_text(
        path,
        lambda r: r._replace(headers={n: v for n, v in r.headers.items() if n not in drop}),
        "malformed",
    )
    assert name in text


CRL_BODIES: Final = (
    *(b"", b"<html>", b"30", b"0", b"\x30\x00", b"zz", b"\xff\xfe"),
    *(COLLATERAL.pck_crl[:-1], COLLATERAL.pck_crl.hex().encode()[:-1], PLATFORM.pck_der),
    encode_pem("X509 CRL", COLLATERAL.pck_crl).encode(),
)
JSON_BODIES: Final = (b"", b"{}", b"[]", b"\xff", b"<html>", b"[" * 5000)


@every_case(
    ("path", "body"),
    [*product([CRL, ROOT_CRL], CRL_BODIES), *product([TCB, QE], JSON_BODIES)],
)
def test_fetch_malformed_body_is_named(path: str, body: bytes) -> None:
    """HTML, PEM, truncated and other structures instead of a part are rejected with the URL."""
    get_error_text(path, lambda response: response._replace(body=body), "malformed")


@every_case("path", URLS)
def test_fetch_body_over_1_mib_is_named(path: str) -> None:
    """A body over 1 MiB is rejected before it is parsed."""
    get_error_text(path, lambda r: r._replace(body=b" " * (BODY_LIMIT + 1)), "too_large")


@pytest.mark.parametrize("path", [TCB, QE])
def test_fetch_body_without_dates_is_named(path: str) -> None:
    """A body without nextUpdate, which would never expire, is rejected."""

    def misspell(response: Response) -> Response:
        return response._replace(body=response.body.replace(b"nextUpdate", b"nextUpdatd"))

    assert "nextUpdate" in get_error_text(path, misspell, "malformed")


def test_collateral_imports_network_modules_lazily() -> None:
    """Importing collateral imports no HTTP, TLS or X.509 modules."""
    script = (
        "import sys, attestkit; attestkit.Collateral\n"
        "assert not {'http.client', 'ssl', 'socket', 'cryptography'} & set(sys.modules)\n"
        "import attestkit.collateral.pccs_client, attestkit.collateral.cache\n"
        "assert not {'http.client', 'ssl'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
