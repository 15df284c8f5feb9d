"""Tests of the agent_over_http example: replayed, altered and foreign evidence is rejected."""

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

pytestmark = pytest.mark.slow

TAG = "example-agent-session"
APP = "283cd85fbe589b86802a5f04dbf23f761864e6de"  # the simulator's own


def post(url: str, path: str, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return status and body of the response."""
    try:
        with urlopen(Request(url + path, json.dumps(fields).encode())) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Return a copy of the example with its verifier running."""
    with Reader("agent_over_http", tmp_path_factory.mktemp("example")) as reader:
        trust, verifier, _ = reader.commands()
        assert reader.run(trust).code == 0
        reader.start(verifier.removesuffix("&"))
        yield reader


@pytest.fixture
def tee(reader: Reader) -> Iterator[Attester]:
    """Return the TEE of the verifier's trust files."""
    seed = (reader.folder / "sim" / "seed").read_bytes()
    with attestkit.open("simulator", seed=seed) as tee:
        yield tee


def hash_url(url: str) -> bytes:
    """Return the hash of a verifier's URL, as in evidence and messages."""
    return hashlib.sha256(url.encode()).digest()


def create_admission(
    url: str, tee: Attester, key: SigningKey, *, meant_for: str | None = None
) -> dict[str, Any]:
    """Return the admission request of an honest agent."""
    nonce = post(url, "/challenge", {})[1]["nonce"]
    public = key.verify_key.encode()
    bound = hash_url(meant_for or url) + bytes.fromhex(nonce) + public
    evidence = tee.attest(report_data=ReportData.bind(TAG, bound)).to_bytes()
    return {"nonce": nonce, "public_key": public.hex(), "evidence": evidence.hex()}


@pytest.mark.slow
def test_agent_over_http_readme_commands_succeed(tmp_path: Path) -> None:
    """The agent is admitted and answered, and reported as simulated."""
    with Reader("agent_over_http", tmp_path) as reader:
        trust, agent = reader.run_all()
        assert trust.code == 0
        assert agent.printed.splitlines() == [
            f"accepted as '{APP}' SIMULATED",
            "verifier: 'heard hello'",
            "verifier: 'heard is anybody there'",
        ]
        assert agent.code == 0
        assert reader.stop_and_read() == f"admitted {APP} SIMULATED\n"


def test_http_verifier_without_trust_anchor_rejects_simulated_agent(reader: Reader) -> None:
    """A verifier with the vendors' roots only rejects simulated evidence, and the agent exits."""
    _, verifier, agent = reader.commands()
    command = verifier.removesuffix("&").replace("--trust-anchor sim/trust-anchor.der", "")
    trusted, url = reader.url, reader.start(command)
    try:
        done = reader.run(agent)
        assert done.code == 1
        assert done.printed.startswith("refused: ")
        assert "root" in done.printed
    finally:
        assert "admitted" not in reader.stop_and_read()
        assert url != trusted
        reader.url = trusted


def test_http_admission_replay_is_rejected(reader: Reader, tee: Attester) -> None:
    """A repeated admission is rejected, for its nonce is used."""
    fields = create_admission(reader.url, tee, SigningKey.generate())
    assert post(reader.url, "/attest", fields)[0] == 200
    status, response = post(reader.url, "/attest", fields)
    assert (status, response["error"].partition(":")[0]) == (403, "no such challenge")


def test_http_admission_nonce_and_key_are_bound(reader: Reader, tee: Attester) -> None:
    """Nonce and key must match the report data."""
    fields = create_admission(reader.url, tee, SigningKey.generate())
    other = create_admission(reader.url, tee, SigningKey.generate())
    for changed in ("nonce", "public_key"):
        status, response = post(reader.url, "/attest", {**fields, changed: other[changed]})
        assert status == 403
        assert "report data" in response["error"]
        fields = create_admission(reader.url, tee, SigningKey.generate())


def create_message(
    url: str, session: str, number: int, text: str, key: SigningKey
) -> dict[str, Any]:
    """Return a message of an agent."""
    signed = f"{TAG}-message:{hash_url(url).hex()}:{session}:{number}:{text}"
    signature = key.sign(signed.encode()).signature.hex()
    return {"session": session, "number": number, "text": text, "signature": signature}


def test_http_message_must_be_signed_and_new(reader: Reader, tee: Attester) -> None:
    """Replayed, altered and foreign messages, and those without session, are rejected."""
    key = SigningKey.generate()
    fields = create_admission(url := reader.url, tee, key)
    assert post(url, "/attest", fields)[0] == 200
    first = create_message(url, fields["nonce"], 1, "pay", key)
    assert post(url, "/message", first) == (200, {"answer": "heard pay"})
    assert post(reader.url, "/message", first)[0] == 403
    assert post(reader.url, "/message", {**first, "number": 2})[0] == 403
    assert post(reader.url, "/message", {**first, "number": 2, "text": "pay all"})[0] == 403
    forged = create_message(url, fields["nonce"], 2, "pay", SigningKey.generate())
    assert post(url, "/message", forged)[0] == 403
    elsewhere = create_message("http://elsewhere", fields["nonce"], 2, "pay", key)
    assert post(url, "/message", elsewhere)[0] == 403
    assert post(url, "/message", create_message(url, "00" * 32, 1, "pay", key))[0] == 403
    assert post(url, "/message", create_message(url, fields["nonce"], 2, "pay", key))[0] == 200


@contextlib.contextmanager
def run_proxy(true_url: str) -> Iterator[str]:
    """Run a verifier that forwards requests to another one."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, content = post(true_url, self.path, json.loads(body))
            body_out = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body_out)))
            self.end_headers()
            self.wfile.write(body_out)

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


def test_http_admission_relayed_by_other_verifier_is_rejected(
    reader: Reader, tee: Attester
) -> None:
    """A verifier that relays nonce and admission of another one is rejected."""
    agent = reader.commands()[-1]
    with run_proxy(reader.url) as hostile:
        done = reader.run(agent.replace("http://127.0.0.1:8099", hostile))
    assert done.code == 1
    assert done.printed.startswith("refused: ")
    assert "report data" in done.printed
    assert "accepted" not in done.printed
    fields = create_admission(reader.url, tee, SigningKey.generate(), meant_for="http://elsewhere")
    assert post(reader.url, "/attest", fields)[0] == 403


@pytest.mark.parametrize("path", ["/attest", "/message", "/nowhere"])
def test_http_verifier_malformed_request_is_rejected(reader: Reader, path: str) -> None:
    """A malformed request gets an error response."""
    wrong: tuple[Any, ...] = ({}, [], {"nonce": [], "public_key": 1, "evidence": None})
    for fields in wrong:
        status, response = post(reader.url, path, fields)
        assert (status, "error" in response) == (403, True)
