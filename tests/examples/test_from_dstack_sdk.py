"""The program over the dstack SDK and the one over attestkit see the same of the same agent."""

import json
import re
from collections.abc import Iterator

import pytest

import attestkit
from attestkit import Attestation
from tests.examples.reader import Done, Reader
from tests.untyped import untyped

dstack_sdk = pytest.importorskip("dstack_sdk", reason="the example needs dstack-sdk")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Return a reader who has typed the README's commands; the folder's path must be short."""
    with Reader("from_dstack_sdk", tmp_path_factory.mktemp("x")) as reader:
        assert reader.run_all() == [Done(0, ""), Done(0, ""), Done(0, "")]
        yield reader


@pytest.fixture
def endpoint(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name the server's socket to clients in this process."""
    path = str(reader.folder / "tee" / "dstack.sock")
    monkeypatch.setenv("DSTACK_SIMULATOR_ENDPOINT", path)
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    return path


def test_the_readme_s_commands_do_what_it_says(reader: Reader) -> None:
    """Both print the same, all of it is there, and none of it is the key."""
    before = json.loads((reader.folder / "before.json").read_text())
    assert before == json.loads((reader.folder / "after.json").read_text())
    assert before["report_data"] == b"nonce".ljust(64, b"\0").hex()
    assert before["signature_holds"] is True
    assert before["events"].count("model-loaded") == 1
    assert len(before["rtmrs"]) == 4


def test_the_same_to_the_byte(reader: Reader, endpoint: str) -> None:
    """Also what is not printed: the key."""
    before = reader.load("before").facts(b"another nonce")
    after = reader.load("after").facts(b"another nonce")
    assert before == after
    assert len(after["key"]) == 32
    assert endpoint


@pytest.mark.parametrize("algorithm", ["secp256k1", "ed25519"])
@pytest.mark.parametrize(("path", "purpose"), [("", ""), ("wallet/eth", "signing"), ("a/b c", "")])
def test_keys(endpoint: str, path: str, purpose: str, algorithm: str) -> None:
    """Every path, purpose and algorithm gives the key and the chain that the SDK gets."""
    client = dstack_sdk.DstackClient(endpoint)
    with client:  # `as` would give the asynchronous one
        old = client.get_key(path, purpose, algorithm)
    with attestkit.open("dstack_agent", endpoint=endpoint) as tee:
        new = tee.keys.derive(path, purpose, algorithm)
    assert old.decode_key() == new.key
    assert tuple(old.decode_signature_chain()) == new.signature_chain


def test_evidence(endpoint: str) -> None:
    """Quote, log and attestation are about the same, field by field."""
    client = dstack_sdk.DstackClient(endpoint)
    with client:  # `as` would give the asynchronous one
        old, info = client.get_quote(b"nonce"), client.info()
        attested = Attestation.from_bytes(client.attest(b"nonce").decode_attestation())
    with attestkit.open("dstack_agent", endpoint=endpoint) as tee:
        quote, evidence = tee.get_quote(b"nonce"), tee.attest(b"nonce")
        assert tee.info().compose_hash.hex() == info.compose_hash
        assert tee.app_compose.raw.decode() == info.tcb_info.app_compose
    signed = slice(0, 48 + 584)  # header and body; signatures have randomness of their own
    assert old.decode_quote()[signed] == quote.raw[signed]
    events = [
        (event.imr, event.event_type, event.digest, event.event, event.event_payload)
        for event in old.decode_event_log()
    ]
    assert events == [
        (e.register, e.event_type, e.digest.hex(), e.name, e.payload.hex())
        for e in evidence.event_log.events
    ]
    replayed = tuple(bytes.fromhex(old.replay_rtmrs()[index]) for index in range(4))
    assert replayed == evidence.event_log.replay()
    assert attested.report_data == evidence.report_data
    assert attested.app_info() == evidence.app_info()
    assert attested.quote is not None
    assert attested.quote.rtmrs == quote.rtmrs


def test_accounts(endpoint: str) -> None:
    """The Ethereum account of the SDK's helper is the key's own."""
    account = pytest.importorskip("eth_account").Account
    ethereum = pytest.importorskip("dstack_sdk.ethereum")
    client = dstack_sdk.DstackClient(endpoint)
    with client:  # `as` would give the asynchronous one
        old = ethereum.to_account_secure(client.get_key("wallet/eth"))
    with attestkit.open("dstack_agent", endpoint=endpoint) as tee:
        assert account.from_key(tee.keys.derive("wallet/eth").key).address == old.address


def test_what_the_table_says_of_arguments(endpoint: str) -> None:
    """None at all is taken, text and 65 bytes are not, and a colon is refused."""
    errors = attestkit.errors
    with attestkit.open("dstack_agent", endpoint=endpoint) as tee:
        assert tee.get_quote(b"").report_data == bytes(64)
        for wrong in ("text", bytes(65)):
            with pytest.raises(errors.UsageError):
                tee.get_quote(untyped(wrong))
        with pytest.raises(errors.UsageError, match="colon"):
            tee.emit_event("a:b", b"")


def test_the_table_has_what_the_sdk_has(reader: Reader) -> None:
    """Every call of the client that says something of the TEE is in the table."""
    calls = {name for name in vars(dstack_sdk.DstackClient) if not name.startswith("_")}
    named = set(re.findall(r"\.(\w+)\(", reader.readme))
    assert calls - {"PATH_PREFIX", "version", "is_reachable"} <= named


def test_no_agent_is_an_error(reader: Reader) -> None:
    """A name that leads nowhere is not made up for by another TEE."""
    done = reader.run("python after.py", DSTACK_SIMULATOR_ENDPOINT=str(reader.folder / "nowhere"))
    assert done.code == 1
    assert "DSTACK_SIMULATOR_ENDPOINT" in done.printed
