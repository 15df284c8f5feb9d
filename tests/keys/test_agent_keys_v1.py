"""AgentKeys returns v1 keys of an agent that has the v1 API, and checks them; else it refuses."""

import traceback
from collections.abc import Callable, Mapping
from typing import Any

from attestkit.backends.dstack_agent.client import AgentClient
from attestkit.errors import AttestKitError, BackendError, UnsupportedError, UsageError
from attestkit.keys import AgentKeys, AppKeys, DerivedKey, KeyDeriver, LocalKeys
from attestkit.keys.agent_keys import AgentApi
from tests.backends.dstack_agent.scripted_agent import response, scripted_agent
from tests.keys.independent_chain import high_s
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

LOCAL: KeyDeriver = LocalKeys(AppKeys.from_seed(bytes(range(32))))
OTHER: KeyDeriver = LocalKeys(AppKeys.from_seed(bytes(32)))
PAGE = b"<!DOCTYPE html><html><h1>404: Not Found</h1></html>"
ORDER = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"


def fields(found: DerivedKey) -> dict[str, Any]:
    """Return the response with a key."""
    chain = [link.hex() for link in found.signature_chain]
    return {"key": found.key.hex(), "public_key": found.public_key.hex(), "signature_chain": chain}


class Agent:
    """An agent in this process; `changes` replace members of its responses, None removes one."""

    def __init__(self, changes: Mapping[str, object] | None = None) -> None:
        self.changes = changes or {}
        self.requests: list[tuple[str, Mapping[str, object]]] = []

    def call(self, method: str, arguments: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Respond like an agent of dstack 0.6."""
        message: dict[str, Any] = dict(arguments or {})
        self.requests.append((method, message))
        keys: dict[str, Callable[..., DerivedKey]]
        keys = {"v1/GetKey": LOCAL.derive_v1, "GetKey": LOCAL.derive_compat}
        answer = {**fields(keys[method](**message)), **self.changes}
        return {name: value for name, value in answer.items() if value is not None}

    def find_api(self) -> AgentApi:
        """Return the API of dstack 0.6."""
        return "v1"


@every_case("algorithm", ["secp256k1", "ed25519"])
@every_case("domain", ["", "wallet/eth", "k\0:ey", "\u00e9\U0001f511 \" ' \\"])
def test_agent_keys_derive_v1_equals_local_keys(domain: str, algorithm: str) -> None:
    """Key, public key and chain are equal; one request to the v1 method carries both names."""
    agent = Agent()
    assert AgentKeys(agent).derive_v1(domain, algorithm) == LOCAL.derive_v1(domain, algorithm)
    assert agent.requests == [("v1/GetKey", {"domain": domain, "algorithm": algorithm})]


def test_agent_keys_derive_v1_posts_to_the_v1_path() -> None:
    """Over HTTP the method is below /v1 of the socket or of the base URL."""
    found = LOCAL.derive_v1("wallet", "secp256k1")
    with scripted_agent(response(fields(found))) as agent:
        assert AgentKeys(AgentClient(agent.path)).derive_v1("wallet", "secp256k1") == found
        [request] = agent.requests
    assert request.line == "POST /v1/GetKey HTTP/1.1"
    assert request.message == {"domain": "wallet", "algorithm": "secp256k1"}


@every_case(
    ("body", "status", "words"),
    [
        (PAGE, 404, "no v1 API"),
        (b"", 404, "no v1 API"),
        ({"error": {"code": 404, "reason": "Not Found", "description": "x"}}, 404, "no v1 API"),
        ({"error": "Service not found: GetKey"}, 404, "no method v1/GetKey"),
        ({"error": "Service not found: v1"}, 400, "no method v1/GetKey"),
    ],
)
def test_agent_keys_derive_v1_without_v1_api_is_unsupported(
    body: object, status: int, words: str
) -> None:
    """An agent without the v1 API is not asked for another key: that of v0 is a different one."""
    with scripted_agent(response(body, status)) as agent:
        keys = AgentKeys(AgentClient(agent.path))
        with raises(UnsupportedError, "feature", part=words):
            keys.derive_v1("wallet", "ed25519")
        assert len(agent.requests) == 1


def test_agent_keys_derive_v1_reports_error_of_agent() -> None:
    """Another failure is the agent's error with its text, and not a missing API."""
    text = "derived secp256k1 key is not a valid scalar"
    with (
        scripted_agent(response({"error": text}, 400)) as agent,
        raises(UsageError, "wrong_value", part=text),
    ):
        AgentKeys(AgentClient(agent.path)).derive_v1("wallet", "secp256k1")
    with (
        scripted_agent(response({"error": "no keys"}, 500)) as agent,
        raises(BackendError, "agent_error", part="no keys"),
    ):
        AgentKeys(AgentClient(agent.path)).derive_v1("wallet", "secp256k1")


@every_case(
    ("names", "reason"),
    [
        (("wallet", ""), "missing"),
        (("wallet", "k256"), "unsupported_algorithm"),
        (("wallet", "x25519"), "unsupported_algorithm"),
        (("\ud800", "ed25519"), "encoding"),
        ((None, "ed25519"), "wrong_type"),
    ],
)
def test_agent_keys_derive_v1_of_wrong_names_sends_no_request(
    names: tuple[object, object], reason: str
) -> None:
    """Wrong names are rejected as by LocalKeys."""
    agent = Agent()
    for keys in (AgentKeys(agent), LOCAL):
        with raises(UsageError, reason):
            keys.derive_v1(*untyped(names))
    assert agent.requests == []


ED25519 = fields(LOCAL.derive_v1("wallet", "ed25519"))
FOREIGN = fields(OTHER.derive_v1("wallet", "secp256k1"))
SOUND = LOCAL.derive_v1("wallet", "secp256k1")
LINK = SOUND.signature_chain[0]


@every_case(
    ("changes", "field"),
    [
        ({"key": None}, "key"),
        ({"key": 5}, "key"),
        ({"key": "5ec2e7" * 5 + "5e"}, "key"),
        ({"key": "5ec2e7" * 11}, "key"),
        ({"key": "00" * 32}, "key"),
        ({"key": ORDER}, "key"),
        ({"key": "5ec2" * 16}, "public_key"),
        ({"key": FOREIGN["key"]}, "public_key"),
        ({"public_key": None}, "public_key"),
        ({"public_key": []}, "public_key"),
        ({"public_key": ""}, "public_key"),
        ({"public_key": ED25519["public_key"]}, "public_key"),
        ({"public_key": FOREIGN["public_key"]}, "public_key"),
        ({"signature_chain": None}, "signature_chain"),
        ({"signature_chain": "5e" * 65}, "signature_chain"),
        ({"signature_chain": []}, "signature_chain"),
        ({"signature_chain": [LINK.hex()]}, "signature_chain"),
        ({"signature_chain": [LINK.hex(), "", ""]}, "signature_chain"),
        ({"signature_chain": ["", ""]}, "signature_chain[0]"),
        ({"signature_chain": [LINK[:64].hex(), ""]}, "signature_chain[0]"),
        ({"signature_chain": [high_s(LINK).hex(), ""]}, "signature_chain[0]"),
        ({"signature_chain": [LINK[:64].hex() + "1b", ""]}, "signature_chain[0]"),
        ({"signature_chain": ["00" * 65, ""]}, "signature_chain[0]"),
        ({"signature_chain": [LINK.hex(), "5e" * 64]}, "signature_chain[1]"),
        (ED25519, "public_key"),
    ],
)
def test_agent_keys_derive_v1_with_malformed_response_names_the_field(
    changes: dict[str, object], field: str
) -> None:
    """Sizes are checked, the public key is that of the key, and the first link has a signer.

    Errors and their causes contain no value.
    """
    keys = AgentKeys(Agent(changes))
    with raises(BackendError, "malformed_response", part=f" v1/GetKey: {field}: ") as caught:
        keys.derive_v1("wallet", "secp256k1")
    text = "".join(traceback.format_exception(caught.value))
    assert "5ec2" not in text
    assert SOUND.key.hex() not in text


@every_case("name", ["root_epoch", "app_epoch"])
@every_case("epoch", [1, 2**64, -1, "0", True, [0], {}])
def test_agent_keys_of_other_epoch_are_refused(name: str, epoch: object) -> None:
    """A key of another epoch is another key than before, so it is not returned silently."""
    for change in ({name: epoch}, {"root_epoch": 0, "app_epoch": 0, name: epoch}):
        keys = AgentKeys(Agent(change))
        for call in (
            lambda keys=keys: keys.derive_v1("wallet", "ed25519"),
            lambda keys=keys: keys.derive_compat("wallet"),
            lambda keys=keys: keys.derive("wallet", "p256"),
        ):
            with raises(UnsupportedError, "key_epoch"):
                untyped(call)()


def test_agent_keys_of_epoch_0_are_returned() -> None:
    """An agent that reports the epochs and has only the first ones returns the same keys."""
    keys = AgentKeys(Agent({"root_epoch": 0, "app_epoch": 0}))
    assert keys.derive_v1("wallet", "ed25519") == LOCAL.derive_v1("wallet", "ed25519")
    assert keys.derive_compat("wallet") == LOCAL.derive_compat("wallet")


@every_case("method", ["", "v1/", "v2/GetKey", "v1/v1/GetKey", "/v1/GetKey", "v1/../X"])
def test_agent_client_of_other_path_is_usage_error(method: str) -> None:
    """Only the prefix v1/ may stand before a method's name."""
    with raises(UsageError, "wrong_value") as caught:
        AgentClient("/agent.sock").call(method)
    assert isinstance(caught.value, AttestKitError)
