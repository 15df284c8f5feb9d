"""Concurrent clients that send valid and altered evidence to verifiers and count the responses."""

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
from typing_extensions import Self

from tests.serve.client import call
from tests.serve.server import PATIENCE, Server
from tests.serve.verifier_service.test_verifier_service import alter_quote

ALTERED = ("mrtd", "signature", "dropped event", "app id")


class VerifyCase(NamedTuple):
    """A request, whether its evidence is valid, and the expected report data."""

    body: bytes
    valid: bool
    report_data: str


def create_cases(agent: Server) -> list[VerifyCase]:
    """Return an agent's evidence, alternately valid and altered, each with its own report data."""
    found = []
    for number, alteration in enumerate(ALTERED):
        report_data = f"{number + 1:0128x}"
        quote: dict[str, str] = call(agent.dstack, "GetQuote", {"report_data": report_data}).json()
        found.append(VerifyCase(json.dumps(quote).encode(), valid=True, report_data=report_data))
        altered = json.dumps(alter_quote(quote, alteration)).encode()
        found.append(VerifyCase(altered, valid=False, report_data=report_data))
    return found


class Load:
    """Concurrent clients that each send one request at a time, over a new connection.

    Attributes:
        counts: Number of results by kind: "valid" and "altered" (both correct), "wrong", "failed",
            "refused" (connection refused).
        wrong: The incorrect responses.
    """

    def __init__(self, url: str, cases: Sequence[VerifyCase], clients: int) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), parts.port
        self._cases, self._clients = cases, clients
        self._end = threading.Event()
        self._lock = threading.Condition()
        self._next = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.counts: Counter[str] = Counter()
        self.wrong: list[Any] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def wait_for_requests(self, count: int) -> None:
        """Wait until `count` more requests have been answered or have failed."""
        with self._lock:
            goal = self.counts.total() + count
            assert self._lock.wait_for(lambda: self.counts.total() >= goal, PATIENCE)

    def _run(self) -> None:
        while not self._end.is_set():
            with self._lock:
                case = self._cases[self._next % len(self._cases)]
                self._next += 1
            word, response = self._send_case(case)
            with self._lock:
                self.counts[word] += 1
                if word == "wrong":
                    self.wrong.append(response)
                self._lock.notify_all()

    def _send_case(self, case: VerifyCase) -> tuple[str, Any]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=PATIENCE)
        try:
            connection.connect()
        except ConnectionRefusedError as error:
            return "refused", repr(error)
        try:
            connection.request("POST", "/verify", case.body, {"Connection": "close"})
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            return "failed", repr(error)
        finally:
            connection.close()
        if response.status != 200:
            return "failed", response.status
        return classify_response(case, json.loads(text))


def classify_response(case: VerifyCase, response: Any) -> tuple[str, Any]:
    """Return "valid", "altered" or "wrong", and the response."""
    if response["is_valid"] is not case.valid:
        return "wrong", response
    if not case.valid:
        right = response["reason"].startswith("Quote verification failed: ")
        return "altered" if right else "wrong", response
    right = response["details"]["report_data"] == case.report_data
    return "valid" if right else "wrong", response


def connections(pid: int, port: int) -> int:
    """Return how many established connections to `port` a process has."""
    found = psutil.Process(pid).net_connections("tcp4")
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in found)


def kill_with_requests_in_flight(pid: int, port: int) -> int:
    """Kill a process that has requests in flight; return how many connections it had.

    SIGSTOP freezes it first, so that its connections do not change while they are counted.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        os.kill(pid, signal.SIGSTOP)
        if open_now := connections(pid, port):
            os.kill(pid, signal.SIGKILL)
            return open_now
        os.kill(pid, signal.SIGCONT)
        assert time.monotonic() < deadline, f"process {pid} receives no request"


def list_child_processes(pid: int) -> list[int]:
    """Return the ids of the child processes of a process, oldest first."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
