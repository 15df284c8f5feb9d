"""Parsing of a container engine's responses."""

import json
from typing import Any

import pytest

from attestkit.errors import FormatError
from attestkit.serve.docker import responses
from attestkit.serve.docker.responses import (
    MAX_ANSWER,
    MAX_LIST,
    Container,
    read_container,
    read_error_message,
    read_list,
    read_state,
    read_states,
    read_version,
)
from tests.raising import raises
from tests.serve.docker.engine import ID

# A shortened response of Docker 27.
LISTED: dict[str, Any] = {
    "Id": ID,
    "Names": ["/app-1"],
    "Image": "busybox:1",
    "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 80, "Type": "tcp"}],
    "State": "running",
    "Status": "Up 2 hours",
}
INSPECTED: dict[str, Any] = {
    "Id": ID,
    "Created": "2025-11-25T23:34:35.1Z",
    "State": {"Status": "running"},
    "Config": {"Hostname": "app", "Tty": True, "Env": ["A=b"]},
}
VERSION = {"Platform": {"Name": "Docker Engine"}, "Version": "27.5.1", "ApiVersion": "1.47"}


def encode_json(value: object) -> bytes:
    """Return a value as JSON."""
    return json.dumps(value).encode()


def test_read_list() -> None:
    """A list gives the used fields of each container; names and unused fields may be missing."""
    [found] = read_list(encode_json([LISTED]))
    assert found == Container(ID, "busybox:1", "running", "Up 2 hours", ("/app-1",))
    assert found.name == "app-1"
    unused = LISTED.keys() - {"Id", "Image", "State", "Status"}
    bare = {name: value for name, value in LISTED.items() if name not in unused}
    for nameless in (bare, {**bare, "Names": None}, {**bare, "Names": []}):
        assert read_list(encode_json([nameless]))[0].name == ""
    assert len(read_list(encode_json([{**bare, "Names": ["x" * 9999]}]))[0].name) == 1024
    with raises(FormatError, "wrong_value", part="State"):
        read_list(encode_json([LISTED, {**LISTED, "State": 5}]))
    for value in ("", "../version", "a?b", f"{ID}\n", "a" * 1025):
        with raises(FormatError, "wrong_value", part="Id"):
            read_list(encode_json([{**LISTED, "Id": value}]))


def test_read_container() -> None:
    """A container gives its id, which may be in a path, and its TTY flag."""
    found = read_container(encode_json(INSPECTED))
    assert (found.id, found.config.tty) == (ID, True)
    for value in (None, "", "../version", "a/b", "a?b", "é", f"{ID}\n", "-a", "a" * 1025):
        with raises(FormatError, "wrong_value"):
            read_container(encode_json({**INSPECTED, "Id": value}))
    for config in (None, {"Tty": None}, {"Tty": 1}, {"Tty": "true"}):
        with raises(FormatError, "wrong_value"):
            read_container(encode_json({**INSPECTED, "Config": config}))


def test_read_state() -> None:
    """A container gives its name, run state and health; each may be missing."""
    health = {"Status": "healthy", "FailingStreak": 0, "Log": []}
    state = {"Status": "running", "Running": True, "Health": health}
    whole = {**INSPECTED, "Name": "/app", "State": state}
    found = read_state(encode_json(whole))
    assert (found.id, found.name, found.run_state, found.health) == (
        *(ID, "/app", "running", "healthy"),
    )
    assert read_states(encode_json([whole, whole])) == [found, found]
    partial: list[dict[str, Any]] = [{}, {"State": None}, {"State": {}}]
    for unknown in (*partial, {"State": {"Health": None}}):
        found = read_state(encode_json({"Id": ID, **unknown}))
        assert (found.name, found.run_state, found.health) == ("", "", "")
    for wrong in ({"Name": 1}, {"State": 1}, {"State": {"Status": 1}}, {"State": {"Health": 1}}):
        with raises(FormatError, "wrong_value"):
            read_state(encode_json({"Id": ID, **wrong}))


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


def test_read_response_length_limit() -> None:
    """A response of maximum length is read; one byte more is refused."""
    for read, most, value in (
        (read_list, MAX_LIST, [LISTED]),
        (read_container, MAX_ANSWER, INSPECTED),
        (read_state, MAX_ANSWER, INSPECTED),
        (read_states, MAX_LIST, [INSPECTED]),
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
    """A list of 2000 containers with 44 labels each is within the limits."""
    labels = {f"com.example.label-{number}": "value" for number in range(44)}
    body = encode_json([{**LISTED, "Labels": labels}] * 2000)
    assert 3 << 20 < len(body) < MAX_LIST
    assert len(read_list(body)) == 2000
