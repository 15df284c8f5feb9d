"""`attestkit.connect` beside what it is made of: plain connections, and bare httpx.

The server is a process of its own, and everybody takes turns. A first connection is timed whole,
and beside it one that asks for the same document and does not verify it, so that network, handshake
and the server's quote are on both sides. Requests go over connections that are open, in rounds, so
that each contender has its code in the cache as in a program that uses it alone.
"""

import asyncio
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from ssl import create_default_context
from statistics import median
from time import perf_counter
from typing import Any, Final, NamedTuple

import httpx
import httpx2
import pytest

import attestkit
from attestkit.client.document import PATH
from attestkit.client.endpoint import Endpoint
from attestkit.client.origin import Origin
from attestkit.client.services.own_document import OwnDocument
from attestkit.client.strict_answer import MAX_ANSWER
from attestkit.client.wire.http_libraries import LibraryName
from attestkit.client.wire.question import request_evidence
from attestkit.client.wire.steps import Steps, drive
from attestkit.client.wire.tls import SocketChannel, open_tls, tls_context
from attestkit.errors import FormatError
from benchmarks.cases import OURS
from benchmarks.racing import Ledger
from benchmarks.results import Result
from benchmarks.serve.attested_app import ANCHOR, COLLATERAL

CONNECTIONS: Final = 150
ROUNDS: Final = 120
REQUESTS: Final = 25  # of each contender in a round
BODY: Final = b"a request of some bytes"
LIBRARIES: Final[dict[LibraryName, Any]] = {"httpx": httpx, "httpx2": httpx2}


class Server(NamedTuple):
    """The server, and an endpoint that has proven it."""

    url: str
    ca: str
    endpoint: Endpoint


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server in a process of its own."""
    folder = tmp_path_factory.mktemp("client")
    words = [sys.executable, "-m", "benchmarks.serve.attested_app", str(folder)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        words, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        with attestkit.connect(
            found["url"],
            policy="hardware-only",
            server_ca=found["ca"],
            trust_anchor=(folder / ANCHOR).read_text(),
            collateral=folder / COLLATERAL,
        ) as endpoint:
            yield Server(found["url"], found["ca"], endpoint)
        process.terminate()


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    begin = perf_counter()
    call()
    return perf_counter() - begin


def test_first_connection(server: Server, ledger: Ledger, *, quick: bool) -> None:
    """A proof on a new connection, over a plain connection that asks for the document."""
    context, origin = tls_context(server.ca), Origin.of(server.url)

    def question() -> Steps:
        target = f"{PATH}?nonce={bytes(32).hex()}"
        yield from request_evidence(origin.authority, target, limit=MAX_ANSWER, seconds=10)
        return True

    def plain() -> None:
        with open_tls(origin.host, origin.port, context, proxy=None, seconds=10) as connection:
            drive(question(), SocketChannel(connection))

    contenders = {OURS: server.endpoint.prove, "plain TLS": plain}
    rounds = [
        {name: timed(call) for name, call in contenders.items()}
        for _ in range(2 if quick else CONNECTIONS)
    ]
    if quick:
        return
    values = {name: median(one[name] for one in rounds) for name in contenders}
    figure = median(one[OURS] - one["plain TLS"] for one in rounds) * 1000
    what = "first connection, over a plain one that asks for the document"
    ledger.add(Result("client-first", what, "s", values, {}, figure))


def take_turns(
    contenders: dict[str, Callable[[], object]], *, quick: bool
) -> list[dict[str, float]]:
    """Return the median seconds of a request of each contender by round, in changing order."""
    rounds = []
    for number in range(1 if quick else ROUNDS):
        found = {}
        for name in contenders if number % 2 else reversed(contenders):
            for _ in range(3):  # warm
                contenders[name]()
            found[name] = median(timed(contenders[name]) for _ in range(REQUESTS))
        rounds.append(found)
    return rounds


def enter(ledger: Ledger, name: str, peer: str, what: str, rounds: list[dict[str, float]]) -> None:
    """Enter what a request takes, and the ratio, that of neighbouring rounds."""
    values = {one: median(found[one] for found in rounds) for one in (OURS, peer)}
    ratio = median(found[peer] / found[OURS] for found in rounds)
    ledger.add(Result(f"client-request-{name}", what, "s", values, {peer: ratio}))


@pytest.mark.parametrize("name", LIBRARIES)
def test_request(server: Server, name: LibraryName, ledger: Ledger, *, quick: bool) -> None:
    """A request on a proven connection, and one of the bare library."""
    context = create_default_context(cadata=server.ca)
    with ExitStack() as stack:
        ours = stack.enter_context(server.endpoint.client(http=name))
        bare = stack.enter_context(LIBRARIES[name].Client(verify=context, base_url=server.url))
        contenders = {
            OURS: lambda: ours.post("/", content=BODY),
            name: lambda: bare.post("/", content=BODY),
        }
        rounds = take_turns(contenders, quick=quick)
    if not quick:
        enter(ledger, name, name, f"a request on a proven connection, {name}", rounds)


@pytest.mark.parametrize("name", LIBRARIES)
def test_request_on_asyncio(
    server: Server, name: LibraryName, ledger: Ledger, *, quick: bool
) -> None:
    """The same on an event loop."""
    context = create_default_context(cadata=server.ca)
    loop = asyncio.new_event_loop()
    ours = server.endpoint.async_client(http=name)
    bare = LIBRARIES[name].AsyncClient(verify=context, base_url=server.url)

    def post(client: Any) -> Callable[[], object]:  # noqa: ANN401 - of either library
        return lambda: loop.run_until_complete(client.post("/", content=BODY))

    try:
        rounds = take_turns({OURS: post(ours), name: post(bare)}, quick=quick)
        for client in (ours, bare):
            loop.run_until_complete(client.aclose())
    finally:
        loop.close()
    if not quick:
        what = f"a request on a proven connection, {name} on asyncio"
        enter(ledger, f"{name}-asyncio", name, what, rounds)


class Pieces:
    """A connection over which one answer comes."""

    def __init__(self, answer: bytes) -> None:
        self._answer, self._at = memoryview(answer), 0

    def send(self, data: bytes, seconds: float) -> None:
        """Take the question."""

    def receive(self, limit: int, seconds: float) -> bytes:  # noqa: ARG002 - of the protocol
        """Return the next piece."""
        begin, self._at = self._at, min(self._at + limit, len(self._answer))
        return bytes(self._answer[begin : self._at])


def test_memory_of_the_largest_document(ledger: Ledger, *, quick: bool) -> None:
    """An answer of 16 MiB, read and refused; what a hostile server can have a client hold."""
    size = MAX_ANSWER >> 8 if quick else MAX_ANSWER
    shell = b'{"version":1,"statement":"","certificates":[],"evidence":""}'
    document = shell[:-2] + b"A" * (size - len(shell)) + shell[-2:]
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, document)

    def steps() -> Steps:
        reply = yield from request_evidence("a.example", PATH, limit=MAX_ANSWER, seconds=60)
        with pytest.raises(FormatError):
            OwnDocument().read((reply.body,), bytes(32), None, None)
        return True

    tracemalloc.start()
    try:
        drive(steps(), Pieces(answer))
        peak = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    if not quick:
        what = "memory while a document of 16 MiB is read, and refused"
        ledger.add(Result("client-memory", what, "MB", {OURS: peak}, {}, peak))
