"""Requests to a gateway of ACI demand a verified machine, unless the caller decides otherwise."""

import json
from typing import Any

import pytest

from attestkit.client.sealing.aci_e2ee import AciConstraint, require_verified
from tests.runner.cases import every_case

DEMAND: Any = {"aci_verified": True}


def sealed(method: str, target: str, body: bytes) -> bytes:
    """Return the body that is sent."""
    found = AciConstraint().seal(method, target, [("A", "b")], body)
    assert (found.method, found.target, found.headers) == (method, target, [("A", "b")])
    assert not found.is_sealed
    assert found.opener.start(200, [("C", "d")]) == [("C", "d")]
    assert found.opener.feed(b"answer") + found.opener.finish() == b"answer"
    return found.body


@every_case("path", ["chat/completions", "completions", "embeddings", "messages", "responses?a=b"])
def test_prompts_demand_a_verified_machine(path: str) -> None:
    """Each kind of prompt has the demand; its other bytes stay as they are."""
    body = b'{ "model": "m", "temperature": 1e0 }\n'
    found = sealed("POST", f"/v1/{path}", body)
    assert json.loads(found) == {**json.loads(body), "provider": DEMAND}
    assert found.startswith(body[:-3])


@pytest.mark.parametrize(
    ("method", "target"), [("GET", "/v1/chat/completions"), ("POST", "/v1/files")]
)
def test_other_requests_stay_as_they_are(method: str, target: str) -> None:
    """The demand is defined for prompts only."""
    assert sealed(method, target, b'{"model":"m"}') == b'{"model":"m"}'


@every_case(
    ("body", "provider"),
    [
        ({}, DEMAND),
        ({"provider": {}}, DEMAND),
        ({"provider": {"order": ["é"]}}, {"order": ["é"], **DEMAND}),
        ({"provider": {"aci_verified": False}}, {"aci_verified": False}),
        ({"provider": "a"}, "a"),
    ],
)
def test_decision_of_the_caller_stays(body: dict[str, Any], provider: Any) -> None:
    """A member that the caller sets is kept."""
    found = json.loads(require_verified(json.dumps(body).encode()))
    assert found == {**body, "provider": provider}


@every_case("body", [b"", b"[]", b"not JSON", b'{"a":1,"a":2}', b"\xff"])
def test_body_that_is_no_object_stays(body: bytes) -> None:
    """The gateway refuses it; nothing is guessed here."""
    assert require_verified(body) == body


def test_answer_that_names_another_keyset() -> None:
    """The proven keyset has been replaced: the service is proven before the next request."""
    changes: list[int] = []
    constraint = AciConstraint("sha256:aa", lambda: changes.append(1))
    opener = constraint.seal("GET", "/v1/models", [], b"").opener
    opener.start(200, [("X-ACI-Keyset-Digest", "sha256:aa"), ("Other", "sha256:bb")])
    assert not changes
    opener.start(200, [("x-aci-keyset-digest", "sha256:bb")])
    assert changes == [1]
