"""Fuzz targets: answers of services as strict JSON, and Tinfoil's documents."""

from attestkit.client.services.strict_answer import read_answer_object
from attestkit.errors import FormatError
from fuzz.parser_contract import ParserTarget, check, obeys


def _read(raw: bytes) -> dict[str, object]:
    return read_answer_object(raw, "answer")


def _json_samples() -> list[bytes]:
    return [b"{}", b'{"a":[1,{"b":"c"}],"d":null}', b'{"a":' + b"[" * 63 + b"]" * 63 + b"}"]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        ParserTarget(
            "service_json",
            obeys(_read, FormatError, accepted=lambda raw, _: check("an object", b"{" in raw)),
            _json_samples,
            "json.dict",
        )
    ]
