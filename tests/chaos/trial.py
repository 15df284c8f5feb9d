"""One fault against one server: what the clients saw, what was lost, how long until all was well.

    with Trial(server) as trial, trial.fault():
        break_something()
        trial.wait_for("EmitEvent", "No space left")
    result = trial.result({"EmitEvent": ("No space left on device", ...)})

The end of the block waits until everything is answered again by the same process, and holds the
server to what it promised.
"""

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, final

from tests.chaos.clients import Clients, Seen, app_events
from tests.serve.client import call
from tests.serve.server import Server, errors_in

__all__ = ["Trial", "plain"]

_WARM: Final = 3  # answers of each kind before something goes wrong
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_VARIES: Final = (
    (re.compile(r"/tmp/[\w./-]*/(?=[\w.-]+)|/proc/\d+/root/"), "DIR/"),
    (re.compile(r"\b[0-9a-f]{32,}\b"), "HEX"),
    (re.compile(r"chaos-\d+"), "EVENT"),
    (re.compile(r"\b(?:localhost|127\.0\.0\.1):\d+"), "HOST:PORT"),
    (re.compile(r"request id [0-9a-f]+|\b[0-9a-f]{8}-\d+\b"), "REQUEST"),
)


class Size:
    """What a process has taken up so far."""

    def __init__(self, pid: int) -> None:
        folder = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        self.rss_mb = int(status["VmRSS"].split()[0]) / 1024
        self.threads = int(status["Threads"])
        self.descriptors = sum(1 for _ in (folder / "fd").iterdir())


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@final
class Trial:
    """A server, its clients, and one fault.

    Args:
        server: It runs, as a process of its own.
        clients: Who asks it; None: the usual ones.
        memory: MB that it may have grown by when all is over.
        descriptors: Open files that it may have more.
        threads: The same; those of a pool stay.
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
        self.lost: set[str] = set()  # acknowledged events that some log since did not have
        self._memory, self._descriptors, self._threads = memory, descriptors, threads
        self._begin = self._end = 0.0
        self._stack = contextlib.ExitStack()

    @property
    def pid(self) -> int:
        """The server's process."""
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
        """Mark where the fault begins and ends."""
        self._begin, cpu = time.monotonic(), cpu_seconds(self.pid)
        yield
        self._end = time.monotonic()
        busy = cpu_seconds(self.pid) - cpu
        self.notes["cpu_share"] = round(busy / (self._end - self._begin), 2)

    def wait_for(self, method: str, text: str, times: int = 1) -> None:
        """Wait until a client was told an error that contains `text`, of a request since then."""
        self.clients.wait_until(
            f"{method}: {text!r}",
            lambda found: sum(s.method == method and text in s.text for s in found) >= times,
            self._begin,
        )

    def wait_refused(self, method: str, times: int = 3) -> None:
        """Wait until so many requests since then were refused."""
        self.clients.wait_until(
            f"errors of {method}",
            lambda found: sum(s.method == method and s.status >= 400 for s in found) >= times,
            self._begin,
        )

    def wait_for_all_since_now(self, times: int) -> None:
        """Wait until everything was answered well so often, of what is asked from now on."""
        self.wait_answered(*self.clients.names, times=times, since=time.monotonic())

    def wait_answered(self, *methods: str, times: int = 3, since: float | None = None) -> None:
        """Wait until each method was answered well so often, though something is wrong."""
        self.clients.wait_until(
            f"answers of {methods}",
            lambda found: all(
                sum(s.method == m and s.status == 200 for s in found) >= times for m in methods
            ),
            self._begin if since is None else since,
        )

    def last(self, seconds: float) -> None:
        """Let the fault last at least so long in all."""
        time.sleep(max(0.0, self._begin + seconds - time.monotonic()))

    # -- afterwards ----------------------------------------------------------------------------

    def _recover(self) -> None:
        """Wait until everything is answered that was asked after the end, by the same process."""
        well = self.clients.wait_until("recovery", self.clients.answered, self._end)
        self.recovery = well - self._end
        assert self.server.process.poll() is None, "the server has ended"
        self._leaks_nothing()

    def _leaks_nothing(self) -> None:
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
        """Hold the server to what it promised, once all clients have ended."""
        answer = call(self.server.dstack, "GetQuote", {"report_data": "77" * 64})
        assert answer.status == 200, answer.body
        self.notes["undecided"] = self.check_log(app_events(answer.json()))
        assert not self.ledger.wrong, self.ledger.wrong
        assert not (bad := [line for line in errors_in(self.server.log()) if _ours(line)]), bad

    def check_log(self, names: list[str]) -> int:
        """Hold a log to what was promised, and count what it lost; see `Ledger.check_events`."""
        self.lost |= self.ledger.lost(names)
        return self.ledger.check_events(names)

    def result(
        self, errors: Mapping[str, str], may: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return what there is to tell; every error must be as foreseen, and clear.

        Args:
            errors: By method what its errors must match, whole; one at least must have been seen.
            may: The same for methods that need not have had one; "*" stands for all. What is in
                neither must have been answered well all the time.
        """
        allowed = {**(may or {}), **errors}
        seen = self.ledger.outcome(self._begin, self._end)
        before_and_after = [s for s in self.ledger.seen if s not in set(seen)]
        for one in (*seen, *before_and_after):
            if one.status != 200:
                wanted = allowed.get(one.method, allowed.get("*", ""))
                assert re.fullmatch(wanted, plain(one.text)), f"{one.method}: {one.text}"
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
    """Return a text without what changes from run to run, or from machine to machine."""
    for pattern, name in _VARIES:
        text = pattern.sub(name, text)
    return text


def _summary(name: str, seen: list[Seen]) -> dict[str, Any]:
    """Return statuses, errors by text, and the longest wait in milliseconds, of one method."""
    ours = [one for one in seen if one.method == name]
    return {
        "statuses": dict(sorted(Counter(str(one.status) for one in ours).items())),
        "errors": dict(Counter(plain(one.text) for one in ours if one.status != 200)),
        "worst_ms": round(max((one.end - one.begin for one in ours), default=0.0) * 1000),
    }


def _ours(line: str) -> bool:
    """Tell whether an error in the server's log is of itself rather than of the machine."""
    return "Traceback" in line or "Exception ignored" in line or "Fatal Python" in line
