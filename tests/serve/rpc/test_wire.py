"""The RPC examples of the vectors: requests and responses in each encoding."""

import json
from typing import Any

import pytest

from attestkit.backends.simulator import Simulator
from tests.runner.cases import every_case
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client, Response
from tests.serve.guests import Broken, GuestClient
from tests.vectors import load, needs_shared

pytestmark = needs_shared

WIRE = load("prpc_wire.json")


def _check(case: dict[str, Any], response: Response) -> None:
    if case["json_response"] is not None and case["method"] != "Version":
        assert response.body == case["json_response"].encode()
    assert (response.status, response.headers["content-type"]) == (200, JSON_TYPE)
    if "report_data" in case:
        assert response.json()["report_data"] == case["report_data"]
    if "derived_scalar" in case:
        assert response.json()["key"].startswith("-----BEGIN PRIVATE KEY-----\n")


@pytest.mark.parametrize("case", WIRE.get("cases", []), ids=lambda case: str(case["method"]))
def test_json_request(vector_dstack: Client, vector_tappd: Client, case: dict[str, Any]) -> None:
    """Each example as a JSON POST."""
    client = vector_tappd if case["service"] == "Tappd" else vector_dstack
    _check(case, client.post(case["path"], case["json_request"]))


@pytest.mark.parametrize(
    "case",
    [case for case in WIRE.get("cases", []) if "query" in case],
    ids=lambda case: str(case["method"]),
)
def test_query_request(vector_dstack: Client, case: dict[str, Any]) -> None:
    """Each example as a GET."""
    _check(case, vector_dstack.get(f"{case['path']}?{case['query']}"))


@every_case("content_type", [BINARY_TYPE, "application/protobuf", None])
@every_case("case", WIRE.get("cases", []), ids=lambda case: str(case["method"]))
def test_protobuf_request(
    vector_dstack: Client, vector_tappd: Client, case: dict[str, Any], content_type: str | None
) -> None:
    """Each example as a binary POST, with any content type other than JSON."""
    client = vector_tappd if case["service"] == "Tappd" else vector_dstack
    headers = {} if content_type is None else {"content-type": content_type}
    body = bytes.fromhex(case.get("protobuf_request", ""))
    response = client.request("POST", case["path"], body, headers)
    assert (response.status, response.headers["content-type"]) == (200, BINARY_TYPE)
    if case["method"] == "Version":
        assert response.body.startswith(b"\x0a\x060.5.11\x12")
    elif "protobuf_response" in case:
        assert response.body.hex() == case["protobuf_response"]
    else:
        assert case["json_response"] is None
    if "report_data" in case:
        assert b"\x1a\x40" + bytes.fromhex(case["report_data"]) in response.body
    if "derived_scalar" in case:
        assert response.body[3:].startswith(b"-----BEGIN PRIVATE KEY-----\n")


_BODIES = {"report_data of 65 bytes": json.dumps({"report_data": "00" * 65})}


@pytest.mark.parametrize("row", WIRE.get("errors", []), ids=lambda row: str(row["request"]))
def test_error_response(guest_client: GuestClient, row: dict[str, Any]) -> None:
    """Status, content type, and the body where the vectors have one."""
    broken = "cannot produce a quote" in row["request"]
    client = guest_client("dstack", backend=Broken if broken else Simulator)
    verb, path = row["request"].replace(",", "").split()[:2]
    _, json_mode, rest = row["request"].partition(f"{JSON_TYPE}, ")
    body = _BODIES.get(rest, rest.removesuffix(", when the platform cannot produce a quote"))
    headers = {"content-type": JSON_TYPE} if json_mode else {}
    response = client.request(verb, path, body.encode(), headers)
    assert response.status == row["status"]
    assert response.headers["content-type"] == row["content_type"]
    if "body_hex" in row:
        assert response.body.hex() == row["body_hex"]
        return
    assert response.error()
    if "body" in row:
        assert response.body == row["body"].encode()
    if "body_prefix" in row:
        assert response.body.startswith(row["body_prefix"].encode())


@pytest.mark.parametrize(
    "row", WIRE.get("attestkit_requests", []), ids=lambda row: f"{row['request']} {row['body']}"
)
def test_request_that_upstream_refuses(vector_dstack: Client, row: dict[str, Any]) -> None:
    """Deviations from upstream: zero is unset, and a brace selects JSON."""
    path, _, kind = row["request"].removeprefix("POST ").partition(", ")
    types: dict[str, list[str | None]] = {
        "application/json": [JSON_TYPE],
        "no content type": [None],
        "content type application/x-www-form-urlencoded (or none)": [
            "application/x-www-form-urlencoded",
            None,
        ],
    }
    for content_type in types[kind]:
        headers = {} if content_type is None else {"content-type": content_type}
        response = vector_dstack.request("POST", path, row["body"].encode(), headers)
        assert response.status == row["status"]
        assert response.headers["content-type"] == row.get("content_type", JSON_TYPE)
        if "response" in row:
            assert response.body == row["response"].encode()
