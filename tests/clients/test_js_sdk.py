"""The official JavaScript client works with every method over every transport."""

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from attestkit import Attestation, EventLog, Quote
from attestkit._crypto.ecdsa import P256Key
from tests.clients.js_dcap_qvl import FOLDER, node_program
from tests.processes import run_program
from tests.serve.server import Server, environment, running_server
from tests.thorough import slow
from tests.vectors import HAVE_SHARED, SHARED, load, needs_shared

pytestmark = pytest.mark.slow

OLD_RELEASE = "ATTESTKIT_OLD_CLIENT" in os.environ
"""Whether methods and options may be missing; a test of a missing method skips."""
APP_KEYS = SHARED / "data/dstack/simulator/appkeys.json"


class Answers(dict[str, Any]):
    """Results of calls by name."""

    def __missing__(self, name: str) -> None:
        if not OLD_RELEASE:
            raise KeyError(name)
        pytest.skip(f"this release lacks a method: {name}")


@pytest.fixture(scope="module")
def node() -> str:
    """Return the path of node; skip without node or the client."""
    return node_program("dstack-sdk")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server that also listens on a URL, with the upstream simulator's published keys."""
    keys = ("--app-keys", str(APP_KEYS)) if HAVE_SHARED else ()
    with running_server("--dev-http", "127.0.0.1:0", *keys) as server:
        yield server
        server.check_log()


@pytest.fixture(scope="module", params=["socket", *slow(("environment",), ("url",))])
def answers(node: str, server: Server, request: pytest.FixtureRequest) -> Any:
    """Return the client's results of all calls."""
    endpoints = {
        "socket": (server.dstack, server.tappd),
        "environment": ("", ""),
        "url": (server.dev_url, server.dev_url),
    }[request.param]
    old = {"ATTESTKIT_OLD_CLIENT": "1"} if OLD_RELEASE else {}
    named = environment(
        **old, DSTACK_SIMULATOR_ENDPOINT=server.dstack, TAPPD_SIMULATOR_ENDPOINT=server.tappd
    )
    done = run_program(
        node,
        "sdk.mjs",
        *endpoints,
        cwd=FOLDER,
        env=named if request.param == "environment" else environment(**old),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, object_hook=Answers)


@pytest.fixture(params=["dstack", "tappd"])
def found(answers: Any, request: pytest.FixtureRequest) -> Any:
    """Return the results of either client; the older one has the newer one's methods."""
    return answers["dstack"] if request.param == "dstack" else answers["tappd"]["inherited"]


def check_quote(answer: Any) -> Quote:
    """Check that the log replays to the quote, also by the client."""
    quote = Quote.parse(bytes.fromhex(answer["quote"]))
    EventLog.from_json(answer["event_log"]).check(quote)
    assert answer["replayRtmrs"] == [rtmr.hex() for rtmr in quote.rtmrs]
    return quote


HELLO = b"hello".ljust(64, b"\0")


def test_get_quote(found: Any) -> None:
    """The quote contains the report data, and replays."""
    assert check_quote(found["quote"]).report_data == HELLO
    assert found["refused"] is None  # without report data 64 zero bytes are quoted


def test_attest(found: Any) -> None:
    """The evidence contains the report data."""
    evidence = Attestation.from_bytes(bytes.fromhex(found["attestation"]))
    assert evidence.report_data == HELLO


def test_emit_event(found: Any) -> None:
    """EmitEvent returns JSON, and its event is in the next log."""
    assert found["emitted"] is None
    assert found["info"]["tcb_info"]["rtmr3"] != found["before"]
    last = json.loads(found["quote"]["event_log"])[-1]
    assert (last["event"], last["event_payload"]) == ("from-javascript", "deadbeef")


def test_version(found: Any) -> None:
    """The version is recent enough for the client."""
    assert tuple(map(int, found["version"]["version"].split("."))) >= (0, 5, 8)


def test_info(found: Any) -> None:
    """Info is consistent."""
    info = found["info"]
    app_compose = info["tcb_info"]["app_compose"].encode()
    assert info["compose_hash"] == hashlib.sha256(app_compose).hexdigest()
    assert "simulat" in info["cloud_vendor"]
    assert found["reachable"] is True


def test_get_tls_key(found: Any) -> None:
    """GetTlsKey accepts every option."""
    from cryptography import x509

    tls = found["tls"]
    assert tls["length"] == 138
    leaf, issuer = (x509.load_pem_x509_certificate(c.encode()) for c in tls["certificate_chain"])
    leaf.verify_directly_issued_by(issuer)
    assert OLD_RELEASE or leaf.not_valid_after_utc.timestamp() == 1_800_000_000


@pytest.mark.parametrize("algorithm", ["ed25519", "secp256k1", "secp256k1_prehashed"])
def test_sign_and_verify(found: Any, algorithm: str) -> None:
    """Verify accepts Sign's signature, but not for another text."""
    answer = found["signatures"][algorithm]
    assert answer["chain"][0] == answer["signature"]
    assert (answer["good"], answer["bad"]) == (True, False)


@needs_shared
def test_keys_and_accounts_match_vectors(found: Any) -> None:
    """Keys, chains and derived accounts equal the vectors."""
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
    """The old client derives keys that depend only on the path, and gets quotes."""
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
    # The secret depends on the path, not on the curve.
    assert found["secret"] == P256Key.from_pem(found["key"]).scalar.hex()


def test_deprecated_methods(answers: Any) -> None:
    """The client's tdxQuote is GetQuote, and deriveKey is refused by the client."""
    found = answers["old"]
    assert check_quote(found["quote"]).report_data == HELLO
    assert "deprecated" in found["refused"]


def test_script_of_the_package(node: str, server: Server) -> None:
    """The script in the packages before 0.5.8, which prints results of both clients, has them."""
    script = FOLDER / "node_modules/@phala/dstack-sdk/test-outputs.js"
    if not script.exists():
        pytest.skip("this release has no script")
    endpoints = environment(
        DSTACK_SIMULATOR_ENDPOINT=server.dstack, TAPPD_SIMULATOR_ENDPOINT=server.tappd
    )
    done = run_program(node, str(script), cwd=FOLDER, env=endpoints, timeout=120)
    assert (done.returncode, done.stdout.count("rtmrs count: 4")) == (0, 2), done.stderr
    assert done.stdout.count("  error: ") == 0


def test_every_client_method_is_tested(answers: Any) -> None:
    """Every method of the clients was called."""
    assert answers["uncalled"] == []
