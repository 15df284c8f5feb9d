"""ASGI application of the simulated KMS's HTTPS listener: the service KMS, health and metrics."""

import asyncio
import logging
from collections.abc import MutableMapping, Sequence
from typing import Any, Final

from attestkit.backends.simulator.faults.kms_faults import DELAY, REQUEST, ROLLOVER
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import CONTENT_TYPE, Traffic
from attestkit.serve.http.asgi import (
    Receive,
    Scope,
    Send,
    encode_error,
    security_headers,
    send_response,
)
from attestkit.serve.http.request_checks import refuse_other_sites
from attestkit.serve.http.tls import SERVER_CONTEXT, TRANSPORT
from attestkit.serve.http.views import Header, View, ViewRequest, ViewResponse
from attestkit.serve.kms_service.client_evidence import EvidenceAccess
from attestkit.serve.kms_service.release_engine import ATTESTED_METHODS, SERVICE, ReleaseEngine
from attestkit.serve.kms_service.server_identity import current_state
from attestkit.serve.rpc.dispatcher import MethodContext, RpcApp
from attestkit.serve.rpc.service import Service

HEADERS: Final = security_headers(b"attestkit (simulated KMS)")
"""Of every response on all listeners of the KMS."""

_VERSION: Final[Header] = (b"x-app-version", b"v0.6.0 (attestkit, simulated)")
_FAMILIES: Final = (
    ("dstack_kms_attestation_requests_total", "Total number of KMS attestation requests."),
    ("dstack_kms_attestation_failures_total", "Total number of failed KMS attestation requests."),
)
_FAILED: Final = 400  # least status of a failure
_logger = logging.getLogger("attestkit.kms")


class KmsApp:
    """Application of the HTTPS listener; injects the faults of requests.

    Args:
        engine: Answers the requests.
        limits: Limits of the listener.
        traffic: Counters of the requests.
    """

    def __init__(self, engine: ReleaseEngine, limits: Limits, traffic: Traffic) -> None:
        self._engine = engine
        self._traffic = traffic
        self._rpc = make_rpc_app("kms", engine, SERVICE, limits, traffic)
        self._rpc.views = {"/health": View(_show_health), "/metrics": View(self._show_metrics)}
        self._rpc.headers = (*HEADERS, _VERSION)
        self._rpc.access = EvidenceAccess(engine.run)
        self.headers: Sequence[Header] = self._rpc.headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or inject a fault."""
        tls, identity = scope["extensions"]["tls"], self._engine.identity
        faults = self._engine.faults
        if (delay := faults.strike(DELAY)) is not None:
            await asyncio.sleep(delay.seconds)
        if faults.strike(ROLLOVER) is not None:
            identity.replace_roots()
            _logger.warning("simulated KMS: fault kms_rollover: the roots were replaced")
        context = tls[SERVER_CONTEXT]
        # A connection that began before a replacement of the roots gets answers of the new ones.
        current_state.set(context.state if context.shows_other else identity.state)
        fault = faults.strike(REQUEST)
        if fault is None:
            await self._rpc(scope, receive, send)
        elif fault.name == "kms_fails":
            headers = [(b"content-type", b"application/json"), *HEADERS]
            await send_response(scope, send, 500, headers, encode_error("internal error"))
        else:
            half = b""
            if fault.name == "kms_truncates":
                half = await self._half_response(scope, receive)
            await _close(tls[TRANSPORT], half, receive)

    async def _half_response(self, scope: Scope, receive: Receive) -> bytes:
        """Run the request; return the head of its response and half of the body, to be sent."""
        sent: list[MutableMapping[str, Any]] = []

        async def keep(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        await self._rpc(scope, receive, keep)
        start, *pieces = sent
        head = [b"HTTP/1.1 %d" % start["status"], *(b"%s: %s" % one for one in start["headers"])]
        body = b"".join(piece["body"] for piece in pieces)
        return b"\r\n".join([*head, b"", body[: len(body) // 2]])

    async def _show_metrics(self, _: ReleaseEngine, __: ViewRequest) -> ViewResponse:
        """Return the counters of the methods that need evidence."""
        counted = [
            (status, number)
            for (name, status), number in self._traffic.requests.items()
            if name in ATTESTED_METHODS
        ]
        requests = sum(number for _, number in counted)
        failures = sum(number for status, number in counted if status >= _FAILED)
        lines = [
            f"# HELP {name} {text}\n# TYPE {name} counter\n{name} {number}\n"
            for (name, text), number in zip(_FAMILIES, (requests, failures), strict=True)
        ]
        return ViewResponse(CONTENT_TYPE, "".join(lines).encode())


def make_rpc_app(
    name: str, context: MethodContext, service: Service, limits: Limits, traffic: Traffic
) -> RpcApp:
    """Return the application of a service of the KMS; `name` is the prefix of request ids."""
    return RpcApp(context, (service,), headers=HEADERS, limits=limits, traffic=traffic, run_id=name)


def refuse_web_pages(scope: Scope) -> None:
    """Refuse requests of web pages of other sites to a listener over plain HTTP.

    Raises:
        UsageError: If the request has Origin, or Sec-Fetch-Site names another site.
    """
    refuse_other_sites(scope["headers"])


async def _show_health(_: ReleaseEngine, __: ViewRequest) -> ViewResponse:
    return ViewResponse(CONTENT_TYPE, b"OK")


async def _close(transport: asyncio.Transport, last: bytes, receive: Receive) -> None:
    """Send `last` on a connection, close it, and wait for the message that it has ended."""
    transport.write(last)
    transport.close()
    while (await receive())["type"] != "http.disconnect":
        pass
