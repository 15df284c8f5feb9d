"""Attempts of a hostile PCCS, and of the network before it."""

import json
import socket
import time
from collections.abc import Callable
from contextlib import closing
from functools import cache, partial
from typing import Final

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.collateral.http_getter import HttpGetter
from attestkit.collateral.responses import Response
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    SignatureError,
    UsageError,
)
from attestkit.verifier import AttestationResult, Verifier
from tests.attacks.attempts import Kind, Surfaces
from tests.collateral.http_server import Server
from tests.collateral.services import (
    CRL,
    PCKCERT,
    QE,
    TCB,
    Service,
    create_quote_with_ppid,
    replace_headers,
)
from tests.collateral.test_merge import NEW
from tests.raising import raises
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NONCE, NOW

attacks = Surfaces("collateral")

RAW: Final = intel.evidence().to_bytes()
ATTACKER: Final = SimulatedPki(bytes(32))
Change = Callable[[Response], Response]


def verify(service: Callable[[str], Response]) -> AttestationResult:
    """Verify a quote with collateral of this service."""
    found = intel.verifier(collateral=None, pccs_url="http://pccs.test", getter=service)
    return found.verify(RAW, report_data=NONCE)


@cache
def accepted() -> None:
    """Verify a quote with the answers of the unaltered service."""
    service = Service()
    assert verify(service).tcb
    assert len(service.urls) == 4


def add(
    kind: Kind, name: str, path: str, change: Change, error: type[AttestKitError], *reasons: str
) -> None:
    """Add an attempt of a service that alters one of its answers."""

    def run() -> object:
        accepted()
        return verify(Service({path: change}))

    attacks.add(kind, name, run, error, *reasons)


def body(change: Callable[[bytes], bytes]) -> Change:
    """Return a change of the body of a response."""
    return lambda response: response._replace(body=change(response.body))


# -- answers -----------------------------------------------------------------------------------

add(
    "forge",
    "PCCS that raises the status in TCB info",
    TCB,
    body(lambda raw: raw.replace(b'"tcbStatus":"OutOfDate"', b'"tcbStatus":"UpToDate"')),
    SignatureError,
    "tcb_info_bad_signature",
)
add(
    "replay",
    "PCCS that extends the validity of TCB info",
    TCB,
    body(lambda raw: raw.replace(b'"nextUpdate":"2026', b'"nextUpdate":"2036')),
    SignatureError,
    "tcb_info_bad_signature",
)
add(
    "confuse",
    "PCCS with two bodies of TCB info",
    TCB,
    body(lambda raw: raw[:-1] + b',"tcbInfo":{}}'),
    CollateralError,
    "malformed",
)
add(
    "confuse",
    "PCCS with two signatures of TCB info",
    TCB,
    body(lambda raw: raw[:-1] + b',"signature":"' + b"00" * 64 + b'"}'),
    CollateralError,
    "malformed",
)
add(
    "confuse",
    "PCCS with TCB info as text",
    TCB,
    body(lambda raw: json.dumps({"tcbInfo": raw.decode(), "signature": "00" * 64}).encode()),
    CollateralError,
    "malformed",
)
add(
    "confuse",
    "PCCS with TCB info in UTF-16",
    TCB,
    body(lambda raw: raw.decode().encode("utf-16")),
    CollateralError,
    "malformed",
)
add(
    "confuse",
    "PCCS that serves an HTML page with status 200",
    QE,
    body(lambda _: b"<html>sign in</html>"),
    CollateralError,
    "malformed",
)
add(
    "confuse",
    "PCCS that redirects to another host",
    QE,
    lambda _: Response(302, {"Location": "http://attacker.test/"}, b""),
    CollateralError,
    "fetch_failed",
)
add(
    "confuse",
    "PCCS that says not found for the CRL",
    CRL,
    lambda _: Response(404, {}, b""),
    CollateralError,
    "fetch_failed",
)
add("confuse", "PCCS with an empty CRL", CRL, body(lambda _: b""), CollateralError, "malformed")
add(
    "confuse",
    "PCCS with a status that is no error and no success",
    CRL,
    lambda response: response._replace(status=204, body=b""),
    CollateralError,
    "fetch_failed",
)
add(
    "recombine",
    "PCCS with the root's CRL for that of the PCK CA",
    CRL,
    body(lambda _: NEW.root_ca_crl),
    SignatureError,
    "crl_missing",
)
add(
    "recombine",
    "PCCS with the CRL of another PKI",
    CRL,
    body(lambda _: ATTACKER.collateral(NOW.timestamp()).pck_crl),
    SignatureError,
    "crl_bad_signature",
)
add(
    "forge",
    "PCCS with a CRL cut before its revoked certificates",
    CRL,
    body(lambda raw: raw[:-40]),
    CollateralError,
    "malformed",
)
add(
    "replay",
    "PCCS with a CRL of two months ago",
    CRL,
    body(lambda _: intel.PKI.collateral(NOW.timestamp() - 61 * 86400).pck_crl),
    CollateralExpiredError,
    "crl_expired",
)
add(
    "confuse",
    "PCCS with the chain of TCB info in another header",
    TCB,
    lambda response: replace_headers(
        response,
        TCB_Info_Issuer_Chain=None,
        SGX_TCB_Info_Issuer_Chain=None,
        X_Issuer_Chain="anything",
    ),
    CollateralError,
    "malformed",
)
add(
    "confuse",
    "PCCS whose chain has percent signs of invalid UTF-8",
    TCB,
    lambda response: replace_headers(response, TCB_Info_Issuer_Chain="%ff%fe"),
    CollateralError,
    "malformed",
)
add(
    "exhaust",
    "PCCS with TCB info nested without end",
    TCB,
    body(lambda _: b'{"tcbInfo":' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
    CollateralError,
    "malformed",
)
add(
    "exhaust",
    "PCCS with two mebibytes of spaces",
    TCB,
    body(lambda raw: raw + b" " * (2 << 20)),
    CollateralError,
    "too_large",
)
add(
    "exhaust",
    "PCCS with a chain of a thousand certificates",
    TCB,
    lambda response: replace_headers(
        response,
        TCB_Info_Issuer_Chain=NEW.tcb_info_issuer_chain.replace("\n", "%0A").replace("+", "%2B")
        * 500,
    ),
    CollateralError,
    "malformed",
)


@attacks.attempt("confuse", SignatureError, "cert_bad_signature")
def pck_certificate_of_another_platform_for_an_encrypted_ppid() -> object:
    """A service answers with the certificate of a machine of the attacker."""
    accepted()
    quote = create_quote_with_ppid(3, 384)
    other = ATTACKER.platform("0")

    def foreign(response: Response) -> Response:
        from attestkit._crypto.pem import encode_pem

        return response._replace(body=encode_pem("CERTIFICATE", other.pck_der).encode())

    service = Service({PCKCERT: foreign})
    found = intel.verifier(collateral=None, pccs_url="http://pccs.test", getter=service)
    return found.verify(quote.raw, report_data=None)


@attacks.attempt("exhaust")
def forged_quotes_send_no_request() -> None:
    """A thousand quotes of invented platforms would be a thousand requests."""
    accepted()
    service = Service()
    verifier = intel.verifier(collateral=None, pccs_url="http://pccs.test", getter=service)
    quote = bytearray(RAW)
    for at in range(200, 1000, 40):
        forged = bytes(quote[:at]) + bytes([quote[at] ^ 1]) + bytes(quote[at + 1 :])
        try:
            verifier.verify(forged, report_data=NONCE)
        except AttestKitError:
            continue
        raise AssertionError(at)
    assert service.urls == []


@attacks.attempt("exhaust")
def service_that_stays_hostile_gets_eight_requests() -> None:
    """The second four are the one repetition of a minute."""
    accepted()
    service = Service({TCB: body(lambda raw: raw.replace(b"UpToDate", b"uptodate", 1))})
    verifier = intel.verifier(collateral=None, pccs_url="http://pccs.test", getter=service)
    for _ in range(20):
        with raises(SignatureError, "tcb_info_bad_signature"):
            verifier.verify(RAW, report_data=NONCE)
    assert len(service.urls) <= 8


# -- HTTP --------------------------------------------------------------------------------------

ANSWERS: Final[dict[str, bytes]] = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n"
    b"\r\n2\r\n{}\r\n0\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
    "less than its length": b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}",
    "a chunk of 2^64 bytes": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"10000000000000000\r\n{}",
    "a terabyte announced": b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
    "a coding that the length hides": b"HTTP/1.1 200 OK\r\n"
    b"Transfer-Encoding: gzip, chunked\r\n\r\n{}",
    "no HTTP at all": b"SSH-2.0-OpenSSH\r\n",
    "compressed body": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
}


def answer(raw: bytes) -> object:
    """Get a page of a server that answers with these bytes."""
    with closing(Server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")) as good:
        assert HttpGetter(timeout=5)(good.url).body == b"{}"
    with closing(Server(raw)) as bad:
        return HttpGetter(timeout=5)(bad.url)


for title, raw in ANSWERS.items():
    attacks.add(
        "confuse",
        f"HTTP answer with {title}",
        partial(answer, raw),
        CollateralError,
        "malformed",
        "too_large",
    )


@attacks.attempt("exhaust")
def server_that_sends_a_byte_from_time_to_time() -> None:
    """The time is for the whole answer, not for each byte."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for _ in range(100):
            connection.sendall(b"X")
            time.sleep(0.02)

    start = time.monotonic()
    with closing(Server(drip)) as slow, raises(CollateralError, "fetch_failed"):
        HttpGetter(timeout=0.2)(slow.url)
    assert time.monotonic() - start < 3


URLS: Final = {
    "with a password": "http://user:secret@pccs.test",
    "of a file": "file:///etc/passwd",
    "with a line break": "http://pccs.test/\r\nX: y",
    "with a backslash": "http://pccs.test\\@attacker.test",
    "with a query": "http://pccs.test/?a=b",
    "with a fragment": "http://pccs.test/#x",
    "without a host": "http:///sgx",
    "with a port of letters": "http://pccs.test:port",
}


def of_url(url: str) -> object:
    """Make a verifier that would fetch from there."""
    assert Verifier(pccs_url="http://pccs.test") is not None
    return Verifier(pccs_url=url)


for title, url in URLS.items():
    attacks.add(
        "confuse", f"URL of a PCCS {title}", partial(of_url, url), UsageError, "wrong_value"
    )
