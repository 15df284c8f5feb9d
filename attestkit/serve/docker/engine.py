"""Client of the container engine (Docker API); the only user of aiodocker.

aiodocker and its HTTP client take 18 MB and a tenth of a second to import, so they are loaded by
the first request. Each request has its own connection: nothing has to be closed at shutdown, and
a restarted engine is noticed at once.

Responses are untrusted. They are read in pieces, with a limit of their size, and for at most
`ANSWER_SECONDS`. A log has no end and is never held in memory as a whole.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote, urlsplit

from attestkit.errors import BackendError, ConfigError, NotFoundError
from attestkit.serve.docker.responses import (
    MAX_ANSWER,
    MAX_INSPECTED,
    MAX_LIST,
    Container,
    ContainerState,
    check_name,
    read_container,
    read_error_message,
    read_list,
    read_state,
    read_version,
)
from attestkit.serve.lazy_import import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiodocker import Docker
    from aiohttp import ClientResponse, ClientTimeout

    from attestkit._outcomes.reasons import BackendReason

__all__ = ["DOCKER", "Container", "ContainerEngine", "ContainerLog", "ContainerState"]

T = TypeVar("T")

DOCKER: Final = "unix:///var/run/docker.sock"
"""Default address of the engine."""

ANSWER_SECONDS: Final = 10.0
"""Time limit of a request; a log may be silent longer."""

REFUSAL_SECONDS: Final = 0.5
"""Time to wait for a status other than 200; a later one is reported inside the log."""

_PORT: Final = 2375  # default port without TLS
_BUFFER: Final = 64 * 1024  # bytes read ahead; aiohttp pauses reading at twice as many


class ContainerLog:
    """An open container log.

    Attributes:
        terminal: Whether the container has a terminal. If so, the log is raw bytes, else frames.
    """

    def __init__(self, opening: "asyncio.Task[ClientResponse | None]", *, terminal: bool) -> None:
        self.terminal = terminal
        self._opening = opening

    async def read(self) -> bytes:
        """Return the next bytes, waiting for some; b"" at the end of the log.

        A log without output for the `silence` given to `open_log` ends too.

        Raises:
            BackendError: If the connection to the engine is lost.
            AttestKitError: If the engine refuses the log after `open_log` has returned.
        """
        from aiohttp import ClientError, SocketTimeoutError

        response = await self._opening
        if response is None:
            return b""
        try:
            return await response.content.readany()
        except SocketTimeoutError:  # not TimeoutError, which the kernel also raises (ETIMEDOUT)
            return b""
        except (ClientError, OSError) as error:
            text = "container log: the connection to the container engine was lost"
            raise BackendError(text, reason="connection_lost") from error


class ContainerEngine:
    """Client of one container engine.

    Args:
        address: `unix:///path`, `/path`, `tcp://host:port` or `http://host:port`.

    Raises:
        ConfigError: If the address is not one of these.
    """

    def __init__(self, address: str = DOCKER) -> None:
        self.address = address
        self._path, self._url = _endpoint(address)

    async def list_containers(self) -> list[Container]:
        """Return all containers, the newest first.

        Raises:
            BackendError: If the engine is unreachable, or its response is malformed or over 4 MiB.
        """
        async with self._engine() as docker:
            path = f"{docker.api_version}/containers/json?all=1"
            return await self._request(docker, path, read_list, most=MAX_LIST)

    async def inspect_containers(self, label: str) -> list[ContainerState]:
        """Return the states of all containers that have a label of this name, with any value.

        Raises:
            NotFoundError: If a container is removed meanwhile.
            BackendError: If the engine is unreachable, a response is malformed or over 1 MiB (the
                list: 4 MiB), or there are more than 256 containers.
        """
        filters = quote(json.dumps({"label": [label]}, separators=(",", ":")))
        async with self._engine() as docker:
            path = f"{docker.api_version}/containers/json?all=1&filters={filters}"
            found = await self._request(docker, path, read_list, most=MAX_LIST)
            if len(found) > MAX_INSPECTED:
                problem = f"container engine: over {MAX_INSPECTED} containers; remove unused ones"
                raise BackendError(problem, reason="too_large")
            paths = [(one.id, f"{docker.api_version}/containers/{one.id}/json") for one in found]
            return [await self._request(docker, path, read_state, name=id_) for id_, path in paths]

    @asynccontextmanager
    async def open_log(
        self, name: str, parameters: Mapping[str, str], silence: float
    ) -> AsyncIterator[ContainerLog]:
        """Context manager: open the log of a container, and close it on exit.

        Args:
            name: Name or id, as the client wrote it.
            parameters: Query parameters of the engine's API.
            silence: Seconds without data after which the log ends.

        Raises:
            FormatError: If the name is not valid; the engine receives no request.
            NotFoundError: If the container does not exist.
            BackendError: If the engine is unreachable, its response is malformed or over 1 MiB, or
                it refuses the log.
        """
        check_name(name)
        async with self._engine() as docker:
            path = f"{docker.api_version}/containers/{name}/json"
            found = await self._request(docker, path, read_container, name=name)
            response = self._open_log(docker, name, found.id, parameters, silence)
            opening = asyncio.create_task(response)
            try:
                # Errors come at once; status 200 comes with the first output of the container.
                await asyncio.wait({opening}, timeout=REFUSAL_SECONDS)
                if opening.done():
                    opening.result()
                yield ContainerLog(opening, terminal=found.config.tty)
            finally:
                await _close(opening)

    async def _open_log(
        self,
        docker: "Docker",
        name: str,
        container_id: str,
        parameters: Mapping[str, str],
        silence: float,
    ) -> "ClientResponse | None":
        """Return the response with the log; None if the engine is silent for `silence` seconds.

        aiodocker's own method drops the channel of each frame, and treats a lost connection as the
        end of the log.

        Args:
            docker: The engine.
            name: Name of the container, for errors.
            container_id: Id of the container.
            parameters: Query parameters of the engine's API.
            silence: Seconds without data after which the log ends.
        """
        from aiohttp import SocketTimeoutError

        path = f"{docker.api_version}/containers/{container_id}/logs"
        with self._translate_errors():
            try:
                response = await _get(docker, path, parameters, _timeout(None, silence))
            except SocketTimeoutError:
                return None
            if response.status == 200:
                return response
            async with response:
                refusal = self._read_body(response, MAX_ANSWER, name)
                await asyncio.wait_for(refusal, ANSWER_SECONDS)
                raise self._malformed()  # neither 200 nor an error status

    async def _request(
        self,
        docker: "Docker",
        path: str,
        read: Callable[[bytes], T],
        *,
        most: int = MAX_ANSWER,
        name: str = "",
    ) -> T:
        """Return the parsed response to a GET request.

        aiodocker's own methods read bodies of any size, with the default JSON parser.

        Args:
            docker: The engine.
            path: Path with the version of the API.
            read: Parser of the body; raises ValueError (as FormatError) if the body is malformed.
            most: Limit of the body in bytes.
            name: Name of the container, which may not exist.

        Raises:
            NotFoundError: If the container does not exist.
            BackendError: If the engine is unreachable or its response is malformed.
        """
        with self._translate_errors():
            async with await _get(docker, path, {}, _timeout(ANSWER_SECONDS)) as response:
                body = await self._read_body(response, most, name)
                if response.status != 200:
                    raise self._malformed()
                return read(body)

    async def _read_body(self, response: "ClientResponse", most: int, name: str) -> bytes:
        """Return the body of a response that is not an error, reading at most `most` bytes.

        `name` is the requested container, empty if the request is about none.

        Raises:
            NotFoundError: If the status is 404 and a container was requested.
            BackendError: If the status is an error other than this 404, or the body is too large.
            FormatError: If the body of an error is malformed.
        """
        body = bytearray()
        while piece := await response.content.readany():
            body += piece
            if len(body) > most:
                response.close()
                problem = f"container engine at {self.address}: response exceeds {most >> 20} MiB"
                raise BackendError(problem, reason="too_large")
        if response.status == 404 and name:
            raise NotFoundError(f"No such container: {name}", reason="container")
        if response.status >= 400:
            message = read_error_message(bytes(body), response.headers.get("Content-Type", ""))
            text = f": {message}" if message else ""
            problem = f"container engine: status {response.status}{text}"
            raise BackendError(problem, reason="agent_error")
        return bytes(body)

    def _check_socket(self) -> None:
        """Raise FileNotFoundError if the engine's socket does not exist."""
        if self._path is not None:
            Path(self._path).stat()

    @asynccontextmanager
    async def _engine(self) -> AsyncIterator["Docker"]:
        """Yield a client for the engine's own version of the API."""
        try:
            self._check_socket()
        except FileNotFoundError as error:  # without loading the client library
            raise self._unreachable(error) from error
        await load("aiodocker")
        from aiodocker import Docker
        from aiohttp import TCPConnector, UnixConnector

        # With an explicit connector, aiodocker ignores the environment.
        connector = TCPConnector() if self._path is None else UnixConnector(self._path)
        async with connector, Docker(self._url, connector) as docker:
            docker.api_version = f"v{await self._request(docker, 'version', read_version)}"
            yield docker

    @contextmanager
    def _translate_errors(self) -> "Iterator[None]":
        """Context manager: raise errors of the HTTP client and of parsers as BackendError."""
        from aiohttp import ClientError, ClientResponseError

        try:
            yield
        except (ClientResponseError, ValueError) as error:
            raise self._malformed() from error
        except (ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: BaseException | None) -> BackendError:
        reason: BackendReason = "cannot_connect"
        if (problem := getattr(error, "strerror", None)) is None:
            slow = isinstance(error, asyncio.TimeoutError)
            reason = "timed_out" if slow else "connection_lost"
            problem = "no response" if slow else "the connection was closed"
        return BackendError(
            f"container engine at {self.address}: cannot connect: {problem}; check $DOCKER_HOST",
            reason=reason,
        )

    def _malformed(self) -> BackendError:
        return BackendError(
            f"container engine at {self.address}: not a response of the Docker API; "
            "check $DOCKER_HOST",
            reason="malformed_response",
        )


async def _get(
    docker: "Docker", path: str, parameters: Mapping[str, str], timeout: "ClientTimeout"
) -> "ClientResponse":
    """Send a GET request and return the response without its body.

    `path` is relative to the engine's URL, and `parameters` are the query. Bodies are not
    decompressed: a megabyte could become a gigabyte.
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
    """Close the log that the task `opening` opens, cancelling its pending request."""
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
    """Return the path of the engine's unix socket (None for TCP), and the base URL.

    `address` is that of `ContainerEngine`; ConfigError for another one.
    """
    try:
        parts = urlsplit(address)
        path, port = parts.path, parts.port
    except ValueError:
        raise _unsupported(address) from None  # its text may have a part of a password
    extra = parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme in {"", "unix"} and path.startswith("/") and not (parts.netloc or extra):
        return path, "unix://localhost"
    if parts.scheme in {"tcp", "http"} and parts.hostname and path in {"", "/"} and not extra:
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return None, f"http://{host}:{port or _PORT}"
    raise _unsupported(address)


def _unsupported(address: str) -> ConfigError:
    # Show only the scheme, because the rest may contain a password.
    scheme = f": {address.partition('://')[0]!r}" if "://" in address else ""
    return ConfigError(
        f"$DOCKER_HOST: unsupported address{scheme}; use unix:///path, or tcp://host:port "
        "without TLS",
        reason="wrong_value",
    )
