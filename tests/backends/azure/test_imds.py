"""The client of Azure's metadata service: requests, repetitions, limits and errors."""

import json
from base64 import b64encode, urlsafe_b64encode
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.pem import encode_pem
from attestkit.backends.azure.imds import BODY_LIMIT, ImdsClient, read_base64
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    FormatError,
    QuoteUnavailableError,
    UsageError,
)
from tests.backends.azure.imds_server import ImdsServer, json_response, status_response
from tests.collateral.http_server import CreateServer, create_response
from tests.raising import raises, repeated_subjects

REPORT = bytes(range(256)) * 4
QUOTE = b"\xfb\xff\xfe" * 100
VCEK, ASK, ARK = b"0\1vcek", b"0\2ask", b"0\3ark"
CERTIFICATES = json_response(
    vcekCert=encode_pem("CERTIFICATE", VCEK),
    tcbm="DB18000000000004",
    certificateChain=encode_pem("CERTIFICATE", ASK) + encode_pem("CERTIFICATE", ARK),
    cacheControl="86400",
)


def no_wait(_seconds: float) -> None:
    """Fail: the client must not wait."""
    raise AssertionError


def client_of(server: ImdsServer) -> ImdsClient:
    """Return a client that must not repeat a request."""
    return ImdsClient(server.address, sleep=no_wait)


@pytest.mark.parametrize(
    "text",
    [
        b64encode(QUOTE).decode(),
        urlsafe_b64encode(QUOTE + b"\0").decode(),
        urlsafe_b64encode(QUOTE + b"\0").decode().rstrip("="),
    ],
)
def test_imds_td_quote_is_read_in_either_alphabet(create_server: CreateServer, text: str) -> None:
    """The report is sent as unpadded base64url, and a quote of either alphabet is decoded."""
    server = ImdsServer(create_server, [json_response(quote=text)])
    assert client_of(server).get_td_quote(REPORT).startswith(QUOTE)
    (request,) = server.requests
    assert request.line == "POST /acc/tdquote HTTP/1.1"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept"] == "application/json"
    assert request.headers["metadata"] == "true"
    sent = json.loads(request.body)
    assert list(sent) == ["report"]
    assert "=" not in sent["report"]
    assert read_base64(sent["report"], "report") == REPORT


def test_imds_snp_certificates_are_those_of_both_members(create_server: CreateServer) -> None:
    """The VCEK comes first, then the chain."""
    server = ImdsServer(create_server, [CERTIFICATES])
    assert client_of(server).get_snp_certificates() == (VCEK, ASK, ARK)
    (request,) = server.requests
    assert request.line == "GET /metadata/THIM/amd/certification HTTP/1.1"
    assert request.headers["metadata"] == "true"
    assert "content-type" not in request.headers


@pytest.mark.parametrize("status", [429, 500, 503])
def test_imds_repeats_at_most_three_times(create_server: CreateServer, status: int) -> None:
    """An overloaded or failing service gets three more requests, after growing waits."""
    waits: list[float] = []
    failing = status_response(status)
    server = ImdsServer(create_server, [failing] * 3 + [CERTIFICATES])
    client = ImdsClient(server.address, sleep=waits.append)
    assert client.get_snp_certificates() == (VCEK, ASK, ARK)
    assert waits == sorted(waits)
    assert len(waits) == 3
    server = ImdsServer(create_server, lambda _request: failing)
    client = ImdsClient(server.address, sleep=waits.append)
    error, reason = (
        (BackendBusyError, "overloaded")
        if status == 429
        else (QuoteUnavailableError, "quoting_service")
    )
    with raises(error, reason):
        client.get_td_quote(REPORT)
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [302, 400, 404, 415])
def test_imds_other_status_is_not_repeated(create_server: CreateServer, status: int) -> None:
    """A redirect is not followed, and a rejected request not repeated."""
    other = ImdsServer(create_server, [CERTIFICATES])
    location = f"Location: http://127.0.0.1:{other.address[1]}/"
    server = ImdsServer(create_server, [status_response(status, location)])
    with raises(QuoteUnavailableError, "request_failed", part=str(status)):
        client_of(server).get_snp_certificates()
    assert not other.requests


def test_imds_ignores_proxy_variables(
    create_server: CreateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client never uses a proxy."""
    proxy, server = (ImdsServer(create_server, [CERTIFICATES]) for _ in range(2))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.address[1]}")
    client_of(server).get_snp_certificates()
    assert (len(proxy.requests), len(server.requests)) == (0, 1)


@pytest.mark.parametrize(
    "raw",
    [
        create_response(b"{"),
        create_response(b"[]"),
        create_response(b'{"quote":1}'),
        create_response(b'{"quote":"AA","quote":"AA"}'),
        create_response(b'{"quote":"A"}'),
        create_response(b'{"quote":"AB"}'),
        create_response(b'{"quote":"-+AA"}'),
        create_response(b'{"quote":"AA==="}'),
        create_response(b'{"quote":"A A="}'),
        create_response(b'{"quote":"\xc3\xa9"}'),
        create_response(b"{}", length=5),
        b"garbage\r\n\r\n",
    ],
)
def test_imds_malformed_response_is_rejected(create_server: CreateServer, raw: bytes) -> None:
    """Malformed HTTP, JSON or base64 gives an error that names the request."""
    server = ImdsServer(create_server, [raw])
    with raises(BackendError, "malformed_response", start="IMDS: http://127.0.0.1:"):
        client_of(server).get_td_quote(REPORT)


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"vcekCert": "", "certificateChain": encode_pem("CERTIFICATE", ASK)},
        {"vcekCert": encode_pem("CERTIFICATE", VCEK) * 2, "certificateChain": ""},
        {
            "vcekCert": encode_pem("CERTIFICATE", VCEK),
            "certificateChain": encode_pem("CERTIFICATE", ASK) * 5,
        },
    ],
)
def test_imds_malformed_certificates_are_rejected(
    create_server: CreateServer, members: dict[str, str]
) -> None:
    """One VCEK and at most four certificates of its chain are accepted."""
    server = ImdsServer(create_server, [json_response(**members)])
    with raises(BackendError, "malformed_response") as caught:
        client_of(server).get_snp_certificates()
    assert not repeated_subjects(caught.value)


def test_imds_empty_quote_is_no_quote(create_server: CreateServer) -> None:
    """An empty quote is reported as missing."""
    server = ImdsServer(create_server, [json_response(quote="")])
    with raises(QuoteUnavailableError, "empty"):
        client_of(server).get_td_quote(REPORT)


def test_imds_response_is_bounded_in_size(create_server: CreateServer) -> None:
    """A body over 64 KiB is not read to its end."""
    server = ImdsServer(create_server, lambda _request: create_response(bytes(BODY_LIMIT + 1)))
    with raises(BackendError, "too_large"):
        client_of(server).get_td_quote(REPORT)


def test_imds_response_is_bounded_in_time(create_server: CreateServer) -> None:
    """A response that arrives slowly is given up when the time of the request is over."""
    server = ImdsServer(create_server, lambda _request: CERTIFICATES)
    ticks = count(0, 3)  # the clock advances by 3 s with each reading
    client = ImdsClient(server.address, sleep=no_wait, clock=lambda: float(next(ticks)))
    with raises(QuoteUnavailableError, "timed_out"):
        client.get_snp_certificates()


def test_imds_without_service_cannot_connect(create_server: CreateServer) -> None:
    """A refused connection is not repeated; a report of another size is not sent."""
    server = ImdsServer(create_server, [])
    client = ImdsClient(("127.0.0.1", 1), sleep=no_wait)
    with raises(QuoteUnavailableError, "cannot_connect"):
        client.get_snp_certificates()
    with raises(UsageError, "wrong_size"):
        client_of(server).get_td_quote(REPORT[:-1])
    assert not server.requests


@given(st.binary(max_size=64), st.booleans(), st.booleans())
def test_read_base64_decodes_both_alphabets(data: bytes, url: bool, padded: bool) -> None:
    """Both alphabets are decoded, padded or not."""
    text = (urlsafe_b64encode if url else b64encode)(data).decode()
    assert read_base64(text if padded else text.rstrip("="), "quote") == data


def test_read_base64_rejects_unused_bits() -> None:
    """Bits that no byte uses must be zero."""
    with raises(FormatError, "not_canonical"):
        read_base64("AB", "quote")
