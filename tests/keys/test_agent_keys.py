"""AgentKeys returns the same keys as LocalKeys with the agent's root, and validates responses."""

import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from attestkit import verify_signature
from attestkit.backends.dstack_agent.client import AgentClient
from attestkit.errors import BackendError, UnsupportedError, UsageError
from attestkit.keys import AgentKeys, AppKeys, KeyDeriver, LocalKeys
from attestkit.keys.agent_keys import AgentApi
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.server import SEED, running_server
from tests.untyped import untyped

LOCAL = LocalKeys(AppKeys.from_seed(bytes.fromhex(SEED)))


@pytest.fixture(scope="module")
def agent() -> Iterator[KeyDeriver]:
    """Return AgentKeys connected to a server with the same root."""
    with running_server() as server:
        yield AgentKeys(AgentClient(server.dstack))


class FakeAgent:
    """An agent in this process; `changes` replace members of its responses, None removes one."""

    def __init__(self, changes: Mapping[str, object] | None = None, age: str = "0.5.11") -> None:
        self.changes = changes or {}
        self.age = age
        self.requests: list[tuple[str, Mapping[str, object]]] = []

    def call(self, method: str, arguments: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Respond like the agent."""
        message = {} if arguments is None else arguments
        self.requests.append((method, message))
        methods: dict[str, Callable[..., dict[str, Any]]]
        methods = {"GetKey": self.get_key, "Sign": self.sign, "Version": self.version}
        response = methods[method](**message)
        response.update(self.changes)
        return {name: value for name, value in response.items() if value is not None}

    def find_api(self) -> AgentApi:
        """Return the API of dstack 0.5."""
        return "v0"

    def get_key(self, path: str, purpose: str, algorithm: str) -> dict[str, Any]:
        """Derive a key."""
        key, _, chain = LOCAL.derive_compat(path, purpose, algorithm)
        return {"key": key.hex(), "signature_chain": [one.hex() for one in chain]}

    def sign(self, algorithm: str, data: str) -> dict[str, Any]:
        """Sign data."""
        signature, chain, public_key = LOCAL.sign(bytes.fromhex(data), algorithm)
        return {
            "signature": signature.hex(),
            "signature_chain": [one.hex() for one in chain],
            "public_key": public_key.hex(),
        }

    def version(self) -> dict[str, Any]:
        """Return the release, or raise for an agent without the method."""
        if not self.age:
            raise UnsupportedError("no method Version", reason="feature")
        return {"version": self.age}


# -- equal to LocalKeys ----------------------------------------------------------------------------


@every_case("algorithm", ["secp256k1", "k256", "", "ed25519"])
@every_case("path", ["", "wallet/eth", "\u00e9\U0001f511 \" ' \\"])
@every_case("purpose", ["", "signing", "\u00fc"])
def test_agent_keys_derive_equals_local_keys(
    agent: KeyDeriver, path: str, purpose: str, algorithm: str
) -> None:
    """Key, public key and chain are equal byte for byte."""
    assert agent.derive_compat(path, purpose, algorithm) == LOCAL.derive_compat(
        path, purpose, algorithm
    )


@pytest.mark.parametrize("algorithm", ["secp256k1", "k256", "ed25519", "p256", "x25519"])
def test_agent_keys_derive_separated_equals_local_keys(agent: KeyDeriver, algorithm: str) -> None:
    """Algorithms that the agent's API does not name are derived too."""
    found = agent.derive("wallet", algorithm)
    assert found == LOCAL.derive("wallet", algorithm)


@pytest.mark.parametrize("algorithm", ["secp256k1", "k256", "ed25519", "secp256k1_prehashed"])
def test_agent_keys_sign_equals_local_keys(agent: KeyDeriver, algorithm: str) -> None:
    """Signature, chain and public key are equal, and the signature is valid."""
    data = bytes(range(32))
    found = agent.sign(data, algorithm)
    assert found == LOCAL.sign(data, algorithm)
    verify_signature(found.public_key, found.signature, data, algorithm=algorithm)


def test_agent_keys_defaults_equal_local_keys(agent: KeyDeriver) -> None:
    """The default purpose is empty, the default algorithm secp256k1."""
    assert agent.derive_compat("a") == LOCAL.derive_compat("a")
    assert agent.derive("a", "k256") == agent.derive("a", "secp256k1")


# -- usage errors ----------------------------------------------------------------------------------


@every_case("algorithm", ["rsa", "P256", "secp256k1_prehashed", "Ed25519"])
def test_agent_keys_derive_of_other_algorithm_sends_no_request(algorithm: str) -> None:
    """An unknown algorithm is rejected locally: an old agent would derive another key."""
    fake = FakeAgent()
    keys = AgentKeys(fake)
    for call in (
        lambda: keys.derive_compat("path", "", algorithm),
        lambda: keys.derive("path", algorithm),
        lambda: keys.sign(b"", f"not {algorithm}"),
    ):
        with raises(UsageError, "unsupported_algorithm") as caught:
            call()
        assert algorithm in str(caught.value)
    assert fake.requests == []


def test_agent_keys_of_unencodable_argument_sends_no_request() -> None:
    """Lone surrogates, control characters in a purpose and other types are refused locally."""
    fake = FakeAgent()
    keys = AgentKeys(fake)
    for arguments in (("\ud800", ""), ("", "\ud800")):
        with raises(UsageError, "encoding"):
            keys.derive_compat(*arguments)
    with raises(UsageError, "encoding"):
        keys.derive("\ud800", "x25519")
    with raises(UsageError, "wrong_value"):
        keys.derive_compat("", "\x19Ethereum")
    with raises(UsageError, "wrong_type"):
        keys.sign(untyped("text"), "ed25519")
    assert fake.requests == []


def test_agent_keys_sign_of_wrong_digest_size_raises_agent_error(agent: KeyDeriver) -> None:
    """The agent's error is raised with its text."""
    with pytest.raises(UsageError) as caught:
        agent.sign(bytes(31), "secp256k1_prehashed")
    assert "32-byte digest, but received 31 bytes" in str(caught.value)


# -- agent versions --------------------------------------------------------------------------------


def test_agent_keys_requests_use_old_names() -> None:
    """`secp256k1` is sent, not the newer `k256`; Version, which is newer, is not called."""
    fake = FakeAgent(age="")
    keys = AgentKeys(fake)
    for algorithm in ("", "k256", "secp256k1"):
        keys.derive_compat("path", "purpose", algorithm)
    keys.derive("path", "k256")
    keys.sign(b"", "k256")
    assert {method for method, _ in fake.requests} == {"GetKey", "Sign"}
    assert {message["algorithm"] for _, message in fake.requests} == {"secp256k1"}
    assert fake.requests[0][1] == {"path": "path", "purpose": "purpose", "algorithm": "secp256k1"}


def test_agent_keys_derive_with_old_agent_is_unsupported() -> None:
    """An old agent would sign the secp256k1 key instead. The version is requested once."""
    with raises(UnsupportedError, "feature"):
        AgentKeys(FakeAgent(age="")).derive_compat("path", algorithm="ed25519")
    fake = FakeAgent()
    keys = AgentKeys(fake)
    for path in "abc":
        keys.derive_compat(path, algorithm="ed25519")
    assert [method for method, _ in fake.requests] == ["Version", "GetKey", "GetKey", "GetKey"]


def test_agent_keys_chain_without_kms_ends_empty() -> None:
    """Without a KMS the last signature is empty; with one it is returned unchanged."""
    kms = bytes(range(65)).hex()
    chain = [bytes(65).hex(), kms]
    assert LOCAL.derive_compat("a").signature_chain[1] == b""
    found = AgentKeys(FakeAgent({"signature_chain": chain})).derive_compat("a")
    assert [one.hex() for one in found.signature_chain] == chain


# -- malformed responses ---------------------------------------------------------------------------

ORDER = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
P256_ORDER = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"


@every_case(
    ("changes", "field"),
    [
        ({"key": None}, "key"),
        ({"key": 5}, "key"),
        ({"key": "5ec2e7" * 5 + "5e"}, "key"),
        ({"key": "5ec2e7" * 10 + "5ecz"}, "key"),
        ({"key": "00" * 32}, "key"),
        ({"key": ORDER}, "key"),
        ({"signature_chain": None}, "signature_chain"),
        ({"signature_chain": "5e" * 65}, "signature_chain"),
        ({"signature_chain": []}, "signature_chain"),
        ({"signature_chain": ["5e" * 65] * 3}, "signature_chain"),
        ({"signature_chain": ["5e" * 64, ""]}, "signature_chain[0]"),
        ({"signature_chain": ["5e" * 65, "5e" * 64]}, "signature_chain[1]"),
    ],
)
def test_agent_keys_derive_with_malformed_response_names_the_field(
    changes: dict[str, object], field: str
) -> None:
    """The error and its causes name the field and contain no value."""
    keys = AgentKeys(FakeAgent(changes))
    with raises(BackendError, "malformed_response", part=f" GetKey: {field}: ") as caught:
        keys.derive_compat("path")
    assert "5ec2" not in "".join(traceback.format_exception(caught.value))


def test_agent_keys_derive_with_invalid_p256_scalar_fails() -> None:
    """A scalar outside 1 to n-1 in a response is rejected."""
    keys = AgentKeys(FakeAgent({"key": P256_ORDER}))
    with raises(BackendError, "malformed_response"):
        keys.derive("path", "p256")
    assert keys.derive("path", "x25519").key.hex() == P256_ORDER


@every_case(
    ("changes", "field"),
    [
        ({"signature": None}, "signature"),
        ({"signature": "5e" * 65}, "signature"),
        ({"public_key": "5e" * 33}, "public_key"),
        ({"public_key": "02" + "00" * 31}, "signature"),
        ({"public_key": bytes(32).hex()}, "signature"),
        ({"signature": "5e" * 64}, "signature_chain"),
    ],
)
def test_agent_keys_sign_with_malformed_response_names_the_field(
    changes: dict[str, object], field: str
) -> None:
    """The fields of the response are checked, and the signature is verified."""
    with raises(BackendError, "malformed_response", part=f" Sign: {field}: "):
        AgentKeys(FakeAgent(changes)).sign(b"data", "ed25519")


@pytest.mark.parametrize("algorithm", ["ed25519", "secp256k1", "secp256k1_prehashed"])
def test_agent_keys_sign_with_foreign_signature_fails(algorithm: str) -> None:
    """A signature over other data is rejected in its field and in the chain."""
    other = FakeAgent().sign(algorithm, bytes(32).hex())
    with raises(BackendError, "malformed_response", part=" Sign: signature: "):
        AgentKeys(FakeAgent(other)).sign(bytes(range(32)), algorithm)


def test_agent_keys_repr_contains_no_secret(agent: KeyDeriver) -> None:
    """The deriver has no secret, and its keys show their public half."""
    derived = agent.derive_compat("path")
    text = f"{agent!r} {agent} {derived!r} {derived} {vars(agent)}"
    assert derived.key.hex() not in text
    assert str(derived.key) not in text
    assert derived.public_key.hex() in text
    assert "dstack.sock" in text
