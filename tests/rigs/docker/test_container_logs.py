"""Container logs: each format equals the output of `docker logs`."""

import asyncio
import base64
import contextlib
import http.client
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest

from attestkit.serve.docker.engine import ContainerEngine
from tests.rigs.docker.engine import PATIENCE, DockerEngine
from tests.serve.client import Answer, Connection
from tests.serve.server import Server, environment, running_server
from tests.vectors import SHARED

pytestmark = [pytest.mark.rig, pytest.mark.slow]

GATEWAY = "dstack-gateway-1"  # the container name in the API document
TALK = r"""
echo one; echo error one >&2; printf '\033[1;32mtwo\033[0m\n'
sleep 1.2
echo three; echo error two >&2; printf '\033]0;title\007no newline'
"""
COLOURS = re.compile(rb"\x1b\[[0-9;]*m|\x1b\]0;[a-z]*\x07")


class DockerServer(NamedTuple):
    """Server, and its container engine."""

    server: Server
    docker: DockerEngine

    def get(self, target: str) -> Answer:
        """Return the response to a path below /logs/."""
        connection = Connection(self.server.url)
        try:
            return connection.send_request("GET", f"/logs/{target}")
        finally:
            connection.close()

    def log(self, target: str) -> bytes:
        """Return a log."""
        reply = self.get(target)
        assert reply.status == 200, reply.body
        assert reply.headers["content-type"] == "text/plain; charset=utf-8"
        assert reply.headers["x-app-version"].startswith("v")
        return reply.body

    def messages(self, target: str) -> list[tuple[str, str]]:
        """Return channels and messages of a wrapped log."""
        lines = self.log(target).decode().splitlines()
        return [(line["channel"], line["message"]) for line in map(json.loads, lines)]

    @contextlib.contextmanager
    def following(self, target: str) -> Iterator[http.client.HTTPResponse]:
        """Open a followed log; the client disconnects at the end of the block."""
        connection = Connection(self.server.url)
        try:
            connection.request("GET", f"/logs/{target}")
            response = connection.getresponse()
            assert response.status == 200
            yield response
        finally:
            connection.close()

    def memory(self) -> int:
        """Return the server's resident memory, in bytes."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.fixture(scope="module")
def rig(docker: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerServer]:
    """Run a server of an app with public logs, next to the engine."""
    compose = tmp_path_factory.mktemp("app") / "app-compose.json"
    compose.write_text(
        json.dumps({"manifest_version": 2, "name": "a", "runner": "bash", "public_logs": True})
    )
    host = environment(DOCKER_HOST=docker.address)
    with running_server("--app-compose", str(compose), environ=host) as server:
        yield DockerServer(server, docker)
        server.check_log()


@pytest.fixture(scope="module")
def middle(docker: DockerEngine) -> int:
    """Return a full second in the middle of the gateway's output; the container has ended."""
    docker.finish(GATEWAY, TALK)
    lines = docker.logs(GATEWAY, "--timestamps").decode().splitlines()
    assert len(lines) == 6
    times = [datetime.fromisoformat(f"{line[:26]}+00:00").timestamp() for line in sorted(lines)]
    second = int(times[2]) + 1
    assert times[2] < second <= times[3]
    return second


CASES = {
    # query, options of `docker logs`, number of messages
    "all": ("tail=all", [], 6),
    "default tail": ("", [], 6),
    "tail": ("tail=2", ["--tail", "2"], 2),
    "tail of nothing": ("tail=0", ["--tail", "0"], 0),
    "timestamps": ("timestamps", ["--timestamps"], 6),
    "since an hour": ("since=1h", ["--since", "1h"], 6),
    "since in seconds": ("since=3600", ["--since", "1h"], 6),
    "since a moment": ("since={middle}", ["--since", "{middle}"], 3),
    "until a moment": ("until={middle}", ["--until", "{middle}"], 3),
    "until an hour ago": ("until=1h", ["--until", "1h"], 0),
    "since and until": (
        *("since={middle}&until={middle}", ["--since", "{middle}", "--until", "{middle}"], 0),
    ),
    "all at once": (
        "since={middle}&tail=2&timestamps&follow",
        ["--since", "{middle}", "--tail", "2", "--timestamps", "--follow"],
        2,
    ),
    "follow to the end": ("follow=true", ["--follow"], 6),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_logs_equal_docker_logs(
    rig: DockerServer, middle: int, case: tuple[str, list[str], int]
) -> None:
    """Each parameter in each format."""
    query = f"{GATEWAY}?{case[0].format(middle=middle)}"
    options = [option.format(middle=middle) for option in case[1]]
    printed = rig.docker.logs(GATEWAY, *options)
    by_channel = rig.docker.cli("logs", *options, GATEWAY)

    wrapped = rig.messages(query)
    assert len(wrapped) == case[2]
    assert b"".join(base64.b64decode(message) for _, message in wrapped) == printed
    for channel, part in (("stdout", by_channel.stdout), ("stderr", by_channel.stderr)):
        found = [base64.b64decode(message) for name, message in wrapped if name == channel]
        assert b"".join(found) == part
    text = rig.messages(f"{query}&text&ansi=no")
    assert text == [(name, base64.b64decode(message).decode()) for name, message in wrapped]
    assert rig.log(f"{query}&bare").decode() == "".join(message for _, message in wrapped)
    assert rig.log(f"{query}&bare&text&ansi") == printed
    assert rig.log(f"{query}&bare&text") == COLOURS.sub(b"", printed)


def _example_commands() -> list[str]:
    """Return the API document's commands that show logs."""
    documents = [path.read_text() for path in sorted(SHARED.glob("seeds/*.txt"))]
    return re.findall(r'^curl "http://\S+/logs/[^"]+"$', "\n".join(documents), re.MULTILINE)


@pytest.mark.skipif(not _example_commands(), reason="the API document is missing")
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_logs_examples_of_api_document(rig: DockerServer, middle: int) -> None:
    """The commands run unchanged, except for host and port."""
    assert middle
    examples = _example_commands()
    assert len(examples) == 4
    for example in examples:
        command, changed = re.subn(r"http://[^/]+", rig.server.url, example)
        assert changed == 1
        done = subprocess.run(
            ["/bin/sh", "-c", f"{command} -sS --fail"],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        options = ["--timestamps"] if "timestamps" in example else []
        assert done.stdout == COLOURS.sub(b"", rig.docker.logs(GATEWAY, *options))
        assert done.stdout.count(b"\n") == 5


def test_logs_of_terminal_have_one_channel(rig: DockerServer) -> None:
    """A message is a line."""
    script = r"echo one; echo error >&2; printf '\033[1mbold\033[0m \342\202\254\n'; printf end"
    rig.docker.finish("terminal", script, "--tty")
    printed = rig.docker.logs("terminal")
    assert printed.count(b"\r\n") == 3
    messages = rig.messages("terminal?text")
    assert [channel for channel, _ in messages] == ["console"] * 4
    assert [message for _, message in messages] == printed.decode().splitlines(keepends=True)
    assert rig.log("terminal?text&bare&ansi") == printed
    assert rig.log("terminal?text&bare") == COLOURS.sub(b"", printed)
    assert rig.log("terminal?text&bare&timestamps&ansi&tail=2") == rig.docker.logs(
        "terminal", "--timestamps", "--tail", "2"
    )


# A character and an escape sequence cross the 16 KiB boundary at which the engine splits lines.
LONG = r"printf '%016383d\342\202\254%03616d\n%016380d\033[1;31mred\n' 7 8 9"


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_logs_long_line_is_joined(rig: DockerServer, driver: str) -> None:
    """A line of 20,000 bytes is sent in two frames."""
    name = f"long-{driver}"
    rig.docker.finish(name, LONG, "--log-driver", driver)
    printed = rig.docker.logs(name)
    wrapped = rig.messages(name)
    assert len(wrapped) == 4
    assert len(base64.b64decode(wrapped[0][1])) >= 16384
    assert b"".join(base64.b64decode(message) for _, message in wrapped) == printed
    text = "".join(message for _, message in rig.messages(f"{name}?text"))
    bare = rig.log(f"{name}?text&bare").decode()
    assert text == printed.decode()
    assert bare == text.replace("\x1b[1;31m", "")
    if driver == "local":  # the other driver stores a replacement character
        # The local driver of Docker 20.10 loses the end of a line stored in parts.
        end = "" if rig.docker.version() <= (20, 10) else "\n"
        assert f"7€{8:03616d}{end}0" in bare
        assert len(printed) == 16383 + 3 + 3616 + 16380 + 10 + 2 * len(end)


def test_logs_binary_output_is_preserved(rig: DockerServer) -> None:
    """All bytes in base64; text has replacement characters."""
    script = r"printf '\000\001\377\376\200binary\nplain\n'; printf '\303\050\n' >&2"
    rig.docker.finish("binary", script, "--log-driver", "local")
    printed = rig.docker.logs("binary")
    assert b"\0\1\xff\xfe\x80binary\n" in printed
    wrapped = rig.messages("binary")
    assert b"".join(base64.b64decode(message) for _, message in wrapped) == printed
    assert rig.log("binary?bare&text") == printed.decode("utf-8", "replace").encode()
    assert ("stderr", "�(\n") in rig.messages("binary?text")


def test_logs_unreadable_driver_is_an_error(rig: DockerServer) -> None:
    """The error is the engine's message."""
    rig.docker.finish("silent", "echo nothing", "--log-driver", "none")
    reply = rig.get("silent")
    assert (reply.status, list(reply.json())) == (500, ["error"])
    assert "logging driver does not support reading" in reply.json()["error"]


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("nope", 404, "No such container: nope"),
        ("../version", 400, "Invalid container name"),
        ("../../_ping", 400, "Invalid container name"),
        (f"{GATEWAY}?all=1", 400, "Invalid container name"),
    ],
)
def test_logs_unknown_container_is_an_error(
    rig: DockerServer, name: str, status: int, error: str
) -> None:
    """The error is JSON, and no other engine request can be injected."""
    reply = rig.get(f"{quote(name, safe='')}?follow&text")
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert reply.headers["x-app-version"].startswith("v")
    assert reply.json() == {"error": error}


def test_logs_follow_sends_lines_at_once(rig: DockerServer) -> None:
    """The log ends with the container."""
    with (
        rig.docker.attached("echo", "echo ready; exec cat") as container,
        rig.following("echo?text&bare&follow&tail=all") as response,
    ):
        assert container.stdin is not None
        assert response.readline() == b"ready\n"
        for line in (b"one\n", b"two\n", b"three\n"):
            container.stdin.write(line)
            container.stdin.flush()
            assert response.readline() == line
        container.stdin.close()
        assert response.read() == b""


def test_logs_follow_is_complete(rig: DockerServer) -> None:
    """100,000 lines written during reading are complete and in order."""
    with (
        rig.docker.attached("counter", "read go; exec seq 100000") as container,
        rig.following("counter?text&follow") as response,
    ):
        assert container.stdin is not None
        container.stdin.write(b"go\n")
        container.stdin.close()
        lines = [json.loads(line) for line in response.read().splitlines()]
    assert {line["channel"] for line in lines} == {"stdout"}
    assert [line["message"] for line in lines] == [f"{n}\n" for n in range(1, 100_001)]


def test_logs_slow_client_does_not_use_memory(rig: DockerServer) -> None:
    """20 MB stay in the engine, and no data is lost."""
    rig.docker.finish("flood", 'exec yes "$(printf %0999d 7)" | head -n 20000')
    rig.log("flood?tail=2000&text&bare")  # load what a log needs into memory first
    before = rig.memory()
    with rig.following("flood?tail=all&text&bare") as response:
        taken = len(response.read(1000))
        stalled = Path(f"/proc/{rig.server.process.pid}/io")
        counts = [""] * 5
        while len(set(counts)) > 1 or not counts[0]:  # until nothing is read for a while
            counts = [*counts[1:], stalled.read_text().split()[1]]
            time.sleep(0.1)
        while_stalled = rig.memory()
        while piece := response.read(65536):
            taken += len(piece)
    assert taken == 20_000_000
    assert while_stalled - before < 4_000_000
    assert rig.memory() - before < 4_000_000
    rig.docker.cli("rm", "flood")


def test_list_containers_equals_docker_ps(rig: DockerServer, middle: int) -> None:
    """Running and stopped containers are listed."""
    assert middle
    rig.docker.run("alive", "exec sleep 1000")
    found = asyncio.run(ContainerEngine(rig.docker.address).list_containers())
    form = "{{.ID}}\t{{.Names}}\t{{.Image}}\t{{.State}}"
    printed = rig.docker.cli("ps", "--all", "--no-trunc", "--format", form).stdout.decode()
    assert [[one.id, one.name, one.image, one.state] for one in found] == [
        line.split("\t") for line in printed.splitlines()
    ]
    states = {one.name: (one.state, one.status.split()[0]) for one in found}
    assert states["alive"] == ("running", "Up")
    assert states[GATEWAY] == ("exited", "Exited")
    rig.docker.cli("rm", "--force", "alive")
