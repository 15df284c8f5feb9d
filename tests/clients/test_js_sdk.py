"""The official JavaScript client gets what it expects from every method, however it connects."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attestkit import Attestation, EventLog, Quote
from attestkit._crypto.ecdsa import P256Key
from tests.serve.server import Server, environment, running_server
from tests.vectors import HAVE_SHARED, SHARED, load, needs_shared

FOLDER = Path(__file__).parent / "js"
APP_KEYS = SHARED / "data/dstack/simulator/appkeys.json"


@pytest.fixture(scope="module")
def node() -> str:
    """The path of node, where it and the client are installed."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    if not (FOLDER / "node_modules" / "@phala" / "dstack-sdk").is_dir():
        pytest.skip("tests/clients/js/node_modules is missing: run `npm install` there")
    return program


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that also listens on a URL, with the published keys of the upstream simulator."""
    keys = ("--app-keys", str(APP_KEYS)) if HAVE_SHARED else ()
    with running_server("--dev-http", "127.0.0.1:0", *keys) as server:
        yield server
        server.check_log()


@pytest.fixture(scope="module", params=["socket", "environment", "url"])
def answers(node: str, server: Server, request: pytest.FixtureRequest) -> Any:
    """What the client got for all its calls."""
    endpoints = {
        "socket": (server.dstack, server.tappd),
        "environment": ("", ""),
        "url": (server.dev_url, server.dev_url),
    }[request.param]
    named = environment(
        DSTACK_SIMULATOR_ENDPOINT=server.dstack, TAPPD_SIMULATOR_ENDPOINT=server.tappd
    )
    done = subprocess.run(
        [node, "sdk.mjs", *endpoints],
        cwd=FOLDER,
        env=named if request.param == "environment" else environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=["dstack", "tappd"])
def found(answers: Any, request: pytest.FixtureRequest) -> Any:
    """What either client got, for the older one has all methods of the newer."""
    return answers["dstack"] if request.param == "dstack" else answers["tappd"]["inherited"]


def check_quote(answer: Any) -> Quote:
    """Check that log and quote agree, and that the client's own replay says so."""
    quote = Quote.parse(bytes.fromhex(answer["quote"]))
    EventLog.from_json(answer["event_log"]).check(quote)
    assert answer["replayRtmrs"] == [rtmr.hex() for rtmr in quote.rtmrs]
    return quote


def test_quotes_and_evidence(found: Any) -> None:
    """GetQuote and Attest are over what was asked, and replay."""
    hello = b"hello".ljust(64, b"\0")
    assert check_quote(found["quote"]).report_data == hello
    evidence = Attestation.from_bytes(bytes.fromhex(found["attestation"]))
    assert evidence.report_data == hello
    assert found["refused"] is None  # this client sends nothing; 64 zeros are quoted


def test_events(found: Any) -> None:
    """EmitEvent answers something that parses, and its event is in the next log."""
    assert found["emitted"] is None
    assert found["info"]["tcb_info"]["rtmr3"] != found["before"]
    last = json.loads(found["quote"]["event_log"])[-1]
    assert (last["event"], last["event_payload"]) == ("from-javascript", "deadbeef")


def test_info_and_version(found: Any) -> None:
    """Info's parts belong together; the version is new enough for every option."""
    info = found["info"]
    app_compose = info["tcb_info"]["app_compose"].encode()
    assert info["compose_hash"] == hashlib.sha256(app_compose).hexdigest()
    assert "simulat" in info["cloud_vendor"]
    assert tuple(map(int, found["version"]["version"].split("."))) >= (0, 5, 8)
    assert found["reachable"] is True


def test_tls_key(found: Any) -> None:
    """GetTlsKey takes every option."""
    from cryptography import x509

    tls = found["tls"]
    assert tls["length"] == 138
    leaf, issuer = (x509.load_pem_x509_certificate(c.encode()) for c in tls["certificate_chain"])
    leaf.verify_directly_issued_by(issuer)
    assert leaf.not_valid_after_utc.timestamp() == 1_800_000_000


@pytest.mark.parametrize("algorithm", ["ed25519", "secp256k1", "secp256k1_prehashed"])
def test_signatures(found: Any, algorithm: str) -> None:
    """What Sign signs, Verify accepts; another text it does not."""
    answer = found["signatures"][algorithm]
    assert answer["chain"][0] == answer["signature"]
    assert (answer["good"], answer["bad"]) == (True, False)


@needs_shared
def test_known_keys_and_accounts(found: Any) -> None:
    """Keys, chains and the accounts made of them are the known ones for known app keys."""
    known = {
        f"{case['request']['path']} {case['request']['algorithm']}": case["response"]
        for case in load("getkey.json")["cases"]
        if case["request"]["purpose"] == "signing"
    }
    assert found["keys"] == {name: known[name] for name in found["keys"]}
    ethereum, solana, *_ = load("sdk_accounts.json")["get_key"]
    assert found["ethereum"] == ethereum["ethereum_address"]
    assert found["solana"]["secret"] == solana["solana_secret_key_64"]
    assert found["solana"]["address"] == solana["solana_public_key_base58"]


def test_tappd(answers: Any) -> None:
    """The old client derives keys that depend on the path alone, and gets quotes."""
    found = answers["tappd"]
    assert found["key"] == found["again"]
    assert found["certificates"] == 2
    assert check_quote(found["raw"]).report_data == b"hello".rjust(64, b"\0")
    tagged = b"app-data:hello"
    sha256 = hashlib.sha256(tagged).digest().ljust(64, b"\0")
    assert check_quote(found["hashed"]).report_data == sha256
    assert check_quote(found["plain"]).report_data == hashlib.sha512(tagged).digest()
    assert found["reachable"] is True
    assert found["info"] == answers["dstack"]["info"]["tcb_info"]["mrtd"]
    # One path gives one secret, whatever the curve.
    assert found["secret"] == P256Key.from_pem(found["key"]).scalar.hex()


def test_what_the_newer_client_has_left_of_the_older(answers: Any) -> None:
    """Its tdxQuote is GetQuote, and its deriveKey asks nobody."""
    found = answers["old"]
    assert check_quote(found["quote"]).report_data == b"hello".ljust(64, b"\0")
    assert "deprecated" in found["refused"]


def test_no_method_is_left_out(answers: Any) -> None:
    """Every method that the clients have was called."""
    assert answers["uncalled"] == []
