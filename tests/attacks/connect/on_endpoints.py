"""Attempts on endpoints and their clients: other servers, redirects, clocks, and evidence."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import attestkit
from attestkit import Require
from attestkit.client.endpoint import Endpoint
from attestkit.errors import AttestKitError, ServiceError, UsageError
from attestkit.ra_tls import PeerRefusedError
from attestkit.testing import AttestedServer
from attestkit.verifier import AppraisalPolicy
from tests.attacks.attempts import Surfaces
from tests.client.callers import find_error
from tests.untyped import untyped

attacks = Surfaces("connect")
SECRET: Final = b"a secret of the user"


def connect(server: AttestedServer, **options: Any) -> Endpoint:
    """Connect to a server as its user does."""
    given = {"policy": server.policy, "server_ca": server.ca, **options}
    return attestkit.connect(server.url, **given)


def _call(server: AttestedServer, call: Callable[[Endpoint], object]) -> None:
    """Make a call on an endpoint; nothing of it reaches the server, or goes elsewhere."""
    with connect(server) as endpoint, endpoint.client() as client:
        assert client.post("/", content=b"ok").content == b"ok"
        before = len(server.requests)
        try:
            call(endpoint)
        except Exception as error:
            raise find_error(error) from error
        finally:
            assert len(server.requests) == before
            assert not any(SECRET in one for one in server.received)


def _get(url: str, endpoint: Endpoint) -> object:
    with endpoint.client() as client:
        return client.post(url, content=SECRET)


def _get_requests(url: str, endpoint: Endpoint) -> object:
    with endpoint.requests_session() as session:
        return session.post(url, data=SECRET, timeout=5)


def _url(template: str, server: AttestedServer) -> str:
    return template.format(port=server.port, other=server.port + 1)


_URLS: Final = {
    "another port": ("https://127.0.0.1:{other}/", ServiceError, "other_origin"),
    "a name of the same server": ("https://localhost:{port}/", ServiceError, "other_origin"),
    "another form of the address": ("https://127.1:{port}/", ServiceError, "other_origin"),
    "the host as a user": ("https://127.0.0.1:{port}@localhost/", ServiceError, "other_origin"),
    "plain HTTP": ("http://127.0.0.1:{port}/", UsageError, "plain_http"),
}


def _request(
    send: Callable[[str, Endpoint], object], template: str, proven_server: AttestedServer
) -> None:
    _call(proven_server, partial(send, _url(template, proven_server)))


for _library, _send in (("httpx", _get), ("requests", _get_requests)):
    for _name, (_template, _error, _reason) in _URLS.items():
        attacks.add(
            "relay",
            f"URL of a request of {_library} with {_name}",
            partial(_request, _send, _template),
            AttestKitError,
            _reason,
        )
del _error


def _openai(endpoint: Endpoint) -> object:
    client = endpoint.openai(api_key=SECRET.decode(), max_retries=0)
    return client.with_options(base_url="https://localhost:1/v1").models.list()


@attacks.attempt("relay", AttestKitError, "other_origin")
def openai_client_with_another_base_url(proven_server: AttestedServer) -> None:
    """The transport is for the proven server, whatever the client's options say."""
    _call(proven_server, _openai)


def _other_name(endpoint: Endpoint) -> object:
    host, port = "127.0.0.1", int(endpoint.origin.rpartition(":")[2])
    with socket.create_connection((host, port), 5) as plain:
        return endpoint.ssl_context.wrap_socket(plain, server_hostname="localhost")


@attacks.attempt("relay", PeerRefusedError, "other_origin")
def socket_for_another_name_of_the_server(proven_server: AttestedServer) -> None:
    """Libraries follow redirects with a context."""
    _call(proven_server, _other_name)


@attacks.attempt("confuse", UsageError, "conflict")
def context_that_is_told_to_resume_sessions(proven_server: AttestedServer) -> None:
    """A resumed session would not prove the key anew."""
    with connect(proven_server) as endpoint:
        context = endpoint.ssl_context
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.options & ssl.OP_NO_TICKET
        for name in ("verify", "cert", "proxy", "mounts", "http2", "trust_env"):
            try:
                untyped(endpoint).client(**{name: True})
            except UsageError:
                continue
            raise AssertionError(name)
        endpoint.client(transport=untyped(None))


def _document(change: Callable[[bytes], bytes], proven_server: AttestedServer) -> None:
    """Connect to the server with a changed document; without the change it is proven."""
    with connect(proven_server):
        pass
    proven_server.change_document(change)
    before = time.monotonic()
    try:
        with connect(proven_server):
            pass
    finally:
        proven_server.restore()
        assert time.monotonic() - before < 5


def _members(**members: Any) -> Callable[[bytes], bytes]:
    return lambda body: json.dumps({**json.loads(body), **members}).encode()


_CHANGES: Final[dict[str, tuple[Any, Any]]] = {
    "levels without end": ("exhaust", lambda _: b'{"a":' + b"[" * (1 << 20)),
    "a number of a million digits": (
        "exhaust",
        lambda _: b'{"version":' + b"9" * (1 << 20) + b"}",
    ),
    "a number without an end of its exponent": ("exhaust", lambda _: b'{"version":1e999999999}'),
    "16 MiB of spaces": ("exhaust", lambda body: b" " * (1 << 24) + body),
    "names without end": (
        "exhaust",
        lambda _: b"{" + b",".join(b'"%d":0' % n for n in range(100_000)) + b"}",
    ),
    "one name many times": ("exhaust", lambda _: b"{" + b'"version":1,' * 100_000 + b'"a":1}'),
    "no number": ("confuse", lambda _: b'{"version":NaN}'),
    "half of a character": ("confuse", _members(name="\ud800")),
    "evidence of no bytes": ("confuse", _members(evidence="")),
    "evidence in base64 of URLs": ("confuse", _members(evidence="-_-_")),
    "evidence with bits left over": ("confuse", _members(evidence="AB==")),
    "a page of an error": ("confuse", lambda _: b"<html>200 OK</html>"),
    "comments": ("confuse", lambda body: b"/**/" + body),
}
for _name, (_kind, _change) in _CHANGES.items():
    attacks.add(
        _kind,
        f"document of a server with {_name}",
        partial(_document, _change),
        PeerRefusedError,
        *("syntax", "too_deep", "too_large", "too_many", "duplicate", "encoding", "wrong_value"),
        *("unknown_field", "missing", "wrong_type", "unsupported_version", "out_of_range"),
    )


@attacks.attempt("confuse", PeerRefusedError, "app_id")
def policy_of_another_app(proven_server: AttestedServer) -> None:
    """Hardware and image are as they should be, and the app is another."""
    own = proven_server.policy.policy
    other = proven_server.tee.verifier(policy=own.replace(app_id=[bytes(20)]))
    with connect(proven_server):
        pass
    connect(proven_server, policy=other)


@attacks.attempt("confuse", UsageError, "any_app")
def policy_for_any_app_by_a_verifier_of_the_callers(proven_server: AttestedServer) -> None:
    """A Verifier is a policy, too."""
    connect(proven_server, policy=proven_server.tee.verifier(policy=AppraisalPolicy.default()))


@attacks.attempt("confuse", PeerRefusedError, "simulated", "root", "untrusted_root", "signature")
def simulated_server_for_real_hardware(proven_server: AttestedServer) -> None:
    """Without the simulator's root its evidence counts for nothing, for any program."""
    with connect(
        proven_server,
        policy="hardware-only",
        trust_anchor=proven_server.tee.trust_anchor,
        collateral=proven_server.tee.collateral,
    ):
        pass
    connect(proven_server, policy="hardware-only", collateral=proven_server.tee.collateral)


@attacks.attempt("confuse", PeerRefusedError, "no_gpu")
def server_without_the_gpus_that_are_required(proven_server: AttestedServer) -> None:
    """The document has no evidence of GPUs."""
    connect(proven_server, require=Require(gpu=True))


@attacks.attempt("confuse", AttestKitError, "no_signatures")
def server_that_signs_nothing_for_one_that_does(proven_server: AttestedServer) -> None:
    """It is refused before a request, and not at the first answer."""
    connect(proven_server, require=Require(response_signatures=True))


@attacks.attempt("confuse", PeerRefusedError, "no_channel")
def server_without_a_key_to_seal_to(proven_server: AttestedServer) -> None:
    """Requests are not sent open instead."""
    connect(proven_server, encrypt=True)


@attacks.attempt("exhaust", PeerRefusedError, "timeout")
def server_that_never_answers_the_question(proven_server: AttestedServer) -> None:
    """The question has its time."""
    with connect(proven_server):
        pass
    proven_server.hang()
    before = time.monotonic()
    try:
        connect(proven_server, timeout=0.2)
    finally:
        proven_server.restore()
        assert time.monotonic() - before < 2


@attacks.attempt("replay", UsageError, "closed")
def request_of_a_client_whose_endpoint_is_closed(proven_server: AttestedServer) -> None:
    """The client and its connections are the attacker's idea of a proof that lasts."""
    endpoint = connect(proven_server)
    with endpoint.client() as client:
        assert client.post("/", content=b"ok").content == b"ok"
        endpoint.close()
        try:
            client.post("/", content=SECRET)
        except Exception as error:
            raise find_error(error) from error


@attacks.attempt("relay", PeerRefusedError, "other_key")
def event_loop_to_a_server_that_took_the_name(proven_server: AttestedServer) -> None:
    """Event loops cannot ask, and compare the key."""

    async def open_connection(context: ssl.SSLContext) -> None:
        await asyncio.open_connection("127.0.0.1", proven_server.port, ssl=context)

    with connect(proven_server) as endpoint:
        proven_server.swap_key()
        try:
            asyncio.run(open_connection(endpoint.ssl_context))
        finally:
            proven_server.restore()
