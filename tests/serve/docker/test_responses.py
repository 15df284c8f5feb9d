"""Parsing of a container engine's responses."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.serve.docker import responses
from attestkit.serve.docker.responses import (
    MAX_ANSWER,
    MAX_LIST,
    Container,
    ContainerDetails,
    read_container,
    read_error_message,
    read_list,
    read_version,
)
from tests.raising import raises
from tests.serve.docker.engine import ID

# A shortened response of Docker 27.
LISTED: dict[str, Any] = {
    "Id": ID,
    "Names": ["/app-1"],
    "Image": "busybox:1",
    "ImageID": f"sha256:{ID}",
    "Command": "sh -c 'sleep 1'",
    "Created": 1_764_113_675,
    "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 80, "Type": "tcp"}],
    "Labels": {"com.docker.compose.project": "app"},
    "State": "running",
    "Status": "Up 2 hours",
    "HostConfig": {"NetworkMode": "bridge"},
    "Mounts": [],
}
INSPECTED: dict[str, Any] = {
    "Id": ID,
    "Created": "2025-11-25T23:34:35.1Z",
    "State": {"Status": "running"},
    "Config": {"Hostname": "app", "Tty": True, "Env": ["A=b"]},
}
VERSION = {"Platform": {"Name": "Docker Engine"}, "Version": "27.5.1", "ApiVersion": "1.47"}
READERS: list[Callable[[bytes], object]] = [
    *(read_list, read_container, read_version),
    lambda data: read_error_message(data, "application/json"),
]
WRONG: tuple[object, ...] = (None, [], {}, 5, 1.5, True, [5], ["a", None])


def encode_json(value: object) -> bytes:
    """Return a value as JSON."""
    return json.dumps(value).encode()


def test_read_list() -> None:
    """A list gives the used fields of each container."""
    assert read_list(encode_json([LISTED])) == [
        Container(ID, ("app-1",), "busybox:1", "running", "Up 2 hours", 1_764_113_675)
    ]
    assert read_list(encode_json([])) == []
    bare = {**LISTED, "Names": None, "Created": -62_135_596_800}  # year 1, Go's zero time
    assert read_list(encode_json([bare]))[0][1::4] == ((), -62_135_596_800)


def test_read_container() -> None:
    """A container gives its id and TTY flag."""
    assert read_container(encode_json(INSPECTED)) == ContainerDetails(ID, terminal=True)


def test_read_version() -> None:
    """The API version is read, which becomes part of paths."""
    assert read_version(encode_json(VERSION)) == "1.47"
    for wrong in ("", "1", "v1.47", "1.47/../..", "1.47\n", "\u0661.\u0661", "1.99999"):
        with raises(FormatError, "wrong_value"):
            read_version(encode_json({"ApiVersion": wrong}))


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "text/css", ""])
def test_read_error_message(kind: str) -> None:
    """The message is one bounded line."""
    assert read_error_message(encode_json({"message": "no\nsuch"}), kind) == "no such"
    assert len(read_error_message(encode_json({"message": "x" * 9999}), kind)) == 200
    with pytest.raises(FormatError):
        read_error_message(b"<html>", kind)


@pytest.mark.parametrize("kind", ["text/html", "TEXT/HTML; charset=utf-8"])
def test_read_error_message_of_proxy_page(kind: str) -> None:
    """An HTML page of a proxy gives an empty message."""
    assert read_error_message(b"<html><body><h1>403 Forbidden</h1></html>", kind) == ""


@pytest.mark.parametrize("kind", ["text/plain", "Text/Plain ; charset=utf-8"])
def test_read_error_message_of_text(kind: str) -> None:
    """Plain text gives its first 200 characters."""
    assert read_error_message(b"no\xff\nsuch", kind) == "no\ufffd such"
    assert read_error_message(b"", kind) == ""
    assert len(read_error_message(b"x" * 9999, kind)) == 200


@pytest.mark.parametrize("field", ["Id", "Names", "Image", "State", "Status", "Created"])
@pytest.mark.parametrize("value", WRONG)
def test_read_list_wrong_type_is_refused(field: str, value: object) -> None:
    """One malformed container makes the list malformed."""
    if (field == "Names" and value in (None, [])) or (field == "Created" and value == 5):
        return
    with raises(FormatError, "wrong_type") as caught:
        read_list(encode_json([LISTED, {**LISTED, field: value}]))
    assert caught.value.message.startswith(f"{field}: ")


@pytest.mark.parametrize("field", LISTED)
def test_read_list_missing_field(field: str) -> None:
    """A missing required field is refused; names and unused fields may be missing."""
    less = {name: value for name, value in LISTED.items() if name != field}
    if field in {"Id", "Image", "State", "Status", "Created"}:
        with raises(FormatError, "wrong_type") as caught:
            read_list(encode_json([less]))
        assert caught.value.message.startswith(f"{field}: ")
    else:
        assert read_list(encode_json([less]))[0].id == ID


def test_read_container_wrong_type_is_refused() -> None:
    """An invalid id or TTY flag is refused."""
    for value in (*WRONG, "", "../version", "a/b", "a?b", "é", f"{ID}\n", "-a"):
        with raises(FormatError, "wrong_type", "wrong_value") as caught:
            read_container(encode_json({**INSPECTED, "Id": value}))
        assert caught.value.message.startswith("Id: ")
    for value in (None, 5, "x", [], {}, {"Tty": None}, {"Tty": 1}, {"Tty": "true"}):
        with raises(FormatError, "wrong_type") as caught:
            read_container(encode_json({**INSPECTED, "Config": value}))
        assert caught.value.message.partition(":")[0] in {"Config", "Tty"}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("value", [*WRONG[:6], "text", [[]]])
def test_read_other_json_is_refused(read: Callable[[bytes], object], value: object) -> None:
    """Other JSON values are refused by every reader."""
    if read is read_list and value == []:
        return
    with pytest.raises(FormatError):
        read(encode_json(value))


@pytest.mark.parametrize(
    ("read", "sample"),
    [(read_list, [LISTED]), (read_container, INSPECTED), (read_version, VERSION)],
)
def test_read_truncated_response_is_refused(
    read: Callable[[bytes], object], sample: object
) -> None:
    """A response truncated at any length is refused."""
    data = encode_json(sample)
    for size in range(len(data)):
        with pytest.raises(FormatError):
            read(data[:size])


@given(st.binary() | st.recursive(st.none() | st.text() | st.floats(), st.lists).map(encode_json))
def test_read_any_bytes_raise_only_format_error(data: bytes) -> None:
    """Arbitrary bytes raise no error but FormatError."""
    for read in READERS:
        with suppress(FormatError):
            read(data)


def test_read_list_bounds_texts() -> None:
    """Texts, names and the number of names are truncated."""
    long = "x" * 2000
    many = dict.fromkeys(("Id", "Image", "State", "Status"), long) | {"Names": [f"/{long}"] * 1000}
    (found,) = read_list(encode_json([{**LISTED, **many}]))
    assert {len(text) for text in (found.id, found.image, found.state, found.status)} == {1024}
    assert [len(name) for name in found.names] == [1024] * 16


@pytest.mark.parametrize("created", [1 << 63, -(1 << 63) - 1, 10**400])
def test_read_list_timestamp_over_64_bits_is_refused(created: int) -> None:
    """A timestamp over 64 bits is refused."""
    with raises(FormatError, "wrong_type") as caught:
        read_list(encode_json([{**LISTED, "Created": created}]))
    assert caught.value.message.startswith("Created: ")
    assert read_list(encode_json([{**LISTED, "Created": created // 10**400}]))


def test_read_response_length_limit() -> None:
    """A response of maximum length is read; one byte more is refused."""
    for read, most, value in (
        (read_list, MAX_LIST, [LISTED]),
        (read_container, MAX_ANSWER, INSPECTED),
        (read_version, MAX_ANSWER, VERSION),
    ):
        whole = encode_json(value).ljust(most)
        assert read(whole)
        with raises(FormatError, "too_large"):
            read(whole + b" ")


def test_read_list_counts_values_before_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many values are refused before parsing, because each needs more memory than bytes."""
    within = b"[" + b"," * ((1 << 18) - 1)
    with raises(FormatError, "syntax"):
        read_list(within)
    monkeypatch.setattr(responses, "decode_strictly", pytest.fail)
    for byte in (b",", b"[", b"{"):
        with raises(FormatError, "too_many"):
            read_list(within + byte)


def test_read_list_of_2000_containers() -> None:
    """A list of 2000 containers with 40 labels each is within the limits."""
    labels = {f"com.example.label-{number}": "value" for number in range(40)}
    body = encode_json([{**LISTED, "Labels": labels}] * 2000)
    assert 3 << 20 < len(body) < MAX_LIST
    assert len(read_list(body)) == 2000
