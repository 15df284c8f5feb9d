"""Sessions of requests for the servers of the tests."""

import contextlib
from collections.abc import Iterator
from typing import Any

import requests

from attestkit.client.wire.attested_tls import pinned_context
from attestkit.client.wire.requests_adapter import requests_session
from tests.client.wire.authority import authority
from tests.client.wire.servers import TIMEOUT
from tests.client.wire.simple_verifier import SimpleServerVerifier


@contextlib.contextmanager
def session_of(server_verifier: SimpleServerVerifier, **options: Any) -> Iterator[requests.Session]:
    """Run with a session for the server of a verifier."""
    webpki = options.pop("webpki", True)
    context = pinned_context(server_verifier, authority().pem if webpki else None, webpki=webpki)
    with requests_session(server_verifier, context, **options) as session:
        yield session


def post(session: requests.Session, url: str, **options: Any) -> requests.Response:
    """Send a request with a secret."""
    return session.post(url, data="secret", timeout=TIMEOUT, **options)
