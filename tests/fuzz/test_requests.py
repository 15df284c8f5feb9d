"""The AFL++ target: its corpus passes, and AFL++ finds a planted bug."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.request_path import afl_campaign
from fuzz.request_path.afl_campaign import CORPUS, campaign
from fuzz.request_path.answers import BrokenPromiseError
from fuzz.request_path.rig import LISTENERS, PLANTED, Rig, head
from fuzz.request_path.words import seeds

GET = b"GET /Version HTTP/1.1\r\n\r\n"
KEY = b"POST /GetKey HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
PLANTED_BODY = b'{"path":"ab"}'
FOLLOW = b"GET /logs/web?follow=true HTTP/1.1\r\n\r\n"


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """Return a rig with all listeners."""
    rig = Rig()
    yield rig
    rig.close()


@pytest.mark.slow
def test_every_kept_input_and_every_seed_holds(rig: Rig) -> None:
    """Committed findings get the documented response, and so does each path of each listener."""
    corpus = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    assert corpus
    for data in [*seeds(), *corpus]:
        rig.run(data)
    seen = {
        (name, status)
        for name in LISTENERS
        for _, status in rig._guest.stats.of(name).requests
        if name != "verifier"  # has its own count
    }
    assert {(name, 200) for name in LISTENERS if name != "verifier"} <= seen
    assert {(name, 400) for name in ("dstack", "tappd", "http", "dev_http")} <= seen
    assert {(name, 413) for name in ("dstack", "tappd", "dev_http")} <= seen


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("end", ["silent", "eof", "reset"])
@pytest.mark.parametrize("slow", [False, True])
def test_each_connection_end_passes(rig: Rig, listener: str, end: str, *, slow: bool) -> None:
    """Each kind of connection end passes, also with requests sent byte by byte."""
    for pieces in (0, 1, 30):
        assert rig.run(head(listener, end, slow=slow, pieces=pieces) + GET + GET[:-3])


@pytest.mark.parametrize("end", ["silent", "eof"])
def test_request_behind_followed_log_is_answered(rig: Rig, end: str) -> None:
    """A request behind a followed log is answered at its end, unless the client disconnects."""
    assert rig.run(head("http", end) + FOLLOW + GET)
    assert rig.run(head("http", end) + FOLLOW + GET + GET)


def test_upgrade_field_in_body_is_ignored(rig: Rig) -> None:
    """An Upgrade field inside of a body is ignored, also where half of it is the next request."""
    start = (
        b"POST /Version HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n"
    )
    assert rig.run(head("dstack") + start + b"\r\n\r\nupgrade: h2c\r\n\r\n")


# -- planted bugs ----------------------------------------------------------------------------------


def test_exception_in_method_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gets a well-formed 500, so the exception shows only in the log."""
    monkeypatch.setenv(PLANTED, "1")
    rig = Rig()
    rig.run(head("dstack") + KEY % (2, b"{}"))
    with pytest.raises(BrokenPromiseError, match=r"nobody reckoned with.*KeyError"):
        rig.run(head("dstack") + KEY % (len(PLANTED_BODY), PLANTED_BODY))
    rig.close()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("afl-fuzz") is None, reason="afl-fuzz is not here: install afl++")
def test_afl_finds_planted_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AFL++ finds the bug by changing a valid request; each run continues the previous one."""
    asks = b"GET /GetKey?path=a&purpose=a HTTP/1.1\r\n\r\n"
    monkeypatch.setattr(afl_campaign, "CORPUS", tmp_path / "none")
    monkeypatch.setattr(afl_campaign, "seeds", lambda: [head("dstack") + asks])
    executions = 0
    # The crash ends a run. AFL++ 4.21 often finds it at the start of a run or not in a minute; 4.04
    # restarts its queue in each run, so 20 s may not suffice.
    for seconds in (2, 5, 10, 10, 20, 40, 60, 60, 60, 60, 60):
        planted = {PLANTED: "1", "AFL_BENCH_UNTIL_CRASH": "1"} if executions else {}
        found = campaign(seconds, tmp_path / "run", planted)
        assert isinstance(found["executions"], int)
        assert found["executions"] > executions
        executions = found["executions"]
        if found["crashes"]:
            break
    crashes = [path.read_bytes() for path in (tmp_path / "run/default/crashes").glob("id*")]
    assert crashes
    rig = Rig()  # without the bug, which alone makes them fail
    for data in crashes:
        rig.run(data)
    rig.close()
