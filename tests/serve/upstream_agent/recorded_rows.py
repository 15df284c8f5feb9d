"""Requests to upstream's agent with its answers, and how an answer of ours differs from one."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeAlias

from cryptography import x509

from tests.serve.client import Answer, Connection
from tests.serve.pages.page import Page
from tests.vectors import HAVE_SHARED, SHARED

FILE: Final = SHARED / "data/dstack/upstream-312dc605/guest_agent.json"
KEY_METHODS: Final = ("/GetKey", "/Sign", "/Verify", "/prpc/Tappd.DeriveK256Key")
"""Methods whose answers are the same for the same keys, byte for byte."""
_CONTENT_TYPES: Final = {
    "application/json": "JSON",
    "application/octet-stream": "protobuf",
    "text/html; charset=utf-8": "HTML",
    "text/plain; charset=utf-8": "text",
}
_CUT: Final = "\u2026"  # end of a value that is not complete

Row: TypeAlias = Mapping[str, Any]


def read_rows() -> list[Row]:
    """Return the rows; those that refer to another one are completed. Empty without the file."""
    if not HAVE_SHARED or not FILE.exists():
        return []
    rows = {row["id"]: row for row in json.loads(FILE.read_text())["rows"]}
    request = ("id", "server", "listener", "method", "path", "headers", "body", "body_hex")
    for name, row in rows.items():
        if same := row.get("same_as"):
            answer = {key: value for key, value in rows[same].items() if key not in request}
            rows[name] = {**answer, **row}
    return list(rows.values())


def read_headers(listener: str) -> dict[str, str]:
    """Return the headers of every response of a listener."""
    headers: dict[str, str] = json.loads(FILE.read_text())["headers"][listener]
    return headers


def _body(row: Row) -> bytes | None:
    if "body_hex" in row:
        return bytes.fromhex(row["body_hex"])
    if parts := row.get("body_repeat"):
        text: str = parts["before"] + parts["character"] * parts["times"] + parts["after"]
        return text.encode()
    return row["body"].encode() if "body" in row else None


def send_row(endpoint: str, row: Row) -> Answer:
    """Send the request of a row; the server may answer before it has read the body."""
    with closing(Connection(endpoint)) as connection:
        try:
            connection.request(row["method"], row["path"], _body(row), row.get("headers", {}))
            response = connection.getresponse()
        except (BrokenPipeError, ConnectionResetError):
            response = http.client.HTTPResponse(connection.sock, method=row["method"])
            response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())


def find_differences(row: Row, answer: Answer) -> Iterator[str]:
    """Yield how an answer differs from upstream's, in status, content type, texts and fields."""
    if answer.status != row["status"]:
        yield f"status {row['status']} -> {answer.status}"
        if 200 in (answer.status, row["status"]) or row["status"] is None:
            return
    theirs = _CONTENT_TYPES[row.get("content_type") or answer.headers["content-type"]]
    ours = _CONTENT_TYPES[answer.headers["content-type"]]
    if ours != theirs:
        yield f"{theirs} -> {ours}"
    if "error" in row and not row.get("foreign_text") and (text := _error(answer, ours)):
        if text != row["error"]:
            yield f"error {row['error']!r} -> {text!r}"
    elif ours == theirs and row["method"] != "HEAD":
        yield from _find_body_differences(row, answer)


def _error(answer: Answer, kind: str) -> str:
    if kind == "JSON":
        return str(answer.json()["error"])
    [(number, _, value)] = _fields(answer.body)
    assert number == 1
    return value.decode()


def _find_body_differences(row: Row, answer: Answer) -> Iterator[str]:
    if "json" in row:
        found = answer.json()
        exact = row["path"].partition("?")[0] in KEY_METHODS
        yield from _compare("", row["json"], found, exact=exact)
        if members := row.get("tcb_info_members"):
            ours = list(json.loads(found["tcb_info"]))
            if ours != members:
                yield f"tcb_info {members} -> {ours}"
        if leaf := row.get("leaf"):
            ours_leaf = _describe_leaf(found["certificate_chain"][0], leaf)
            yield from _compare("leaf", leaf, ours_leaf, exact=True)
    elif "hex" in row and "error" not in row:
        yield from _compare_protobuf(row, answer.body)
    elif "starts" in row and not answer.body.startswith(bytes.fromhex(row["starts"])[:1]):
        yield "first field"
    elif "title" in row:
        yield from _compare_page(row, answer.body.decode())
    elif "families" in row:
        yield from _compare_families(row["families"], answer.body.decode())


def _compare(path: str, theirs: object, ours: object, *, exact: bool = False) -> Iterator[str]:
    """Yield differences of members, their order and types; of values, too, if `exact`."""
    if type(theirs) is not type(ours):
        yield f"{path}: {type(theirs).__name__} -> {type(ours).__name__}"
    elif isinstance(theirs, dict) and isinstance(ours, dict):
        yield from _compare_members(path, theirs, ours, exact=exact)
    elif isinstance(theirs, list) and isinstance(ours, list):
        if exact and len(theirs) != len(ours):
            yield from (f"{path}: no {one}" for one in theirs if one not in ours)
            yield from (f"{path}: {one} added" for one in ours if one not in theirs)
            return
        for one, other in zip(theirs, ours, strict=False):
            yield from _compare(path, one, other, exact=exact)
    elif exact and theirs != ours and not str(theirs).endswith(_CUT):
        yield f"{path}: {theirs} -> {ours}"


def _compare_members(
    path: str, theirs: dict[str, object], ours: dict[str, object], *, exact: bool
) -> Iterator[str]:
    before = f"{path} " if path else ""
    for name in theirs.keys() - ours.keys():
        yield f"{before}{name}: missing"
    for name in ours.keys() - theirs.keys():
        yield f"{before}{name}: added"
    if theirs.keys() == ours.keys() and list(theirs) != list(ours):
        yield f"{path or 'body'}: order of members"
    for name in theirs.keys() & ours.keys():
        yield from _compare(f"{before}{name}", theirs[name], ours[name], exact=exact)


def _describe_leaf(pem: str, wanted: Row) -> dict[str, Any]:
    """Describe a certificate as the rows do; the members that a row has, if they apply."""
    leaf = x509.load_pem_x509_certificate(pem.encode())
    found: dict[str, Any] = {
        "subject": leaf.subject.rfc4514_string(),
        "issuer": leaf.issuer.rfc4514_string(),
        "not_before": _describe_time(leaf.not_valid_before_utc),
        "not_after": _describe_time(leaf.not_valid_after_utc),
        "extensions": [
            one.oid.dotted_string + (" critical" if one.critical else "") for one in leaf.extensions
        ],
    }
    for one in leaf.extensions:
        if isinstance(one.value, x509.SubjectAlternativeName):
            found["alt_names"] = [f"{type(name).__name__} {name.value}" for name in one.value]
        elif isinstance(one.value, x509.ExtendedKeyUsage):
            found["extended_key_usage"] = [use._name for use in one.value]
    return {name: found[name] for name in sorted(found, key=[*wanted, *found].index)}


def _describe_time(time: datetime) -> str:
    days = (time - datetime.now(timezone.utc)) / timedelta(days=1)
    if abs(days - 3650) < 1:
        return "now + 3650 days"
    return time.strftime("%Y-%m-%dT%H:%M:%SZ").zfill(20)


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, wire type and value of each field of a protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        size = varint()
        if tag & 7 == 0:
            yield tag >> 3, 0, str(size).encode()
            continue
        assert tag & 7 == 2
        yield tag >> 3, 2, data[at : at + size]
        at += size


def _compare_protobuf(row: Row, ours: bytes) -> Iterator[str]:
    theirs = bytes.fromhex(row["hex"])
    if row["path"] in KEY_METHODS:
        if ours != theirs:
            yield "protobuf: other bytes"
        return
    fields = [[(number, kind) for number, kind, _ in _fields(data)] for data in (theirs, ours)]
    if fields[0] != fields[1]:
        yield f"protobuf: {fields[0]} -> {fields[1]}"


def _compare_page(row: Row, text: str) -> Iterator[str]:
    """Yield what upstream's dashboard has and ours does not; the layout is free."""
    page = Page(text)
    shown = {*page.headings, *page.rows}
    for name in (row["title"], *row["headings"], *row["labels"]):
        if name not in shown:
            yield f"page: no {name}"
    for name in row["columns"]:
        if name not in page.text:
            yield f"page: no column {name}"
    if row["tcb_info"] == "textarea":
        if not page.textarea:
            yield "page: no TCB info"
    elif row["tcb_info"] not in page.text:
        yield f"page: no {row['tcb_info']}"


def _compare_families(families: list[Any], text: str) -> Iterator[str]:
    lines = text.splitlines()
    for name, description, kind, labels in families:
        [about] = [line for line in lines if line.startswith(f"# HELP {name} ")] or [""]
        if not about:
            yield f"metrics: no {name}"
            continue
        if f"# TYPE {name} {kind}" not in lines:
            yield f"metrics: type of {name}"
        if not about.startswith(f"# HELP {name} {description}"):
            yield f"metrics: help of {name}"
        if not about.endswith(description):
            yield "metrics: help has more"
        sample = next(line for line in lines if line.startswith((f"{name} ", f"{name}{{")))
        found = [one.partition("=")[0].strip(" ,") for one in sample.split('"')[:-1:2]]
        if [one.rpartition("{")[2] for one in found] != labels:
            yield f"metrics: labels of {name}"
