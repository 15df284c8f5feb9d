"""The containers beside us, as the container engine tells of them; aiodocker lives here alone.

aiodocker, and the HTTP client below it, take 18 MB and a tenth of a second to import: they are
loaded by the first question. Each question has a connection of its own, so that nothing is left
to close when the server stops, and an engine that was started anew is simply the next answer.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from attestkit.errors import BackendError, ConfigError, NotFoundError
from attestkit.serve.late import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiodocker import Docker
    from aiodocker.containers import DockerContainer
    from aiohttp import ClientResponse, ClientTimeout

__all__ = ["DOCKER", "Container", "Containers", "Log"]

DOCKER: Final = "unix:///var/run/docker.sock"
"""Where the engine is when nobody says where."""

ANSWER_SECONDS: Final = 10.0
"""For which the engine may think about a question; a log may be silent longer."""

REFUSAL_SECONDS: Final = 0.5
"""For which a log may be refused with a status; after that it is an error in the log itself."""

_PORT: Final = 2375  # of an engine without TLS
_BUFFER: Final = 64 * 1024  # bytes of a log read ahead; at twice as many the engine has to wait
# The names that the engine gives out, and ids; nothing else gets into the path of a question.
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_UNREACHABLE: Final = 900  # the status that aiodocker makes up


class Container(NamedTuple):
    """One container, running or not."""

    id: str
    names: tuple[str, ...]  # without the slash that the engine puts before each
    image: str
    state: str  # created, running, paused, restarting, removing, exited or dead
    status: str  # for people: "Up 2 hours"
    created: int  # seconds since 1970


class Log:
    """An open log.

    Attributes:
        terminal: Whether the container has one; then the log is bytes as they are, else frames.
    """

    def __init__(self, opening: "asyncio.Task[ClientResponse | None]", *, terminal: bool) -> None:
        self.terminal = terminal
        self._opening = opening

    async def read(self) -> bytes:
        """Return what has come since, waiting for something; nothing at its end.

        The end is also a log that was silent for too long.

        Raises:
            BackendError: The engine went away in the middle.
            AttestKitError: It refused, when nobody reckoned with that any more.
        """
        from aiohttp import ClientError, SocketTimeoutError

        response = await self._opening
        if response is None:
            return b""
        try:
            return await response.content.readany()
        except SocketTimeoutError:  # not any TimeoutError: the kernel gives up with one as well
            return b""
        except (ClientError, OSError) as error:
            raise BackendError("the log broke off: the container engine went away") from error


class Containers:
    """The containers of one engine.

    Args:
        address: `unix:///path`, `/path`, `tcp://host:port` or `http://host:port`.

    Raises:
        ConfigError: The address is something else.
    """

    def __init__(self, address: str = DOCKER) -> None:
        self.address = address
        self._path, self._url = _endpoint(address)

    async def list(self) -> "list[Container]":
        """Return all containers, the youngest first.

        Raises:
            BackendError: The engine cannot be reached, or answers wrongly.
        """
        async with self._engine() as docker:
            with self._translated():
                found = await docker.containers.list(all=True)
            try:
                return [_container(one) for one in found]
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise self._strange() from error

    @asynccontextmanager
    async def logs(
        self, name: str, parameters: Mapping[str, str], silence: float
    ) -> AsyncIterator[Log]:
        """Open the log of the container of that name or id; its connection ends with the block.

        Args:
            name: As the client wrote it.
            parameters: Of the engine's own call.
            silence: Seconds after which a log without a word has ended.

        Raises:
            NotFoundError: There is no such container.
            BackendError: The engine cannot be reached, or has no log of it.
        """
        if _NAME.fullmatch(name) is None:
            raise NotFoundError(f"No such container: {name}")
        async with self._engine() as docker:
            with self._translated(name):
                container = await docker.containers.get(name)
            try:
                terminal, its_id = bool(container["Config"]["Tty"]), str(container["Id"])
            except (KeyError, TypeError) as error:
                raise self._strange() from error
            response = self._open_log(docker, name, its_id, parameters, silence)
            opening = asyncio.create_task(response)
            try:
                # An engine refuses at once, but says yes with the first words of a container.
                await asyncio.wait({opening}, timeout=REFUSAL_SECONDS)
                if opening.done():
                    opening.result()
                yield Log(opening, terminal=terminal)
            finally:
                await _close(opening)

    async def _open_log(
        self,
        docker: "Docker",
        name: str,
        its_id: str,
        parameters: Mapping[str, str],
        silence: float,
    ) -> "ClientResponse | None":
        """Return the response that is a log, None if the engine was silent for too long.

        aiodocker's own call loses the channels, and takes a log that breaks off for its end.
        """
        from aiodocker import DockerError
        from aiohttp import SocketTimeoutError

        with self._translated(name):
            try:
                response = await docker.session.get(
                    f"{docker.docker_host}/{docker.api_version}/containers/{its_id}/logs",
                    params=parameters,
                    timeout=_timeout(None, silence),
                    read_bufsize=_BUFFER,
                )
            except SocketTimeoutError:
                return None
            if response.status != 200:
                async with response:
                    answer = await response.json(content_type=None)
                    raise DockerError(response.status, str(answer["message"]))
            return response

    def _look(self) -> None:
        """Raise FileNotFoundError if the engine's socket is not there, which takes no time."""
        if self._path is not None:
            Path(self._path).stat()

    @asynccontextmanager
    async def _engine(self) -> AsyncIterator["Docker"]:
        try:
            self._look()
        except FileNotFoundError as error:  # to find that out takes no library of 11 MB
            raise self._unreachable(error) from error
        await load("aiodocker")
        from aiodocker import Docker
        from aiohttp import TCPConnector, UnixConnector

        # With a connector of ours aiodocker leaves the environment alone.
        made = TCPConnector() if self._path is None else UnixConnector(self._path)
        async with made, Docker(self._url, made, timeout=_timeout(ANSWER_SECONDS)) as docker:
            yield docker

    @contextmanager
    def _translated(self, name: str = "") -> "Iterator[None]":
        """Turn what aiodocker raises into errors of ours."""
        from aiodocker import DockerError
        from aiohttp import ClientError, ClientResponseError

        try:
            yield
        except DockerError as error:
            if error.status == 404 and name:
                raise NotFoundError(f"No such container: {name}") from error
            if error.status == _UNREACHABLE:
                raise self._unreachable(error.__context__) from error
            raise BackendError(
                f"the container engine answers with status {error.status}: {error.message}"
            ) from error
        except (ClientResponseError, KeyError, TypeError, ValueError) as error:
            raise self._strange() from error
        except (ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: BaseException | None) -> BackendError:
        slow = isinstance(error, asyncio.TimeoutError)
        reason = getattr(error, "strerror", None) or (
            "it does not answer" if slow else "it hung up"
        )
        return BackendError(
            f"the container engine at {self.address} cannot be reached: {reason}; "
            "$DOCKER_HOST says where it is"
        )

    def _strange(self) -> BackendError:
        return BackendError(f"what answers at {self.address} is no container engine")


async def _close(opening: "asyncio.Task[ClientResponse | None]") -> None:
    """Let go of a log at once, whatever is still on its way."""
    if not opening.done():
        opening.cancel()
        await asyncio.wait({opening})
    if not opening.cancelled() and opening.exception() is None:
        response = opening.result()
        if response is not None:
            response.close()


def _timeout(total: float | None, silence: float | None = None) -> "ClientTimeout":
    from aiohttp import ClientTimeout

    return ClientTimeout(total=total, sock_connect=ANSWER_SECONDS, sock_read=silence)


def _container(one: "DockerContainer") -> Container:
    names = tuple(str(name).removeprefix("/") for name in one["Names"] or ())
    image, state, status = (str(one[key]) for key in ("Image", "State", "Status"))
    return Container(str(one["Id"]), names, image, state, status, int(one["Created"]))


def _endpoint(address: str) -> tuple[str | None, str]:
    """Return the path of the engine's socket, if it has one, and the URL to ask."""
    try:
        parts = urlsplit(address)
        path, port = parts.path, parts.port
    except ValueError as error:
        raise _refused(address) from error
    extra = parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme in {"", "unix"} and path.startswith("/") and not (parts.netloc or extra):
        return path, "unix://localhost"
    if parts.scheme in {"tcp", "http"} and parts.hostname and path in {"", "/"} and not extra:
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return None, f"http://{host}:{port or _PORT}"
    raise _refused(address)


def _refused(address: str) -> ConfigError:
    # A password might be in it, so it is not repeated.
    scheme = address.partition("://")[0] if "://" in address else "nothing"
    return ConfigError(
        f"$DOCKER_HOST begins with {scheme!r}: want unix:///path, or tcp://host:port without TLS"
    )
