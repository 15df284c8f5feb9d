"""ASGI application of the simulator's PCCS, and of NVIDIA's services for its GPUs."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Final, TypeVar

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.pccs import ServedPlatform, SimulatedPccs
from attestkit.backends.simulator.service_response import ServiceResponse
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Traffic
from attestkit.serve.http.asgi import Receive, Scope, Send, send_response
from attestkit.serve.http.request_body import (
    BodyReader,
    DisconnectedError,
    TooLargeError,
    TooManyBodiesError,
)
from attestkit.serve.http.views import Header

if TYPE_CHECKING:
    from attestkit.backends.simulator.gpu.gpu_host import SimulatedGpuServices

_MAX_BODY: Final = 1 << 20  # bytes of a request: those to NRAS have evidence of several GPUs
_PLAIN: Final = ("Content-Type", "text/plain")
_ONLY_GET: Final = ServiceResponse(405, (_PLAIN, ("Allow", "GET")), b"This path serves only GET.")
_GET_OR_POST: Final = ServiceResponse(
    405, (_PLAIN, ("Allow", "GET, POST")), b"Only GET and POST are served."
)
_NOT_FOUND: Final = ServiceResponse(404, (_PLAIN,), b"Not found.")
_UNREAD: Final = (_PLAIN, ("connection", "close"))  # of requests whose body is not read to its end
_TOO_LARGE: Final = ServiceResponse(413, _UNREAD, b"Request too large.")
_BUSY: Final = ServiceResponse(503, _UNREAD, b"Too many large requests.")
_FAILED: Final = ServiceResponse(500, (_PLAIN,), b"Internal error.")
_Response = TypeVar("_Response", ServiceResponse, ServiceResponse | None)
_logger = logging.getLogger("attestkit.serve")


def make_pccs(simulator: Simulator) -> SimulatedPccs:
    """Return a PCCS that serves the collateral of this simulated TD, and of enclaves beside it.

    Raises:
        UnsupportedError: If the simulated guest is not a TD.
    """
    sgx = simulator.sgx_collateral if simulator.platform == "tdx" else None
    platforms = [ServedPlatform(*simulator.served_platform)]
    return SimulatedPccs(simulator.collateral, platforms, sgx)


def make_gpu_services(simulator: Simulator) -> "SimulatedGpuServices | None":
    """Return the services for the GPUs of a simulated machine; None without GPUs."""
    if not simulator.has_gpus:
        return None
    from attestkit.backends.simulator.gpu.gpu_host import SimulatedGpuServices  # lazy

    return SimulatedGpuServices(simulator.gpus, simulator.unix_time)


@dataclass(eq=False)
class PccsApp:
    """ASGI application of a PCCS, which serves only GET, and of services of GPUs, also with POST.

    Args:
        pccs: Produces the responses about Intel platforms; None: there are none.
        headers: Sent with every response, including the listener's own errors.
        traffic: Counters of the requests.
        gpus: Produces the responses about GPUs; None: there are none.
        limits: Limits of the listener.
    """

    pccs: SimulatedPccs | None
    headers: Sequence[Header] = ()
    traffic: Traffic = field(default_factory=Traffic)
    gpus: "SimulatedGpuServices | None" = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self._bodies = BodyReader(self.limits.bodies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        begin = perf_counter()
        if scope["method"] == "POST" and self.gpus is not None:
            try:
                answer = await self._answer_post(self.gpus, scope, receive)
            except DisconnectedError:
                return
        else:
            answer = _call(lambda: self._answer_get(scope))
        self.traffic.done("pccs", answer.status, perf_counter() - begin)
        start = [(name.encode("ascii"), value.encode("ascii")) for name, value in answer.headers]
        await send_response(scope, send, answer.status, [*start, *self.headers], answer.body)

    def _answer_get(self, scope: Scope) -> ServiceResponse:
        if scope["method"] != "GET":
            return _ONLY_GET if self.gpus is None else _GET_OR_POST
        path, query = (scope[name].decode("latin-1") for name in ("raw_path", "query_string"))
        if self.gpus is not None and (found := self.gpus.get(path)) is not None:
            return found
        return _NOT_FOUND if self.pccs is None else self.pccs.respond(path, query)

    async def _answer_post(
        self, gpus: "SimulatedGpuServices", scope: Scope, receive: Receive
    ) -> ServiceResponse:
        try:
            body = await self._bodies.read(receive, 0, _MAX_BODY)
        except TooLargeError:
            return _TOO_LARGE
        except TooManyBodiesError:
            return _BUSY
        path = scope["raw_path"].decode("latin-1")
        # NRAS verifies evidence, which takes a while.
        answer = await asyncio.to_thread(_call, lambda: gpus.post(path, body))
        return answer or _ONLY_GET


def _call(respond: Callable[[], _Response]) -> "_Response | ServiceResponse":
    try:
        return respond()
    except Exception:  # log it; the client gets a generic text
        _logger.exception("PCCS: unexpected error")
        return _FAILED
