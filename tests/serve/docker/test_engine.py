"""What the engine says of containers comes as values, and what it does wrong as our own errors."""

import asyncio
import errno
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import BackendError, ConfigError, NotFoundError
from attestkit.serve.docker import engine as containers
from attestkit.serve.docker.engine import Container, Containers
from tests.serve.docker.engine import ID, SILENCE, Engine, run, say, scripted
from tests.serve.server import refusal

LISTED = {
    "Id": ID,
    "Names": ["/app-1", "/other/alias"],
    "Image": "busybox:1",
    "Created": 1_764_113_675,
    "State": "running",
    "Status": "Up 2 hours",
    "Labels": {},
}
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


def failure(answers: dict[str, Any], *, log: bool = False) -> str:
    """Return the text of the error that an engine with these answers leads to."""

    async def main() -> str:
        async with scripted() as engine:
            engine.answers.update(answers)
            question = _open(engine) if log else Containers(engine.address).list()
            with pytest.raises(BackendError) as caught:
                await question
            return str(caught.value).replace(engine.address, "ADDRESS")

    return run(main())


async def _open(engine: Engine, name: str = "app") -> bytes:
    async with Containers(engine.address).logs(name, {"stdout": "1"}, 5.0) as log:
        return await log.read()


@pytest.mark.parametrize(("address", "endpoint"), ADDRESSES.items())
def test_addresses(address: str, endpoint: tuple[str | None, str]) -> None:
    """A socket by its URL or path, or TCP without TLS, with the port that everybody knows."""
    containers = Containers(address)
    assert (containers._path, containers._url) == endpoint


@pytest.mark.parametrize("address", WRONG_ADDRESSES)
def test_wrong_addresses(address: str) -> None:
    """What cannot be asked is refused at once, and no password is shown."""
    with pytest.raises(ConfigError, match=r"\$DOCKER_HOST begins with .*: want unix:///path") as e:
        Containers(address)
    assert "secret" not in str(e.value)


@given(
    st.text()
    | st.sampled_from(["tcp://", "unix://", "http://["]).flatmap(lambda s: st.text().map(s.__add__))
)
def test_any_address_raises_only_our_error(address: str) -> None:
    """Whatever $DOCKER_HOST holds, there is an endpoint or a ConfigError."""
    with suppress(ConfigError):
        assert Containers(address)._url.startswith(("unix://localhost", "http://"))


def test_nobody_pays_before_the_first_question() -> None:
    """A server that is never asked for containers loads neither HTTP client nor wcwidth."""
    modules = "attestkit.serve.listener_apps, attestkit.serve.http.server"
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "attestkit.serve.docker.engine" in done.stdout.split()
    assert not {"aiodocker", "aiohttp", "wcwidth"} & set(done.stdout.split())


def test_a_server_with_a_wrong_address() -> None:
    """The program says so before it serves anything, and does not fall back to another engine."""
    with tempfile.TemporaryDirectory(prefix="ak") as folder:
        words = ("--backend", "simulator", "--dir", folder, "--http", "127.0.0.1:0")
        line = refusal(*words, folder=Path(folder), code=1, DOCKER_HOST="ssh://root@engine")
    assert "$DOCKER_HOST begins with 'ssh': want unix:///path" in line


@pytest.mark.parametrize("tcp", [False, True])
def test_list(*, tcp: bool) -> None:
    """All containers, also those that do not run; names lose the slash before them."""

    async def main() -> None:
        async with scripted(tcp=tcp) as engine:
            bare = {**LISTED, "Names": None, "State": "removing"}
            engine.answers["/containers/json"] = 200, [LISTED, bare]
            found = await Containers(engine.address).list()
            assert found[0] == Container(
                id=ID,
                names=("app-1", "other/alias"),
                image="busybox:1",
                state="running",
                status="Up 2 hours",
                created=1_764_113_675,
            )
            assert found[1] == found[0]._replace(names=(), state="removing")
            assert engine.asked == ["/version", "/v1.45/containers/json?all=1"]

    run(main())


def test_no_engine() -> None:
    """Without one the error says where it was looked for, and why it was not found."""
    with pytest.raises(BackendError) as caught:
        run(Containers("/nowhere/docker.sock").list())
    assert str(caught.value) == (
        "the container engine at /nowhere/docker.sock cannot be reached: "
        "No such file or directory; $DOCKER_HOST says where it is"
    )


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ({"/version": (200, {})}, "what answers at ADDRESS is no container engine"),
        ({"/version": (200, [])}, "what answers at ADDRESS is no container engine"),
        ({"/version": (200, b"{")}, "what answers at ADDRESS is no container engine"),
        ({"/version": (500, {})}, "what answers at ADDRESS is no container engine"),
        (
            {"/version": (503, {"message": "busy"})},
            "the container engine answers with status 503: busy",
        ),
        ({"/version": (403, b"no")}, "the container engine answers with status 403: no"),
        ({"/version": (403, b"")}, "the container engine answers with status 403"),
    ],
)
def test_an_engine_that_is_none(answers: dict[str, Any], text: str, *, log: bool) -> None:
    """Other programs answer too; that is an error of ours, not a traceback."""
    assert failure(answers, log=log) == text


@pytest.mark.parametrize(
    "answer",
    [None, [1], [{}], [None], [{**LISTED, "Created": "x"}], [{**LISTED, "Names": 5}], b"["],
)
def test_a_list_that_is_none(answer: object) -> None:
    """Containers without what every container has are refused."""
    text = failure({"/containers/json": (200, answer)})
    assert text == "what answers at ADDRESS is no container engine"


@pytest.mark.parametrize("answer", [{}, None, [], {"Id": ID}, {"Id": ID, "Config": None}, b"["])
def test_a_container_that_is_none(answer: object) -> None:
    """Without its id and its terminal a container's log cannot be read."""
    text = failure({"/containers/app/json": (200, answer)}, log=True)
    assert text == "what answers at ADDRESS is no container engine"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            (501, {"message": "no reading"}),
            "the container engine answers with status 501: no reading",
        ),
        (
            (409, {"message": "container is dead"}),
            "the container engine answers with status 409: container is dead",
        ),
        ((500, {}), "what answers at ADDRESS is no container engine"),
        ((500, []), "what answers at ADDRESS is no container engine"),
        ((502, b"<html>"), "the container engine answers with status 502: <html>"),
        ((304, {}), "what answers at ADDRESS is no container engine"),
    ],
)
def test_a_log_that_cannot_be_read(answer: tuple[int, Any], text: str) -> None:
    """The engine's own words say why."""
    assert failure({f"/containers/{ID}/logs": answer}, log=True) == text


def test_an_engine_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs up, and one that thinks for too long."""

    async def main() -> None:
        async with scripted() as engine:
            engine.answers = {}
            with pytest.raises(BackendError, match="cannot be reached: it hung up"):
                await Containers(engine.address).list()
            monkeypatch.setattr(containers, "ANSWER_SECONDS", 0.1)
            engine.answers = {"/version": SILENCE}
            for question in (Containers(engine.address).list(), _open(engine)):
                with pytest.raises(BackendError, match="cannot be reached: it does not answer"):
                    await question

    run(main())


def test_a_container_that_vanishes() -> None:
    """It was there when it was looked for, and not when its log was."""

    async def main() -> None:
        async with scripted() as engine:
            engine.answers[f"/containers/{ID}/logs"] = 404, {"message": f"No such container: {ID}"}
            with pytest.raises(NotFoundError, match="No such container: app"):
                await _open(engine)

    run(main())


@pytest.mark.parametrize("translated", [True, False])
def test_an_engine_whose_machine_died(*, translated: bool) -> None:
    """When the kernel gives a connection up, that is no log that was silent for too long.

    The HTTP client makes an error of its own of it; should it once not, it is still an error.
    """

    async def main() -> None:
        async with scripted(tcp=True) as engine:
            engine.log = say(then="wait")
            async with Containers(engine.address).logs("app", {"stdout": "1"}, 50.0) as log:
                response = await log._opening
                assert response is not None
                assert response.connection is not None
                transport: Any = response.connection.transport
                lost = transport._fatal_error if translated else response.content.set_exception
                error = TimeoutError(errno.ETIMEDOUT, "Connection timed out")
                asyncio.get_running_loop().call_soon(lost, error)
                with pytest.raises(BackendError, match="broke off: the container engine went"):
                    await log.read()

    run(main())


HOSTILE = (
    *(
        "",
        ".",
        "..",
        "../version",
        "a/../../version",
        "/app",
        "app/",
        "app/json",
        "a b",
        "-a",
        "_a",
    ),
    *(
        "a?all=1",
        "a#b",
        "a%2Fb",
        "a%",
        "a\\b",
        "a\nb",
        "app\n",
        "a\0b",
        "é",
        "aé",
        "٣",
        "a:b",
        "a;b",
    ),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_no_container_has(name: str) -> None:
    """They never reach the engine, whose path they could change."""

    async def main() -> None:
        async with scripted() as engine:
            with pytest.raises(NotFoundError, match="No such container: "):
                await _open(engine, name)
            assert engine.asked == []

    run(main())


@given(st.text())
def test_any_name_is_one_segment(name: str) -> None:
    """Whatever is asked for, it is refused before an engine is needed, or is a plain name."""
    with pytest.raises((NotFoundError, BackendError)) as caught:
        run(_open(Engine("/nowhere/docker.sock"), name))
    if not isinstance(caught.value, NotFoundError):
        assert name.replace("_", "").replace(".", "").replace("-", "").isalnum()
        assert name.isascii()


def test_names_and_ids() -> None:
    """What the engine is asked for is the name as it is, and then the id that it told."""

    async def main() -> None:
        async with scripted() as engine:
            for name in ("app", "A.b_c-1", ID):
                engine.answers[f"/containers/{name}/json"] = engine.answers["/containers/app/json"]
                assert await _open(engine, name) == b""
                assert engine.asked[-2:] == [
                    f"/v1.45/containers/{name}/json",
                    f"/v1.45/containers/{ID}/logs?stdout=1",
                ]

    run(main())
