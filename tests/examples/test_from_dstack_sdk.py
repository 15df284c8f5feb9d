"""Tests of the from_dstack_sdk example: dstack's SDK and attestkit give equal results."""

import json
from collections.abc import Iterator

import pytest

import attestkit
from tests.examples.reader import Done, Reader

pytestmark = pytest.mark.slow

dstack_sdk = pytest.importorskip("dstack_sdk", reason="the example needs dstack-sdk")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Return a copy of the example whose commands have run; its path must be short."""
    with Reader("from_dstack_sdk", tmp_path_factory.mktemp("x")) as reader:
        assert reader.run_all() == [Done(0, ""), Done(0, ""), Done(0, "")]
        yield reader


@pytest.fixture
def endpoint(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set the agent's socket for clients in this process."""
    path = str(reader.folder / "tee" / "dstack.sock")
    monkeypatch.setenv("DSTACK_SIMULATOR_ENDPOINT", path)
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    return path


def test_from_dstack_sdk_readme_commands_succeed(reader: Reader) -> None:
    """Both programs print the same complete facts, and the signature is valid."""
    before = json.loads((reader.folder / "before.json").read_text())
    assert before == json.loads((reader.folder / "after.json").read_text())
    assert before["report_data"] == b"nonce".ljust(64, b"\0").hex()
    assert before["signature_holds"] is True
    assert before["events"].count("model-loaded") == 1
    assert len(before["rtmrs"]) == 4


def test_sdk_and_attestkit_facts_are_equal(reader: Reader, endpoint: str) -> None:
    """The facts are equal, including the key, which is not printed."""
    before = reader.load("before").facts(b"another nonce")
    after = reader.load("after").facts(b"another nonce")
    assert before == after
    assert len(after["key"]) == 32
    assert endpoint


@pytest.mark.parametrize("algorithm", ["secp256k1", "ed25519"])
@pytest.mark.parametrize(("path", "purpose"), [("", ""), ("wallet/eth", "signing"), ("a/b c", "")])
def test_sdk_and_attestkit_keys_are_equal(
    endpoint: str, path: str, purpose: str, algorithm: str
) -> None:
    """Every path, purpose and algorithm gives the same key and signature chain."""
    client = dstack_sdk.DstackClient(endpoint)
    with client:  # `as` would bind the asynchronous client
        old = client.get_key(path, purpose, algorithm)
    with attestkit.open("dstack_agent", endpoint=endpoint) as tee:
        new = tee.keys.derive_compat(path, purpose, algorithm)
    assert old.decode_key() == new.key
    assert tuple(old.decode_signature_chain()) == new.signature_chain


def test_missing_agent_is_error(reader: Reader) -> None:
    """A missing socket is an error; no other TEE is used."""
    done = reader.run("python after.py", DSTACK_SIMULATOR_ENDPOINT=str(reader.folder / "nowhere"))
    assert done.code == 1
    assert "DSTACK_SIMULATOR_ENDPOINT" in done.printed
