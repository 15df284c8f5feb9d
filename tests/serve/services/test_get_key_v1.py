"""GetKey of v1: keys and chains of the vectors, any domain, malformed requests, key epochs."""

from typing import Any, Final

import pytest

from attestkit.serve.rpc import protobuf_codec
from attestkit.serve.rpc.messages_v1 import GetKeyRequest, GetKeyResponse
from tests.runner.cases import every_case
from tests.serve.asgi import BINARY_TYPE, Client
from tests.serve.guests import GuestClient, vector_keys
from tests.vectors import load, needs_shared

VECTORS: Final = load("guest_v1.json")
ROOTS: Final = VECTORS.get("roots", {})
FIXTURE: Final = VECTORS.get("fixture", {})
KEYS: Final = [
    *((case, "roots") for case in VECTORS.get("keys", [])),
    *((case, "fixture") for case in FIXTURE.get("keys", [])),
]


@needs_shared
@every_case(
    ("case", "root"),
    KEYS,
    ids=[f"{root} {case['algorithm']} {ascii(case['domain'])[:20]}" for case, root in KEYS],
)
def test_get_key_matches_vectors(
    guest_client: GuestClient, case: dict[str, Any], root: str
) -> None:
    """Key, public key and chain equal the vectors."""
    keys = vector_keys()
    if root == "roots":
        keys = vector_keys(k256_key=ROOTS["app_root_key"], k256_signature=ROOTS["link1"])
    client = guest_client("dstack", app_keys=keys)
    names = ("key", "public_key", "signature_chain")
    message = {name: case[name] for name in ("domain", "algorithm")}
    response = client.post("/v1/GetKey", message)
    assert response.json() == {name: case[name] for name in names}
    body = b"".join(protobuf_codec.encode(GetKeyRequest(**message)))
    binary = client.request("POST", "/v1/GetKey", body, {"content-type": BINARY_TYPE})
    assert protobuf_codec.decode(GetKeyResponse, binary.body) == GetKeyResponse(
        bytes.fromhex(case["key"]),
        bytes.fromhex(case["public_key"]),
        tuple(map(bytes.fromhex, case["signature_chain"])),
    )


@needs_shared
@pytest.mark.parametrize("has_kms", [True, False])
def test_get_key_matches_wire_vectors(guest_client: GuestClient, *, has_kms: bool) -> None:
    """Requests of the vectors get their responses byte for byte, in both encodings."""
    rows = {row["name"]: row for row in VECTORS["wire"]}
    keys = vector_keys(
        k256_key=ROOTS["app_root_key"], k256_signature=ROOTS["link1"] if has_kms else ""
    )
    client = guest_client("dstack", app_keys=keys)
    request = rows["GetKey request"]
    want = rows["GetKey response" if has_kms else "GetKey response, local provider"]
    headers = {"content-type": "application/json"}
    response = client.request("POST", "/v1/GetKey", request["json"].encode(), headers)
    assert response.body == want["json"].encode()
    body, binary = bytes.fromhex(request["protobuf"]), {"content-type": BINARY_TYPE}
    assert client.request("POST", "/v1/GetKey", body, binary).body.hex() == want["protobuf"]


def test_get_key_with_local_keys_has_two_links(dstack: Client) -> None:
    """Without a KMS the second link is empty, and still listed."""
    chain = dstack.post("/v1/GetKey", {"algorithm": "ed25519"}).json()["signature_chain"]
    assert [len(link) for link in chain] == [130, 0]


def test_get_key_with_any_domain(dstack: Client) -> None:
    """Every text is a domain, NUL and the empty text too, in JSON and in a query."""
    asked = [
        dstack.post("/v1/GetKey", {"domain": "k\0:ey", "algorithm": "ed25519"}),
        dstack.get("/v1/GetKey?domain=k%00%3Aey&algorithm=ed25519"),
        dstack.post("/v1/GetKey", {"domain": "", "algorithm": "ed25519"}),
        dstack.post("/v1/GetKey", {"domain": "\u2028" * 1000, "algorithm": "secp256k1"}),
    ]
    assert [response.status for response in asked] == [200] * 4
    assert asked[0].body == asked[1].body
    assert len({response.json()["key"] for response in asked}) == 3


@pytest.mark.parametrize(
    "body",
    [
        b'{"domain":"\\ud800","algorithm":"ed25519"}',
        b'{"domain":"\xff","algorithm":"ed25519"}',
        b'{"domain":null,"algorithm":"ed25519"}',
        b'{"domain":1,"algorithm":"ed25519"}',
        b'["a","ed25519"]',
    ],
)
def test_get_key_malformed_request_is_400(dstack: Client, body: bytes) -> None:
    """Malformed requests are neither completed nor converted."""
    headers = {"content-type": "application/json"}
    assert dstack.request("POST", "/v1/GetKey", body, headers).status == 400


def test_get_key_not_utf8_in_protobuf_is_400(dstack: Client) -> None:
    """A domain in protobuf must be UTF-8."""
    body = bytes.fromhex("0a01ff 1207") + b"ed25519"
    response = dstack.request("POST", "/v1/GetKey", body, {"content-type": BINARY_TYPE})
    assert response.status == 400


def test_get_key_long_algorithm_is_not_returned(dstack: Client) -> None:
    """The text of an error is bounded, whatever the request has."""
    response = dstack.post("/v1/GetKey", {"domain": "a", "algorithm": "x" * 100_000})
    assert response.status == 400
    assert len(response.body) < 400


@pytest.mark.parametrize("path", ["/GetKey", "/v0/GetKey", "/v1/GetKey", "/prpc/DeriveK256Key"])
@pytest.mark.parametrize("name", ["root_epoch", "app_epoch"])
def test_unknown_key_epoch_is_refused(dstack: Client, tappd: Client, path: str, name: str) -> None:
    """An epoch without keys here is refused in JSON and in a query; null and 0 are accepted."""
    client = tappd if "Derive" in path else dstack
    algorithm = "ed25519"
    plain = client.post(path, {"algorithm": algorithm}).json()
    for epoch in (1, 2**64 - 1):
        response = client.post(path, {"algorithm": algorithm, name: epoch})
        assert (response.status, response.error()) == (
            400,
            f"key epoch {epoch} is not available",
        )
        assert client.get(f"{path}?algorithm={algorithm}&{name}={epoch}").status == 400
    wrong: list[object] = ["0", -1, 2**64, 0.5, [], True]
    for value in wrong:
        assert client.post(path, {"algorithm": algorithm, name: value}).status == 400
    for none in (None, 0):
        found = client.post(path, {"algorithm": algorithm, name: none}).json()
        assert {field: found[field] for field in plain} == plain


def test_get_key_v0_returns_epochs_if_named(dstack: Client) -> None:
    """The response of v0 has both epochs if the request names one; null names none."""
    for message, named in (
        ({"root_epoch": 0}, True),
        ({"app_epoch": 0}, True),
        ({"root_epoch": 0, "app_epoch": None}, True),
        ({"root_epoch": None, "app_epoch": None}, False),
        ({}, False),
    ):
        response = dstack.post("/v0/GetKey", message)
        want = ["key", "signature_chain", *(["root_epoch", "app_epoch"] if named else [])]
        assert list(response.json()) == want
        assert response.body.endswith(b'"root_epoch":0,"app_epoch":0}') == named
    assert list(dstack.post("/v1/GetKey", {"algorithm": "ed25519", "root_epoch": 0}).json()) == [
        *("key", "public_key", "signature_chain"),
    ]
