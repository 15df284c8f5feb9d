"""Sessions of requests for the servers of the tests."""

import contextlib
from collections.abc import Iterator
from typing import Any

import requests

from attestkit.client.wire.attested_tls import pinned_context
from attestkit.client.wire.requests_adapter import requests_session
from tests.client.wire.authority import authority
from tests.client.wire.provers import SimpleProver
from tests.client.wire.servers import TIMEOUT


@contextlib.contextmanager
def session_of(prover: SimpleProver, **options: Any) -> Iterator[requests.Session]:
    """Run with a session for the server of a prover."""
    webpki = options.pop("webpki", True)
    context = pinned_context(prover, authority().pem if webpki else None, webpki=webpki)
    with requests_session(prover, context, **options) as session:
        yield session


def post(session: requests.Session, url: str, **options: Any) -> requests.Response:
    """Send a request with a secret."""
    return session.post(url, data="secret", timeout=TIMEOUT, **options)
