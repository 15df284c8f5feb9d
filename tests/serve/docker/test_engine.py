"""The client of the container engine: addresses, requests and errors."""

import asyncio
import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest

from attestkit.errors import BackendError, ConfigError, FormatError, NotFoundError
from attestkit.serve.docker import engine as containers
from attestkit.serve.docker.engine import ContainerEngine
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.docker.engine import (
    ID,
    NO_RESPONSE,
    Engine,
    run_engine,
    run_with_timeout,
    send_chunks,
    with_engine,
)
from tests.serve.docker.test_responses import LISTED
from tests.serve.server import refusal

ADDRESSES = {
    "unix:///var/run/docker.sock": ("/var/run/docker.sock", "unix://localhost"),
    "/run/docker.sock": ("/run/docker.sock", "unix://localhost"),
    "tcp://10.0.0.1:2376": (None, "http://10.0.0.1:2376"),
    "tcp://engine": (None, "http://engine:2375"),
    "http://engine:80/": (None, "http://engine:80"),
    "tcp://[::1]:1": (None, "http://[::1]:1"),
}
WRONG_ADDRESSES = (
    *("", "docker.sock", "unix://", "unix://docker.sock", "unix://host/run/docker.sock", "tcp://"),
    *("https://engine:2376", "ssh://root@engine", "npipe:////./pipe/docker_engine", "fd://3"),
    *("tcp://engine:99999", "tcp://engine:x", "tcp://[::1", "http://engine/prefix", "tcp:/engine"),
    *("http://user:secret@engine", "tcp://engine?a=b", "http://engine#a", "unix:///run/a?b"),
)


LOG = f"/containers/{ID}/logs"


def get_error(answers: dict[str, Any], reason: str, *, log: bool = False) -> str:
    """Return the text of the error, with this reason, that these responses cause."""

    async def main() -> str:
        async with run_engine() as engine:
            engine.answers.update(answers)
            request = _open(engine) if log else ContainerEngine(engine.address).list_containers()
            with raises(BackendError, reason) as caught:
                await request
            return str(caught.value)

    return run_with_timeout(main())


async def _open(engine: Engine, name: str = "app") -> bytes:
    async with ContainerEngine(engine.address).open_log(name, {"stdout": "1"}, 5.0) as log:
        return await log.read()


@every_case(("address", "endpoint"), ADDRESSES.items())
def test_engine_address_schemes(address: str, endpoint: tuple[str | None, str]) -> None:
    """$DOCKER_HOST is a socket's URL or path, or TCP without TLS, by default port 2375."""
    containers = ContainerEngine(address)
    assert (containers._path, containers._url) == endpoint


@every_case("address", WRONG_ADDRESSES)
def test_engine_invalid_address_is_refused(address: str) -> None:
    """Unsupported addresses are refused, and no password is shown."""
    with raises(ConfigError, "wrong_value", part="$DOCKER_HOST") as caught:
        ContainerEngine(address)
    assert "secret" not in str(caught.value)


def test_serve_invalid_docker_host_fails_startup() -> None:
    """An unsupported $DOCKER_HOST fails startup."""
    with tempfile.TemporaryDirectory(prefix="ak") as folder:
        words = ("--backend", "simulator", "--dir", folder, "--http", "127.0.0.1:0")
        line = refusal(*words, folder=Path(folder), code=1, DOCKER_HOST="ssh://root@engine")
    assert "$DOCKER_HOST: unsupported address: 'ssh'; use unix:///path" in line


@pytest.mark.parametrize("tcp", [False, True])
def test_list_containers(*, tcp: bool) -> None:
    """All containers are listed, over a socket or TCP."""

    async def main() -> None:
        async with run_engine(tcp=tcp) as engine:
            engine.answers["/containers/json"] = 200, [LISTED, {**LISTED, "State": "removing"}]
            found = await ContainerEngine(engine.address).list_containers()
            assert [(one.name, one.state) for one in found] == [
                ("app-1", "running"),
                ("app-1", "removing"),
            ]
            assert engine.asked == ["/version", "/v1.45/containers/json?all=1"]

    run_with_timeout(main())


@every_case(
    ("path", "answer", "reason", "end"),
    [
        ("/version", (200, {}), "malformed_response", ""),
        ("/version", (200, []), "malformed_response", ""),
        ("/version", (503, {"message": "busy"}), "agent_error", " 503: busy"),
        ("/version", (403, b"no"), "agent_error", " 403: no"),
        ("/version", (403, b""), "agent_error", " 403"),
        (LOG, (409, {"message": "container is dead"}), "agent_error", " 409: container is dead"),
        (LOG, (502, b"<html>"), "agent_error", " 502: <html>"),
        *((LOG, (status, {}), "malformed_response", "") for status in (500, 304)),
    ],
)
def test_engine_unexpected_response(
    path: str, answer: tuple[int, Any], reason: str, end: str
) -> None:
    """Responses of other programs are a BackendError, which ends with status and message."""
    for log in {True, path == LOG}:
        assert get_error({path: answer}, reason, log=log).endswith(end)


@with_engine
async def test_engine_without_response(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed connection and a timeout are errors."""
    engine.answers = {}
    with raises(BackendError, "connection_lost"):
        await ContainerEngine(engine.address).list_containers()
    monkeypatch.setattr(containers, "ANSWER_SECONDS", 0.1)
    engine.answers = {"/version": NO_RESPONSE}
    for request in (ContainerEngine(engine.address).list_containers(), _open(engine)):
        with raises(BackendError, "timed_out"):
            await request


@with_engine
async def test_open_log_removed_container(engine: Engine) -> None:
    """A container removed before its log is opened is not found."""
    engine.answers[f"/containers/{ID}/logs"] = 404, {"message": f"No such container: {ID}"}
    with raises(NotFoundError, "container") as caught:
        await _open(engine)
    assert str(caught.value) == "No such container: app"


@pytest.mark.parametrize("translated", [True, False])
def test_open_log_lost_connection_is_not_a_timeout(*, translated: bool) -> None:
    """A connection given up by the kernel is an error, not the end of a silent log.

    The HTTP client translates the error; the untranslated one is tested too.
    """

    async def main() -> None:
        async with run_engine(tcp=True) as engine:
            engine.log = send_chunks(then="wait")
            async with ContainerEngine(engine.address).open_log(
                "app", {"stdout": "1"}, 50.0
            ) as log:
                response = await log._opening
                assert response is not None
                assert response.connection is not None
                transport: Any = response.connection.transport
                lost = transport._fatal_error if translated else response.content.set_exception
                error = TimeoutError(errno.ETIMEDOUT, "Connection timed out")
                asyncio.get_running_loop().call_soon(lost, error)
                with raises(BackendError, "connection_lost"):
                    await log.read()

    run_with_timeout(main())


HOSTILE = (
    *("", ".", "..", "../version", "a/../../version", "/app", "app/", "app/json", "a b", "-a"),
    *("_a", "a?all=1", "a#b", "a%2Fb", "a%", "a\\b", "a\nb", "app\n", "a\0b", "é", "aé", "٣"),
    *("a:b", "a;b", "a" * 256),
)


@pytest.mark.parametrize("name", HOSTILE)
@with_engine
async def test_open_log_invalid_name_is_not_sent(engine: Engine, name: str) -> None:
    """Names that could change the engine's path are refused without a request."""
    with raises(FormatError, "wrong_value"):
        await _open(engine, name)
    assert engine.asked == []


@with_engine
async def test_open_log_requests_name_then_id(engine: Engine) -> None:
    """The first request has the name, the second the id from its response."""
    for name in ("app", "A.b_c-1", ID, "a" * 255):
        engine.answers[f"/containers/{name}/json"] = engine.answers["/containers/app/json"]
        assert await _open(engine, name) == b""
        assert engine.asked[-2:] == [
            f"/v1.45/containers/{name}/json",
            f"/v1.45/containers/{ID}/logs?stdout=1",
        ]
