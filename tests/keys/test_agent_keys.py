"""AgentKeys gives the keys that LocalKeys gives with the agent's root, and believes no form."""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit import AgentKeys, verify_signature
from attestkit.backends.dstack_agent.client import AgentClient
from attestkit.errors import AttestKitError, BackendError, UnsupportedError, UsageError
from attestkit.keys import AppKeys, KeyDeriver, LocalKeys
from tests.serve.server import SEED, running_server
from tests.untyped import untyped

LOCAL = LocalKeys(AppKeys.from_seed(bytes.fromhex(SEED)))


@pytest.fixture(scope="module")
def agent() -> Iterator[KeyDeriver]:
    """Keys of an agent with the same root: our own server."""
    with running_server() as server:
        yield AgentKeys(AgentClient(server.dstack))


class FakeAgent:
    """An agent in this process; `changes` replace members of its answers, None takes one away."""

    def __init__(self, changes: Mapping[str, object] | None = None, age: str = "0.5.11") -> None:
        self.changes = changes or {}
        self.age = age
        self.asked: list[tuple[str, Mapping[str, object]]] = []

    def call(self, method: str, arguments: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Answer as the agent does."""
        message = {} if arguments is None else arguments
        self.asked.append((method, message))
        methods: dict[str, Callable[..., dict[str, Any]]]
        methods = {"GetKey": self.get_key, "Sign": self.sign, "Version": self.version}
        answer = methods[method](**message)
        answer.update(self.changes)
        return {name: value for name, value in answer.items() if value is not None}

    def get_key(self, path: str, purpose: str, algorithm: str) -> dict[str, Any]:
        """Derive."""
        key, _, chain = LOCAL.derive(path, purpose, algorithm)
        return {"key": key.hex(), "signature_chain": [one.hex() for one in chain]}

    def sign(self, algorithm: str, data: str) -> dict[str, Any]:
        """Sign."""
        signature, chain, public_key = LOCAL.sign(bytes.fromhex(data), algorithm)
        return {
            "signature": signature.hex(),
            "signature_chain": [one.hex() for one in chain],
            "public_key": public_key.hex(),
        }

    def version(self) -> dict[str, Any]:
        """Say the release, or that there is no such method."""
        if not self.age:
            raise UnsupportedError("no method Version")
        return {"version": self.age}


# -- the same as LocalKeys -------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["secp256k1", "k256", "", "ed25519"])
@pytest.mark.parametrize("path", ["", "wallet/eth", "\u00e9\U0001f511 \0 \" ' \\"])
@pytest.mark.parametrize("purpose", ["", "signing", "\u00fc"])
def test_derive(agent: KeyDeriver, path: str, purpose: str, algorithm: str) -> None:
    """Key, public key and chain, byte for byte."""
    assert agent.derive(path, purpose, algorithm) == LOCAL.derive(path, purpose, algorithm)


@pytest.mark.parametrize("algorithm", ["secp256k1", "k256", "ed25519", "p256", "x25519"])
def test_derive_separated(agent: KeyDeriver, algorithm: str) -> None:
    """Also of the algorithms that the agent's API has no name for."""
    found = agent.derive_separated("wallet", algorithm)
    assert found == LOCAL.derive_separated("wallet", algorithm)


@pytest.mark.parametrize("algorithm", ["secp256k1", "k256", "ed25519", "secp256k1_prehashed"])
def test_sign(agent: KeyDeriver, algorithm: str) -> None:
    """Signature, chain and public key, and it holds."""
    data = bytes(range(32))
    found = agent.sign(data, algorithm)
    assert found == LOCAL.sign(data, algorithm)
    assert verify_signature(algorithm, data, found.signature, found.public_key)


def test_defaults_are_those_of_local_keys(agent: KeyDeriver) -> None:
    """No purpose, secp256k1."""
    assert agent.derive("a") == LOCAL.derive("a")
    assert agent.derive_separated("a", "k256") == agent.derive_separated("a", "secp256k1")


# -- callers' mistakes -----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["rsa", "P256", "secp256k1_prehashed", "Ed25519"])
def test_other_algorithms_are_refused(algorithm: str) -> None:
    """Before the agent is asked: an old one would give a key of another."""
    fake = FakeAgent()
    keys = AgentKeys(fake)
    with pytest.raises(UsageError, match=r"^Unsupported algorithm$"):
        keys.derive("path", "", algorithm)
    with pytest.raises(UsageError, match=r"^Unsupported algorithm$"):
        keys.derive_separated("path", algorithm)
    with pytest.raises(UsageError, match=r"^Unsupported algorithm$"):
        keys.sign(b"", f"not {algorithm}")
    assert fake.asked == []


def test_what_cannot_be_sent_is_refused() -> None:
    """Half a surrogate pair, text for bytes; nothing is asked."""
    fake = FakeAgent()
    keys = AgentKeys(fake)
    for arguments in (("\ud800", ""), ("", "\ud800")):
        with pytest.raises(UsageError, match="surrogate"):
            keys.derive(*arguments)
    with pytest.raises(UsageError, match="surrogate"):
        keys.derive_separated("\ud800", "x25519")
    with pytest.raises(UsageError, match="is bytes"):
        keys.sign(untyped("text"), "ed25519")
    assert fake.asked == []


def test_a_digest_of_another_size_is_refused_by_the_agent(agent: KeyDeriver) -> None:
    """The client sends it, and raises the agent's refusal in the agent's words."""
    with pytest.raises(UsageError, match="32-byte digest, but received 31 bytes"):
        agent.sign(bytes(31), "secp256k1_prehashed")


# -- agents of all ages ----------------------------------------------------------------------------


def test_only_names_that_old_agents_know_are_sent() -> None:
    """`k256` is younger than `secp256k1`, and the method Version is younger than both."""
    fake = FakeAgent(age="")
    keys = AgentKeys(fake)
    for algorithm in ("", "k256", "secp256k1"):
        keys.derive("path", "purpose", algorithm)
    keys.derive_separated("path", "k256")
    keys.sign(b"", "k256")
    assert {method for method, _ in fake.asked} == {"GetKey", "Sign"}
    assert {message["algorithm"] for _, message in fake.asked} == {"secp256k1"}
    assert fake.asked[0][1] == {"path": "path", "purpose": "purpose", "algorithm": "secp256k1"}


def test_an_agent_that_would_ignore_the_algorithm_is_refused() -> None:
    """It would vouch for the secp256k1 key of the same bytes. One that is young is asked once."""
    with pytest.raises(UnsupportedError, match="too old for keys of ed25519"):
        AgentKeys(FakeAgent(age="")).derive("path", algorithm="ed25519")
    fake = FakeAgent()
    keys = AgentKeys(fake)
    for path in "abc":
        keys.derive(path, algorithm="ed25519")
    assert [method for method, _ in fake.asked] == ["Version", "GetKey", "GetKey", "GetKey"]


def test_without_a_kms_the_chain_ends_empty() -> None:
    """And with one it is given as it is."""
    kms = bytes(range(65)).hex()
    chain = [bytes(65).hex(), kms]
    assert LOCAL.derive("a").signature_chain[1] == b""
    found = AgentKeys(FakeAgent({"signature_chain": chain})).derive("a")
    assert [one.hex() for one in found.signature_chain] == chain


# -- answers that cannot be ------------------------------------------------------------------------

ORDER = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
P256_ORDER = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"key": None}, "key: missing"),
        ({"key": 5}, "key: not text"),
        ({"key": "5ec2e7" * 5 + "5e"}, "key: 16 bytes, want 32"),
        ({"key": "5ec2e7" * 11}, "key: 33 bytes, want 32"),
        ({"key": "5ec2e7" * 10 + "5ecz"}, "key: not hex"),
        ({"key": "0x" + "5e" * 32}, "key: not hex"),
        ({"key": " " + "5e" * 31 + "5"}, "key: not hex"),
        ({"key": "00" * 32}, r"key: .*1\.\.n-1"),
        ({"key": ORDER}, r"key: .*1\.\.n-1"),
        ({"signature_chain": None}, "signature_chain: want 2"),
        ({"signature_chain": "5e" * 65}, "signature_chain: want 2"),
        ({"signature_chain": {"0": "", "1": ""}}, "signature_chain: want 2"),
        ({"signature_chain": []}, "signature_chain: want 2"),
        ({"signature_chain": ["5e" * 65] * 3}, "signature_chain: want 2"),
        ({"signature_chain": ["5e" * 64, ""]}, r"chain\[0\]: 64 bytes, want 65"),
        ({"signature_chain": ["", ""]}, r"chain\[0\]: 0 bytes, want 65"),
        ({"signature_chain": ["5e" * 65, "5e" * 64]}, r"chain\[1\]: 64 bytes, want 0 or 65"),
        ({"signature_chain": ["5e" * 65, None]}, r"chain\[1\]: missing"),
    ],
)
def test_a_malformed_key_is_refused(changes: dict[str, object], text: str) -> None:
    """The error names the field and shows nothing of it, nor do the errors behind it."""
    keys = AgentKeys(FakeAgent(changes))
    with pytest.raises(BackendError, match=f"answer to GetKey is malformed: .*{text}") as caught:
        keys.derive("path")
    assert "5ec2" not in "".join(traceback.format_exception(caught.value))


def test_no_scalar_of_p256_is_refused() -> None:
    """Chance does not bring it about; an agent may."""
    keys = AgentKeys(FakeAgent({"key": P256_ORDER}))
    with pytest.raises(BackendError, match="key: a P-256 scalar"):
        keys.derive_separated("path", "p256")
    assert keys.derive_separated("path", "x25519").key.hex() == P256_ORDER


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"signature": None}, "signature: missing"),
        ({"signature": "5e" * 65}, "signature: 65 bytes, want 64"),
        ({"public_key": "5e" * 33}, "public_key: 33 bytes, want 32"),
        ({"public_key": "02" + "00" * 31}, "signature: invalid public key"),
        ({"public_key": bytes(32).hex()}, "signature: it does not hold"),
        ({"signature": "5e" * 64}, "does not start with the signature"),
        ({"signature_chain": ["5e" * 64, "5e" * 65, ""]}, "does not start with the signature"),
        ({"signature_chain": ["5e" * 64, "5e" * 65]}, "want 3 signatures"),
    ],
)
def test_a_malformed_signature_is_refused(changes: dict[str, object], text: str) -> None:
    """Its form, and whether it holds."""
    with pytest.raises(BackendError, match=f"answer to Sign is malformed: .*{text}"):
        AgentKeys(FakeAgent(changes)).sign(b"data", "ed25519")


@pytest.mark.parametrize("algorithm", ["ed25519", "secp256k1", "secp256k1_prehashed"])
def test_a_signature_over_something_else_is_refused(algorithm: str) -> None:
    """Both in its field and at the head of the chain, it does not hold."""
    other = FakeAgent().sign(algorithm, bytes(32).hex())
    with pytest.raises(BackendError, match="it does not hold"):
        AgentKeys(FakeAgent(other)).sign(bytes(range(32)), algorithm)


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["5e" * 32, "5e" * 65]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional={"key": JSON, "signature_chain": JSON}))
def test_any_answer(changes: dict[str, object]) -> None:
    """Any JSON is a key or an error of ours."""
    keys = AgentKeys(FakeAgent(changes))
    with contextlib.suppress(AttestKitError):
        assert len(keys.derive("a").key) == 32
    with contextlib.suppress(AttestKitError):
        assert len(keys.derive_separated("a", "x25519").key) == 32


def test_nothing_prints_a_secret(agent: KeyDeriver) -> None:
    """The deriver holds none, and its keys show their public half."""
    derived = agent.derive("path")
    text = f"{agent!r} {agent} {derived!r} {derived} {vars(agent)}"
    assert derived.key.hex() not in text
    assert str(derived.key) not in text
    assert derived.public_key.hex() in text
    assert "dstack.sock" in text
