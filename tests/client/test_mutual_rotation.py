"""Two services that prove each other, while both renew their keys: no request is lost.

Each service is a FastAPI application that asks the other one over an endpoint. From time to time
an answer closes its connection, as servers do that renew a key, so that new connections meet it.
"""

import asyncio
import itertools
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import fastapi
import httpx
import pytest

import attestkit
from attestkit._crypto.hashes import sha256
from attestkit.client.proofs.proof import Proof
from attestkit.client.wire.observed_peer import read_spki
from attestkit.testing import AttestedServer
from tests.thorough import unless_limited

if TYPE_CHECKING:
    from attestkit.client.endpoint import Endpoint
    from attestkit.ra_tls import PeerRefusedError

Make = Callable[..., AttestedServer]
RATE: Final = unless_limited(100, 50)  # requests a second
CLOSES: Final = 10  # each such answer of a service closes its connection
MAX_AGE: Final = timedelta(seconds=7)
TIMEOUT: Final = 120.0  # for a busy machine
AT_ONCE: Final = 50  # requests, so that a busy machine is slower, and opens no more connections


class Peer:
    """A service that is asked, and asks the other one.

    Attributes:
        events: Proofs and refusals of the other one.
        used: Keys of the connections over which answers came.
    """

    def __init__(self, name: str) -> None:
        self.events: list[Proof | PeerRefusedError] = []
        self.used: set[bytes] = set()
        self.answered: list[int] = []
        self.endpoint: Endpoint | None = None
        self._client: Any = None
        self.app = fastapi.FastAPI()
        self.app.add_api_route("/answer/{number}", self.answer)
        self.app.add_api_route("/ask/{number}", self.ask)
        self.app.add_api_route("/stop", self.stop)
        self._name = name

    async def answer(self, number: int, response: fastapi.Response) -> dict[str, object]:
        """Answer the other service."""
        self.answered.append(number)
        if number // 2 % CLOSES == 0:  # half of the numbers come here
            response.headers["Connection"] = "close"
        return {"name": self._name, "number": number}

    async def ask(self, number: int) -> dict[str, object]:
        """Ask the other service, over a proven connection."""
        endpoint = self.endpoint
        assert endpoint is not None
        if self._client is None:
            self._client = endpoint.async_client(http="httpx", timeout=TIMEOUT)
        answer = await self._client.get(f"/answer/{number}")
        tls = answer.extensions["network_stream"].get_extra_info("ssl_object")
        self.used.add(sha256(read_spki(tls.getpeercert(True))))
        found: dict[str, object] = answer.json()
        return found

    async def stop(self) -> None:
        """Close the client, in the loop that has used it."""
        if self._client is not None:
            await self._client.aclose()


def run(attested_server: Make, seconds: int) -> None:
    """Let both ask each other, and renew the key of both once a second."""
    peers = [Peer("a"), Peer("b")]
    servers = [attested_server(peer.app) for peer in peers]
    keys = [[server.spki_sha256] for server in servers]
    with ExitStack() as stack:
        for peer, other in zip(peers, reversed(servers), strict=True):
            peer.endpoint = stack.enter_context(
                attestkit.connect(
                    other.url,
                    policy=other.policy,
                    server_ca=other.ca,
                    max_age=MAX_AGE,
                    timeout=TIMEOUT,
                    on_proof=peer.events.append,
                )
            )
        answers = asyncio.run(drive(servers, keys, seconds))
    count = seconds * RATE
    assert answers == [{"name": "ba"[number % 2], "number": number} for number in range(count)]
    for peer, own_keys in zip(peers, reversed(keys), strict=True):
        assert len(peer.answered) == count / 2
        assert len(set(peer.answered)) == count / 2  # none was sent twice
        assert all(isinstance(event, Proof) for event in peer.events)
        # Evidence that is made during a renewal names the old and the new key.
        proven = {
            binding.key
            for event in peer.events
            if isinstance(event, Proof)
            for binding in event.bindings
        }
        assert peer.used <= proven <= set(own_keys)
        assert len(proven) >= len(own_keys) - 2  # the last ones may have met no new connection


async def drive(
    servers: list[AttestedServer], keys: list[list[bytes]], seconds: int
) -> list[dict[str, object]]:
    """Send requests to both at RATE, and renew their keys after each second's share of answers.

    A renewal by the clock would be too fast for a busy machine: each connection would have an old
    key before its evidence came.
    """
    trust = ssl.create_default_context(cadata="".join(server.ca for server in servers))
    start, count, answered = time.monotonic(), seconds * RATE, itertools.count(1)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    free, renewing = asyncio.Semaphore(AT_ONCE), asyncio.Lock()
    async with httpx.AsyncClient(verify=trust, limits=limits, timeout=TIMEOUT) as client:

        async def ask(number: int) -> dict[str, object]:
            await asyncio.sleep(start + number / RATE - time.monotonic())
            async with free:
                answer = await client.get(f"{servers[number % 2].url}/ask/{number}")
            assert answer.status_code == 200
            found: dict[str, object] = answer.json()
            done = next(answered)
            if done % RATE == 0 and done < count:
                await renew()
            return found

        async def renew() -> None:
            async with renewing:
                for server, used in zip(servers, keys, strict=True):
                    await asyncio.to_thread(server.rotate)
                    used.append(server.spki_sha256)

        answers = await asyncio.gather(*map(ask, range(count)))
        for server in servers:
            await client.get(f"{server.url}/stop")
    assert [len(used) for used in keys] == [seconds] * len(keys)
    return answers


@pytest.mark.slow
def test_ten_seconds(attested_server: Make) -> None:
    """100 requests a second, 9 new keys of each, and proofs that end after 7 seconds.

    None is lost or reaches an unproven key. `make rotation` takes longer.
    """
    run(attested_server, 10)
