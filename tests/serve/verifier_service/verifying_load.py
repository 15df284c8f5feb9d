"""Several clients that ask verifiers about valid and altered evidence, and count what they get."""

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

from typing_extensions import Self

from tests.serve.client import call
from tests.serve.server import PATIENCE, Server
from tests.serve.verifier_service.test_verifier_service import changed

ALTERED = ("mrtd", "signature", "dropped event", "app id")
_ESTABLISHED = "01"


class Question(NamedTuple):
    """A request, whether its evidence is valid, and the report data that it must be about."""

    body: bytes
    valid: bool
    report_data: str


def questions(agent: Server) -> list[Question]:
    """Return evidence of an agent's, whole and altered by turns, each with its own report data."""
    found = []
    for number, what in enumerate(ALTERED):
        report_data = f"{number + 1:0128x}"
        quote: dict[str, str] = call(agent.dstack, "GetQuote", {"report_data": report_data}).json()
        found.append(Question(json.dumps(quote).encode(), valid=True, report_data=report_data))
        altered = json.dumps(changed(quote, what)).encode()
        found.append(Question(altered, valid=False, report_data=report_data))
    return found


class Load:
    """Clients, each with one request at a time and a connection for each.

    Attributes:
        told: How often: "valid", "altered" (both judged rightly), "wrong", "failed", or "refused",
            which is that nobody listened.
        wrong: The answers that were wrong.
    """

    def __init__(self, url: str, asked: Sequence[Question], clients: int) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), parts.port
        self._asked, self._clients = asked, clients
        self._end = threading.Event()
        self._lock = threading.Condition()
        self._next = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.told: Counter[str] = Counter()
        self.wrong: list[Any] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def until(self, count: int) -> None:
        """Wait until so many more requests have been answered, or have failed."""
        with self._lock:
            goal = self.told.total() + count
            assert self._lock.wait_for(lambda: self.told.total() >= goal, PATIENCE)

    def _run(self) -> None:
        while not self._end.is_set():
            with self._lock:
                question = self._asked[self._next % len(self._asked)]
                self._next += 1
            word, answer = self._ask(question)
            with self._lock:
                self.told[word] += 1
                if word == "wrong":
                    self.wrong.append(answer)
                self._lock.notify_all()

    def _ask(self, question: Question) -> tuple[str, Any]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=PATIENCE)
        try:
            connection.connect()
        except ConnectionRefusedError as error:
            return "refused", repr(error)
        try:
            connection.request("POST", "/verify", question.body, {"Connection": "close"})
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            return "failed", repr(error)
        finally:
            connection.close()
        if response.status != 200:
            return "failed", response.status
        return judged(question, json.loads(text))


def judged(question: Question, answer: Any) -> tuple[str, Any]:
    """Tell whether an answer is right."""
    if answer["is_valid"] is not question.valid:
        return "wrong", answer
    if not question.valid:
        right = answer["reason"].startswith("Quote verification failed: ")
        return "altered" if right else "wrong", answer
    right = answer["details"]["report_data"] == question.report_data
    return "valid" if right else "wrong", answer


def connections(pid: int, port: int) -> int:
    """Return how many established connections to `port` a process has."""
    established = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == _ESTABLISHED and int(words[1].partition(":")[2], 16) == port:
            established.add(f"socket:[{words[9]}]")
    found = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += str(path.readlink()) in established
        except FileNotFoundError:
            continue
    return found


def kill_at_work(pid: int, port: int) -> int:
    """Kill a process that has requests in flight; return how many connections it had.

    It is stopped first, so that it neither answers nor takes another while they are counted.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        os.kill(pid, signal.SIGSTOP)
        if open_now := connections(pid, port):
            os.kill(pid, signal.SIGKILL)
            return open_now
        os.kill(pid, signal.SIGCONT)
        assert time.monotonic() < deadline, f"process {pid} is never asked"


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, in their order."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
