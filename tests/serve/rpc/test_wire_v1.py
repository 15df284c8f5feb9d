"""The messages of v1 in JSON and protobuf, byte for byte as the vectors have them."""

import json
from typing import Any, Final

from attestkit.serve.rpc import json_codec, messages_v1, protobuf_codec
from attestkit.serve.rpc.message_fields import fields_of, package_of
from attestkit.serve.rpc.messages_v1 import PACKAGE
from tests.runner.cases import every_case
from tests.serve.protobuf import MESSAGES
from tests.vectors import load, needs_shared

pytestmark = needs_shared
WIRE: Final = load("guest_v1.json").get("wire", [])


def from_json(message: type[Any], values: dict[str, Any]) -> Any:
    """Return the message of a parsed JSON object, as a client reads it."""
    found = {}
    for field in fields_of(message):
        value = values.get(field.name, field.default)
        if field.nested:
            value = tuple(from_json(field.kind, item) for item in value)
        elif field.kind is bytes:
            value = tuple(map(bytes.fromhex, value)) if field.repeated else bytes.fromhex(value)
        found[field.name] = tuple(value) if field.repeated else value
    return message(**found)


@every_case("case", WIRE, ids=lambda case: str(case["name"]))
def test_message_matches_vectors(case: dict[str, Any]) -> None:
    """Each message is encoded and decoded as in the vectors, in both encodings."""
    message = getattr(messages_v1, case["message"])
    body, binary = case["json"].encode(), bytes.fromhex(case["protobuf"])
    found = from_json(message, json.loads(body))
    assert b"".join(json_codec.encode(found)) == body
    assert b"".join(protobuf_codec.encode(found)) == binary
    assert protobuf_codec.decode(message, binary) == found
    if case["message"].endswith("Request"):
        assert json_codec.decode(message, body) == found


def test_every_message_is_in_vectors() -> None:
    """No message of v1 lacks an example, but those without fields."""
    shown = {case["message"] for case in WIRE} | {"GpuEvidenceBundle", "ContainerHealth"}
    assert {m.__name__ for m in MESSAGES if package_of(m) == PACKAGE and m._fields} <= shown
