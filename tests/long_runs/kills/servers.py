"""Servers that are killed at random moments, while they start or while clients emit events.

The servers have `/v1`, which lacks EmitEvent on purpose: clients emit on `/` and `/v0`, and
keys are compared on `/v1`, too.
"""

import http.client
import os
import random
import subprocess
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attestkit.event_log.journal import PENDING
from tests.serve.client import Connection, call, read_runtime_events
from tests.serve.server import PATIENCE, Server, command, environment, errors_in, running_server

if TYPE_CHECKING:
    from collections import Counter
    from contextlib import AbstractContextManager

METHODS: Final = ("EmitEvent", "v0/EmitEvent", "EmitEvent", "v0/EmitEvent")  # one client each
KEYS: Final = {
    "GetKey": {"path": "kept", "purpose": "kills", "algorithm": "secp256k1"},
    "v1/GetKey": {"domain": "kept", "algorithm": "ed25519"},
}
STARTS: Final = 0.2  # share of the kills that are during a start
WINDOW: Final = 0.4  # seconds in which the server is killed, mostly after the first answer
FIRST: Final = 0.2  # share of the kills at work that do not wait for it
ROUNDS: Final = 25  # kills of one guest, whose log grows


class EmittingClient(threading.Thread):
    """Emits events until the server is killed.

    Attributes:
        sent: Names of the events in order; the last one may lack an answer.
        acknowledged: Number of events with an answer.
        failures: Answers other than 200.
    """

    def __init__(self, endpoint: str, method: str, prefix: str, answered: threading.Event) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.acknowledged = 0
        self.failures: list[str] = []
        self._endpoint, self._method, self._prefix = endpoint, method, prefix
        self._answered = answered

    def run(self) -> None:
        """Emit events, with short pauses."""
        with closing(Connection(self._endpoint)) as connection:
            while not self.failures:
                self.sent.append(f"{self._prefix}-{len(self.sent)}")
                message = {"event": self.sent[-1], "payload": os.urandom(20).hex()}
                try:
                    answer = connection.call(self._method, message)
                except (OSError, http.client.HTTPException):
                    return
                if answer.status != 200:
                    self.failures.append(f"{self._method}: {answer.status} {answer.body!r}")
                self.acknowledged += 1
                self._answered.set()
                time.sleep(random.uniform(0, 0.01))


class Guest:
    """A simulated guest with a persistent state, whose server is killed again and again."""

    def __init__(self, folder: Path, phases: "Counter[str]", events: "Counter[str]") -> None:
        self.failures: list[str] = []
        self._folder, self._phases, self._events = folder, phases, events
        self._log: list[tuple[str, str]] = []
        self._clients: list[EmittingClient] = []
        self._keys: dict[str, object] = {}
        self._kills = 0
        self._start_seconds = 1.0

    def kill_once(self) -> None:
        """Start the server, check its log and keys, and kill it; or kill it during its start."""
        self._kills += 1
        if self._keys and random.random() < STARTS:
            self._kill_start()
            return
        begin = time.monotonic()
        with self._running() as server:
            self._start_seconds = time.monotonic() - begin
            self._check(server)
            self._kill_at_work(server)
        self._phases[f"EmitEvent: {'an event' if self._has_pending() else 'no event'} begun"] += 1
        self.failures += errors_in(server.log())

    def check_again(self) -> None:
        """Start the server after its last kill, check its log and keys, and stop it."""
        with self._running() as server:
            self._check(server)

    def _running(self) -> "AbstractContextManager[Server]":
        return running_server("--state-dir", "state", folder=self._folder)

    def _kill_start(self) -> None:
        words = command("--backend", "simulator", "--dir", ".", "--state-dir", "state")
        with subprocess.Popen(
            [*words, "--http", "127.0.0.1:0"],
            cwd=self._folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            time.sleep(random.uniform(0, self._start_seconds))
            process.kill()
        self._phases["EmitEvent: the server starts"] += 1

    def _kill_at_work(self, server: Server) -> None:
        answered = threading.Event()
        self._clients = [
            EmittingClient(server.dstack, method, f"{self._kills}-{number}", answered)
            for number, method in enumerate(METHODS)
        ]
        for client in self._clients:
            client.start()
        if random.random() > FIRST:
            answered.wait(PATIENCE)
        time.sleep(random.uniform(0, WINDOW))
        server.process.kill()
        server.process.wait()
        for client in self._clients:
            client.join()
            self.failures += client.failures

    def _has_pending(self) -> bool:
        return any(self._folder.rglob(PENDING))

    def _check(self, server: Server) -> None:
        """Check that the log replays, has all acknowledged events once, and the keys are kept."""
        found = read_runtime_events(server.dstack)  # the log replays to the registers of a quote
        if found[: len(self._log)] != self._log:
            self.failures.append("events of an earlier run are lost or altered")
        names = [name for name, _ in found[len(self._log) :]]
        for client in self._clients:
            least = client.sent[: client.acknowledged]
            own = [name for name in names if name in set(client.sent)]
            if own not in (least, client.sent):
                self.failures.append(
                    f"{len(least)} acknowledged, {len(own)} in the log: {own[-3:]}"
                )
            self._events["acknowledged"] += len(least)
            self._events["finished without an answer"] += len(own) > len(least)
        sent = {name for client in self._clients for name in client.sent}
        if self._log and not sent.issuperset(names):
            self.failures.append(f"events that nobody sent: {set(names) - sent}")
        self._log, self._clients = found, []
        keys = {name: call(server.dstack, name, body).json() for name, body in KEYS.items()}
        if any("error" in answer for answer in keys.values()) or self._keys not in ({}, keys):
            self.failures.append(f"other keys: {list(keys.values())}"[:200])
        self._keys = keys


def kill_servers(
    kills: int, seconds: float, phases: "Counter[str]", events: "Counter[str]"
) -> list[str]:
    """Kill so many servers; count phases and events, and return what went wrong."""
    failures: list[str] = []
    end = time.monotonic() + seconds
    done = 0
    while done < kills and time.monotonic() < end:
        with tempfile.TemporaryDirectory(prefix="ak") as folder:
            guest = Guest(Path(folder), phases, events)
            try:
                for _ in range(min(ROUNDS, kills - done)):
                    guest.kill_once()
                    done += 1
                    if time.monotonic() > end:
                        break
                guest.check_again()
            except Exception as error:  # noqa: BLE001 - a refused start is a finding, too
                done += 1
                failures.append(f"{type(error).__name__}: {error}"[:1000])
            failures += guest.failures
    return failures
