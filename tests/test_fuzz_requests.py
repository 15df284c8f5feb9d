"""The AFL++ target: it detects faults, its corpus passes, and AFL++ finds a planted bug."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit.serve.config.limits import parse_limit
from attestkit.serve.http import protocol
from attestkit.serve.http.errors import encode_error
from attestkit.serve.http.protocol import HttpProtocol
from attestkit.serve.http.request_checks import head_size
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.services import dstack_guest, tappd, worker_api
from fuzz import request_path
from fuzz.request_afl import Edges, shared_map
from fuzz.request_answers import Answer, BrokenPromiseError, check, read_answers
from fuzz.request_corpus import kept
from fuzz.request_loop import InstantLoop
from fuzz.request_path import CORPUS, ROOT, campaign, report
from fuzz.request_rig import _SECRETS, LISTENERS, PLANTED, Rig, head
from fuzz.request_words import as_text, dictionary, seeds
from tests.untyped import untyped

GET = b"GET /Version HTTP/1.1\r\n\r\n"
FOLLOW = b"GET /logs/web?follow=true HTTP/1.1\r\n\r\n"
KEY = b"POST /GetKey HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
PLANTED_BODY = b'{"path":"/"}'


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """Return a rig with all listeners."""
    rig = Rig()
    yield rig
    rig.close()


def test_every_kept_input_and_every_seed_holds(rig: Rig) -> None:
    """Committed findings get the documented response, and so does each path of each listener."""
    corpus = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    assert len(corpus) >= 50
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


def test_truncated_response_is_detected(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response cut short without cause is detected while the client still waits for it."""
    monkeypatch.setattr(HttpProtocol, "check", lambda self, _: self.transport.close())
    with pytest.raises(BrokenPromiseError, match="1 answers for 2 whole requests"):
        rig.run(head("http", "silent") + FOLLOW + GET)


def test_short_inputs_are_ignored(rig: Rig) -> None:
    """Inputs that are too short are all ignored alike."""
    assert all(rig.run(data) for data in (b"", b"\0", b"\0\0"))


def test_event_requires_fresh_process(rig: Rig) -> None:
    """An emitted event changes the guest, so the next input needs a fresh process."""
    body = b'{"event":"e","payload":""}'
    request = KEY.replace(b"GetKey", b"EmitEvent") % (len(body), body)
    assert not rig.run(head("dstack") + request)
    assert rig.run(head("dstack") + GET)


# -- faults are detected ---------------------------------------------------------------------------


def test_exception_in_method_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gets a well-formed 500, so the exception shows only in the log."""
    monkeypatch.setenv(PLANTED, "1")
    rig = Rig()
    rig.run(head("dstack") + KEY % (2, b"{}"))
    with pytest.raises(BrokenPromiseError, match=r"nobody reckoned with.*KeyError"):
        rig.run(head("dstack") + KEY % (len(PLANTED_BODY), PLANTED_BODY))
    rig.close()


def test_leaked_task_is_detected(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that waits for ever after its connection ended is detected."""
    respond = RpcApp.respond

    def leave(*args: Any) -> object:
        asyncio.get_running_loop().create_task(asyncio.Event().wait())
        return respond(*args)

    monkeypatch.setattr(RpcApp, "respond", leave)
    with pytest.raises(BrokenPromiseError, match="tasks are left over"):
        rig.run(head("dstack") + GET)
    for task in rig.loop.tasks:
        task.cancel()
    with rig.loop.current():
        rig.loop.rest()


@pytest.mark.parametrize(
    ("name", "broken", "said"),
    [
        ("check", lambda *_: None, "the connection is never ended"),
        ("connection_lost", lambda *_: None, "still knows the connection"),
        ("_respond", lambda *_: None, "0 answers for 1 whole requests"),
        ("flush", lambda self: self._out.clear(), "0 answers for 1 whole requests"),
    ],
)
def test_broken_connection_is_detected(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, name: str, broken: object, said: str
) -> None:
    """A connection that stays open, or a response that never arrives, is detected."""
    monkeypatch.setattr(HttpProtocol, name, broken)
    with pytest.raises(BrokenPromiseError, match=said):
        rig.run(head("dstack", "silent") + GET)
    monkeypatch.undo()
    for config in rig._configs.values():  # their ends could not be detected
        config.shared.traffic.connections = 0


def test_body_read_as_request_is_detected(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a body read as a request is detected."""
    hidden = b"GET /Version HTTP/1.1\r\nA: aaaaa\r\n\r\n"
    body = b"x" + b"\r\nupgrade:" * (len(hidden) // 7) + b"\r\n\r\n" + hidden
    start = b"POST /docs HTTP/1.1\r\nContent-Length: %d\r\n" % len(body)
    padding = b"A: %b\r\n" % (b"a" * (250 - len(start) - 5))
    sent = head("dstack", pieces=250) + start + padding + b"\r\n" + body
    rig.run(sent)
    monkeypatch.setattr(protocol, "head_size", lambda _, piece: head_size(b"", piece))
    monkeypatch.setattr(
        protocol, "without_upgrade", lambda part: part.replace(b"upgrade:", b"not an upgrade:")
    )
    with pytest.raises(BrokenPromiseError, match="are not the requests that were sent"):
        rig.run(sent)


def test_upgrade_field_in_body_is_ignored(rig: Rig) -> None:
    """An Upgrade field inside of a body is ignored, also where half of it is the next request."""
    start = (
        b"POST /Version HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n"
    )
    assert rig.run(head("dstack") + start + b"\r\n\r\nupgrade: h2c\r\n\r\n")


def test_wrong_content_length_is_detected(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong Content-Length of an error response is detected."""

    class Longer(bytes):
        def __len__(self) -> int:
            return super().__len__() + 1

    name = "attestkit.serve.http.protocol.encode_error"
    monkeypatch.setattr(name, lambda text: Longer(encode_error(text)))
    with pytest.raises(BrokenPromiseError, match="shorter than its length"):
        rig.run(head("http") + b"nonsense\r\n\r\n")


OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (OK.replace(b"200", b"2OO"), "a status line that is none"),
        (OK.replace(b"type: ", b"type:\n"), "a header that is none"),
        (OK.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n"), "there twice"),
        (OK[:-1], "shorter than its length"),
        (OK[:40], "a head without its end"),
        (OK.replace(b"-length: 2", b"-length: 1"), "a head without its end"),
        (OK.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n"), "both a length"),
        (OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + OK, "behind the last one"),
        (OK.replace(b"content-length: 2", b"x: y"), "a body without an end"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n",
            "without its end",
        ),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", "a chunk without a size"),
    ],
)
def test_malformed_response_is_detected(sent: bytes, said: str) -> None:
    """Each malformed response is detected."""
    assert len(read_answers(OK + OK, [b"GET", b"GET"], ended=False)) == 2
    with pytest.raises(BrokenPromiseError, match=said):
        read_answers(sent, [b"GET"], ended=False)


def test_body_of_head_response_is_detected() -> None:
    """A response to HEAD has no body, whatever its Content-Length."""
    assert len(read_answers(OK[:-2] + OK, [b"HEAD", b"GET"], ended=False)) == 2
    with pytest.raises(BrokenPromiseError, match="a head without its end"):
        read_answers(OK, [b"HEAD"], ended=True)


def answered(body: bytes, status: int = 200) -> list[Answer]:
    """Return a JSON response with that body."""
    sent = OK.replace(b"200", b"%d" % status).replace(b": 2\r\n\r\n{}", b": %d\r\n\r\n" % len(body))
    return [*read_answers(sent + body, [b"GET"], ended=False)]


@pytest.mark.parametrize(
    ("listener", "body", "status", "said"),
    [
        ("http", b'{"a":"-----BEGIN PRIVATE KEY-----"}', 200, "nobody may see"),
        ("dstack", b'"%b"' % _SECRETS[0].hex().encode(), 200, "nobody may see"),
        ("dstack", b'{"error":"Traceback (most recent call last)"}', 500, "nobody may see"),
        ("dstack", b"{", 200, "JSON that is none"),
        ("dstack", b"{}", 400, "an error without its text"),
        ("dstack", b'{"error":"a"}', 405, "an unknown status"),
        ("pccs", b'{"error":"a"}', 500, "an unknown status"),
    ],
)
def test_disclosure_in_response_is_detected(
    listener: str, body: bytes, status: int, said: str
) -> None:
    """Secrets, server internals and undocumented members in a response are detected."""
    check(untyped(listener), b"", answered(b'{"error":"a"}', 400), _SECRETS)
    with pytest.raises(BrokenPromiseError, match=said):
        check(untyped(listener), b"", answered(body, status), _SECRETS)


def test_error_may_quote_request() -> None:
    """An error may quote the path of the request."""
    body = b'{"error":"No such path: /PRIVATE KEY"}'
    check("http", b"GET /PRIVATE%20KEY", answered(body, 404), _SECRETS)


# -- the parts -------------------------------------------------------------------------------------


def test_loop_time_advances_on_request_only() -> None:
    """Timers fire in order, and exceptions of callbacks are recorded."""
    called: list[str] = []
    loop: InstantLoop = untyped(InstantLoop)()
    loop.call_later(5.0, called.append, "late")
    loop.call_later(1.0, called.append, "soon")
    loop.call_later(2.0, called.append, "never").cancel()
    loop.call_soon(called.append, "now")
    loop.rest()
    assert (called, loop.time()) == (["now"], 0.0)
    assert loop.skip()
    assert (called, loop.time()) == (["now", "soon"], 1.0)
    assert loop.skip()
    assert not loop.skip()
    assert loop.time() == 5.0
    loop.call_soon({}.popitem)
    loop.rest()
    assert "KeyError" in loop.problems[0]


def test_edges_distinguish_paths() -> None:
    """Different paths give different edges, counted in the files of the folder only."""

    def reached(text: str, folder: Path) -> bytes:
        area = shared_map()
        edges = Edges(area, folder)
        tracer = sys.gettrace()
        edges.start()
        parse_limit(text)
        edges.stop()
        sys.settrace(tracer)
        return bytes(area)

    ours = Path(attestkit.__file__).parent
    first, again, other = (
        reached(text, ours) for text in ("body=1MiB", "body=2MiB", "idle_seconds=1.5")
    )
    assert first == again != other
    assert sum(map(bool, first)) > 10
    elsewhere = reached("body=1MiB", ours / "cli")
    assert (elsewhere[0], sum(elsewhere)) == (1, 1)  # the mark of a run


def test_dictionary_matches_server() -> None:
    """The dictionary contains every method and field, in AFL++'s syntax."""
    words = set(dictionary().values())
    for service in (dstack_guest.SERVICE, tappd.SERVICE, worker_api.SERVICE):
        assert {f"{service.mount}{name}".encode() for name in service.methods} <= words
    assert {b'"report_data":', b"secp256k1_prehashed", b"\r\n\r\n", b"/health"} <= words
    lines = as_text({"a": b'x"\\\r\n\xff~'})
    assert lines == 'a="x\\x22\\x5c\\x0d\\x0a\\xff~"\n'


def test_input_without_new_coverage_is_dropped() -> None:
    """The shortest of inputs with equal coverage is kept."""
    short, long = (
        head("dstack") + GET,
        head("dstack") + GET.replace(b"\r\n\r\n", b"\r\nA: b\r\n\r\n"),
    )
    assert kept([long], [long, long]) == []
    nonsense = head("dstack") + b"nonsense\r\n\r\n"
    assert kept([short], [nonsense + b"more", nonsense, short]) == [nonsense]


def test_target_run_alone_prints_traceback(tmp_path: Path) -> None:
    """Run on one input, the target prints a traceback and crashes."""
    path = tmp_path / "input"
    path.write_bytes(head("dstack") + KEY % (len(PLANTED_BODY), PLANTED_BODY))
    for planted, status in (("", 0), ("1", -6)):
        with path.open("rb") as data:
            done = subprocess.run(
                [sys.executable, "-m", "fuzz.request_target"],
                stdin=data,
                capture_output=True,
                check=False,
                cwd=ROOT,
                env=os.environ | {PLANTED: planted},
            )
        assert done.returncode == status, done.stderr
        assert (b"nobody reckoned with" in done.stderr) == bool(planted)


# -- AFL++ -----------------------------------------------------------------------------------------


def test_missing_afl_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The line names the package to install."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match="install afl"):
        campaign(1, tmp_path)


def test_report_contains_afl_files(tmp_path: Path) -> None:
    """The report contains the values of both AFL++ files."""
    values = ["execs_done: 9", "run_time : 7", "saved_crashes: 1", "saved_hangs: 2"]
    values += ["corpus_count: 3", "edges_found: 5"]
    (tmp_path / "fuzzer_stats").write_text("\n".join(values))
    (tmp_path / "plot_data").write_text("# relative_time, edges_found\n1, 4\n")
    assert report(tmp_path) == {
        "executions": 9,
        "seconds": 7.0,
        "coverage": [[1.0, 4], [7.0, 5]],
        "crashes": 1,
        "hangs": 2,
        "corpus": 3,
    }


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("afl-fuzz") is None, reason="afl-fuzz is not here: install afl++")
def test_afl_finds_planted_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AFL++ finds the bug by changing a valid request; each run continues the previous one."""
    asks = b"GET /GetKey?path=a&purpose=a HTTP/1.1\r\n\r\n"
    monkeypatch.setattr(request_path, "CORPUS", tmp_path / "none")
    monkeypatch.setattr(request_path, "seeds", lambda: [head("dstack") + asks])
    executions = 0
    for _ in range(10):
        planted = {PLANTED: "1", "AFL_BENCH_UNTIL_CRASH": "1"} if executions else {}
        # The crash ends it. AFL++ 4.04 restarts its queue in each run, so 20 s may not suffice.
        found = campaign(60 if planted else 2, tmp_path / "run", planted)
        assert isinstance(found["executions"], int)
        assert found["executions"] > executions
        executions = found["executions"]
        if found["crashes"]:
            break
    crashes = [path.read_bytes() for path in (tmp_path / "run/default/crashes").glob("id*")]
    assert crashes
    assert all(b"GetKey" in data for data in crashes)
