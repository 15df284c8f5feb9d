"""Client of Azure's Instance Metadata Service (IMDS): quotes of TD reports, and VCEK certificates.

Plain HTTP to a link-local address. Nothing is authenticated: a verifier verifies quotes and
certificates afterwards.
"""

import contextlib
import json
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple

from attestkit._crypto.pem import split_pem
from attestkit._formats.compact_jws import to_base64url
from attestkit._formats.strict_json import read_object, string
from attestkit._outcomes.reasons import BackendReason
from attestkit._system import bounded_http
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    FormatError,
    QuoteUnavailableError,
    UsageError,
)

__all__ = ["IMDS_ADDRESS", "ImdsClient"]

IMDS_ADDRESS: Final = ("169.254.169.254", 80)
BODY_LIMIT: Final = 64 * 1024  # bytes
HEAD_LIMIT: Final = 16 * 1024  # bytes of status line, header section and chunk framing
TD_REPORT_SIZE: Final = 1024

_WAITS: Final = (1.0, 2.0, 4.0)  # seconds before each repetition
_SHORT: Final = 5.0  # seconds for a request
_LONG: Final = 30.0  # of a quote
_QUOTE_PATH: Final = "/acc/tdquote"
_CERTIFICATES_PATH: Final = "/metadata/THIM/amd/certification"
_MAX_CERTIFICATES: Final = 4
_JSON: Final = {"Accept": "application/json"}
# Exactly this type: IMDS answers 415 to one with `charset`.
_POST: Final = _JSON | {"Content-Type": "application/json"}

_REASONS: Final[Mapping[bounded_http.ExchangeFailure, BackendReason]] = {
    "timed_out": "timed_out",
    "connection": "cannot_connect",
    "too_large": "too_large",
}


class ImdsRequest(NamedTuple):
    """An HTTP request (`body` None: without one), and the limit of its duration in seconds."""

    method: str
    target: str
    body: bytes | None
    headers: dict[str, str]
    seconds: float


class ImdsClient:
    """Client of IMDS. It uses no proxy and follows no redirect.

    A response of status 429 or 5xx is requested again at most 3 times, after 1, 2 and 4 seconds.

    Args:
        address: Host and port of the service.
        sleep: Function that waits for seconds.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        address: tuple[str, int] = IMDS_ADDRESS,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._sleep, self._clock = sleep, clock

    def get_td_quote(self, td_report: bytes) -> bytes:
        """Return a quote of a TD report of this machine.

        Args:
            td_report: 1024 bytes.

        Raises:
            UsageError: If `td_report` is not 1024 bytes.
            QuoteUnavailableError: If the service is not reachable, or returns an error or no quote.
            BackendBusyError: If it is overloaded.
            BackendError: If the response is malformed or too large.
        """
        if len(td_report) != TD_REPORT_SIZE:
            message = f"TD report: must be {TD_REPORT_SIZE} bytes, not {len(td_report)}"
            raise UsageError(message, reason="wrong_size")
        body = json.dumps({"report": to_base64url(td_report)}).encode()
        request = ImdsRequest("POST", _QUOTE_PATH, body, _POST, _LONG)
        response = self._exchange(request)
        with self._reading(request):
            quote = read_base64(string(read_object(response.body, "response"), "quote"), "quote")
        if not quote:
            raise QuoteUnavailableError(
                f"{self._name(request)}: empty quote; request it again", reason="empty"
            )
        return quote

    def get_snp_certificates(self) -> tuple[bytes, ...]:
        """Return the VCEK certificate of this machine, then 1 to 4 of its chain, in DER.

        The chain is that of the response, usually those of ASK and ARK; nothing is verified.

        Raises:
            QuoteUnavailableError: If the service is not reachable, or returns an error.
            BackendBusyError: If it is overloaded.
            BackendError: If the response is malformed or too large.
        """
        request = ImdsRequest("GET", _CERTIFICATES_PATH, None, _JSON, _SHORT)
        response = self._exchange(request)
        with self._reading(request):
            fields = read_object(response.body, "response")
            found = [
                *_certificates(fields, "vcekCert", 1),
                *_certificates(fields, "certificateChain", _MAX_CERTIFICATES),
            ]
        return tuple(found)

    def _name(self, request: ImdsRequest) -> str:
        host, port = self._address
        return f"IMDS: http://{host}:{port}{request.target}"

    def _exchange(self, request: ImdsRequest) -> bounded_http.Response:
        """Send a request, again up to 3 times after 429 or 5xx; return a response of status 200."""
        response = self._send(request)
        for seconds in _WAITS:
            if response.status != 429 and response.status < 500:
                break
            self._sleep(seconds)
            response = self._send(request)
        if response.status == 200:
            return response
        name = f"{self._name(request)}: status {response.status}"
        if response.status == 429:
            raise BackendBusyError(f"{name}: too many requests; try later", reason="overloaded")
        if response.status >= 500:
            message = f"{name}, repeatedly; try later, or redeploy the VM to another host"
            raise QuoteUnavailableError(message, reason="quoting_service")
        message = f"{name}; check that the VM is a confidential VM and that no proxy is between"
        raise QuoteUnavailableError(message, reason="request_failed")

    def _send(self, request: ImdsRequest) -> bounded_http.Response:
        limits = bounded_http.ResponseLimits(HEAD_LIMIT, BODY_LIMIT, request.seconds, self._clock)
        host, port = self._address
        headers = {"Metadata": "true", **request.headers}
        name = bounded_http.host_header(host, port)
        parts = bounded_http.Request(request.method, name, request.target, headers, request.body)
        try:
            return bounded_http.exchange(
                partial(bounded_http.connect_tcp, host, port, request.seconds), parts, limits
            )
        except bounded_http.ExchangeError as error:
            message = f"{self._name(request)}: {error}"
            reason: BackendReason = _REASONS.get(error.kind, "malformed_response")
            if reason in ("timed_out", "cannot_connect"):
                message += "; allow this VM to connect to that address"
                raise QuoteUnavailableError(message, reason=reason) from error
            raise BackendError(message, reason=reason) from error

    @contextlib.contextmanager
    def _reading(self, request: ImdsRequest) -> Iterator[None]:
        """Context manager: raise BackendError, with the URL, if its code raises FormatError."""
        try:
            yield
        except FormatError as error:
            message = f"{self._name(request)}: {error}; request it again"
            raise BackendError(message, reason="malformed_response") from error


def read_base64(text: str, what: str) -> bytes:
    """Decode base64 in the standard or the URL alphabet, padded or not, without white space.

    `what` names the text in errors.

    Raises:
        FormatError: If the text is malformed, has characters of both alphabets, or its unused bits
            are not zero.
    """
    plain = text.rstrip("=")
    url = plain.replace("-", "+").replace("_", "/")
    if len(text) - len(plain) > 2 or (url != plain and ("+" in plain or "/" in plain)):
        raise FormatError(f"{what}: must be base64", reason="encoding")
    try:
        found = b64decode(url + "=" * (-len(url) % 4), validate=True)
    except ValueError as error:
        raise FormatError(f"{what}: must be base64", reason="encoding") from error
    if to_base64url(found) != url.replace("+", "-").replace("/", "_"):
        raise FormatError(f"{what}: unused bits are not zero", reason="not_canonical")
    return found


def _certificates(fields: dict[str, object], name: str, most: int) -> list[bytes]:
    text = string(fields, name)
    try:
        found = split_pem(text)
    except FormatError as error:
        raise FormatError(f"{name}: {error.message}", reason=error.reason) from error
    if len(found) > most:
        raise FormatError(
            f"{name}: must have at most {most} certificates, not {len(found)}", reason="too_many"
        )
    return found
