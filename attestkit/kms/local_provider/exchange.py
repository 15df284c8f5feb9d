"""Exchanges with a local key provider: through the host's API, or directly over TCP.

Host and network are untrusted: sizes and times are limited, and the answer proves itself.
"""

import contextlib
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, cast
from urllib.parse import SplitResult, urlsplit

from attestkit import _sanitize
from attestkit._argument_checks import wrong_type
from attestkit._formats.strict_json import from_hex, read_object
from attestkit._system.bounded_http import (
    JSON_POST,
    ExchangeError,
    Request,
    Response,
    ResponseLimits,
    TimeLeft,
    connect_tcp,
    exchange,
)
from attestkit.errors import AttestKitError, ConfigError, FormatError, KmsError
from attestkit.kms.local_provider.frames import (
    MAX_QUOTE,
    SealedKey,
    decode_response,
    encode_request,
    receive_message,
    send_message,
)

if TYPE_CHECKING:
    from attestkit._reasons import KmsReason

__all__ = ["HostApi", "TcpProvider"]

_SECONDS: Final = 30.0  # of a whole exchange (kms.md, 7.1 and 7.2)
_HEAD_LIMIT: Final = 64 << 10  # bytes of status line and header section
_BODY_LIMIT: Final = 4 << 20  # bytes; the provider's quote has at most 1 MiB, 2 MiB in hex
_LONGEST_TEXT: Final = 300  # characters of the host's error
_REASONS: Final["dict[str, KmsReason]"] = {"timed_out": "timeout", "connection": "connection"}
_METHOD: Final = "GetSealingKey?json"
_AF_VSOCK: Final[int] = getattr(socket, "AF_VSOCK", 40)  # Linux' number


class TcpProvider:
    """Function object that sends a TD's quote to a provider at a TCP address.

    The provider closes the connection without an answer if it refuses.

    Args:
        host: Name or address of the host.
        port: Port; the default of the upstream provider is 3443.
        timeout: Seconds for a whole exchange, without name resolution.
    """

    def __init__(self, host: str, port: int = 3443, *, timeout: float = _SECONDS) -> None:
        self._address = host, port
        self._timeout = timeout

    def __call__(self, quote: bytes) -> SealedKey:
        """Return the answer to a quote.

        Raises:
            KmsError: If there is no connection, no answer in time, or a malformed one.
        """
        deadline = time.monotonic() + self._timeout
        with (
            _translate_errors(str(self)),
            connect_tcp(*self._address, self._timeout, lambda: deadline - time.monotonic()) as sock,
        ):
            send_message(sock, encode_request(quote), deadline)
            return decode_response(receive_message(sock, deadline))

    def __str__(self) -> str:
        host, port = self._address
        return f"local key provider {host}:{port}"


class HostApi:
    """Function object that sends a TD's quote to the provider through the API of the host.

    Args:
        url: `host_api_url` of the sys-config: `vsock://2:PORT/PATH`, or `http://HOST:PORT/PATH`.
        timeout: Seconds for a whole exchange, without name resolution.

    Raises:
        ConfigError: If the URL has another form.
        UsageError: If it is not text.
    """

    def __init__(self, url: str, *, timeout: float = _SECONDS) -> None:
        self._endpoint = _read_url(url)
        self._url = url
        self._timeout = timeout

    def __call__(self, quote: bytes) -> SealedKey:
        """Return the answer to a quote.

        Raises:
            KmsError: If there is no connection, no answer in time, or a malformed one; or if the
                host answers with an error (`refused`), whose text is in the message.
        """
        with _translate_errors(str(self)):
            found = self._post(f'{{"quote":"{quote.hex()}"}}'.encode())
            if found.status != 200:
                raise self._refusal(found.status, found.body)
            return _read_answer(found.body)

    def _post(self, body: bytes) -> Response:
        host, target = self._endpoint.host, self._endpoint.target
        limits = ResponseLimits(_HEAD_LIMIT, _BODY_LIMIT, self._timeout)
        connect = partial(self._endpoint.connect, self._timeout)
        return exchange(connect, Request("POST", host, target, JSON_POST, body), limits)

    def _refusal(self, status: int, body: bytes) -> KmsError:
        try:
            error = read_object(body, "error").get("error")
        except FormatError:
            error = None
        text = _sanitize.one_line(error, _LONGEST_TEXT) if isinstance(error, str) else ""
        message = f"{self}: refused the request with status {status}"
        return KmsError(f"{message}: {text}" if text else message, reason="refused", url=self._url)

    def __str__(self) -> str:
        return f"host API {self._url}"


class _Endpoint(NamedTuple):
    """Address of the host's API."""

    host: str  # for the Host header
    family: int | None  # AF_VSOCK; None for TCP
    address: tuple[int, int] | tuple[str, int]  # CID or name, port
    target: str  # of the request

    def connect(self, timeout: float, time_left: TimeLeft) -> socket.socket:
        """Return a connected socket."""
        if self.family is None:
            host, port = cast("tuple[str, int]", self.address)
            return connect_tcp(host, port, timeout, time_left)
        sock = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(self.address)
        except BaseException:
            sock.close()
            raise
        return sock


def _read_url(url: str) -> _Endpoint:
    if not isinstance(url, str):
        raise wrong_type("host_api_url", "a str", url)
    try:
        parts = urlsplit(url)
        endpoint = _vsock_endpoint(parts) if parts.scheme == "vsock" else _http_endpoint(parts)
        if parts.query or parts.fragment or "@" in parts.netloc:
            endpoint = None
    except ValueError:
        endpoint = None
    printable = url.isascii() and url.isprintable() and " " not in url
    if endpoint is None or not printable:
        given = _sanitize.one_line(url, _LONGEST_TEXT)
        text = f"host_api_url: {given}: must be vsock://CID:PORT/PATH or http://HOST:PORT/PATH"
        raise ConfigError(text, reason="wrong_value")
    return endpoint


def _vsock_endpoint(parts: SplitResult) -> _Endpoint | None:
    cid, _, port = parts.netloc.partition(":")
    numbers = [int(text) if text.isdecimal() and text.isascii() else -1 for text in (cid, port)]
    if not all(0 <= number < 1 << 32 for number in numbers):
        return None
    return _Endpoint("vsock", _AF_VSOCK, (numbers[0], numbers[1]), _target(parts))


def _http_endpoint(parts: SplitResult) -> _Endpoint | None:
    if parts.scheme != "http" or not parts.hostname or parts.port == 0:
        return None
    return _Endpoint(parts.netloc, None, (parts.hostname, parts.port or 80), _target(parts))


def _target(parts: SplitResult) -> str:
    return f"{parts.path.rstrip('/')}/{_METHOD}"


def _read_answer(body: bytes) -> SealedKey:
    fields = read_object(body, "GetSealingKey")
    answer = SealedKey(
        *(from_hex(fields.get(name), f"GetSealingKey: {name}") for name in SealedKey._fields)
    )
    if max(map(len, answer)) > MAX_QUOTE:
        raise FormatError(f"GetSealingKey: over {MAX_QUOTE} bytes", reason="too_large")
    return answer


@contextlib.contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    """Convert errors of an exchange to a KmsError that names the other side."""
    reason: KmsReason
    try:
        yield
    except KmsError:
        raise
    except TimeoutError as error:
        raise KmsError(f"{what}: no answer in time", reason="timeout") from error
    except ExchangeError as error:
        reason = _REASONS.get(error.kind, "malformed")
        raise KmsError(f"{what}: {error}", reason=reason) from error
    except FormatError as error:
        # A provider that refuses closes the connection without an answer.
        reason = "connection" if error.reason == "truncated" else "malformed"
        raise KmsError(f"{what}: {error.message}", reason=reason) from error
    except (OSError, ValueError) as error:
        if isinstance(error, AttestKitError):
            raise
        text = getattr(error, "strerror", None) or type(error).__name__
        raise KmsError(f"{what}: {text}", reason="connection") from error
