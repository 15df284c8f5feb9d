"""The VM's configuration is found, wrapped or not."""

import json

import pytest

from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.errors import FormatError
from tests.untyped import untyped

INNER = '{"os_image_hash":"ab","cpu_count":2}'


def test_nothing_is_an_empty_object() -> None:
    """No text has no fields, and no image hash."""
    assert VmConfig.parse("") == VmConfig({}, {})
    assert VmConfig.parse('{"vm_config":""}').fields == {}
    assert VmConfig.parse("").os_image_hash == b""


def test_a_wrapped_configuration_is_unwrapped() -> None:
    """A string member `vm_config` is the configuration; an object of that name is not."""
    plain = VmConfig.parse(INNER)
    wrapped = VmConfig.parse(json.dumps({"os_image_hash": "cd", "vm_config": INNER}))
    assert plain.os_image_hash == wrapped.os_image_hash == b"\xab"
    assert wrapped.fields == plain.fields
    other = VmConfig.parse('{"os_image_hash":"cd","vm_config":{"os_image_hash":"ab"}}')
    assert other.os_image_hash == b"\xcd"


def test_the_outer_object_is_asked_first() -> None:
    """`find` looks outside before it looks inside, and null counts as missing."""
    config = VmConfig({"a": 1, "b": 2, "c": 3}, {"a": 9, "b": None})
    assert [config.find(name) for name in "abcd"] == [9, 2, 3, None]


@pytest.mark.parametrize("text", ["x", "[]", '{"vm_config":"x"}', '{"vm_config":"[]"}'])
def test_other_text_is_refused(text: str) -> None:
    """Both objects must be JSON objects."""
    with pytest.raises(FormatError, match="vm_config"):
        VmConfig.parse(text)


@pytest.mark.parametrize("value", ['"x"', "5", '"0"'])
def test_a_malformed_image_hash_is_refused(value: str) -> None:
    """The hash is hex text if it is there."""
    with pytest.raises(FormatError, match="os_image_hash"):
        _ = VmConfig.parse(f'{{"os_image_hash":{value}}}').os_image_hash


def test_what_is_shared_cannot_be_changed() -> None:
    """Whoever parses a text again may get the same object, so its fields are for reading only."""
    text = json.dumps({"vm_config": '{"memory_size": 1}', "os_image_hash": "aa"})
    found = VmConfig.parse(text)
    for fields in found:
        with pytest.raises(TypeError):
            untyped(fields)["memory_size"] = 2
    assert VmConfig.parse(text) == found
    assert VmConfig.parse(text + " ") == found


def test_long_configurations_are_not_kept() -> None:
    """What is longer than any real one is read anew each time, so nobody fills the memory."""
    text = json.dumps({"padding": " " * 20_000})
    assert VmConfig.parse(text).fields is not VmConfig.parse(text).fields
    assert VmConfig.parse("{}").fields is VmConfig.parse("{}").fields


def test_a_huge_configuration_is_refused() -> None:
    """What a stranger sends costs time: a real one has a kilobyte or two."""
    with pytest.raises(FormatError, match="over 1048576"):
        VmConfig.parse('{"x":"' + "y" * (1 << 20) + '"}')
