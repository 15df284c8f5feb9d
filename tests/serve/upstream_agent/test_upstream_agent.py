"""Responses equal those of upstream's agent and simulator, except for the listed differences.

The recorded build (August 2026) is between dstack 0.5 and 0.6; releases differ from it in some of
the listed rows. Its simulator, the same without public flags, and its agent with other keys were
recorded; each has a counterpart here.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import pytest

from tests.runner.cases import every_case
from tests.serve.client import Answer
from tests.serve.server import Server, environment, running_server
from tests.serve.upstream_agent.recorded_rows import (
    Row,
    find_differences,
    read_headers,
    read_rows,
    send_row,
)
from tests.vectors import SHARED, load, needs_shared

ROWS: Final = {row["id"]: row for row in read_rows()}
SIMULATOR: Final = SHARED / "data/dstack/simulator"
APP_ID: Final = "5bb4ff9a3837357f19dc176407a5709c62eb6c56"


class Wanted(NamedTuple):
    """Rows in which our server differs on purpose, and the reason."""

    reason: str
    difference: str
    rows: str


WANTED: Final = (
    Wanted(
        "a method that does not exist is 404, as in releases since 0.6.0",
        "status 400 -> 404",
        "version-lower unknown-method unknown-method-get unknown-method-protobuf service-prefix "
        "unknown-method-non-ascii v1-alone tappd-other-prefix worker-health worker-attestappkey "
        "worker-getkey worker-getquote guestapi-prefix guestapi-unknown",
    ),
    Wanted(
        "error bodies are JSON, also where nothing is mounted",
        "HTML -> JSON",
        "guestapi-no-api version-trailing-slash root root-post "
        "two-segments prpc-on-dstack put delete options "
        "patch v1-getkey v1-attestgpu v2-version tappd-v1 external-version-without-prpc "
        "external-root-post external-404 logs-bad-flag logs-no-name logs-two-segments "
        "closed-external-metrics closed-logs-no-engine closed-logs-bad-since",
    ),
    Wanted(
        "the member `error` is always text",
        "error: dict -> str",
        "page-404-json",
    ),
    Wanted(
        "what the machine got wrong is 500",
        "status 200 -> 500",
        "logs-no-engine logs-flag-empty",
    ),
    Wanted(
        "what the machine got wrong is 500",
        "status 400 -> 500",
        "guestapi-listcontainers",
    ),
    Wanted("GpuInfo of dstack 0.6", "status 400 -> 200", "guestapi-gpuinfo"),
    Wanted(
        "a path without a method is 404",
        "status 422 -> 404",
        "root root-post logs-no-name",
    ),
    Wanted(
        "a wrong parameter is 400",
        "status 200 -> 400",
        "logs-bad-since logs-bad-until",
    ),
    Wanted(
        "a wrong parameter is 400",
        "status 422 -> 400",
        "logs-bad-flag",
    ),
    Wanted(
        "the name reaches no other path of the engine, as since 0.6.1",
        "status 200 -> 400",
        "logs-odd-name",
    ),
    Wanted(
        "a message is an object",
        "status 200 -> 400",
        "getkey-list",
    ),
    Wanted(
        "a body that starts with { is JSON",
        "status 400 -> 200",
        "getkey-json-0-query getkey-no-content-type getkey-form-content-type getkey-text-plain",
    ),
    Wanted(
        "a body over the limit is 413, as in releases since 0.6.0",
        "status 400 -> 413",
        "getkey-10-mib-and-1 getkey-11-mib getkey-11-mib-json-query",
    ),
    Wanted(
        "errors before dispatch honour a JSON content type",
        "protobuf -> JSON",
        "getkey-10-mib-and-1 getkey-11-mib",
    ),
    Wanted(
        "no release has `attestation` in these responses",
        "attestation: missing",
        "getquote getquote-short getquote-empty getquote-get getquote-0x getquote-upper "
        "getquote-only-0x worker-appkey-ed25519 worker-appkey-secp256k1 worker-appkey-k256",
    ),
    Wanted("no release has GpuInfo", "status 200 -> 404", "gpuinfo"),
    Wanted(
        "secp256k1_prehashed gives the key of secp256k1",
        "status 400 -> 200",
        "worker-appkey-secp256k1_prehashed",
    ),
    Wanted("zero is unset", "status 400 -> 200", "gettlskey-0-0"),
    Wanted(
        "zero is unset",
        "leaf not_before: 1970-01-01T00:00:00Z -> 1975-01-01T00:00:00Z",
        "gettlskey-not-before-0",
    ),
    Wanted(
        "zero is unset",
        "leaf not_after: 1970-01-01T00:00:00Z -> now + 3650 days",
        "gettlskey-not-after-0",
    ),
    Wanted(
        "later than the year 9999 is an error, where upstream ends",
        "status None -> 400",
        "gettlskey-after-year-9999",
    ),
    Wanted(
        "an escaped name in a query is the name",
        "leaf extensions: 2.5.29.17 added",
        "gettlskey-get-escaped-brackets",
    ),
    Wanted(
        "an escaped name in a query is the name",
        "leaf alt_names: added",
        "gettlskey-get-escaped-brackets",
    ),
    Wanted(
        "the subject may be empty; X.509 has no empty common name",
        "leaf subject: CN= -> ",
        "gettlskey-no-fields tappd-derivekey-no-fields",
    ),
    Wanted(
        "the app's certificates of a KMS, which has no counterpart here",
        "leaf issuer: CN=Dstack App CA,O=Dstack -> CN=Dstack KMS CA,O=Dstack",
        "agent-gettlskey",
    ),
    Wanted(
        "a KMS adds the app id to certificates, which has no counterpart here",
        "leaf extensions: no 1.3.6.1.4.1.62397.1.3",
        "agent-gettlskey",
    ),
    Wanted(
        "EmitEvent works",
        "status 400 -> 200",
        "emitevent",
    ),
    Wanted(
        "the API of dstack 0.6 is served",
        "status 404 -> 200",
        "v1-version v1-info v1-attest v1-issuecert v0-version external-v1-version "
        "external-v1-health external-v0-version",
    ),
    Wanted(
        "the API of dstack 0.6 is served",
        "status 404 -> 400",
        "v1-getkey v1-attestgpu",
    ),
    Wanted(
        "older clients find the newer methods on tappd.sock",
        "status 400 -> 200",
        "tappd-getkey",
    ),
    Wanted(
        "older clients find the newer methods on tappd.sock",
        "status 404 -> 200",
        "tappd-no-prpc",
    ),
    Wanted(
        "the help of a deprecated family names its successor",
        "metrics: help has more",
        "external-metrics",
    ),
)
"""All differences from upstream's responses; the test fails for another or a missing one."""


@pytest.fixture(scope="module")
def find_server() -> Iterator[Callable[[str], Server]]:
    """Return a function that starts the counterpart of an upstream server once."""
    with ExitStack() as stack:
        running: dict[str, Server] = {}

        def find(name: str) -> Server:
            if name not in running:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="ak")))
                running[name] = stack.enter_context(
                    running_server(
                        *_options(name, folder),
                        folder=folder,
                        environ=environment(DOCKER_HOST=f"unix://{folder}/docker.sock"),
                    )
                )
            return running[name]

        yield find


def _options(name: str, folder: Path) -> list[str]:
    """Return options with upstream's sample files, with the changes of the recorded servers."""
    compose: dict[str, Any] = json.loads((SIMULATOR / "app-compose.json").read_text())
    keys: dict[str, Any] = json.loads((SIMULATOR / "appkeys.json").read_text())
    if name == "simulator-closed":
        compose |= dict.fromkeys(("public_logs", "public_sysinfo", "public_tcbinfo"), False)
    if name == "agent":
        row = load("kms.json")["groups"]["app_keys"]["rows"][0]
        assert row["id"] == "app_keys-00"
        keys |= {member: row[member] for member in ("k256_key", "k256_signature")}
    options = [
        f"--sys-config={SIMULATOR / 'sys-config.json'}",
        f"--app-id={APP_ID}",
        f"--guest-api=unix:{folder / 'guest.sock'}",
    ]
    for option, content in (("app-compose", compose), ("app-keys", keys)):
        path = folder / f"{option}.json"
        path.write_text(json.dumps(content))
        path.chmod(0o600)
        options.append(f"--{option}={path}")
    return options


@needs_shared
@every_case("name", ROWS)
def test_answer_equals_upstream(find_server: Callable[[str], Server], name: str) -> None:
    """Status, content type, error text, field names and types are upstream's or listed."""
    row: Row = ROWS[name]
    server = find_server(row["server"])
    listeners = {
        "dstack.sock": server.dstack,
        "tappd.sock": server.tappd,
        "external.sock": server.url,
        "guest.sock": str(server.folder / "guest.sock"),
    }
    answer = send_row(listeners[row["listener"]], row)
    listed = {one.difference for one in WANTED if name in one.rows.split()}
    assert set(find_differences(row, answer)) == listed


@needs_shared
@pytest.mark.parametrize("name", ["info", "worker-version"])
def test_headers_equal_upstream(find_server: Callable[[str], Server], name: str) -> None:
    """Responses have upstream's headers; Server and X-App-Version have our own values."""
    row = ROWS[name]
    server = find_server("simulator")
    answer = send_row({"dstack.sock": server.dstack}.get(row["listener"], server.url), row)
    theirs = read_headers(row["listener"])
    assert theirs.keys() <= answer.headers.keys()
    for own in ("server", "x-app-version"):
        theirs.pop(own, None)
    assert theirs == {header: answer.headers[header] for header in theirs}


@needs_shared
def test_listed_rows_exist() -> None:
    """Each listed row is recorded, and has one reason for a difference."""
    listed = [(one.difference, name) for one in WANTED for name in one.rows.split()]
    assert {name for _, name in listed} <= ROWS.keys()
    assert len(set(listed)) == len(listed)


ANSWER: Final = {"status": 200, "content_type": "application/json", "method": "POST"}


@every_case(
    ("theirs", "ours", "path", "found"),
    [
        ({"a": "x", "b": [1]}, {"a": "y", "b": [2, 3]}, "/Info", set()),
        ({"a": "x"}, {}, "/Info", {"a: missing"}),
        ({}, {"a": 1}, "/Info", {"a: added"}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "/Info", {"body: order of members"}),
        ({"a": "x"}, {"a": None}, "/Info", {"a: str -> NoneType"}),
        ({"a": ["x"]}, {"a": [1]}, "/Info", {"a: str -> int"}),
        ({"key": "00"}, {"key": "01"}, "/GetKey", {"key: 00 -> 01"}),
    ],
)
def test_differences_of_fields_are_found(
    theirs: dict[str, Any], ours: dict[str, Any], path: str, found: set[str]
) -> None:
    """Names, order and types of fields count; values only of keys and signatures."""
    answer = Answer(200, {"content-type": "application/json"}, json.dumps(ours).encode())
    row = {**ANSWER, "path": path, "json": theirs}
    assert set(find_differences(row, answer)) == found
    failed = answer._replace(status=500)
    assert list(find_differences(row, failed)) == ["status 200 -> 500"]


def test_differences_of_errors_are_found() -> None:
    """The text of an error counts, unless it is a library's."""
    row = {**ANSWER, "status": 400, "path": "/X", "error": "no such x"}
    answer = Answer(400, {"content-type": "application/json"}, b'{"error": "no such y"}')
    assert list(find_differences(row, answer)) == ["error 'no such x' -> 'no such y'"]
    assert list(find_differences({**row, "foreign_text": True}, answer)) == []
    page = answer._replace(headers={"content-type": "text/html; charset=utf-8"}, body=b"\n\1x")
    assert "JSON -> HTML" in set(find_differences({**row, "foreign_text": True}, page))
