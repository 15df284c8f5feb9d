"""`attestkit connect`: what it proves, refuses, prints and saves."""

import json
import logging
import re
import socket
import ssl
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attestkit.__main__ import main
from attestkit.client import ProofBundle
from attestkit.ra_tls.issuance import load_issued
from attestkit.testing import AttestedServer
from attestkit.testing.tls_listener import LoopbackCa
from tests.cli import schemas
from tests.cli.attested import options, trust
from tests.cli.output.test_terminal import on_terminal
from tests.cli.program import run as run_program

Capture = pytest.CaptureFixture[str]
Make = Callable[..., AttestedServer]
OTHER_APP = b'{"manifest_version":2,"name":"other","runner":"bash"}'


@pytest.fixture(autouse=True)
def _no_log_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep errors that the server in this process logs away from the command's stderr."""
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", True)


def run(capsys: Capture, *words: str, code: int = 0) -> tuple[str, str]:
    """Run the command; return stdout and stderr, which has no traceback."""
    assert main(["connect", *words]) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if code:
        assert out == ""
        assert err.splitlines()[-1].startswith("attestkit: ")
    return out, err


def test_proven_server(attested_server: Make, tmp_path: Path, capsys: Capture) -> None:
    """The proof is printed, that the evidence is simulated, too; the app receives nothing."""
    server = attested_server()
    out, err = run(capsys, server.url, *options(server, tmp_path))
    assert out.startswith(f"{server.url}  PROVEN  SIMULATED")
    assert server.spki_sha256.hex()[:16] in out
    assert err == "attestkit: warning: the evidence is simulated, and protects nothing\n"
    assert server.requests == []


def test_json_matches_schema(attested_server: Make, tmp_path: Path, capsys: Capture) -> None:
    """--json has the values of the proof."""
    server = attested_server()
    out, _ = run(capsys, server.url, *options(server, tmp_path), "--json")
    found = schemas.check("connect", out)
    assert found["origin"] == server.url
    assert found["simulated"]
    assert found["bindings"] == [
        {"kind": "tls-spki", "key": server.spki_sha256.hex(), "is_of": "server"}
    ]


@pytest.mark.parametrize("attack", ["swap_key", "relay", "stale"])
def test_attack_is_code_2(
    attack: str, attested_server: Make, tmp_path: Path, capsys: Capture
) -> None:
    """A server with another key, relayed evidence or an old document is refused."""
    server = attested_server()
    words = options(server, tmp_path)
    getattr(server, attack)()
    _, err = run(capsys, server.url, *words, code=2)
    assert "TLS peer refused" in err
    assert server.requests == []


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"{}", 5), (b"", 5), (b"[1]", 5), (b"\xff\0", 5), (b'{"version":1e999}', 5)],
)
def test_malformed_document_is_code_5(
    body: bytes, code: int, attested_server: Make, tmp_path: Path, capsys: Capture
) -> None:
    """A document that cannot be read is one line."""
    server = attested_server()
    words = options(server, tmp_path)
    server.change_document(lambda _: body)
    run(capsys, server.url, *words, code=code)


def test_other_app_is_code_4(attested_server: Make, tmp_path: Path, capsys: Capture) -> None:
    """A server of another app is refused by the policy."""
    other = attested_server(app_compose=OTHER_APP)
    words = options(other, tmp_path)
    server = attested_server()
    words += trust(server, tmp_path)  # the same files
    run(capsys, server.url, *words, code=4)


def test_platform_that_is_out_of_date_is_code_4(
    attested_server: Make, tmp_path: Path, capsys: Capture
) -> None:
    """The TCB status is a matter of the policy."""
    server = attested_server(scenario="tcb-OutOfDate")
    _, err = run(capsys, server.url, *options(server, tmp_path), code=4)
    assert "OutOfDate" in err


def test_network_is_code_3(attested_server: Make, tmp_path: Path, capsys: Capture) -> None:
    """No connection, and no answer in time, are of the network."""
    server = attested_server()
    words = options(server, tmp_path)
    server.hang()
    run(capsys, server.url, *words, "--timeout", "0.3", code=3)
    server.close()
    run(capsys, server.url, *words, code=3)


@pytest.mark.parametrize("reset", [True, False])
def test_lost_connection_is_code_3(reset: bool, tmp_path: Path, capsys: Capture) -> None:
    """A server that closes or resets the connection instead of an answer is a network error."""
    ca = LoopbackCa()
    (tmp_path / "ca.pem").write_text(ca.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_issued(context, ca.issue())
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as peer:
                peer.recv(1)
                if reset:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        server = threading.Thread(target=serve)
        server.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        words = ["--service=attestkit", "--policy=hardware-only", f"--server-ca={tmp_path}/ca.pem"]
        run(capsys, url, *words, code=3)
        server.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("http://127.0.0.1",),
        ("https://user:hidden@127.0.0.1",),
        ("https://[",),
        ("\udcff",),
        ("https://127.0.0.1", "--service", "\x1b[2J"),
        ("https://127.0.0.1", "--serve", "0.0.0.0:1"),
        ("https://127.0.0.1", "--serve", "127.0.0.1:65536"),
        ("https://127.0.0.1", "--serve", f"127.0.0.1:{'9' * 5000}"),
        ("https://127.0.0.1", "--serve", "nothing"),
        ("https://127.0.0.1", "--timeout", "nan"),
        ("https://127.0.0.1", "--max-age", "nan"),
        ("https://127.0.0.1", "--evidence-header", "hidden"),
        ("https://127.0.0.1", "--evidence-header", "X: \N{SNOWMAN}hidden"),
        ("https://127.0.0.1", "--evidence-header", "@missing"),
        ("https://127.0.0.1", "--evidence-header", "@malformed"),
        ("https://127.0.0.1", "--evidence-header", "@."),
        ("https://127.0.0.1", "--allow-open", "user", "--service=attestkit"),
        ("https://127.0.0.1", "--pins", "pins"),
        ("https://127.0.0.1", "--at", "bundle"),
        ("https://127.0.0.1", "--server-ca", "missing"),
        ("https://127.0.0.1", "--server-ca", "malformed"),
        ("https://127.0.0.1", "--save-bundle", "no/folder"),
        ("https://127.0.0.1", "--save-bundle", "policy.toml"),
        ("https://127.0.0.1", "--offline", "--pccs", "https://127.0.0.1"),
        ("https://127.0.0.1", "--proxy", "ftp://127.0.0.1", "--service=attestkit"),
        ("https://127.0.0.1", "--proxy", "http://[", "--service=attestkit"),
        ("https://127.0.0.1", "--policy", "missing"),
        ("https://127.0.0.1", "--policy", "default"),
        ("https://127.0.0.1", "--policy", "first-use"),
        ("https://127.0.0.1", "--policy", "policy.toml", "--policy", "policy.toml"),
        ("https://127.0.0.1", "--policy", "server=hardware-only"),
        ("https://127.0.0.1", "--policy", "a=policy.toml", "--policy", "a=policy.toml"),
        ("https://127.0.0.1", "--policy", "=policy.toml"),
        ("https://127.0.0.1", "--policy", "a=missing"),
        ("https://127.0.0.1", "--bundle", "malformed"),
        ("--bundle", "missing"),
        ("--bundle", "malformed", "--serve", "127.0.0.1:0"),
        ("--bundle", "malformed", "--server-ca", "malformed"),
        (),
    ],
)
def test_usage_error_is_one_line(
    words: tuple[str, ...],
    attested_server: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """Wrong options have exit code 1, and no secret of a URL is shown."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.toml").write_text(attested_server().policy.policy.to_toml())
    (tmp_path / "malformed").write_bytes(b"\0")
    policy = [] if "--policy" in words else ["--policy", "policy.toml"]
    _, err = run(capsys, *words, *policy, code=1)
    assert err.count("\n") == 1
    assert "hidden" not in err
    assert "\x1b" not in err


def test_malformed_bundle_is_code_5(attested_server: Make, tmp_path: Path, capsys: Capture) -> None:
    """A file that is not a bundle cannot be read."""
    words = options(attested_server(), tmp_path)
    words.remove(f"--server-ca={tmp_path / 'ca.pem'}")
    run(capsys, "--bundle", str(tmp_path / "root.der"), *words, code=5)


def test_hardware_only_is_a_warning(attested_server: Make, tmp_path: Path, capsys: Capture) -> None:
    """Any program is accepted, which stdout and stderr tell."""
    server = attested_server(app_compose=OTHER_APP)
    words = [*trust(server, tmp_path), "--policy=hardware-only"]
    out, err = run(capsys, server.url, *words)
    assert "the running program: any is accepted (hardware-only)" in out
    assert "warning: any program on sound hardware was accepted (hardware-only)" in err


def test_first_use(attested_server: Make, tmp_path: Path, capsys: Capture) -> None:
    """The first app is kept, and another one at the same address is refused with the remedy."""
    pins = tmp_path / "pins.json"
    words = ["--policy=first-use", f"--pins={pins}"]
    server = attested_server()
    out, _ = run(capsys, server.url, *trust(server, tmp_path), *words)
    assert "it was accepted at its first use" in out
    run(capsys, server.url, *trust(server, tmp_path), *words)
    other = attested_server(app_compose=OTHER_APP)
    kept = pins.read_text().replace(server.url, other.url)
    pins.write_text(kept)
    _, err = run(capsys, other.url, *trust(other, tmp_path), *words, code=2)
    assert "differs from its first use" in err
    assert str(pins) in err


def test_ra_tls_is_not_fresh_unless_allowed(
    attested_server: Make, tmp_path: Path, capsys: Capture
) -> None:
    """A certificate has no nonce, which is refused with the keyword that allows it."""
    server = attested_server(ra_tls=True)
    words = options(server, tmp_path)
    _, err = run(capsys, server.url, *words, code=2)
    assert 'freshness="key possession"' in err
    out, _ = run(capsys, server.url, *words, "--freshness", "key possession")
    assert "(ra-tls, " in out


def test_evidence_headers(attested_server: Make, tmp_path: Path, capsys: Capture) -> None:
    """Headers of the question are sent before the proof, which then says so."""
    server, file = attested_server(), tmp_path / "headers"
    file.write_text("Authorization: Bearer key\n\nX-Two: 2\n")
    words = [*options(server, tmp_path), f"--evidence-header=@{file}"]
    out, _ = run(capsys, server.url, *words, "--evidence-header", "X-One: 1")
    assert "NOT shown" in out
    asked = b"".join(server.received).lower()
    for header in (b"authorization: bearer key", b"x-two: 2", b"x-one: 1"):
        assert header in asked


def test_policies_by_role(attested_server: Make, tmp_path: Path, capsys: Capture) -> None:
    """Each machine has the policy of its role, or that of all others."""
    server, other = attested_server(), attested_server(app_compose=OTHER_APP)
    [*words, policy] = options(server, tmp_path)
    good = policy.removeprefix("--policy=")
    wrong = tmp_path / "a=b"  # a single file may have such a name
    wrong.write_text(other.policy.policy.to_toml())
    for roles in ((f"server={good}", f"*={wrong}"), (f"*={good}",), (f"x={wrong}", f"*={good}")):
        run(capsys, server.url, *words, *(f"--policy={role}" for role in roles))
    run(capsys, server.url, *words, f"--policy=server={wrong}", f"--policy=*={good}", code=4)
    run(capsys, server.url, *words, f"--policy={wrong}", code=4)
    run(capsys, server.url, *words, f"--policy=gateway={good}", code=1)


def test_unmet_requirement_is_code_2(
    attested_server: Make, tmp_path: Path, capsys: Capture
) -> None:
    """A server without GPUs, or without a key to seal requests to, is refused on demand."""
    server = attested_server()
    words = options(server, tmp_path)
    run(capsys, server.url, *words, "--gpu", code=2)
    run(capsys, server.url, *words, "--encrypt", code=2)


# -- bundles --------------------------------------------------------------------------------------


@pytest.fixture
def saved(attested_server: Make, tmp_path: Path, capsys: Capture) -> tuple[Path, list[str]]:
    """A saved proof of a server that is closed, and options that verify it."""
    server, bundle = attested_server(), tmp_path / "proof.json"
    words = options(server, tmp_path)
    run(capsys, server.url, *words, "--save-bundle", str(bundle))
    server.close()
    return bundle, [word for word in words if not word.startswith(("--server-ca", "--collateral"))]


def test_saved_proof_is_verified_offline(saved: tuple[Path, list[str]], capsys: Capture) -> None:
    """The proof is verified without the server, and tells that the file itself is not signed."""
    bundle, words = saved
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    for at in ([], ["--at", "bundle"], ["--at", ProofBundle.load(bundle).at.isoformat()]):
        out, _ = run(capsys, "--bundle", str(bundle), *words, *at)
        assert "PROVEN" in out
        assert "the file is not signed" in out
        assert ("the time of the proof" in out) == (at == ["--at", "bundle"])


def test_saved_proof_expires(saved: tuple[Path, list[str]], capsys: Capture) -> None:
    """Its collateral is not current for ever."""
    bundle, words = saved
    run(capsys, "--bundle", str(bundle), *words, "--at", "2090-01-01", code=2)


@pytest.mark.parametrize("name", ["nonce", "certificate", "answers", "service", "host"])
def test_altered_bundle_is_refused(
    name: str, saved: tuple[Path, list[str]], capsys: Capture
) -> None:
    """Each part that the evidence commits to is compared."""
    bundle, words = saved
    values: dict[str, Any] = json.loads(bundle.read_text())
    other: dict[str, Any] = {
        "nonce": "00" * 32,
        "certificate": None,
        "answers": [],
        "service": "aci",
        "host": "",
    }
    bundle.write_text(json.dumps(values | {name: other[name]}))
    assert main(["connect", "--bundle", str(bundle), *words]) in {2, 5}
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("attestkit: ")
    assert "Traceback" not in err


def test_bundle_on_stdout_replaces_the_proof(
    attested_server: Make, tmp_path: Path, capsys: Capture
) -> None:
    """--save-bundle - writes the bundle alone."""
    server = attested_server()
    words = [server.url, *options(server, tmp_path), "--save-bundle", "-"]
    out, _ = run(capsys, *words)
    assert ProofBundle.from_json(out).host == "127.0.0.1"


@pytest.mark.slow
def test_terminal_of_80_columns_indents_wrapped_values(
    attested_server: Make, tmp_path: Path
) -> None:
    """A long value continues below its beginning, and no word of it is lost."""
    server = attested_server()
    words = ["connect", server.url, *options(server, tmp_path)]
    out = on_terminal(words, NO_COLOR="1", COLUMNS="80").replace("\r", "")
    out = out[out.rindex(f"{server.url}  PROVEN") :].partition("attestkit: warning")[0]
    first, *others = out.splitlines()
    assert max(map(len, (first, *others))) <= 80
    wrapped = [line for line in others if line.startswith("   ")]
    assert wrapped
    assert {len(line) - len(line.lstrip()) for line in wrapped} == {13}
    times = re.compile(r"\d\d:\d\d:\d\d")
    assert times.sub("", out).split() == times.sub("", run_program(*words).stdout).split()
