"""HTTP client for endorsements, with the standard library only; the server is untrusted.

Plain http is allowed as well as https: endorsements are signed, so a network attacker can only
withhold them, or replay some that are still valid. Certificates are verified against the
system's CAs.
"""

import socket
import ssl
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from attestkit._formats.host_names import read_proxy
from attestkit._sanitize import shown
from attestkit._system.bounded_http import (
    ExchangeError,
    ExchangeFailure,
    Request,
    Response,
    ResponseLimits,
    TimeLeft,
    connect_tcp,
    exchange,
    open_tunnel,
    start_tls,
)
from attestkit.collateral.responses import BODY_LIMIT
from attestkit.errors import CollateralError, UsageError

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import CollateralReason

__all__ = ["HttpGetter"]

HEAD_LIMIT: Final = 128 * 1024  # bytes of status line, header section and chunk framing
_REASONS: Final["Mapping[ExchangeFailure, CollateralReason]"] = {
    "too_large": "too_large",
    "truncated": "malformed",
    "malformed": "malformed",
}
_ADVICE: Final[Mapping[ExchangeFailure, str]] = {
    "timed_out": "check that the service runs",
    "connection": "check the URL, and that the service runs",
    "tls": "pass a private CA in the context of HttpGetter",
}


class HttpGetter:
    """Function object that gets an http or https URL; its method `post` posts to one.

    It does not follow redirects, send cookies or credentials, or use the proxies of the environment
    (`HTTPS_PROXY`); if you need these, pass a function of your own wherever a `getter` is accepted.
    A body has at most 1 MiB, a header section 128 KiB.

    Args:
        timeout: Seconds for a whole exchange.
        context: TLS context for https; None is the default context of `ssl`.
        proxy: URL of an HTTP proxy for tunnels (CONNECT), also for http; None: direct connections.

    Raises:
        UsageError: If `timeout` is not positive, or the proxy's URL is not valid.
    """

    def __init__(
        self,
        timeout: float = 10.0,
        *,
        context: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        if not timeout > 0:
            text = f"timeout: must be a positive number of seconds, not {timeout}"
            raise UsageError(text, reason="out_of_range")
        self._timeout = timeout
        self._context = context
        self._proxy = None if proxy is None else read_proxy(proxy)

    def __call__(self, url: str, headers: Mapping[str, str] = {}) -> Response:
        """Return the response to a GET of `url`, of any status.

        Args:
            url: An http or https URL.
            headers: Header fields, such as Authorization.

        Raises:
            CollateralError: If the response is missing, truncated, malformed, too large or too
                late, or `url` is not an http or https URL. The message names the URL.
        """
        return self._request("GET", url, None, headers)

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """Return the response to a POST to `url`, of any status.

        Args:
            url: An http or https URL.
            body: Body of the request.
            headers: Header fields, such as Content-Type.

        Raises:
            CollateralError: As for a GET.
        """
        return self._request("POST", url, body, headers)

    def _request(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Response:
        parts = _split_url(url)
        try:
            host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
            request = Request(method, host, _target(parts), headers, body)
            limits = ResponseLimits(HEAD_LIMIT, BODY_LIMIT, self._timeout)
            return exchange(partial(self._connect, parts), request, limits)
        except UnicodeError as error:
            raise CollateralError(f"{url}: invalid host name", reason="malformed") from error
        except ExchangeError as error:
            advice = _ADVICE.get(error.kind, "check the URL")
            if self._proxy is not None and error.kind in {"timed_out", "connection"}:
                advice = "check the proxy and the URL"
            message = f"{url}: {error}; {advice}"
            reason: CollateralReason = _REASONS.get(error.kind, "fetch_failed")
            raise CollateralError(message, reason=reason) from error

    def _connect(self, parts: SplitResult, time_left: TimeLeft) -> socket.socket:
        host, is_https = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if is_https else 80)
        if self._proxy is None:
            plain = connect_tcp(host, port, self._timeout, time_left)
        else:
            name = host.encode("idna").decode()
            plain = open_tunnel(name, port, self._proxy, self._timeout, time_left)
        if not is_https:
            return plain
        if self._context is None:
            self._context = ssl.create_default_context()  # kept, because it is slow to create
        return start_tls(plain, host, self._context, time_left)


def _split_url(url: str) -> SplitResult:
    name = "URL with an @" if "@" in url else url  # it may have a password: not shown
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # an invalid port raises ValueError
    except ValueError:
        # Its text may contain the authority.
        raise CollateralError(f"{name}: must be a valid URL", reason="fetch_failed") from None
    if not host or "@" in parts.netloc:
        text = f"{name}: must have a host and no user name"
        raise CollateralError(text, reason="fetch_failed")
    if parts.scheme not in {"http", "https"}:
        message = f"{url}: scheme must be http or https, not {shown(parts.scheme)}"
        raise CollateralError(message, reason="fetch_failed")
    return parts


def _target(parts: SplitResult) -> str:
    path = parts.path or "/"
    return f"{path}?{parts.query}" if parts.query else path
