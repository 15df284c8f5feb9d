"""Typed JSON files match their schema, or the error names the key and the reason."""

from typing import Annotated

import msgspec

from attestkit._formats.typed_json import decode_typed
from attestkit.errors import ConfigError
from tests.raising import raises
from tests.runner.cases import every_case


class NestedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A schema with a nested object."""

    one: int
    inner: dict[str, int] = {}
    small: Annotated[int, msgspec.Meta(le=8)] = 0
    data: bytes = b""


def test_decode_typed_of_text_and_bytes_returns_equal_values() -> None:
    """Text and bytes are read alike."""
    assert (
        decode_typed('{"one": 1}', NestedFile)
        == decode_typed(b'{"one": 1}', NestedFile)
        == NestedFile(1)
    )


@every_case(
    ("text", "reason", "key"),
    [
        ("{}", "missing", "one: "),
        ('{"one": "1"}', "wrong_type", "one: "),
        ('{"one": 1, "two": 2}', "unknown_key", "two: "),
        ('{"one": 1, "inner": {"a": null}}', "wrong_type", "inner[...]: "),
        ('{"one": 1, "small": 9}', "wrong_value", "small: "),
        ('{"one": 1, "data": "!"}', "encoding", "data: "),
        ('{"one": 1, "one": 2}', "duplicate", "one: "),
        ('{"one": 1, "inner": {"a": 1, "a": 1}}', "duplicate", "a: "),
        ("[]", "wrong_type", ""),
        ("", "syntax", ""),
        ("[" * 201, "too_deep", ""),
        (b'{"one": "\xff"}', "encoding", ""),
        ('{"one": "\ud800"}', "encoding", ""),
        ('{"one": 1} x', "syntax", ""),
        (" " * ((16 << 20) + 1), "too_large", ""),
    ],
)
def test_decode_typed_of_invalid_text_names_the_key(
    text: str | bytes, reason: str, key: str
) -> None:
    """The error names the key, behind the member of the file that contains the text."""
    with raises(ConfigError, reason, start=key):
        decode_typed(text, NestedFile)
    with raises(ConfigError, reason, start="outer"):
        decode_typed(text, NestedFile, "outer")
