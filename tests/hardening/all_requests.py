"""Requests for everything that a server offers, from outside."""

import asyncio
import contextlib
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tests.serve.client import Connection
from tests.serve.docker.engine import ID, run_engine
from tests.serve.server import Server

LISTENERS = ("--dev-http", "127.0.0.1:0", "--pccs-http", "127.0.0.1:0", "--verifier", "127.0.0.1:0")
"""Options for all listeners of a simulator that `drive` uses."""

DOCUMENTS = (
    "/docs",
    "/openapi.json",
    "/dstack_guest.proto",
    "/dstack.guest.v1.proto",
    "/metrics",
    "/",
    "/assets/dashboard.css",
)
PCCS = (
    "/sgx/certification/v4/rootcacrl",
    "/sgx/certification/v4/pckcrl?ca=platform",
    "/tdx/certification/v4/qe/identity",
    "/sgx/certification/v4/nothing",
)
_JSON = {"Content-Type": "application/json"}
_BINARY = {"Content-Type": "application/octet-stream"}


class Driven(NamedTuple):
    """The requests that were made.

    Attributes:
        requests: Each as `verb path`.
        statuses: Number of responses with each status.
    """

    requests: list[str]
    statuses: Counter[int]


class _Driver:
    def __init__(self) -> None:
        self.driven = Driven([], Counter())

    def ask(self, connection: Connection, verb: str, target: str, *rest: Any) -> bytes:
        answer = connection.send_request(verb, target, *rest)
        self.driven.requests.append(f"{verb} {target}")
        self.driven.statuses[answer.status] += 1
        return answer.body

    def methods(self, connection: Connection) -> None:
        """Call each method that a listener describes: as JSON, in the query, as protobuf."""
        document = connection.send_request("GET", "/openapi.json").json()
        for path, item in document["paths"].items():
            if "post" not in item:
                continue
            content = item["post"].get("requestBody", {}).get("content", {})
            example = content.get("application/json", {}).get("example", {})
            assert connection.call(path[1:], example).status in (200, 400, 500, 501), path
            query = urlencode({k: v for k, v in example.items() if isinstance(v, str)})
            self.ask(connection, "GET", f"{path}?json&{query}")
            self.ask(connection, "POST", path, b"", _BINARY)
            self.ask(connection, "POST", path, b"\xff" * 9, _BINARY)
            self.ask(connection, "POST", path, b'{"', _JSON)

    def documents(self, connection: Connection) -> None:
        for path in DOCUMENTS:
            self.ask(connection, "GET", path)
            self.ask(connection, "HEAD", path)
        for name in (ID, "app", "tty", "none"):
            self.ask(connection, "GET", f"/logs/{name}?text&timestamps&tail=3")

    def verifier(self, connection: Connection, evidence: list[bytes]) -> None:
        self.ask(connection, "GET", "/health")
        for one in evidence:
            self.ask(connection, "POST", "/verify", one, _JSON)

    def oddities(self, connection: Connection) -> None:
        self.ask(connection, "DELETE", "/")
        self.ask(connection, "GET", "/%2e%2e/etc/passwd")
        self.ask(connection, "POST", "/prpc/NoSuch.Method", b"{}", _JSON)


def drive(server: Server) -> Driven:
    """Request everything of each listener; the server must respond, and log no error."""
    driver = _Driver()
    evidence = [b"{}"]
    for name in ("dev_http", "dstack", "tappd", "http"):
        if name not in server.ready:
            continue
        with contextlib.closing(Connection(server.ready[name])) as connection:
            driver.methods(connection)
            driver.documents(connection)
            driver.oddities(connection)
            if name == "dstack":
                requests = {"report_data": "12"}
                evidence += [
                    connection.call(method, requests).body for method in ("Attest", "GetQuote")
                ]
    if "verifier" in server.ready:
        with contextlib.closing(Connection(server.ready["verifier"])) as connection:
            driver.verifier(connection, evidence)
    if "pccs" in server.ready:
        with contextlib.closing(Connection(server.ready["pccs"])) as connection:
            for path in PCCS:
                driver.ask(connection, "GET", path)
    server.check_log()
    return driver.driven


@contextlib.contextmanager
def scripted_engine() -> Iterator[Mapping[str, str]]:
    """Run a scripted container engine; yield the environment for it."""
    addresses: list[str] = []
    begun, ended = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        async with run_engine() as engine:
            loops.append(asyncio.get_running_loop())
            addresses.append(engine.address)
            begun.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert begun.wait(60)
        yield {"DOCKER_HOST": addresses[0]}
    finally:
        loops[0].call_soon_threadsafe(ended.set)
        thread.join()


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path, for the length of socket paths is limited."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        yield Path(name)
