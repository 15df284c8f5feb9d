"""One fault against one server: responses, lost events, and the time to recovery.

    with Trial(server) as trial, trial.fault():
        break_something()
        trial.wait_for("EmitEvent", "No space left")
    result = trial.result({"EmitEvent": ("No space left on device", ...)})

The end of the block waits until all requests are answered again by the same process, and checks
the server's promises.
"""

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, final

from tests.chaos.clients import Clients, RequestOutcome, app_events
from tests.serve.client import call
from tests.serve.server import Server, errors_in

_WARM: Final = 3  # responses of each kind before the fault
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_VARIES: Final = (
    (re.compile(r"/tmp/[\w./-]*/(?=[\w.-]+)|/proc/\d+/root/"), "DIR/"),
    (re.compile(r"\b[0-9a-f]{32,}\b"), "HEX"),
    (re.compile(r"chaos-\d+"), "EVENT"),
    (re.compile(r"\b(?:localhost|127\.0\.0\.1):\d+"), "HOST:PORT"),
    (re.compile(r"request id [0-9a-f]+|\b[0-9a-f]{8}-\d+\b"), "REQUEST"),
)


class Size:
    """The resources of a process."""

    def __init__(self, pid: int) -> None:
        folder = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        self.rss_mb = int(status["VmRSS"].split()[0]) / 1024
        self.threads = int(status["Threads"])
        self.descriptors = sum(1 for _ in (folder / "fd").iterdir())


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@final
class Trial:
    """A server, its clients, and one fault.

    Args:
        server: A running server process.
        clients: Its clients; None for the default ones.
        memory: MB by which it may have grown at the end.
        descriptors: Additional open files at the end.
        threads: Additional threads at the end; those of a pool stay.
    """

    def __init__(
        self,
        server: Server,
        clients: Clients | None = None,
        *,
        memory: float = 24,
        descriptors: int = 4,
        threads: int = 2,
    ) -> None:
        self.server = server
        self.clients = clients or Clients(server)
        self.ledger = self.clients.ledger
        self.notes: dict[str, Any] = {}
        self.recovery = 0.0
        self.lost: set[str] = set()  # acknowledged events that are missing from some later log
        self._memory, self._descriptors, self._threads = memory, descriptors, threads
        self._begin = self._end = 0.0
        self._stack = contextlib.ExitStack()

    @property
    def pid(self) -> int:
        """The PID of the server."""
        return self.server.process.pid

    def __enter__(self) -> "Trial":
        self._stack.enter_context(self.clients)
        start = time.monotonic()
        self.clients.wait_until(
            "a first answer", lambda seen: self.clients.answered(seen, _WARM), start
        )
        self._before = Size(self.pid)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._recover()
        finally:
            self._stack.close()
        if kind is None:
            self._check()

    @contextlib.contextmanager
    def fault(self) -> Iterator[None]:
        """Mark the begin and end of the fault."""
        self._begin, cpu = time.monotonic(), cpu_seconds(self.pid)
        yield
        self._end = time.monotonic()
        busy = cpu_seconds(self.pid) - cpu
        self.notes["cpu_share"] = round(busy / (self._end - self._begin), 2)

    def wait_for(self, method: str, text: str, times: int = 1) -> None:
        """Wait until a request since the begin failed with an error that contains `text`."""
        self.clients.wait_until(
            f"{method}: {text!r}",
            lambda found: sum(s.method == method and text in s.text for s in found) >= times,
            self._begin,
        )

    def wait_refused(self, method: str, times: int = 3) -> None:
        """Wait until `times` requests since the begin were refused."""
        self.clients.wait_until(
            f"errors of {method}",
            lambda found: sum(s.method == method and s.status >= 400 for s in found) >= times,
            self._begin,
        )

    def wait_for_all_since_now(self, times: int) -> None:
        """Wait until all methods were answered `times` times, for requests from now on."""
        self.wait_answered(*self.clients.names, times=times, since=time.monotonic())

    def wait_answered(self, *methods: str, times: int = 3, since: float | None = None) -> None:
        """Wait until each method was answered `times` times during the fault."""
        self.clients.wait_until(
            f"answers of {methods}",
            lambda found: all(
                sum(s.method == m and s.status == 200 for s in found) >= times for m in methods
            ),
            self._begin if since is None else since,
        )

    def last(self, seconds: float) -> None:
        """Prolong the fault to at least this duration."""
        time.sleep(max(0.0, self._begin + seconds - time.monotonic()))

    # -- after the fault -----------------------------------------------------------------------

    def _recover(self) -> None:
        """Wait until all methods are answered by the same process after the fault."""
        well = self.clients.wait_until("recovery", self.clients.answered, self._end)
        self.recovery = well - self._end
        assert self.server.process.poll() is None, "the server has ended"
        self._check_leaks()

    def _check_leaks(self) -> None:
        before, patience = self._before, time.monotonic() + 45
        while True:
            now = Size(self.pid)
            grown = now.descriptors - before.descriptors, now.threads - before.threads
            if grown[0] <= self._descriptors and grown[1] <= self._threads:
                break
            assert time.monotonic() < patience, f"descriptors and threads grew by {grown}"
            time.sleep(0.05)
        rss = round(now.rss_mb - before.rss_mb, 1)
        self.notes["growth"] = {"rss_mb": rss, "descriptors": grown[0], "threads": grown[1]}
        assert rss <= self._memory, f"resident memory grew by {rss} MB"

    def _check(self) -> None:
        """Check the server's promises, once all clients have ended."""
        answer = call(self.server.dstack, "GetQuote", {"report_data": "77" * 64})
        assert answer.status == 200, answer.body
        self.notes["undecided"] = self.check_log(app_events(answer.json()))
        assert not self.ledger.wrong, self.ledger.wrong
        assert not (
            bad := [line for line in errors_in(self.server.log()) if _is_error_of_server(line)]
        ), bad

    def check_log(self, names: list[str]) -> int:
        """Check a log against the promises, and record lost events; see `Ledger.check_events`."""
        self.lost |= self.ledger.lost(names)
        return self.ledger.check_events(names)

    def result(
        self, errors: Mapping[str, str], may: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the result; every error must match its expected pattern.

        Args:
            errors: By method what its errors must match, whole; one at least must have been seen.
            may: The same for methods that need not have had one; "*" stands for all. What is in
                neither must have been answered well all the time.
        """
        allowed = {**(may or {}), **errors}
        seen = self.ledger.outcome(self._begin, self._end)
        during = set(seen)
        before_and_after = [one for one in self.ledger.seen if one not in during]
        for one in (*seen, *before_and_after):
            if one.status != 200:
                expected = allowed.get(one.method, allowed.get("*"))
                assert expected is not None, f"{one.method}: {one.status} {one.text}"
                assert re.fullmatch(expected, plain(one.text)), f"{one.method}: {one.text}"
        for method in errors:
            assert any(s.method == method and s.status != 200 for s in seen), f"{method}: no error"
        return {
            "seconds": round(self._end - self._begin, 1),
            "seen": {name: _summary(name, seen) for name in self.clients.names},
            "acknowledged": len(self.ledger.acknowledged),
            "lost": len(self.lost),
            "recovery_seconds": round(self.recovery, 2),
            **self.notes,
        }


def plain(text: str) -> str:
    """Return a text without parts that vary by run or machine."""
    for pattern, name in _VARIES:
        text = pattern.sub(name, text)
    return text


def _summary(name: str, seen: list[RequestOutcome]) -> dict[str, Any]:
    """Return statuses, errors by text, and the longest wait in ms of one method."""
    ours = [one for one in seen if one.method == name]
    return {
        "statuses": dict(sorted(Counter(str(one.status) for one in ours).items())),
        "errors": dict(Counter(plain(one.text) for one in ours if one.status != 200)),
        "worst_ms": round(max((one.end - one.begin for one in ours), default=0.0) * 1000),
    }


def _is_error_of_server(line: str) -> bool:
    """Return whether an error in the server's log is its own, not the machine's."""
    return "Traceback" in line or "Exception ignored" in line or "Fatal Python" in line
