"""The VM configuration is found, with or without its wrapper."""

import json

import pytest

from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.errors import FormatError
from tests.raising import raises
from tests.untyped import untyped

INNER = '{"os_image_hash":"ab","cpu_count":2}'


def test_parse_of_empty_text_is_empty_config() -> None:
    """Empty text has no fields and no image hash."""
    assert VmConfig.parse("") == VmConfig({}, {})
    assert VmConfig.parse('{"vm_config":""}').fields == {}
    assert VmConfig.parse("").os_image_hash == b""


def test_parse_of_wrapped_config_unwraps_it() -> None:
    """A string member `vm_config` is the configuration; an object of that name is not."""
    plain = VmConfig.parse(INNER)
    wrapped = VmConfig.parse(json.dumps({"os_image_hash": "cd", "vm_config": INNER}))
    assert plain.os_image_hash == wrapped.os_image_hash == b"\xab"
    assert wrapped.fields == plain.fields
    other = VmConfig.parse('{"os_image_hash":"cd","vm_config":{"os_image_hash":"ab"}}')
    assert other.os_image_hash == b"\xcd"


def test_find_prefers_the_outer_object() -> None:
    """`find` searches the outer object first, and null counts as missing."""
    config = VmConfig({"a": 1, "b": 2, "c": 3}, {"a": 9, "b": None})
    assert [config.find(name) for name in "abcd"] == [9, 2, 3, None]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", "syntax"),
        ("[]", "wrong_type"),
        ('{"vm_config":"x"}', "syntax"),
        ('{"vm_config":"[]"}', "wrong_type"),
    ],
)
def test_parse_of_other_text_fails(text: str, reason: str) -> None:
    """Both objects must be JSON objects."""
    with raises(FormatError, reason, start="vm_config: "):
        VmConfig.parse(text)


@pytest.mark.parametrize(
    ("value", "reason"), [('"x"', "encoding"), ("5", "wrong_type"), ('"0"', "encoding")]
)
def test_image_hash_if_malformed_fails(value: str, reason: str) -> None:
    """A present image hash is hex text."""
    with raises(FormatError, reason, start="os_image_hash: "):
        _ = VmConfig.parse(f'{{"os_image_hash":{value}}}').os_image_hash


def test_parse_result_is_read_only() -> None:
    """Parsed objects may be shared between callers, so their fields are read-only."""
    text = json.dumps({"vm_config": '{"memory_size": 1}', "os_image_hash": "aa"})
    found = VmConfig.parse(text)
    for fields in found:
        with pytest.raises(TypeError):
            untyped(fields)["memory_size"] = 2
    assert VmConfig.parse(text) == found
    assert VmConfig.parse(text + " ") == found


def test_parse_of_long_config_is_not_cached() -> None:
    """Configurations over the usual length are not cached, which bounds memory."""
    text = json.dumps({"padding": " " * 20_000})
    assert VmConfig.parse(text).fields is not VmConfig.parse(text).fields
    assert VmConfig.parse("{}").fields is VmConfig.parse("{}").fields


def test_parse_of_oversized_config_fails() -> None:
    """An untrusted configuration is limited in size; real ones have about 2 KiB."""
    with raises(FormatError, "too_large"):
        VmConfig.parse('{"x":"' + "y" * (1 << 20) + '"}')
