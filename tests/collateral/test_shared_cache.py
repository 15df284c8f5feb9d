"""Several processes on one folder of collateral fetch what they want once."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from attestkit.collateral.cache import CollateralCache
from tests.collateral.services import COLLATERAL, CRL, NOW, PCCS, QE, QUOTE, ROOT_CRL, TCB

ROOT: Final = Path(__file__).resolve().parents[2]
KEY: Final = ("http://pccs", "tdx", "00" * 6, "platform")


class Pccs(ThreadingHTTPServer):
    """The simulator's, on a port; it counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        assert isinstance(self.server, Pccs)
        self.server.asked[parts.path] += 1
        status, headers, body = PCCS.answer(parts.path, parts.query)
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Say nothing."""


@pytest.fixture
def pccs() -> Iterator[Pccs]:
    """A PCCS that counts."""
    with Pccs() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


FETCHER: Final = """
import json, sys
from datetime import datetime, timedelta, timezone
sys.path.insert(0, sys.argv[1])
from attestkit.collateral.cache import CollateralCache
from attestkit.collateral.caching_source import CollateralSource
from attestkit.quote import Quote
quote = Quote.parse(bytes.fromhex(sys.argv[4]))
now = float(sys.argv[5])
clock = lambda: datetime.fromtimestamp(now, timezone.utc)
cache = CollateralCache(sys.argv[2], max_age=timedelta(minutes=1), clock=clock)
source = CollateralSource(sys.argv[3], cache=cache)
print("ready", flush=True)
sys.stdin.readline()
found = source.find(quote)
print(json.dumps([found.cached, found.collateral.to_json()]))
"""


@contextlib.contextmanager
def fetchers(count: int, folder: Path, url: str, now: float) -> Iterator[list[tuple[bool, str]]]:
    """Have so many processes want the same at one moment; yield what they found."""
    words = [sys.executable, "-c", FETCHER, str(ROOT), str(folder), url, QUOTE.raw.hex(), str(now)]
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(count)
        ]
        for process in running:
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        told: list[tuple[bool, str]] = []
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in running:
            cached, text = json.loads(process.communicate(timeout=60)[0])
            told.append((cached, text))
            assert process.returncode == 0
        yield told


def test_many_processes_fetch_once(tmp_path: Path, pccs: Pccs) -> None:
    """Four that start with nothing have one fetch, and all have what it brought."""
    once = dict.fromkeys((CRL, ROOT_CRL, TCB, QE), 1)
    with fetchers(4, tmp_path, pccs.url, NOW) as found:
        assert sorted(cached for cached, _ in found) == [False, True, True, True]
        assert {text for _, text in found} == {COLLATERAL.to_json()}
    assert pccs.asked == once


@pytest.mark.slow
def test_what_is_too_old_is_fetched_by_one(tmp_path: Path, pccs: Pccs) -> None:
    """An entry over its age is as none: three processes that know it, one fetch."""
    with fetchers(1, tmp_path, pccs.url, NOW) as found:
        assert [cached for cached, _ in found] == [False]
    with fetchers(3, tmp_path, pccs.url, NOW + 3600) as found:
        assert sorted(cached for cached, _ in found) == [False, True, True]
    assert set(pccs.asked.values()) == {2}


HOLDER: Final = """
import sys
sys.path.insert(0, sys.argv[1])
from attestkit.collateral.cache import CollateralCache
with CollateralCache(sys.argv[2]).turn(tuple(sys.argv[3:])) as mine:
    assert mine
    print("mine", flush=True)
    sys.stdin.readline()
"""


def test_a_dead_holder_holds_nobody_up(tmp_path: Path) -> None:
    """One that lives makes others wait, for so long and no longer; its death ends that at once."""
    cache = CollateralCache(tmp_path)
    words = [sys.executable, "-c", HOLDER, str(ROOT), str(tmp_path), *KEY]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mine\n"
        with cache.turn(KEY, seconds=0.05) as mine:
            assert not mine
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with cache.turn(KEY, seconds=0) as mine:
            assert mine


def test_a_turn_is_given_back_by_an_error(tmp_path: Path) -> None:
    """A fetch that fails lets the next one try."""
    cache = CollateralCache(tmp_path)
    with contextlib.suppress(ZeroDivisionError), cache.turn(KEY):
        raise ZeroDivisionError
    with cache.turn(KEY, seconds=0) as mine:
        assert mine


def test_memory_alone_has_no_turns() -> None:
    """There is nobody else; threads wait for each other elsewhere."""
    cache = CollateralCache(None)
    with cache.turn(KEY, seconds=0) as mine, cache.turn(KEY, seconds=0) as again:
        assert mine
        assert again


def test_the_locks_are_few_and_ours(tmp_path: Path) -> None:
    """At most 256 files of mode 0600; a put does not remove one."""
    now = datetime.fromtimestamp(NOW, timezone.utc)
    cache = CollateralCache(tmp_path, clock=lambda: now, limit=1)
    for number in range(1000):
        with cache.turn((str(number),)) as mine:
            assert mine
    cache.put(KEY, COLLATERAL)
    locks = list(tmp_path.glob(".*.lock"))
    assert 200 < len(locks) <= 256
    assert {path.stat().st_mode & 0o777 for path in locks} == {0o600}


def test_who_waits_for_whom_is_not_chosen_by_strangers(tmp_path: Path) -> None:
    """The locks of the same keys are others in each folder, and the same for all who share one."""

    def locks(folder: Path, *numbers: int) -> set[str]:
        for number in numbers:
            with CollateralCache(folder).turn((str(number),)) as mine:
                assert mine
        return {path.name for path in folder.glob(".*.lock")}

    found = [locks(tmp_path / name, *range(16)) for name in ("a", "b")]
    assert found[0] != found[1]
    assert locks(tmp_path / "a", *range(16)) == found[0]
    salts = [tmp_path / name / ".salt" for name in ("a", "b")]
    assert {(path.stat().st_size, path.stat().st_mode & 0o777) for path in salts} == {(16, 0o600)}
    assert salts[0].read_bytes() != salts[1].read_bytes()


@pytest.mark.parametrize("size", range(16))
def test_a_salt_that_is_cut_short_is_made_anew(tmp_path: Path, size: int) -> None:
    """Its maker, or the machine, died on the way; whoever holds its lock is waited for."""
    salt = tmp_path / ".salt"
    salt.write_bytes(bytes(size))
    cache = CollateralCache(tmp_path)
    with salt.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with cache.turn(KEY, seconds=0) as mine:
            assert not mine
    assert salt.stat().st_size == size
    with cache.turn(KEY, seconds=0) as mine:
        assert mine
    assert salt.stat().st_size == 16


def test_all_who_come_first_have_one_salt(tmp_path: Path) -> None:
    """Of many at once one makes it; so they wait for each other, and not two hold the turn."""
    holders, most = [], []

    def hold() -> None:
        with CollateralCache(tmp_path).turn(KEY) as mine:
            assert mine
            holders.append(1)
            most.append(len(holders))
            holders.pop()

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
    assert len(list(tmp_path.glob(".*.lock"))) == 1


@pytest.mark.parametrize("what", [".*.lock", ".salt"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_lock_is_not_followed(
    tmp_path: Path, kind: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In its place there is no turn, a line of the log, and nothing is opened elsewhere."""
    folder = tmp_path / "cache"
    cache = CollateralCache(folder)
    with cache.turn(KEY):
        [lock] = folder.glob(what)
    lock.unlink()
    target = tmp_path / "target"
    if kind == "link":
        lock.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with cache.turn(KEY) as mine:
        assert not mine
    assert not target.exists()
    assert "cannot take turns" in caplog.text


def test_one_key_does_not_hold_up_another(tmp_path: Path) -> None:
    """Each entry has its turn; another holds its own, in the same process too."""
    cache = CollateralCache(tmp_path)
    (tmp_path / ".salt").write_bytes(bytes(16))  # with one of 256 the two have the same lock
    with cache.turn(KEY, seconds=0) as mine, cache.turn(("another",), seconds=0) as other:
        assert mine
        assert other
        [held] = [path for path in tmp_path.glob(".*.lock") if not _free(path)][:1]
        assert held.exists()
        with CollateralCache(tmp_path).turn(KEY, seconds=0) as second:
            assert not second


def _free(path: Path) -> bool:
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_waiting_ends_when_the_other_is_done(tmp_path: Path) -> None:
    """Who waits has the turn as soon as it is given back, and finds what was put."""
    now = datetime.fromtimestamp(NOW, timezone.utc) + timedelta(seconds=1)
    first, second = (CollateralCache(tmp_path, clock=lambda: now) for _ in range(2))
    begun, found = threading.Event(), []

    def wait() -> None:
        begun.set()
        with second.turn(KEY) as mine:
            found.append((mine, second.get(KEY)))

    thread = threading.Thread(target=wait)
    with first.turn(KEY):
        thread.start()
        begun.wait()
        first.put(KEY, COLLATERAL)
    thread.join()
    assert found == [(True, COLLATERAL)]
