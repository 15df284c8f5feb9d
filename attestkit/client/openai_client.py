"""Clients of the package `openai` over proven connections.

`openai` retries errors of connections that are not its own, and replaces them by one without their
text. A refusal is therefore raised as a PeerRefusedError that is an `openai.OpenAIError`, too.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attestkit.client.wire.httpx_transport import http_transports
from attestkit.errors import AttestKitError, UsageError
from attestkit.ra_tls.connection import PeerRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attestkit.client.wire.http_libraries import LibraryName

_OWN: Final = ("base_url", "http_client")


def open_openai(
    url: str, transport: "Mapping[str, Any]", options: dict[str, Any], *, asynchronous: bool
) -> Any:  # noqa: ANN401 - of a package that need not be there
    """Return an OpenAI, or an AsyncOpenAI, whose connections are proven.

    Redirects within the server are followed, as by the package's own clients.

    Args:
        url: Base URL.
        transport: Arguments of the transport.
        options: Options of the class, such as `api_key`.
        asynchronous: Whether an AsyncOpenAI is returned.

    Raises:
        UsageError: If openai is not installed, or an option is not possible.
    """
    openai = _load_openai()
    if given := [name for name in _OWN if name in options]:
        message = f"{given[0]}: is that of the endpoint; leave it out"
        raise UsageError(message, reason="conflict")
    classes = _classes()
    own: dict[str, Any] = {"base_url": url, "trust_env": False}
    if asynchronous:
        own["transport"] = classes.async_transport(**transport)
        client = openai.DefaultAsyncHttpxClient(**own)
        return openai.AsyncOpenAI(base_url=url, http_client=client, **options)
    own["transport"] = classes.transport(**transport)
    client = openai.DefaultHttpxClient(**own)
    return openai.OpenAI(base_url=url, http_client=client, **options)


def _load_openai() -> Any:  # noqa: ANN401 - a module
    try:
        import openai  # lazy: a package of few users
    except ImportError as error:
        message = "openai: not installed; pip install openai"
        raise UsageError(message, reason="missing_dependency") from error
    return openai


class _Classes(NamedTuple):
    transport: type[Any]
    async_transport: type[Any]


@cache
def _classes() -> _Classes:
    """Return transports of the library that openai uses, whose refusals openai passes on."""
    openai = _load_openai()
    parents = {base.__module__.partition(".")[0] for base in openai.DefaultHttpxClient.__mro__}
    name: LibraryName = "httpx2" if "httpx2" in parents else "httpx"  # since openai 3
    transports = http_transports(name)

    # For mypy the base classes are values: both packages are loaded late.
    class _OpenAIRefusedError(PeerRefusedError, openai.OpenAIError):  # type: ignore[misc,name-defined]
        """A server was refused, or a request is not for it; also an `openai.OpenAIError`."""

    def refused(error: AttestKitError) -> _OpenAIRefusedError:
        text = getattr(error, "verify_message", None) or str(error)
        return _OpenAIRefusedError(text, reason=error.reason)

    class OpenAITransport(transports.blocking):  # type: ignore[misc,name-defined]
        def handle_request(self, request: object) -> object:
            try:
                return super().handle_request(request)
            except AttestKitError as error:
                raise refused(error) from error

    class OpenAIAsyncTransport(transports.asynchronous):  # type: ignore[misc,name-defined]
        async def handle_async_request(self, request: object) -> object:
            try:
                return await super().handle_async_request(request)
            except AttestKitError as error:
                raise refused(error) from error

    return _Classes(OpenAITransport, OpenAIAsyncTransport)
