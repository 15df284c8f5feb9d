"""ASGI application of the simulator's PCCS."""

import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Final

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.pccs import PccsResponse, ServedPlatform, SimulatedPccs
from attestkit.serve.counters import Traffic
from attestkit.serve.http.asgi import Receive, Scope, Send, send_response
from attestkit.serve.http.views import Header

_PLAIN: Final = ("Content-Type", "text/plain")
_NOT_ALLOWED: Final = PccsResponse(405, (_PLAIN, ("Allow", "GET")), b"Only GET is served.")
_FAILED: Final = PccsResponse(500, (_PLAIN,), b"Internal error.")
_logger = logging.getLogger("attestkit.serve")


def make_pccs(simulator: Simulator) -> SimulatedPccs:
    """Return a PCCS that serves the collateral of this simulated TD."""
    return SimulatedPccs(simulator.collateral, [ServedPlatform(*simulator.served_platform)])


class PccsApp:
    """ASGI application of a PCCS; GET and HEAD only.

    Args:
        pccs: Produces the responses.
        headers: Sent with every response, including the listener's own errors.
        traffic: Counters of the requests.
    """

    def __init__(
        self, pccs: SimulatedPccs, headers: Sequence[Header] = (), traffic: Traffic | None = None
    ) -> None:
        self.headers = headers
        self._pccs = pccs
        self._traffic = traffic or Traffic()

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        begin = perf_counter()
        answer = _answer(self._pccs, scope)
        self._traffic.done("pccs", answer.status, perf_counter() - begin)
        start = [(name.encode("ascii"), value.encode("ascii")) for name, value in answer.headers]
        await send_response(scope, send, answer.status, [*start, *self.headers], answer.body)


def _answer(pccs: SimulatedPccs, scope: Scope) -> PccsResponse:
    if scope["method"] != "GET":
        return _NOT_ALLOWED
    path, query = (scope[name].decode("latin-1") for name in ("raw_path", "query_string"))
    try:
        return pccs.respond(path, query)
    except Exception:  # log it; the client gets a generic text
        _logger.exception("PCCS: unexpected error")
        return _FAILED
