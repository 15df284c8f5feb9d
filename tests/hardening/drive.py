"""Everything that a server can be asked, asked once or twice, from outside."""

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
from tests.serve.docker.engine import ID, scripted
from tests.serve.server import Server

LISTENERS = ("--dev-http", "127.0.0.1:0", "--pccs", "127.0.0.1:0", "--verifier", "127.0.0.1:0")
"""Options for all the listeners of a simulator that `drive` knows of."""

DOCUMENTS = (
    "/docs",
    "/openapi.json",
    "/dstack_guest.proto",
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
    """What was asked.

    Attributes:
        asked: Requests, each as `verb path`.
        statuses: How many answers had each status.
    """

    asked: list[str]
    statuses: Counter[int]


class _Driver:
    def __init__(self) -> None:
        self.driven = Driven([], Counter())

    def ask(self, door: Connection, verb: str, target: str, *rest: Any) -> bytes:
        answer = door.send_request(verb, target, *rest)
        self.driven.asked.append(f"{verb} {target}")
        self.driven.statuses[answer.status] += 1
        return answer.body

    def methods(self, door: Connection) -> None:
        """Call each method that a listener describes: as JSON, in the query, as protobuf."""
        document = door.send_request("GET", "/openapi.json").json()
        for path, item in document["paths"].items():
            if "post" not in item:
                continue
            content = item["post"].get("requestBody", {}).get("content", {})
            example = content.get("application/json", {}).get("example", {})
            assert door.call(path[1:], example).status in (200, 400, 500), path
            query = urlencode({k: v for k, v in example.items() if isinstance(v, str)})
            self.ask(door, "GET", f"{path}?json&{query}")
            self.ask(door, "POST", path, b"", _BINARY)
            self.ask(door, "POST", path, b"\xff" * 9, _BINARY)
            self.ask(door, "POST", path, b'{"', _JSON)

    def documents(self, door: Connection) -> None:
        for path in DOCUMENTS:
            self.ask(door, "GET", path)
            self.ask(door, "HEAD", path)
        for name in (ID, "app", "tty", "none"):
            self.ask(door, "GET", f"/logs/{name}?text&timestamps&tail=3")

    def verifier(self, door: Connection, evidence: list[bytes]) -> None:
        self.ask(door, "GET", "/health")
        for one in evidence:
            self.ask(door, "POST", "/verify", one, _JSON)

    def oddities(self, door: Connection) -> None:
        self.ask(door, "DELETE", "/")
        self.ask(door, "GET", "/%2e%2e/etc/passwd")
        self.ask(door, "POST", "/prpc/NoSuch.Method", b"{}", _JSON)


def drive(server: Server) -> Driven:
    """Ask a server everything at each of its listeners; it must answer, and tell of no mistake."""
    driver = _Driver()
    evidence = [b"{}"]
    for name in ("dev_http", "dstack", "tappd", "http"):
        if name not in server.ready:
            continue
        with contextlib.closing(Connection(server.ready[name])) as door:
            driver.methods(door)
            driver.documents(door)
            driver.oddities(door)
            if name == "dstack":
                asked = {"report_data": "12"}
                evidence += [door.call(method, asked).body for method in ("Attest", "GetQuote")]
    if "verifier" in server.ready:
        with contextlib.closing(Connection(server.ready["verifier"])) as door:
            driver.verifier(door, evidence)
    if "pccs" in server.ready:
        with contextlib.closing(Connection(server.ready["pccs"])) as door:
            for path in PCCS:
                driver.ask(door, "GET", path)
    server.check_log()
    return driver.driven


@contextlib.contextmanager
def scripted_engine() -> Iterator[Mapping[str, str]]:
    """Run a container engine of a script; yield the environment that leads there."""
    told: list[str] = []
    begun, ended = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        async with scripted() as engine:
            loops.append(asyncio.get_running_loop())
            told.append(engine.address)
            begun.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert begun.wait(60)
        yield {"DOCKER_HOST": told[0]}
    finally:
        loops[0].call_soon_threadsafe(ended.set)
        thread.join()


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path, for a socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        yield Path(name)
