"""A context is for one server: a client that follows a redirect with it must not be proven anew.

The other server may well be genuine, and run the same program, for somebody else.
"""

import asyncio
import socket
import urllib.error
import urllib.request

import pytest

from attestkit.ra_tls import PeerRefusedError
from tests.client.wire.pinned_clients import context_of, proven
from tests.client.wire.servers import TIMEOUT, serving

OTHER_NAME = "localhost"


def test_sockets_for_another_name_are_refused() -> None:
    """Neither a question nor a request is sent, also if WebPKI accepts the name."""
    with serving() as server:
        context = context_of(proven(server))
        plain = socket.create_connection(("127.0.0.1", server.port), TIMEOUT)
        with pytest.raises(PeerRefusedError) as refused:
            context.wrap_socket(plain, server_hostname=OTHER_NAME)
        assert refused.value.reason == "other_origin"
        assert OTHER_NAME in str(refused.value)
        assert server.received == b""


def test_event_loops_for_another_name_are_refused() -> None:
    """A proven key does not make another name the proven server."""
    with serving() as server:
        context = context_of(proven(server))

        async def program() -> None:
            await asyncio.open_connection(
                "127.0.0.1", server.port, ssl=context, server_hostname=OTHER_NAME
            )

        with pytest.raises(PeerRefusedError) as refused:
            asyncio.run(program())
        assert refused.value.reason == "other_origin"
        assert server.received == b""


def test_urllib_for_another_name_is_refused() -> None:
    """As after a redirect."""
    with serving() as server:
        context = context_of(proven(server))
        with pytest.raises(urllib.error.URLError) as refused:
            urllib.request.urlopen(
                f"https://{OTHER_NAME}:{server.port}/", timeout=TIMEOUT, context=context
            )
        assert isinstance(refused.value.reason, PeerRefusedError)
        assert server.received == b""
