"""Authorization by an HTTP server, with the requests of dstack's KMS (`/bootAuth/app`)."""

import re
import ssl
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from attestkit._argument_checks import wrong_type
from attestkit._formats import strict_json
from attestkit._sanitize import printable
from attestkit._system.bounded_http import ExchangeError
from attestkit.collateral.http_getter import HttpGetter
from attestkit.collateral.responses import Response
from attestkit.errors import CollateralError, ConfigError, FormatError, KmsError
from attestkit.kms.release.authorization import (
    AuthorityInfo,
    BootInfo,
    Decision,
    KmsAuthorization,
    Role,
)

MAX_BODY: Final = 65_536
"""Largest body of an answer in bytes; a real one has about 100."""
MAX_REASON: Final = 1024
"""Largest number of characters of a reason or an id in an answer."""

_T = TypeVar("_T")
_URL: Final = re.compile(r"[!-~]{1,2048}")
_SHOWN: Final = 512  # bytes of a body in an error
_TIMEOUT: Final = 10.0  # seconds for an answer
_HEADERS: Final = {
    "Content-Type": "application/json",
    "User-Agent": "dstack-kms/0.6.0 (attestkit, simulated)",
}


class AuthWebhook(KmsAuthorization):
    """Authorization by a server that answers `POST {url}/bootAuth/app` and `/bootAuth/kms`.

    Nothing is cached, so that a revocation takes effect at once. Redirects are not followed.

    Args:
        url: An http or https URL. The answers decide who gets keys: use http only for a server on
            the same machine.
        timeout: Seconds for an answer.
        context: TLS context for https; None is the default context of `ssl`.

    Raises:
        ConfigError: If the URL is not valid, has a user, query or fragment, or is not printable
            ASCII or over 2,048 characters.
        UsageError: If `timeout` is not positive, or the URL is not text.
    """

    def __init__(
        self, url: str, *, timeout: float = _TIMEOUT, context: ssl.SSLContext | None = None
    ) -> None:
        self._url = _check_url(url)
        self._client = HttpGetter(timeout, context=context)

    @property
    def releases_roots(self) -> bool:
        """True: the server decides whether a second KMS gets the roots."""
        return True

    def decide(self, role: Role, boot_info: BootInfo) -> Decision:
        """Request from the server whether a guest gets keys.

        `role` is `app` for the keys of its app, `kms` for the roots; `boot_info` has verified
        values of the guest, which are sent.

        Raises:
            KmsError: If the server fails, or its answer is malformed.
        """
        url = f"{self._url}/bootAuth/{role}"
        body = boot_info.to_json().encode()
        return _request(url, partial(self._client.post, url, body, _HEADERS), read_decision)

    def describe(self) -> AuthorityInfo:
        """Request from the server what GetMeta reports of it; raises as `decide`."""
        return _request(self._url, partial(self._client, self._url), read_authority)


def read_decision(fields: dict[str, Any]) -> Decision:
    """Return the decision in `fields`, the members of a server's answer; ignore unknown ones.

    Raises:
        FormatError: If a member is missing, has a wrong type, or is over 1,024 characters.
    """
    allowed = fields.get("isAllowed")
    if not isinstance(allowed, bool):
        raise _field_error("isAllowed", fields, "true or false")
    gateway = _text(fields, "gatewayAppId")
    return Decision(allowed, _text(fields, "reason"), gateway)


def read_authority(fields: dict[str, Any]) -> AuthorityInfo:
    """Return the description of an authorization server in the members of its answer.

    Unknown members are ignored.

    Raises:
        FormatError: If a member is missing, has a wrong type, or is over 1,024 characters.
    """
    return AuthorityInfo(
        gateway_app_id=_text(fields, "gatewayAppId"),
        kms_contract_address=_text(fields, "kmsContractAddr"),
        chain_id=strict_json.number_field(fields, "chainId", 64),
        app_auth_implementation=_text(fields, "appImplementation"),
    )


def _request(url: str, request: Callable[[], Response], read: Callable[[dict[str, Any]], _T]) -> _T:
    """Send a request, and return the result of `read` for the JSON object in the answer.

    Args:
        url: URL for errors.
        request: Sends the request; raises CollateralError if it fails.
        read: Converts the JSON object; raises FormatError if it is malformed.

    Raises:
        KmsError: If the server at `url` fails, refuses, or its answer is malformed.
    """
    try:
        answer = request()
    except CollateralError as error:
        raise _unavailable(url, error) from error
    if not 200 <= answer.status < 300:
        body = printable(answer.body[:_SHOWN].decode("utf-8", "replace"))
        message = f"auth api {url} returned {_status(answer.status)}: {body}"
        raise KmsError(message, reason="refused", url=url)
    if len(answer.body) > MAX_BODY:
        text = f"auth api {url}: answer must have at most {MAX_BODY} bytes"
        raise KmsError(text, reason="malformed", url=url)
    try:
        return read(strict_json.read_object(answer.body, ""))
    except FormatError as error:
        raise _malformed(url, answer, error) from error


def _malformed(url: str, answer: Response, error: FormatError) -> KmsError:
    body = printable(answer.body[:_SHOWN].decode("utf-8", "replace"))
    text = f"failed to decode response from {url}, status={_status(answer.status)}, body={body}"
    return KmsError(f"{text}: {error.message}", reason="malformed", url=url)


def _unavailable(url: str, error: CollateralError) -> KmsError:
    cause = error.__cause__
    timed_out = isinstance(cause, ExchangeError) and cause.kind == "timed_out"
    return KmsError(f"auth api {error}", reason="timeout" if timed_out else "connection", url=url)


def _status(status: int) -> str:
    """Return a status with its standard phrase, such as `404 Not Found`."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _text(fields: dict[str, Any], name: str) -> str:
    """Return member `name` of an answer, a text, with unprintable characters escaped."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise _field_error(name, fields, "text")
    if len(value) > MAX_REASON:
        raise FormatError(
            f"{name}: {len(value)} characters, at most {MAX_REASON}", reason="too_large"
        )
    return printable(value)


def _field_error(name: str, fields: dict[str, Any], expected: str) -> FormatError:
    if name not in fields:
        return FormatError(f"missing field `{name}`", reason="missing")
    return FormatError(f"{name}: must be {expected}", reason="wrong_type")


def _check_url(url: object) -> str:
    if not isinstance(url, str):
        raise wrong_type("auth webhook", "a URL", url)
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname)
        valid = valid and not (parts.query or parts.fragment or "@" in parts.netloc)
        _ = parts.port  # ValueError if it is not a number
    except ValueError:
        valid = False
    # urlsplit drops line ends, which the request and the log would have.
    if not valid or _URL.fullmatch(url) is None:
        text = (
            "auth webhook: must be an http or https URL with a host, without user or query, of at "
            "most 2048 printable ASCII characters"
        )
        raise ConfigError(text, reason="wrong_value")
    return url.rstrip("/")
