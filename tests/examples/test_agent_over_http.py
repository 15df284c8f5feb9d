"""The agent of the example is admitted; what is old, altered or somebody else's is refused."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from nacl.signing import SigningKey

import attestkit
from attestkit import Attester, ReportData
from tests.examples.reader import Reader

TAG = "example-agent-session"
APP = "283cd85fbe589b86802a5f04dbf23f761864e6de"  # the simulator's own


def ask(url: str, path: str, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the status and the answer, whatever they are."""
    try:
        with urlopen(Request(url + path, json.dumps(fields).encode())) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Return a reader who has the verifier running."""
    with Reader("agent_over_http", tmp_path_factory.mktemp("example")) as reader:
        trust, verifier, _ = reader.commands()
        assert reader.run(trust).code == 0
        reader.start(verifier.removesuffix("&"))
        yield reader


@pytest.fixture
def tee(reader: Reader) -> Iterator[Attester]:
    """Return the TEE that the verifier believes."""
    seed = (reader.folder / "sim" / "seed").read_bytes()
    with attestkit.open("simulator", seed=seed) as tee:
        yield tee


def context(url: str) -> bytes:
    """Return what stands for a verifier in evidence and messages."""
    return hashlib.sha256(url.encode()).digest()


def admission(
    url: str, tee: Attester, key: SigningKey, *, meant_for: str | None = None
) -> dict[str, Any]:
    """Return what an honest agent would send."""
    nonce = ask(url, "/challenge", {})[1]["nonce"]
    public = key.verify_key.encode()
    bound = context(meant_for or url) + bytes.fromhex(nonce) + public
    evidence = tee.attest(ReportData.bind(TAG, bound)).to_bytes()
    return {"nonce": nonce, "public_key": public.hex(), "evidence": evidence.hex()}


def test_the_readme_s_commands_do_what_it_says(tmp_path: Path) -> None:
    """The agent is admitted and heard, and the verifier says that all of it is simulated."""
    with Reader("agent_over_http", tmp_path) as reader:
        trust, agent = reader.run_all()
        assert trust.code == 0
        assert agent.printed.splitlines() == [
            f"accepted as '{APP}' SIMULATED",
            "verifier: 'heard hello'",
            "verifier: 'heard is anybody there'",
        ]
        assert agent.code == 0
        assert reader.said() == f"admitted {APP} SIMULATED\n"


def test_without_the_simulator_s_root_it_is_refused(reader: Reader) -> None:
    """Simulated evidence is nothing to a verifier that trusts the makers alone; the agent fails."""
    _, verifier, agent = reader.commands()
    command = verifier.removesuffix("&").replace("--trust-anchor sim/trust-anchor.der", "")
    believed, url = reader.url, reader.start(command)
    try:
        done = reader.run(agent)
        assert done.code == 1
        assert done.printed.startswith("refused: ")
        assert "root" in done.printed
    finally:
        assert "admitted" not in reader.said()
        assert url != believed
        reader.url = believed


def test_the_backend_may_come_from_the_environment(reader: Reader) -> None:
    """The same program, told by $ATTESTKIT_BACKEND; without any name a simulator is not taken."""
    agent = reader.commands()[-1].replace("--backend simulator", "")
    assert reader.run(agent, ATTESTKIT_BACKEND="simulator").code == 0
    done = reader.run(agent.replace("--seed-file sim/seed", ""), DSTACK_SIMULATOR_ENDPOINT="")
    assert done.code == 1
    assert "accepted" not in done.printed


def test_an_admission_counts_once(reader: Reader, tee: Attester) -> None:
    """Evidence sent again is refused: its nonce is used up."""
    fields = admission(reader.url, tee, SigningKey.generate())
    assert ask(reader.url, "/attest", fields)[0] == 200
    status, answer = ask(reader.url, "/attest", fields)
    assert (status, answer["error"].partition(":")[0]) == (403, "no such challenge")


def test_evidence_for_another_nonce_or_key_is_refused(reader: Reader, tee: Attester) -> None:
    """Both are in the report data."""
    fields = admission(reader.url, tee, SigningKey.generate())
    other = admission(reader.url, tee, SigningKey.generate())
    for changed in ("nonce", "public_key"):
        status, answer = ask(reader.url, "/attest", {**fields, changed: other[changed]})
        assert status == 403
        assert "report data" in answer["error"]
        fields = admission(reader.url, tee, SigningKey.generate())


@pytest.mark.parametrize("what", ["registers", "header", "digest", "payload"])
def test_altered_evidence_is_refused(reader: Reader, tee: Attester, what: str) -> None:
    """In the quote or in the log, one bit is enough; and the nonce is used up all the same."""
    fields = admission(reader.url, tee, SigningKey.generate())
    evidence = bytearray.fromhex(fields["evidence"])
    quote, log = tee.get_quote(b""), tee.event_log()
    parts = {
        "registers": quote.rtmrs[3],
        "header": quote.raw[:48],
        "digest": log.events[0].digest,
        "payload": next(event.payload for event in log.events if event.name == "compose-hash"),
    }
    evidence[evidence.index(parts[what])] ^= 1
    assert ask(reader.url, "/attest", {**fields, "evidence": evidence.hex()})[0] == 403
    assert ask(reader.url, "/attest", fields)[0] == 403


def test_another_app_is_refused(reader: Reader) -> None:
    """On the same platform, by the same root: the policy names the app."""
    seed = (reader.folder / "sim" / "seed").read_bytes()
    compose = b'{"manifest_version":2,"name":"another","runner":"bash"}'
    with attestkit.open("simulator", seed=seed, app_compose=compose) as other:
        fields = admission(reader.url, other, SigningKey.generate())
    status, answer = ask(reader.url, "/attest", fields)
    assert status == 403
    assert "launch what the policy was made for" in answer["error"]


def message(url: str, session: str, number: int, text: str, key: SigningKey) -> dict[str, Any]:
    """Return a message as an agent would send it."""
    signed = f"{TAG}-message:{context(url).hex()}:{session}:{number}:{text}"
    signature = key.sign(signed.encode()).signature.hex()
    return {"session": session, "number": number, "text": text, "signature": signature}


def test_messages_are_the_attested_key_s_and_new(reader: Reader, tee: Attester) -> None:
    """One sent again, one altered, one by another key and one of no session are refused."""
    key = SigningKey.generate()
    fields = admission(url := reader.url, tee, key)
    assert ask(url, "/attest", fields)[0] == 200
    first = message(url, fields["nonce"], 1, "pay", key)
    assert ask(url, "/message", first) == (200, {"answer": "heard pay"})
    assert ask(reader.url, "/message", first)[0] == 403
    assert ask(reader.url, "/message", {**first, "number": 2})[0] == 403
    assert ask(reader.url, "/message", {**first, "number": 2, "text": "pay all"})[0] == 403
    forged = message(url, fields["nonce"], 2, "pay", SigningKey.generate())
    assert ask(url, "/message", forged)[0] == 403
    elsewhere = message("http://elsewhere", fields["nonce"], 2, "pay", key)
    assert ask(url, "/message", elsewhere)[0] == 403
    assert ask(url, "/message", message(url, "00" * 32, 1, "pay", key))[0] == 403
    assert ask(url, "/message", message(url, fields["nonce"], 2, "pay", key))[0] == 200


@contextlib.contextmanager
def between(true_url: str, answer: bytes | None = None, status: int = 200) -> Iterator[str]:
    """Listen as a verifier that passes everything on to another, or always gives one answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found, given = status, answer
            if given is None:
                found, told = ask(true_url, self.path, json.loads(body))
                given = json.dumps(told).encode()
            self.send_response(found)
            self.send_header("Content-Length", str(len(given)))
            self.end_headers()
            self.wfile.write(given)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_what_was_made_for_another_verifier_is_refused(reader: Reader, tee: Attester) -> None:
    """A verifier that passes our nonce to its agent, and the agent's proof to us, gets nothing."""
    agent = reader.commands()[-1]
    with between(reader.url) as hostile:
        done = reader.run(agent.replace("http://127.0.0.1:8099", hostile))
    assert done.code == 1
    assert done.printed.startswith("refused: ")
    assert "report data" in done.printed
    assert "accepted" not in done.printed
    fields = admission(reader.url, tee, SigningKey.generate(), meant_for="http://elsewhere")
    assert ask(reader.url, "/attest", fields)[0] == 403


def test_a_verifier_behind_a_proxy_is_told_its_url(reader: Reader, tee: Attester) -> None:
    """The name that agents have is the one that counts; a slash at its end makes no difference."""
    believed = reader.url
    try:
        verifier = reader.commands()[1].removesuffix("&")
        here = reader.start(f"{verifier} --url https://verifier.example/")
        for name, status in ((None, 403), ("https://verifier.example", 200)):
            fields = admission(here, tee, SigningKey.generate(), meant_for=name)
            assert ask(here, "/attest", fields)[0] == status
    finally:
        reader.said()
        reader.url = believed


@pytest.mark.parametrize(
    ("status", "answer", "printed"),
    [
        (502, b"<html>bad gateway</html>", "refused: 'HTTP status 502'\n"),
        (403, b"[]", "refused: 'HTTP status 403'\n"),
        (403, b'{"error": "\\u001b[31mred"}', "refused: '\\x1b[31mred'\n"),
        (200, b"<html>", "no verifier at URL: what answers speaks something else\n"),
    ],
)
def test_what_the_other_side_says_is_only_shown(
    reader: Reader, status: int, answer: bytes, printed: str
) -> None:
    """A proxy's page is one line, and escape sequences do not reach the terminal."""
    agent = reader.commands()[-1]
    with between("", answer, status) as url:
        done = reader.run(agent.replace("http://127.0.0.1:8099", url))
    assert (done.code, done.printed) == (1, printed.replace("URL", url))


def test_an_answer_is_only_shown(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    """The same of what an admitted agent hears."""
    answer = json.dumps({"answer": "\x1b]0;owned\x07", "nonce": "00", "app_id": "\x1b[31m"})
    told = {**json.loads(answer), "simulated": False}
    arguments = reader.commands()[-1].split()
    seed = str(reader.folder / arguments[-1])
    with between("", json.dumps(told).encode()) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv", ["agent.py", url, "hi", "--backend=simulator", "--seed-file", seed]
        )
        reader.load("agent").main()
    assert capsys.readouterr().out == "accepted as '\\x1b[31m' \nverifier: '\\x1b]0;owned\\x07'\n"


def test_the_agent_opens_no_files(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    """A URL of another kind than HTTP's is refused, and nothing is read."""
    with pytest.raises(SystemExit) as ended:
        reader.load("agent").ask("file:///etc", "/hostname")
    assert "neither http:// nor https://" in str(ended.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/attest", {}),
        ("/attest", {"nonce": [], "public_key": 1, "evidence": None}),
        ("/attest", {"nonce": "zz", "public_key": "", "evidence": ""}),
        ("/message", {"session": "x"}),
        ("/attest", []),
        ("/attest", {"self": 1}),
        ("/message", {"session": [], "number": 1, "text": "", "signature": ""}),
        ("/challenge", []),
        ("/nowhere", {}),
    ],
)
def test_nonsense_is_refused(reader: Reader, path: str, fields: Any) -> None:
    """It is answered and never a crash; a challenge takes no fields and gives a nonce anyway."""
    status, answer = ask(reader.url, path, fields)
    assert (status, "error" in answer) == ((200, False) if path == "/challenge" else (403, True))
