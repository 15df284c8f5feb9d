"""The logs of real containers, each form beside what `docker logs` prints for the same one."""

import asyncio
import base64
import contextlib
import http.client
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from html import unescape
from pathlib import Path
from typing import NamedTuple

import pytest

from attestkit.serve.docker.engine import Containers
from tests.rigs.docker_engine import PATIENCE, DockerEngine
from tests.serve.client import Answer, Connection
from tests.serve.server import Server, environment, running_server
from tests.vectors import SHARED

pytestmark = [pytest.mark.rig, pytest.mark.slow]

GATEWAY = "dstack-gateway-1"  # as the API document calls its container
TALK = r"""
echo one; echo error one >&2; printf '\033[1;32mtwo\033[0m\n'
sleep 1.2
echo three; echo error two >&2; printf '\033]0;title\007no newline'
"""
COLOURS = re.compile(rb"\x1b\[[0-9;]*m|\x1b\]0;[a-z]*\x07")


class Rig(NamedTuple):
    """A server, and the engine whose containers it tells of."""

    server: Server
    docker: DockerEngine

    def get(self, target: str) -> Answer:
        """Return what the server answers for a path below /logs/."""
        connection = Connection(self.server.url)
        try:
            return connection.send_request("GET", f"/logs/{target}")
        finally:
            connection.close()

    def log(self, target: str) -> bytes:
        """Return a log."""
        answer = self.get(target)
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["x-app-version"].startswith("v")
        return answer.body

    def messages(self, target: str) -> list[tuple[str, str]]:
        """Return the channels and messages of a wrapped log."""
        lines = self.log(target).decode().splitlines()
        return [(line["channel"], line["message"]) for line in map(json.loads, lines)]

    @contextlib.contextmanager
    def following(self, target: str) -> Iterator[http.client.HTTPResponse]:
        """Open a log that goes on; at the end of the block the client goes away."""
        connection = Connection(self.server.url)
        try:
            connection.request("GET", f"/logs/{target}")
            response = connection.getresponse()
            assert response.status == 200
            yield response
        finally:
            connection.close()

    def memory(self) -> int:
        """Return the bytes of memory that the server has in use."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def settle(reached: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def rig(docker: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A server of an app with public logs, beside the engine."""
    compose = tmp_path_factory.mktemp("app") / "app-compose.json"
    compose.write_text(
        json.dumps({"manifest_version": 2, "name": "a", "runner": "bash", "public_logs": True})
    )
    host = environment(DOCKER_HOST=docker.address)
    with running_server("--app-compose", str(compose), environ=host) as server:
        yield Rig(server, docker)
        server.check_log()


@pytest.fixture(scope="module")
def middle(docker: DockerEngine) -> int:
    """A full second in the middle of what the gateway said; the container has ended."""
    docker.finish(GATEWAY, TALK)
    lines = docker.logs(GATEWAY, "--timestamps").decode().splitlines()
    assert len(lines) == 6
    times = [datetime.fromisoformat(f"{line[:26]}+00:00").timestamp() for line in sorted(lines)]
    second = int(times[2]) + 1
    assert times[2] < second <= times[3]
    return second


CASES = {
    # query, options of `docker logs`, how many messages that must be
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
def test_what_docker_logs_prints(rig: Rig, middle: int, case: tuple[str, list[str], int]) -> None:
    """Every parameter, in every form, gives what the command line gives."""
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


def test_container_by_its_id(rig: Rig, middle: int) -> None:
    """An id, whole or its beginning, is as good as a name."""
    assert middle
    [whole] = json.loads(rig.docker.cli("inspect", GATEWAY).stdout)
    for name in (whole["Id"], whole["Id"][:12]):
        assert rig.log(f"{name}?bare&text&ansi") == rig.docker.logs(GATEWAY)


def _examples() -> list[str]:
    """Return the commands of the API document that show logs."""
    documents = [path.read_text() for path in sorted(SHARED.glob("seeds/*.txt"))]
    return re.findall(r'^curl "http://\S+/logs/[^"]+"$', "\n".join(documents), re.MULTILINE)


def test_the_dashboard_links_to_every_log(rig: Rig, middle: int) -> None:
    """The page lists what the engine has, and its links lead to what the containers wrote."""
    assert middle
    names = rig.docker.cli("ps", "--all", "--format", "{{.Names}}").stdout.decode().split()
    connection = Connection(rig.server.url)
    page = connection.send_request("GET", "/").body.decode()
    links = [unescape(link) for link in re.findall(r'href="(/logs/[^"]+)"', page)]
    for name in names:
        assert f"/logs/{name}?text&bare&timestamps&follow&tail=20" in links
    for link in links:
        if "follow" not in link:
            assert connection.send_request("GET", link).status == 200
    connection.close()


@pytest.mark.skipif(not _examples(), reason="the API document is not here")
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_examples_of_the_document(rig: Rig, middle: int) -> None:
    """The commands as they are written, but for host and port."""
    assert middle
    examples = _examples()
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


def test_terminal(rig: Rig) -> None:
    """With a terminal there is one channel, and a message is a line."""
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


# 16,383 bytes, then a character and an escape sequence across the place where the engine cuts.
LONG = r"printf '%016383d\342\202\254%03616d\n%016380d\033[1;31mred\n' 7 8 9"


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_long_lines(rig: Rig, driver: str) -> None:
    """A line of 20,000 bytes comes as two frames, and is the same line in the end."""
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
    if driver == "local":  # the other driver has spoilt the character before it is stored
        # The local driver of Docker 20.10 loses the end of a line that it stored in parts.
        end = "" if rig.docker.version() <= (20, 10) else "\n"
        assert f"7€{8:03616d}{end}0" in bare
        assert len(printed) == 16383 + 3 + 3616 + 16380 + 10 + 2 * len(end)


def test_binary(rig: Rig) -> None:
    """Any bytes come through in base64, and in text with replacement characters."""
    script = r"printf '\000\001\377\376\200binary\nplain\n'; printf '\303\050\n' >&2"
    rig.docker.finish("binary", script, "--log-driver", "local")
    printed = rig.docker.logs("binary")
    assert b"\0\1\xff\xfe\x80binary\n" in printed
    wrapped = rig.messages("binary")
    assert b"".join(base64.b64decode(message) for _, message in wrapped) == printed
    assert rig.log("binary?bare&text") == printed.decode("utf-8", "replace").encode()
    assert ("stderr", "�(\n") in rig.messages("binary?text")


def test_a_log_that_is_not_kept(rig: Rig) -> None:
    """The engine's own words say why there is none."""
    rig.docker.finish("silent", "echo nothing", "--log-driver", "none")
    answer = rig.get("silent")
    assert (answer.status, list(answer.json())) == (500, ["error"])
    assert "logging driver does not support reading" in answer.json()["error"]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("nope", "No such container: nope"),
        ("nope?follow&text", "No such container: nope"),
        ("..%2Fversion", "No such container: ../version"),
        ("%2e%2e%2f%2e%2e%2f_ping", "No such container: ../../_ping"),
        (f"{GATEWAY}%2Fjson", f"No such container: {GATEWAY}/json"),
        (f"{GATEWAY}%3Fall=1", f"No such container: {GATEWAY}?all=1"),
        ("json", "No such container: json"),
    ],
)
def test_unknown_containers(rig: Rig, target: str, text: str) -> None:
    """A 404 in JSON before anything else, and no other question can be smuggled to the engine."""
    answer = rig.get(target)
    assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
    assert answer.headers["x-app-version"].startswith("v")
    assert answer.json() == {"error": text}


def test_following(rig: Rig) -> None:
    """A line is there as soon as the container has said it; the log ends with the container."""
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


def test_many_lines_are_followed_completely(rig: Rig) -> None:
    """100,000 lines, written while they are read, are all there and in order."""
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


def test_default_tail(rig: Rig) -> None:
    """Nobody gets more than 1000 lines without asking for them."""
    rig.docker.finish("many", "exec seq 3000")
    assert rig.log("many?text&bare") == rig.docker.logs("many", "--tail", "1000")
    assert rig.log("many?text&bare&tail=all").count(b"\n") == 3000


def test_a_client_that_goes(rig: Rig) -> None:
    """Neither we nor the engine keep anything for a client that is gone."""
    rig.docker.run("quiet", "echo here; exec sleep 1000")
    settle(lambda: rig.docker.connections() == 0)
    with contextlib.ExitStack() as stack:
        for query in ("text&bare&follow", "text&bare&follow&tail=0") * 2:
            response = stack.enter_context(rig.following(f"quiet?{query}"))
            assert "tail" in query or response.readline() == b"here\n"
        assert rig.docker.connections() == 4
    settle(lambda: rig.docker.connections() == 0)
    rig.docker.cli("rm", "--force", "quiet")


def test_a_client_that_does_not_read(rig: Rig) -> None:
    """20 MB wait at the engine, not in our memory; none of it is lost."""
    rig.docker.finish("flood", 'exec yes "$(printf %0999d 7)" | head -n 20000')
    rig.log("flood?tail=2000&text&bare")  # what a log needs is in memory now
    before = rig.memory()
    with rig.following("flood?tail=all&text&bare") as response:
        taken = len(response.read(1000))
        stalled = Path(f"/proc/{rig.server.process.pid}/io")
        counts = [""] * 5
        while len(set(counts)) > 1 or not counts[0]:  # until we have read nothing for a while
            counts = [*counts[1:], stalled.read_text().split()[1]]
            time.sleep(0.1)
        while_stalled = rig.memory()
        while piece := response.read(65536):
            taken += len(piece)
    assert taken == 20_000_000
    assert while_stalled - before < 4_000_000
    assert rig.memory() - before < 4_000_000
    rig.docker.cli("rm", "flood")


def test_a_container_that_is_removed(rig: Rig) -> None:
    """Its log ends in good order, and then there is no such container."""
    rig.docker.run("victim", "echo last words; exec sleep 1000")
    with rig.following("victim?text&bare&follow") as response:
        assert response.readline() == b"last words\n"
        rig.docker.cli("rm", "--force", "victim")
        assert response.read() == b""
    assert rig.get("victim").status == 404


def test_an_engine_that_dies(rig: Rig) -> None:
    """The log in flight ends with an error; the next are errors until the engine is back."""
    rig.docker.finish("witness", "echo still here")
    rig.docker.run("talker", "echo begin; exec sleep 1000")
    try:
        with rig.following("talker?text&bare&follow") as response:
            assert response.readline() == b"begin\n"
            rig.docker.stop(signal.SIGKILL)
            assert json.loads(response.read()) == {
                "error": "the log broke off: the container engine went away"
            }
        answer = rig.get("witness")
        assert answer.status == 500
        assert re.fullmatch(
            r"the container engine at unix://\S+ cannot be reached: Connection refused; .*",
            answer.json()["error"],
        )
    finally:
        rig.docker.start()
    assert rig.log("witness?text&bare") == b"still here\n"
    rig.docker.cli("rm", "--force", "talker")


def test_an_engine_that_is_restarted(rig: Rig) -> None:
    """In good order the log in flight just ends, and the next finds the new engine."""
    rig.docker.run("waiter", "echo begin; exec sleep 1000")
    with rig.following("waiter?text&bare&follow") as response:
        assert response.readline() == b"begin\n"
        rig.docker.stop()
        try:
            response.read()
        finally:
            rig.docker.start()
    assert rig.log("waiter?text&bare") == b"begin\n"


def test_the_list_of_containers(rig: Rig, middle: int) -> None:
    """The same as `docker ps`, whether they run or not."""
    assert middle
    rig.docker.run("alive", "exec sleep 1000")
    found = asyncio.run(Containers(rig.docker.address).list())
    form = "{{.ID}}\t{{.Names}}\t{{.Image}}\t{{.State}}"
    printed = rig.docker.cli("ps", "--all", "--no-trunc", "--format", form).stdout.decode()
    assert [[one.id, *one.names, one.image, one.state] for one in found] == [
        line.split("\t") for line in printed.splitlines()
    ]
    states = {one.names[0]: (one.state, one.status.split()[0]) for one in found}
    assert states["alive"] == ("running", "Up")
    assert states[GATEWAY] == ("exited", "Exited")
    assert all(abs(one.created - time.time()) < 3600 for one in found)
    rig.docker.cli("rm", "--force", "alive")
