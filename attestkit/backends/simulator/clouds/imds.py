"""Simulated instance metadata service of Azure.

It is as strict as the real one is known to be: the header `Metadata: true`, exactly
`Content-Type: application/json`, and base64url without padding for a TD report.
"""

import json
import re
import socket
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias, final

from attestkit.backends.simulator.service_response import (
    ServiceResponse,
    content_response,
    json_response,
)
from attestkit.errors import FormatError

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

TD_QUOTE_PATH: Final = "/acc/tdquote"
CERTIFICATION_PATH: Final = "/metadata/THIM/amd/certification"
LOCATION_PATH: Final = "/metadata/instance/compute/location"

_METHODS: Final = {TD_QUOTE_PATH: "POST", CERTIFICATION_PATH: "GET", LOCATION_PATH: "GET"}
_TD_REPORT_SIZE: Final = 1024
_MAX_BODY: Final = 16_384
_HTTP: Final = 80
_CLOSING_S: Final = 1.0  # most seconds to wait for the thread
_LONG: Final = 40_000  # bytes
_HUGE: Final = 1 << 20
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")
_REGION: Final = b"westeurope"
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json; charset=utf-8"


Respond: TypeAlias = Callable[[str, str, Mapping[str, str], bytes], ServiceResponse]
"""Returns the response for HTTP method, path with query, headers by lower-case name, and body."""


class SimulatedImds:
    """The metadata service of one VM; thread-safe if its arguments are.

    Args:
        quote: Returns a TD quote for a TD report of 1024 bytes; None on SEV-SNP.
        certification: Returns the VCEK certificate (PEM), its TCB version (16 hex digits), and the
            ASK's and ARK's certificates (one PEM text). None on TDX.
    """

    def __init__(
        self,
        *,
        quote: Callable[[bytes], bytes] | None = None,
        certification: Callable[[], tuple[str, str, str]] | None = None,
    ) -> None:
        self._quote, self._certification = quote, certification

    def handle(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> ServiceResponse:
        """Return the response to a request; its status is 400 to 415 if the request is not valid.

        Requests are POST of TD_QUOTE_PATH, and GET of CERTIFICATION_PATH and LOCATION_PATH (the
        region). If the function `quote` raises FormatError, the status is 400.

        Args:
            method: HTTP method.
            target: Path and query.
            headers: Header fields by lower-case name.
            body: Body of the request: JSON for a TD quote, otherwise empty.
        """
        path, _, query = target.partition("?")
        if headers.get("metadata", "").lower() != "true":
            return _error(400, "Bad request. Required metadata header not specified")
        if (allowed := _METHODS.get(path)) is None:
            return _error(404, "Not found")
        if method != allowed:
            return _error(405, "Method not allowed")
        if path == TD_QUOTE_PATH:
            return self._td_quote(headers, body)
        return self._location(query) if path == LOCATION_PATH else self._amd_certification()

    def _location(self, query: str) -> ServiceResponse:
        if "api-version=" not in query:
            return _error(400, "Bad request. api-version was not specified in the request")
        return content_response(_TEXT, _REGION)

    def _td_quote(self, headers: Mapping[str, str], body: bytes) -> ServiceResponse:
        if headers.get("content-type") != "application/json":
            return _error(415, "Unsupported media type")
        if self._quote is None:
            return _error(404, "Not found")
        if (report := _read_report(body)) is None:
            return _error(400, "Bad request. The report is not valid")
        try:
            quote = urlsafe_b64encode(self._quote(report)).rstrip(b"=").decode()
        except FormatError:  # not a report of this machine
            return _error(400, "Bad request. The report is not valid")
        return json_response({"quote": quote}, content_type=_JSON)

    def _amd_certification(self) -> ServiceResponse:
        if self._certification is None:
            return _error(404, "Not found")
        vcek, tcb, chain = self._certification()
        fields = {"vcekCert": vcek, "tcbm": tcb, "certificateChain": chain, "cacheControl": "86400"}
        return json_response(fields, content_type=_JSON)


def faulty_response(fault: str) -> ServiceResponse:
    """Return the response of a service with the fault `fault`.

    It is "imds_unavailable", "imds_redirect", "imds_huge" or "imds_slow", whose response is long,
    so that a client notices between two reads that its time is up.
    """
    if fault == "imds_unavailable":
        return _error(503, "Service unavailable")
    if fault == "imds_redirect":
        return ServiceResponse(302, (("Location", "http://attestkit.invalid/"),), b"")
    return content_response(_JSON, b" " * (_HUGE if fault == "imds_huge" else _LONG))


def _read_report(body: bytes) -> bytes | None:
    """Return the TD report, 1024 bytes, in a request's body: JSON with `report` in base64url.

    None if the body is malformed.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    text = fields.get("report") if isinstance(fields, dict) else None
    if not isinstance(text, str) or not _BASE64URL.fullmatch(text):
        return None
    with suppress(Base64Error, ValueError):
        report = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return report if len(report) == _TD_REPORT_SIZE else None
    return None


def _error(status: int, text: str) -> ServiceResponse:
    return json_response({"error": text}, status, _JSON)


@final
class ImdsServer:
    """HTTP server of the simulated metadata service, by default on the loopback interface.

    A thread waits for connections, and each has a thread of its own.
    """

    def __init__(self, respond: Respond, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        """Listen on an address.

        Args:
            respond: Responds to requests, such as `SimulatedImds.handle`; called in threads.
            address: IPv4 address and port; port 0: a free one.

        Raises:
            OSError: If the address cannot be bound.
        """
        from http.server import ThreadingHTTPServer  # lazy: rarely needed

        self._server = ThreadingHTTPServer(address, _make_handler(respond))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """IPv4 address and port on which it listens."""
        host, port = self._server.server_address[:2]
        return str(host), port

    @property
    def url(self) -> str:
        """URL of the service, without a path."""
        host, port = self.address
        return f"http://{host}" if port == _HTTP else f"http://{host}:{port}"

    def close(self) -> None:
        """Stop the server. A second call has no effect."""
        with suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)  # on Linux, this ends each `accept`
        self._thread.join(_CLOSING_S)
        self._server.server_close()

    def _serve(self) -> None:
        """Handle connections until the server is closed."""
        with suppress(OSError):
            while True:
                self._server.process_request(*self._server.get_request())


def _make_handler(respond: Respond) -> "type[BaseHTTPRequestHandler]":
    from http.server import BaseHTTPRequestHandler  # lazy: rarely needed

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = "attestkit-simulated-imds"
        sys_version = ""
        timeout = 30.0

        def handle(self) -> None:
            """Handle the requests of a connection, which the client may close at any time."""
            with suppress(ConnectionError):
                super().handle()

        def _respond(self) -> None:
            length = self.headers.get("Content-Length") or "0"
            if not length.isdecimal() or int(length) > _MAX_BODY:
                self.close_connection = True
                self.send_error(413)
                return
            body = self.rfile.read(int(length))
            headers = {name.lower(): value for name, value in self.headers.items()}
            response = respond(self.command, self.path, headers, body)
            self.send_response(response.status)
            for name, value in response.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            try:
                self.wfile.write(response.body)
            except ConnectionError:  # a client that read as much as it wanted
                self.close_connection = True

        do_GET = do_POST = do_PUT = _respond  # noqa: N815 - names of the base class

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
            """Log nothing; the arguments are those of the base class."""

    return Handler
