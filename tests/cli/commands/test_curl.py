"""`attestkit curl`: the request reaches a proven server only, and its answer stdout or a file."""

import gzip
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.__main__ import main
from attestkit.testing import AttestedServer
from tests.cli import program
from tests.cli.attested import options, trust

Capture = pytest.CaptureFixture[str]
Make = Callable[..., AttestedServer]
OTHER_APP: Final = b'{"manifest_version":2,"name":"other","runner":"bash"}'
HOSTILE: Final = "\x1b[2J\u202eä\tb\r\nc".encode() + b"\xff"


@pytest.fixture(autouse=True)
def _no_log_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep errors that the server in this process logs away from the command's stderr."""
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", True)


def run(capfd: Capture, *words: str, code: int = 0) -> tuple[str, str]:
    """Run the command; return stdout and stderr, which has no traceback."""
    assert main(["curl", *words]) == code, capfd.readouterr().err
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return out, err


async def answering(scope: Any, receive: Any, send: Any) -> None:
    """Answer as the path says."""
    del receive
    if scope["type"] != "http":
        return
    headers = [(b"x-hostile", b"\x9b2J"), (b"location", b"https://127.0.0.1:1/")]
    body = {"/gzip": gzip.compress(b"text"), "/hostile": HOSTILE}.get(scope["path"], b"text")
    if scope["path"] == "/gzip":
        headers.append((b"content-encoding", b"gzip"))
    status = int(scope["path"][1:]) if scope["path"][1:].isdecimal() else 200
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if scope["path"] == "/broken":
        raise ConnectionAbortedError
    await send({"type": "http.response.body"})


def test_request_reaches_proven_server(
    attested_server: Make, tmp_path: Path, capfd: Capture
) -> None:
    """Method, path, query, headers and body are sent, and the body of the answer is printed."""
    server = attested_server()
    words = options(server, tmp_path)
    out, _ = run(capfd, f"{server.url}/a/b?c=d#e", *words, "-d", "body", "-H", "X-One: 1")
    assert out == "body"
    run(capfd, server.url, *words, "-X", "DELETE", "-H", "X-One:", "-H", "accept-encoding: gzip")
    (tmp_path / "headers").write_text("X-Two: 2\nX-Three: 3\n")
    run(capfd, f"{server.url}?x", *words, "-H", f"@{tmp_path / 'headers'}")
    post, delete, get = server.requests
    assert (post.method, post.path, post.query, post.body_size) == ("POST", "/a/b", "c=d", 4)
    assert {("x-one", "1"), ("accept-encoding", "identity")} <= {*post.headers}
    assert (delete.method, delete.path, delete.body_size) == ("DELETE", "/", 0)
    assert ("accept-encoding", "gzip") in delete.headers
    assert {("x-two", "2"), ("x-three", "3")} <= {*get.headers}
    assert (get.method, get.path, get.query) == ("GET", "/", "x")


def test_body_of_file_and_stdin(
    attested_server: Make, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-d @FILE` sends the bytes of a file, `-d @-` those of stdin."""
    server, body = attested_server(), tmp_path / "body"
    words = [server.url, *options(server, tmp_path)]
    body.write_bytes(b"of\0file\n")
    assert run(capfd, *words, "-d", f"@{body}")[0] == "of\0file\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"of stdin")))
    assert run(capfd, *words, "-d", "@-")[0] == "of stdin"
    monkeypatch.setattr(sys, "stdin", None)
    _, err = run(capfd, *words, "-d", "@-", code=1)
    assert "stdin is closed" in err
    assert len(server.requests) == 2


def test_output_file(attested_server: Make, tmp_path: Path, capfd: Capture) -> None:
    """-o writes the body to a file, and `-` is stdout."""
    server, file = attested_server(), tmp_path / "answer"
    words = [server.url, *options(server, tmp_path), "-d", "body"]
    assert run(capfd, *words, "-o", str(file))[0] == ""
    assert file.read_bytes() == b"body"
    assert run(capfd, *words, "-o", "-")[0] == "body"
    _, err = run(capfd, *words, "-o", "/dev/full", code=1)
    assert "-o /dev/full: cannot write: No space left on device" in err


def test_include_and_fail(attested_server: Make, tmp_path: Path, capfd: Capture) -> None:
    """-i prints status and headers without control characters; -f ends with 22."""
    server = attested_server(answering)
    words = options(server, tmp_path)
    out, _ = run(capfd, f"{server.url}/418", *words, "-i")
    assert out.startswith("HTTP/1.1 418\r\n")
    assert "\nx-hostile: \\u009b2J\r\n" in out
    assert out.endswith("\r\n\r\ntext")
    assert run(capfd, f"{server.url}/418", *words, "-f", code=22)[0] == "text"
    assert run(capfd, f"{server.url}/200", *words, "-f")[0] == "text"
    with program.closed_pipe() as writer:
        done = program.run("curl", f"{server.url}/418", *words, "-f", stdout=writer)
    assert (done.returncode, "Traceback" in done.stderr) == (22, False)


def test_redirect_is_not_followed(attested_server: Make, tmp_path: Path, capfd: Capture) -> None:
    """Another server would have to be proven first."""
    server = attested_server(answering)
    out, _ = run(capfd, f"{server.url}/307", *options(server, tmp_path), "-i", "-d", "secret")
    assert out.startswith("HTTP/1.1 307\r\n")
    assert len(server.requests) == 1


def test_compressed_body_is_not_decoded(
    attested_server: Make, tmp_path: Path, capfd: Capture
) -> None:
    """The bytes are those of the wire; without a header none of a compression are asked for."""
    server, file = attested_server(answering), tmp_path / "answer"
    run(capfd, f"{server.url}/gzip", *options(server, tmp_path), "-o", str(file))
    assert gzip.decompress(file.read_bytes()) == b"text"


def test_terminal_gets_no_control_characters(
    attested_server: Make, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer cannot control a terminal; a file gets it as it is."""
    server, file = attested_server(answering), tmp_path / "answer"
    words = [f"{server.url}/hostile", *options(server, tmp_path)]
    run(capfd, *words, "-o", str(file))
    assert file.read_bytes() == HOSTILE
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(capfd, *words)[0] == "\\u001b[2J\\u202eä\tb\nc\ufffd"


def test_broken_answer_is_code_3(attested_server: Make, tmp_path: Path, capfd: Capture) -> None:
    """An answer that ends too early is an error of the network, after what came of it."""
    server = attested_server(answering)
    out, err = run(capfd, f"{server.url}/broken", *options(server, tmp_path), code=3)
    assert out == "text"
    assert "the connection failed" in err


@pytest.mark.parametrize(
    ("attack", "code"), [("swap_key", 2), ("relay", 2), ("stale", 2), ("hang", 3)]
)
def test_refused_server_receives_nothing(
    attack: str, code: int, attested_server: Make, tmp_path: Path, capfd: Capture
) -> None:
    """The request is not sent, not even its path."""
    server = attested_server()
    words = options(server, tmp_path)
    getattr(server, attack)()
    out, _ = run(capfd, f"{server.url}/path", *words, "-d", "secret", "--timeout", "0.5", code=code)
    assert (out, server.requests) == ("", [])
    assert not any(b"/path" in data or b"secret" in data for data in server.received)


def test_other_app_is_code_4(attested_server: Make, tmp_path: Path, capfd: Capture) -> None:
    """A server of another app receives nothing."""
    words = options(attested_server(app_compose=OTHER_APP), tmp_path)
    server = attested_server()
    run(capfd, server.url, *words, *trust(server, tmp_path), "-d", "secret", code=4)
    assert server.requests == []


def test_malformed_document_is_code_5(
    attested_server: Make, tmp_path: Path, capfd: Capture
) -> None:
    """A document that cannot be read."""
    server = attested_server()
    words = options(server, tmp_path)
    server.change_document(lambda _: b"{}")
    run(capfd, server.url, *words, code=5)


def test_show_proof(attested_server: Make, tmp_path: Path, capfd: Capture) -> None:
    """The proof goes to stderr, with the warnings of a weak policy."""
    server = attested_server()
    words = [*trust(server, tmp_path), "--policy=hardware-only", "--show-proof", "-d", "body"]
    out, err = run(capfd, server.url, *words)
    assert out == "body"
    assert err.startswith(f"{server.url}  PROVEN")
    assert "warning: any program on sound hardware" in err


def test_server_that_closes_after_its_document(
    attested_server: Make, tmp_path: Path, capfd: Capture
) -> None:
    """The request is sent once, on another connection with the proven key."""
    server = attested_server()
    server.close_after_document()
    assert run(capfd, server.url, *options(server, tmp_path), "-d", "body")[0] == "body"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("-H", "no colon"),
        ("-H", "@missing"),
        ("-H", "X: a\r\nY: b"),
        ("-H", "ä: b"),
        ("-H", "a b: c"),
        ("-X", "GE T"),
        ("-X", ""),
        ("-X", "CONNECT"),
        ("-d", "@missing"),
        ("-d", "@."),
        ("-d", "@"),
        ("-o", "no/folder"),
        ("-d", "@body", "-o", "body"),
        ("-H", "@body", "-o", "body"),
        ("--evidence-header", "@body", "-o", "body"),
    ],
)
def test_wrong_request_is_code_1(
    words: tuple[str, ...],
    attested_server: Make,
    tmp_path: Path,
    capfd: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An invalid request or output is a usage error, and nothing is sent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "body").write_bytes(b"body")
    server = attested_server()
    out, _ = run(capfd, server.url, *options(server, tmp_path), *words, code=1)
    assert (out, server.requests) == ("", [])
    assert (tmp_path / "body").read_bytes() == b"body"


@pytest.mark.parametrize("url", ["http://127.0.0.1", "https://u:secret@127.0.0.1/", "https://["])
def test_wrong_url_is_code_1(
    url: str, attested_server: Make, tmp_path: Path, capfd: Capture
) -> None:
    """Only https URLs without a user."""
    _, err = run(capfd, url, *options(attested_server(), tmp_path), code=1)
    assert "secret" not in err
