"""The containers beside us, as the container engine tells of them; aiodocker lives here alone.

aiodocker, and the HTTP client below it, take 18 MB and a tenth of a second to import: they are
loaded by the first question. Each question has a connection of its own, so that nothing is left
to close when the server stops, and an engine that was started anew is simply the next answer.

An engine may answer whatever it likes. An answer is read in pieces, no more of it than the limits
of `engine_answers`, and for `ANSWER_SECONDS` at most. A log, which has no end, is never whole here.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

from attestkit.errors import BackendError, ConfigError, NotFoundError
from attestkit.serve.docker.responses import (
    MAX_ANSWER,
    MAX_LIST,
    NAME,
    Container,
    read_container,
    read_list,
    read_refusal,
    read_version,
)
from attestkit.serve.lazy_import import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiodocker import Docker
    from aiohttp import ClientResponse, ClientTimeout

__all__ = ["DOCKER", "Container", "Containers", "Log"]

T = TypeVar("T")

DOCKER: Final = "unix:///var/run/docker.sock"
"""Where the engine is when nobody says where."""

ANSWER_SECONDS: Final = 10.0
"""For which the engine may think about a question; a log may be silent longer."""

REFUSAL_SECONDS: Final = 0.5
"""For which a log may be refused with a status; after that it is an error in the log itself."""

_PORT: Final = 2375  # of an engine without TLS
_BUFFER: Final = 64 * 1024  # bytes of a log read ahead; at twice as many the engine has to wait


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
            BackendError: The engine cannot be reached, or answers wrongly or with over 4 MiB.
        """
        async with self._engine() as docker:
            path = f"{docker.api_version}/containers/json?all=1"
            return await self._ask(docker, path, read_list, most=MAX_LIST)

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
            BackendError: The engine cannot be reached, answers wrongly or with over 1 MiB, or has
                no log of it.
        """
        if NAME.fullmatch(name) is None:
            raise NotFoundError(f"No such container: {name}")
        async with self._engine() as docker:
            path = f"{docker.api_version}/containers/{name}/json"
            found = await self._ask(docker, path, read_container, name=name)
            response = self._open_log(docker, name, found.id, parameters, silence)
            opening = asyncio.create_task(response)
            try:
                # An engine refuses at once, but says yes with the first words of a container.
                await asyncio.wait({opening}, timeout=REFUSAL_SECONDS)
                if opening.done():
                    opening.result()
                yield Log(opening, terminal=found.terminal)
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
        from aiohttp import SocketTimeoutError

        path = f"{docker.api_version}/containers/{its_id}/logs"
        with self._translated():
            try:
                response = await _get(docker, path, parameters, _timeout(None, silence))
            except SocketTimeoutError:
                return None
            if response.status == 200:
                return response
            async with response:
                refusal = self._body(response, MAX_ANSWER, name)
                await asyncio.wait_for(refusal, ANSWER_SECONDS)
                raise self._strange()  # a status that is no refusal, of a log that is none

    async def _ask(
        self,
        docker: "Docker",
        path: str,
        read: Callable[[bytes], T],
        *,
        most: int = MAX_ANSWER,
        name: str = "",
    ) -> T:
        """Return what `read` makes of the engine's answer.

        aiodocker's own calls read whatever comes, and have any parser of JSON decode it.

        Args:
            docker: The engine.
            path: What is asked for, with the version of the API.
            read: Refuses by a FormatError, or another ValueError.
            most: Bytes of an answer.
            name: Of a container that there may not be.

        Raises:
            NotFoundError: There is no such container.
            BackendError: The engine cannot be reached, or answers wrongly.
        """
        with self._translated():
            async with await _get(docker, path, {}, _timeout(ANSWER_SECONDS)) as response:
                body = await self._body(response, most, name)
                if response.status != 200:
                    raise self._strange()
                return read(body)

    async def _body(self, response: "ClientResponse", most: int, name: str) -> bytes:
        """Return the body of an answer that is no refusal, of which no more is read than it may be.

        Raises:
            NotFoundError: It is one, of a container that is not there.
            BackendError: It is another one, or the body is too long.
            FormatError: It is one that says nothing.
        """
        body = bytearray()
        while piece := await response.content.readany():
            body += piece
            if len(body) > most:
                response.close()
                raise BackendError(
                    f"the container engine at {self.address} answers with more than "
                    f"{most >> 20} MiB"
                )
        if response.status == 404 and name:
            raise NotFoundError(f"No such container: {name}")
        if response.status >= 400:
            words = read_refusal(bytes(body), response.headers.get("Content-Type", ""))
            said = f": {words}" if words else ""
            raise BackendError(f"the container engine answers with status {response.status}{said}")
        return bytes(body)

    def _look(self) -> None:
        """Raise FileNotFoundError if the engine's socket is not there, which takes no time."""
        if self._path is not None:
            Path(self._path).stat()

    @asynccontextmanager
    async def _engine(self) -> AsyncIterator["Docker"]:
        """Yield the engine, with the version of the API that it has."""
        try:
            self._look()
        except FileNotFoundError as error:  # to find that out takes no library of 11 MB
            raise self._unreachable(error) from error
        await load("aiodocker")
        from aiodocker import Docker
        from aiohttp import TCPConnector, UnixConnector

        # With a connector of ours aiodocker leaves the environment alone.
        made = TCPConnector() if self._path is None else UnixConnector(self._path)
        async with made, Docker(self._url, made) as docker:
            docker.api_version = f"v{await self._ask(docker, 'version', read_version)}"
            yield docker

    @contextmanager
    def _translated(self) -> "Iterator[None]":
        """Turn what the HTTP client and readers of answers raise into errors of ours."""
        from aiohttp import ClientError, ClientResponseError

        try:
            yield
        except (ClientResponseError, ValueError) as error:
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


async def _get(
    docker: "Docker", path: str, parameters: Mapping[str, str], timeout: "ClientTimeout"
) -> "ClientResponse":
    """Ask an engine, and return how its answer begins.

    Nothing is unpacked: of what an engine need not pack, a megabyte may become a gigabyte.
    """
    return await docker.session.get(
        f"{docker.docker_host}/{path}",
        params=parameters,
        headers={"Accept-Encoding": "identity"},
        allow_redirects=False,
        auto_decompress=False,
        timeout=timeout,
        read_bufsize=_BUFFER,
    )


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
