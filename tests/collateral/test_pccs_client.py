"""Collateral is fetched as sent, and whatever is wrong with an answer is named with its URL."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.pem import armour
from attestkit.collateral import Collateral
from attestkit.collateral.pccs_client import BODY_LIMIT, Response, base_url
from attestkit.errors import CollateralError, FormatError, UsageError
from attestkit.quote import Quote
from tests.collateral.services import (
    BASE,
    COLLATERAL,
    CRL,
    PCKCERT,
    PKI,
    PLATFORM,
    QE,
    QUOTE,
    ROOT_CRL,
    TCB,
    Service,
)
from tests.untyped import untyped
from tests.vectors import data, needs_shared

URLS: Final = {
    CRL: f"{BASE}{CRL}?ca=platform&encoding=der",
    ROOT_CRL: f"{BASE}{ROOT_CRL}",
    TCB: f"{BASE}{TCB}?fmspc=A77E57000000",
    QE: f"{BASE}{QE}",
}
CHAINS: Final = {
    CRL: "SGX-PCK-CRL-Issuer-Chain",
    TCB: "TCB-Info-Issuer-Chain",
    QE: "SGX-Enclave-Identity-Issuer-Chain",
}


def with_headers(response: Response, **changes: str | None) -> Response:
    """Return a response with other headers; None drops one."""
    headers = {**response.headers, **{n.replace("_", "-"): v for n, v in changes.items()}}
    return response._replace(headers={n: v for n, v in headers.items() if v is not None})


def refusal(path: str, change: Callable[[Response], Response]) -> str:
    """Return what a fetch says when the answer to `path` was changed, without the URL."""
    with pytest.raises(CollateralError) as caught:
        Service({path: change}).fetch()
    url, _, text = str(caught.value).partition(": ")
    assert url == URLS[path]
    return text


def test_the_fetched_value_is_the_one_served() -> None:
    """All nine fields come out as they are, from one request each for the four parts."""
    service = Service()
    assert service.fetch() == COLLATERAL
    assert sorted(service.urls) == sorted(URLS.values())


@pytest.mark.parametrize(
    ("given_url", "base"),
    [
        ("http://h", "http://h"),
        ("http://h/", "http://h"),
        ("HTTP://H:80//", "http://h:80"),
        ("https://[::1]:8081/sgx/certification/v4", "https://[::1]:8081"),
        ("https://h/tdx/certification/v4/", "https://h"),
        ("https://h/a/b/sgx/certification/v4/", "https://h/a/b"),
        ("https://h/A/", "https://h/A"),
        ("https://h/sgx/certification/v3", "https://h/sgx/certification/v3"),
    ],
)
def test_the_base_url_is_taken_in_each_of_its_forms(given_url: str, base: str) -> None:
    """With or without the final slash and the paths of version 4."""
    assert base_url(given_url) == base
    service = Service()
    if urlsplit(base).path == "":
        assert service.fetch(base=given_url) == COLLATERAL
        assert all(url.startswith(f"{base}/") for url in service.urls)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:8081",
        "ftp://h",
        "file:///etc/passwd",
        "http://",
        "http:///x",
        "http://h:99999",
        "http://h:x",
        "http://[::1",
        "http://h/?fmspc=1",
        "http://h/#x",
        "http://h /",
        "http://h\r\nX: y",
        "http://h\n",
        "http://hôte/",
        "http://h\\@x/",
        None,
        b"http://h",
    ],
)
def test_what_is_no_base_url_is_a_usage_error(url: Any) -> None:
    """Nothing is fetched from it."""
    service = Service()
    with pytest.raises(UsageError, match="the PCCS URL"):
        Collateral.fetch(QUOTE, url, getter=service)
    assert not service.urls


def test_a_password_is_refused_and_not_repeated() -> None:
    """A user name in the URL would end in errors and logs."""
    with pytest.raises(UsageError) as caught:
        Service().fetch(base="https://me:hunter2@h/")
    assert "hunter2" not in str(caught.value)


def test_intels_service_has_its_root_crl_elsewhere() -> None:
    """At Intel's own address the root's CRL comes from the name in Intel's certificates."""
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
def test_what_a_quote_from_hardware_asks_for(name: str, tee: str, fmspc: str, ca: str) -> None:
    """TEE, FMSPC and authority are those of the quote and of its PCK certificate."""
    service = Service()

    def answer(url: str) -> Response:
        """Answer as for the simulated platform."""
        service(url)
        asked = url.replace("/sgx/certification/v4/tcb", TCB).replace(fmspc, "A77E57000000")
        return Service()(asked.replace("/sgx/certification/v4/qe", "/tdx/certification/v4/qe"))

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
def test_answers_that_intel_gave() -> None:
    """Bodies and CRLs recorded from Intel's service are cut out as they were signed."""

    def recorded(name: str) -> Callable[[Response], Response]:
        return lambda response: response._replace(body=data(f"quotes/go-tdx-guest/{name}"))

    changes = {
        CRL: recorded("pckcrl"),
        ROOT_CRL: recorded("rootcrl.der"),
        TCB: recorded("sample_tcbInfo_response"),
        QE: recorded("sample_qeIdentity_response"),
    }
    got = Service(changes).fetch()
    tcb = data("quotes/go-tdx-guest/sample_tcbInfo_response").decode()
    assert f'{{"tcbInfo":{got.tcb_info},"signature":"{got.tcb_info_signature.hex()}"}}' in tcb
    identity = data("quotes/go-tdx-guest/sample_qeIdentity_response").decode()
    signature = got.qe_identity_signature.hex()
    assert f'{{"enclaveIdentity":{got.qe_identity},"signature":"{signature}"}}' in identity
    assert got.pck_crl == data("quotes/go-tdx-guest/pckcrl")
    assert got.root_ca_crl == data("quotes/go-tdx-guest/rootcrl.der")


def test_the_older_name_of_the_tcb_chain_will_do() -> None:
    """Older services send SGX-TCB-Info-Issuer-Chain alone, and any letter case is read."""
    old = Service({TCB: lambda r: with_headers(r, TCB_Info_Issuer_Chain=None)})
    assert old.fetch() == COLLATERAL
    upper = Service(
        {TCB: lambda r: r._replace(headers={n.upper(): v for n, v in r.headers.items()})}
    )
    assert upper.fetch() == COLLATERAL


def test_crls_come_as_der_or_hex() -> None:
    """Either form of either CRL is read."""
    as_hex = Service({CRL: lambda r: r._replace(body=r.body.hex().encode())})
    assert as_hex.fetch() == COLLATERAL
    as_der = Service({ROOT_CRL: lambda r: r._replace(body=COLLATERAL.root_ca_crl)})
    assert as_der.fetch() == COLLATERAL


def test_nothing_is_believed_or_judged() -> None:
    """A body that nobody signed is fetched as it is: judging is the verifier's."""
    forged = COLLATERAL.tcb_info.replace('"UpToDate"', '"OutOfDate"')

    def forge(response: Response) -> Response:
        return response._replace(
            body=response.body.replace(COLLATERAL.tcb_info.encode(), forged.encode())
        )

    assert Service({TCB: forge}).fetch() == replace(COLLATERAL, tcb_info=forged)


@pytest.mark.parametrize("path", URLS)
@pytest.mark.parametrize(
    ("status", "told"),
    [
        (404, "does not know this platform"),
        (400, "version 4"),
        (401, "wants credentials"),
        (302, "redirects are not followed"),
        (500, "try again later"),
        (503, "try again later"),
        (429, "try again later"),
        (204, "is this a PCCS"),
        (418, "is this a PCCS"),
    ],
)
def test_another_status_is_named_and_explained(path: str, status: int, told: str) -> None:
    """Each route with each status: the URL, the status, and what would mend it."""
    text = refusal(path, lambda response: response._replace(status=status))
    assert text.startswith(f"answered {status}; ")
    assert told in text


@pytest.mark.parametrize("path", URLS)
def test_what_a_getter_raises_is_named(path: str) -> None:
    """A foreign exception is a CollateralError with URL and kind; ours stay as they are."""

    def fail(_: Response) -> Response:
        raise RuntimeError("secret")

    def ours(_: Response) -> Response:
        raise CollateralError(f"{URLS[path]}: was said")

    assert refusal(path, fail) == "cannot be fetched: RuntimeError"
    assert refusal(path, ours) == "was said"


def test_a_getter_returns_a_response() -> None:
    """Another library's response is refused by its type, which is the caller's mistake."""
    with pytest.raises(UsageError, match="returns a Response, not dict"):
        Collateral.fetch(QUOTE, BASE, getter=untyped(lambda _: {}))


@pytest.mark.parametrize("path", URLS)
def test_an_oversized_body_is_named(path: str) -> None:
    """One byte over 1 MiB is refused before anything reads it."""
    text = refusal(path, lambda r: r._replace(body=b" " * (BODY_LIMIT + 1)))
    assert text.startswith(f"the answer is over {BODY_LIMIT} bytes")


@pytest.mark.parametrize("path", [CRL, ROOT_CRL])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"30",
        b"0",
        b"\x30\x00",
        b"zz",
        COLLATERAL.pck_crl[:-1],
        COLLATERAL.pck_crl.hex().encode()[:-1],
        b"\xff\xfe",
        armour("X509 CRL", COLLATERAL.pck_crl).encode(),
        PLATFORM.pck_der,
    ],
)
def test_what_is_no_crl_is_named(path: str, body: bytes) -> None:
    """HTML, PEM, something cut, another structure: all named with the URL."""
    text = refusal(path, lambda response: response._replace(body=body))
    assert text.startswith(("the CRL: malformed", "the answer is neither DER nor the hex of it"))


_MALFORMED: Final = {
    "empty": "",
    "word": "x",
    "bad-escape": "%zz",
    "not-utf8": "%ff",
    "open": "-----BEGIN%20CERTIFICATE-----%0A",
    "no-certificate": armour("CERTIFICATE", b"\x30\x00").replace("\n", "%0A"),
    "cut": COLLATERAL.pck_crl_issuer_chain[:-30].replace("\n", "%0A"),
    "more": (COLLATERAL.pck_crl_issuer_chain + "x").replace("\n", "%0A"),
    "twice": (COLLATERAL.pck_crl_issuer_chain + ", " + COLLATERAL.pck_crl_issuer_chain),
    "plus": COLLATERAL.pck_crl_issuer_chain.replace(" ", "+").replace("\n", "%0A"),
    "many": COLLATERAL.pck_crl_issuer_chain * 6,
}


@pytest.mark.parametrize(("path", "name"), CHAINS.items())
@pytest.mark.parametrize("value", _MALFORMED.values(), ids=_MALFORMED)
def test_a_malformed_chain_is_named(path: str, name: str, value: str) -> None:
    """A chain that is none, or has something else in it, is named with header and URL."""
    changed = {name.replace("-", "_"): value}
    text = refusal(path, lambda response: with_headers(response, **changed))
    assert name.lower() in text.lower()


@pytest.mark.parametrize(("path", "name"), CHAINS.items())
def test_a_missing_chain_is_named(path: str, name: str) -> None:
    """An answer without its chain is named with header and URL."""
    drop: dict[str, None] = dict.fromkeys((name, "SGX-TCB-Info-Issuer-Chain"))
    text = refusal(
        path,
        lambda r: r._replace(headers={n: v for n, v in r.headers.items() if n not in drop}),
    )
    assert text.startswith(f"the answer lacks the header {name}")


@pytest.mark.parametrize("path", [TCB, QE])
@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b"<html>", b"[" * 5000])
def test_what_is_no_signed_body_is_named(path: str, body: bytes) -> None:
    """Anything but the documented JSON is named with the URL."""
    text = refusal(path, lambda response: response._replace(body=body))
    assert text.startswith("the answer is not the JSON of a PCCS: ")


@pytest.mark.parametrize("path", [TCB, QE])
def test_a_body_without_dates_is_named(path: str) -> None:
    """A body that never ends would be kept for ever."""
    text = refusal(path, lambda r: r._replace(body=r.body.replace(b"nextUpdate", b"nextUpdatd")))
    assert "nextUpdate" in text


def hidden(kind: int, ppid_size: int, platform: bytes = PLATFORM.qe_id) -> Quote:
    """Return the quote with certification data of types 1 to 3 in place of its chain."""
    config = PKI.config
    ppid = bytes(range(256)) * 2
    tcbm = config.cpusvn + config.pcesvn.to_bytes(2, "little")
    content = ppid[:ppid_size] + tcbm + config.pceid
    raw = bytearray(QUOTE.raw[:1252])
    raw[28:44] = platform
    raw += kind.to_bytes(2, "little") + len(content).to_bytes(4, "little") + content
    raw[766:770] = (len(raw) - 770).to_bytes(4, "little")
    raw[632:636] = (len(raw) - 636).to_bytes(4, "little")
    return Quote.parse(bytes(raw))


@pytest.mark.parametrize(("kind", "size"), [(2, 256), (3, 384)])
def test_an_encrypted_ppid_leads_to_a_certificate(kind: int, size: int) -> None:
    """The PCK certificate is asked for with what the quote has, and its chain is kept."""
    service = Service()
    fetched = service.fetch(hidden(kind, size))
    assert fetched == replace(COLLATERAL, pck_certificate_chain=PLATFORM.pck_chain)
    assert parse_qs(urlsplit(service.urls[0]).query) == {
        "qeid": [PLATFORM.qe_id.hex()],
        "encrypted_ppid": [(bytes(range(256)) * 2)[:size].hex()],
        "cpusvn": [PKI.config.cpusvn.hex()],
        "pcesvn": ["0d00"],
        "pceid": ["0000"],
    }


def test_an_invented_platform_costs_one_request() -> None:
    """Nobody has verified the FMSPC or PPID that a quote names, so nothing else is asked for."""
    unknown = {path: lambda r: r._replace(status=404) for path in (TCB, PCKCERT)}
    for quote, path in ((QUOTE, TCB), (hidden(3, 384), PCKCERT)):
        service = Service(unknown)
        with pytest.raises(CollateralError, match="does not know this platform"):
            service.fetch(quote)
        assert [urlsplit(url).path for url in service.urls] == [path]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r._replace(status=404), "answered 404"),
        (lambda r: with_headers(r, SGX_TCBm="00" * 18), "SGX-TCBm is not the CPUSVN and PCESVN"),
        (lambda r: with_headers(r, SGX_TCBm=None), "lacks the header SGX-TCBm"),
        (
            lambda r: with_headers(r, SGX_PCK_Certificate_Issuer_Chain=None),
            "lacks the header SGX-PCK-Certificate-Issuer-Chain",
        ),
        (lambda r: r._replace(body=b"x"), "not a certificate in PEM"),
        (lambda r: r._replace(body=b"\xff"), "not a certificate in PEM"),
        (lambda r: r._replace(body=PLATFORM.pck_der), "not a certificate in PEM"),
        (lambda r: r._replace(body=r.body * 2), "has 2 certificates, not 1"),
        (
            lambda r: r._replace(body=armour("CERTIFICATE", PKI.root_der).encode()),
            "it is no PCK certificate",
        ),
    ],
)
def test_a_wrong_pck_certificate_is_named(
    change: Callable[[Response], Response], told: str
) -> None:
    """What is wrong with the answer is named with its URL."""
    with pytest.raises(CollateralError, match=told) as caught:
        Service({PCKCERT: change}).fetch(hidden(3, 384))
    assert str(caught.value).startswith(f"{BASE}{PCKCERT}?")


def test_certification_data_that_lead_nowhere() -> None:
    """A PPID in clear is of no use to a service; a wrong size is malformed evidence."""
    service = Service()
    with pytest.raises(CollateralError, match="of type 1, which does not lead to a PCK"):
        service.fetch(hidden(1, 16))
    with pytest.raises(FormatError, match="type 3 have 404 bytes, not 276"):
        service.fetch(hidden(3, 256))
    assert not service.urls


def test_a_quote_whose_first_certificate_is_another() -> None:
    """A chain that does not begin with a PCK certificate is malformed evidence."""
    chain = armour("CERTIFICATE", PKI.pck_ca_der).encode()
    raw = bytearray(QUOTE.raw[:1254]) + len(chain).to_bytes(4, "little") + chain
    raw[766:770] = (len(raw) - 770).to_bytes(4, "little")
    raw[632:636] = (len(raw) - 636).to_bytes(4, "little")
    service = Service()
    with pytest.raises(FormatError, match="not a PCK certificate"):
        service.fetch(Quote.parse(bytes(raw)))
    with pytest.raises(UsageError, match="quote is a Quote, not bytes"):
        service.fetch(untyped(QUOTE.raw))
    assert not service.urls


def fetches_or_names_the_url(path: str, change: Callable[[Response], Response]) -> bool:
    """Tell whether a fetch gives a value with dates, or an error that names the URL."""
    try:
        fetched = Service({path: change}).fetch()
    except CollateralError as error:
        return str(error).startswith(URLS[path])
    return fetched.valid_from.tzinfo is not None


# What URLs, PEM, JSON and hex are made of; all of Unicode takes seconds to set up.
letters = '{}[]":,%-0123zAF \n+=\ud800é'
texts = st.text(letters, max_size=60) | st.text(letters, max_size=60).map(
    lambda text: f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"
)
bodies = st.binary(max_size=60) | texts.map(lambda text: text.encode("utf-8", "replace"))


@settings(deadline=None, max_examples=150)  # machines are busy
@given(
    st.sampled_from(sorted(URLS)),
    bodies | st.none(),
    st.dictionaries(st.sampled_from([*CHAINS.values(), "x"]), texts),
    st.integers(100, 599) | st.just(200),
)
def test_any_answer_raises_our_errors_only(
    path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    """Any status, headers and body in one answer: a CollateralError with its URL, or a value."""

    def change(response: Response) -> Response:
        return Response(
            status,
            {**response.headers, **headers},
            response.body if body is None else body,
        )

    assert fetches_or_names_the_url(path, change)


@settings(deadline=None, max_examples=150)  # machines are busy
@given(st.sampled_from(sorted(URLS)), st.integers(0, 5000), st.integers(1, 255))
def test_any_changed_byte_raises_our_errors_only(path: str, at: int, flip: int) -> None:
    """One byte of a body changed: a CollateralError with its URL, or a value."""

    def change(response: Response) -> Response:
        body = bytearray(response.body)
        body[at % len(body)] ^= flip
        return response._replace(body=bytes(body))

    assert fetches_or_names_the_url(path, change)


def test_nothing_of_the_network_is_loaded_before_a_fetch() -> None:
    """Collateral loads no http, no TLS and no X.509; with a getter of one's own never http."""
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
