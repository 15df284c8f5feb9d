"""What an engine answers is a value, or it is refused as what it is not."""

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
    Inspected,
    read_container,
    read_list,
    read_refusal,
    read_version,
)
from tests.serve.docker.engine import ID

# As Docker 27 answers, shortened.
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
    lambda data: read_refusal(data, "application/json"),
]
WRONG: tuple[object, ...] = (None, [], {}, 5, 1.5, True, [5], ["a", None])


def raw(value: object) -> bytes:
    """Return it in JSON."""
    return json.dumps(value).encode()


def test_a_list() -> None:
    """Its fields, and nothing else of it."""
    assert read_list(raw([LISTED])) == [
        Container(ID, ("app-1",), "busybox:1", "running", "Up 2 hours", 1_764_113_675)
    ]
    assert read_list(raw([])) == []
    bare = {**LISTED, "Names": None, "Created": -62_135_596_800}  # Go's year 1
    assert read_list(raw([bare]))[0][1::4] == ((), -62_135_596_800)


def test_a_container() -> None:
    """What its log needs."""
    assert read_container(raw(INSPECTED)) == Inspected(ID, terminal=True)


def test_a_version() -> None:
    """That of the API, which gets into paths, and not that of the engine."""
    assert read_version(raw(VERSION)) == "1.47"
    for wrong in ("", "1", "v1.47", "1.47/../..", "1.47\n", "\u0661.\u0661", "1.99999"):
        with pytest.raises(FormatError, match="ApiVersion: it is none"):
            read_version(raw({"ApiVersion": wrong}))


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "text/css", ""])
def test_a_refusal(kind: str) -> None:
    """Its message, on one line."""
    assert read_refusal(raw({"message": "no\nsuch"}), kind) == "no such"
    assert len(read_refusal(raw({"message": "x" * 9999}), kind)) == 200
    with pytest.raises(FormatError):
        read_refusal(b"<html>", kind)


@pytest.mark.parametrize("kind", ["text/html", "TEXT/HTML; charset=utf-8"])
def test_a_page_of_a_proxy(kind: str) -> None:
    """It says nothing; its status does."""
    assert read_refusal(b"<html><body><h1>403 Forbidden</h1></html>", kind) == ""


@pytest.mark.parametrize("kind", ["text/plain", "Text/Plain ; charset=utf-8"])
def test_a_refusal_in_text(kind: str) -> None:
    """The beginning of what it says."""
    assert read_refusal(b"no\xff\nsuch", kind) == "no\ufffd such"
    assert read_refusal(b"", kind) == ""
    assert len(read_refusal(b"x" * 9999, kind)) == 200


@pytest.mark.parametrize("field", ["Id", "Names", "Image", "State", "Status", "Created"])
@pytest.mark.parametrize("value", WRONG)
def test_wrong_types_in_a_list(field: str, value: object) -> None:
    """One container that is none, and the list is none."""
    if (field == "Names" and value in (None, [])) or (field == "Created" and value == 5):
        return
    with pytest.raises(FormatError, match=f"^{field}: want "):
        read_list(raw([LISTED, {**LISTED, field: value}]))


@pytest.mark.parametrize("field", LISTED)
def test_missing_fields_of_a_list(field: str) -> None:
    """Names are not always there, and what nobody asks for need not be."""
    less = {name: value for name, value in LISTED.items() if name != field}
    if field in {"Id", "Image", "State", "Status", "Created"}:
        with pytest.raises(FormatError, match=f"^{field}: want "):
            read_list(raw([less]))
    else:
        assert read_list(raw([less]))[0].id == ID


def test_wrong_types_of_one_container() -> None:
    """Its id gets into a path, and its terminal decides how its log is read."""
    for value in (*WRONG, "", "../version", "a/b", "a?b", "é", f"{ID}\n", "-a"):
        with pytest.raises(FormatError, match=r"^Id: "):
            read_container(raw({**INSPECTED, "Id": value}))
    for value in (None, 5, "x", [], {}, {"Tty": None}, {"Tty": 1}, {"Tty": "true"}):
        with pytest.raises(FormatError, match=r"^(Config|Tty): want "):
            read_container(raw({**INSPECTED, "Config": value}))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("value", [*WRONG[:6], "text", [[]]])
def test_what_is_no_answer(read: Callable[[bytes], object], value: object) -> None:
    """Any other JSON is refused."""
    if read is read_list and value == []:
        return
    with pytest.raises(FormatError):
        read(raw(value))


@pytest.mark.parametrize(
    ("read", "sample"),
    [(read_list, [LISTED]), (read_container, INSPECTED), (read_version, VERSION)],
)
def test_cut_answers(read: Callable[[bytes], object], sample: object) -> None:
    """At every length."""
    data = raw(sample)
    for size in range(len(data)):
        with pytest.raises(FormatError):
            read(data[:size])


@given(st.binary() | st.recursive(st.none() | st.text() | st.floats(), st.lists).map(raw))
def test_any_bytes(data: bytes) -> None:
    """Only our own error, from each reader."""
    for read in READERS:
        with suppress(FormatError):
            read(data)


def test_what_is_kept_is_short() -> None:
    """Texts are cut, and so are names and their number."""
    long = "x" * 2000
    many = dict.fromkeys(("Id", "Image", "State", "Status"), long) | {"Names": [f"/{long}"] * 1000}
    (found,) = read_list(raw([{**LISTED, **many}]))
    assert {len(text) for text in (found.id, found.image, found.state, found.status)} == {1024}
    assert [len(name) for name in found.names] == [1024] * 16


@pytest.mark.parametrize("created", [1 << 63, -(1 << 63) - 1, 10**400])
def test_times_have_64_bits(created: int) -> None:
    """Whatever is longer is no time."""
    with pytest.raises(FormatError, match="Created: want a number of 64 bits"):
        read_list(raw([{**LISTED, "Created": created}]))
    assert read_list(raw([{**LISTED, "Created": created // 10**400}]))


def test_lengths() -> None:
    """As long as it may be an answer is read; with a byte more it is not."""
    for read, most, value in (
        (read_list, MAX_LIST, [LISTED]),
        (read_container, MAX_ANSWER, INSPECTED),
        (read_version, MAX_ANSWER, VERSION),
    ):
        whole = raw(value).ljust(most)
        assert read(whole)
        with pytest.raises(FormatError, match=f"^longer than {most} bytes$"):
            read(whole + b" ")


def test_values_are_counted_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them takes more memory than it has bytes."""
    within = b"[" + b"," * ((1 << 18) - 1)
    with pytest.raises(FormatError, match=r"^not JSON"):
        read_list(within)
    monkeypatch.setattr(responses, "decode_strictly", pytest.fail)
    for byte in (b",", b"[", b"{"):
        with pytest.raises(FormatError, match=r"^more than 262144 values$"):
            read_list(within + byte)


def test_two_thousand_containers_are_read() -> None:
    """A list that is as dense as that of an engine whose containers have many labels."""
    labels = {f"com.example.label-{number}": "value" for number in range(40)}
    body = raw([{**LISTED, "Labels": labels}] * 2000)
    assert 3 << 20 < len(body) < MAX_LIST
    assert len(read_list(body)) == 2000
