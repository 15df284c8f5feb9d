"""Every request to a running server is one line of its access log."""

import contextlib
import json
import os
import socket
from typing import Any

import pytest

from tests.serve.client import Connection, call
from tests.serve.server import Server, running_server

pytestmark = pytest.mark.slow  # its tests start programs

OPTIONS = ("--access-log", "--log-format", "json", "--limit", "headers=20")


def read_requests(server: Server) -> list[dict[str, Any]]:
    """Return the requests in the log of a server that has ended."""
    records = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    return [record for record in records if record["logger"] == "attestkit.access"]


def test_access_log_records_every_response() -> None:
    """Successes and refusals of methods and pages are logged, without query, payload or key."""
    with running_server(*OPTIONS) as server:
        secret = "do/not/log"
        connection = Connection(server.dstack)
        responses = [
            connection.call("GetKey", {"path": secret}),
            connection.send_request("GET", f"/GetKey?path={secret}"),
            connection.call("Nope"),
            connection.call("Sign", {"algorithm": "x"}),
        ]
        connection.close()
        responses.append(call(server.url, "prpc/Worker.Info"))
        with contextlib.closing(Connection(server.url)) as connection:
            page = connection.send_request("GET", "/")
        many = {f"x-{number}": "y" for number in range(30)}
        with contextlib.closing(Connection(server.url)) as connection:
            refused = connection.send_request("GET", "/", headers=many)
        with socket.socket(socket.AF_UNIX) as client:  # it disconnects before the response
            client.connect(server.dstack)
            client.sendall(b"POST /Gone HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n")
            call(server.dstack, "Version")  # the head has been read when this returns
        call(server.dstack, "Version")  # the disconnect has been noticed when this returns
        server.stop()
        found, log = read_requests(server), server.log()
    wanted = [
        ("dstack", "POST", "/GetKey", 200),
        ("dstack", "GET", "/GetKey", 200),
        ("dstack", "POST", "/Nope", 404),
        ("dstack", "POST", "/Sign", 400),
        ("http", "POST", "/prpc/Worker.Info", 200),
        ("http", "GET", "/", 200),
        ("http", "", "/", 431),
    ]
    lines = [(r["listener"], r["method"], r["path"], r["status"]) for r in found]
    assert lines[: len(wanted)] == wanted
    assert ("dstack", "POST", "/Gone", 499) in lines
    for answer, line in zip([*responses, page], found, strict=False):
        assert line["request_id"] == answer.headers["x-request-id"]
        assert line["size"] == len(answer.body)
        assert 0 < line["seconds"] < 60
    assert refused.status == 431
    us = f"pid={os.getpid()},uid={os.geteuid()},gid={os.getegid()}"
    assert {line["client"] for line in found} == {us, "127.0.0.1"}
    assert {line["client"] for line in found if line["listener"] == "dstack"} == {us}
    assert secret not in log
    assert responses[0].json()["key"] not in log


def test_access_log_identifies_unix_peer() -> None:
    """On a unix socket each refusal is logged with process and user id."""
    peer = f"pid={os.getpid()},uid={os.geteuid()},gid={os.getegid()}"
    heads = {
        431: b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"x: y\r\n" * 30 + b"\r\n",
        400: b"\x16\x03\x01 what is no HTTP\r\n\r\n",
        404: b"GET /none/such HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    }
    with running_server(*OPTIONS, "--log-format", "text") as server:
        for status, head in heads.items():
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(60)
                client.connect(server.dstack)
                client.sendall(head)
                assert client.recv(65536).split()[1] == str(status).encode()
        server.stop()
        fields = [line.split() for line in server.log().splitlines() if " dstack - [" in line]
    assert [(words[0], words[-4]) for words in fields] == [(peer, str(status)) for status in heads]
